"""GGUF as a quantization: the merged model as a GGUF file, scored with the very weights that the file holds.

The file is written with the package ``gguf``, which also makes the codes of the simple types. K-quants and ``iq4`` are
coded by llama.cpp's own quantizer, which the side environment ``llamacpp`` holds; ``iq`` types below 4 bits need an
importance matrix, which is not computed here.

The model that is scored holds the decoded weights. It computes in floating point, as the cell
does; llama.cpp also rounds activations, so that its answers may differ (``python -m tests.benchmarks engines``).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from harness.digests import digest_file
from harness.errors import Unsupported, UserError
from harness.models import gguf_files
from harness.quantizers.base import Quantizer, QuantizerDeclaration
from harness.quantizers.layers import one_of

if TYPE_CHECKING:  # heavy, and only for types
    from gguf import GGMLQuantizationType
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TYPES = {"f16": 16, "bf16": 16, "q8_0": 8, "q5_1": 5, "q5_0": 5, "q4_1": 4, "q4_0": 4}
"""Types that the package ``gguf`` can code, and the bits of a code."""
TOOL_TYPES = {
    "q6_k": 6,
    "q5_k_m": 5,
    "q5_k_s": 5,
    "q4_k_m": 4,
    "q4_k_s": 4,
    "iq4_nl": 4,
    "iq4_xs": 4,
    "q3_k_l": 3,
    "q3_k_m": 3,
    "q3_k_s": 3,
    "q2_k": 2,
}
"""Types that llama.cpp's quantizer codes without an importance matrix. ``_m`` and ``_l`` mix wider types in."""
EMBEDDINGS = "q8_0"
"""Type of embeddings and output where the others are narrower: their errors reach every token."""
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""``model_type`` to GGUF's name of the architecture."""
PERMUTED = "llama"
"""The architecture whose queries and keys GGUF stores with the two halves of each rotated pair side by side."""

_WORDS, _SIGNS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_SPLITS = {_WORDS + r"\p{N}{1,3}" + _SIGNS: "llama-bpe", _WORDS + r"\p{N}" + _SIGNS: "qwen2"}
"""Regular expression that splits a text before byte-level BPE, to llama.cpp's name of it."""
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_TOOL = """
import ctypes, sys, llama_cpp
source, target, kind = sys.argv[1:4]
settings = llama_cpp.llama_model_quantize_default_params()
settings.nthread, settings.ftype = 1, getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind.upper())
print(llama_cpp.__version__)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)))
"""
_TOOL_S = 3600


class GGUF(Quantizer):
    """The types of ``gguf``'s own quantization."""

    types: ClassVar[Mapping[str, int]] = TYPES
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="gguf",
        summary="A GGUF file (f16, bf16, q8_0, q5, q4) of the merged model; scored with the weights it decodes to.",
        base="gguf",
        bits=8,
        moments=frozenset({"after_merge"}),
        package="gguf",
        pip="gguf",
        defaults={"type": "q8_0"},
        source="the package gguf, gguf.quants; blocks of 32 with a float16 scale (_1: and a minimum)",
    )

    def __init__(self, params: Mapping[str, object], kind: str, device: str = "cpu") -> None:
        super().__init__(params, kind, device)
        self._facts: dict[str, object] = {}

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: the type is none that this back end can code; where another can, it is named.
        """
        resolved = super().resolve(params, where=where)
        for other in (GGUF, LlamaCppGGUF):
            if resolved["type"] in other.types and resolved["type"] not in cls.types:
                raise UserError(
                    f"{cls.declaration.name} cannot code the type {resolved['type']!r}",
                    where=where,
                    fix=f"Use the quantizer {other.declaration.name!r}.",
                )
        one_of("type", resolved["type"], tuple(cls.types), where)
        return resolved

    @classmethod
    def nominal_bits(cls, params: Mapping[str, Any]) -> float:
        """Bits of a code of the type."""
        return float(cls.types[params["type"]])

    @classmethod
    def check_model(cls, kind: str, config: Mapping[str, object] | None, params: Mapping[str, object]) -> str | None:
        """Reason why no GGUF file of such a model can be written, or None."""
        if kind != "causal-lm":
            return f"{cls.declaration.name} writes language models, and the task needs a classifier"
        if config is None:
            return None
        known, scaling = config.get("model_type"), config.get("rope_scaling")
        if known is not None and known not in ARCHITECTURES:
            return f"{cls.declaration.name} does not write the architecture {known!r}; it writes " + ", ".join(
                ARCHITECTURES
            )
        kind_of_scaling = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else None
        if kind_of_scaling not in (None, "default"):
            return f"{cls.declaration.name} does not write the position scaling {kind_of_scaling!r}"
        return None

    def apply(self, model: nn.Module) -> nn.Module:
        """Write the file and put the weights that it decodes to in the place of the model's own.

        Raises:
            Unsupported: the architecture or one of its tensors has no name in GGUF.
        """
        import torch

        reason = self.check_model(self.kind, cast(Any, model).config.to_dict(), self.params)
        if reason is not None:
            raise Unsupported(reason)
        with tempfile.TemporaryDirectory(prefix="peft-matrix-gguf-", dir=self._folder()) as scratch:
            file = self.code(model, Path(scratch))
            self.file = self._keep(file)
            assert self.file is not None
            with torch.no_grad():
                self._facts |= {"type": self.params["type"], **read_into(self.file, model)}
        self._facts |= {"file_bytes": self.file.stat().st_size, "file_sha256": digest_file(self.file)}
        return model

    def code(self, model: nn.Module, folder: Path) -> Path:
        """The file, written into ``folder``."""
        file = folder / "model.gguf"
        self._facts["tokenizer"] = write(model, self.tokenizer, file, self.params["type"])
        return file

    def facts(self) -> dict[str, Any]:
        """Type, bytes and digest of the file; elements by stored type; bits per weight; the tokenizer in it."""
        return self._facts

    def _folder(self) -> Path | None:
        if self.cache is None:
            return None
        folder = self.cache / "gguf"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _keep(self, file: Path) -> Path:
        """The file under its digest: in the cache, where there is one, so that other engines can load it."""
        folder = self._folder() or Path(tempfile.mkdtemp(prefix="peft-matrix-gguf-"))
        kept = folder / f"{digest_file(file)[:16]}-{self.params['type']}.gguf"
        os.replace(file, kept)
        return kept


class LlamaCppGGUF(GGUF):
    """The types of llama.cpp's quantizer."""

    types: ClassVar[Mapping[str, int]] = TOOL_TYPES
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="gguf-llamacpp",
        summary="A GGUF file in k-quants or iq4 by llama.cpp's quantizer; scored with the weights it decodes to.",
        base="gguf",
        bits=4,
        devices=frozenset({"cpu", "cuda"}),
        moments=frozenset({"after_merge"}),
        package="gguf",
        pip="gguf",
        defaults={"type": "q4_k_m"},
        source="llama.cpp, llama_model_quantize with its default settings and no importance matrix, from float32",
        tool_environment="llamacpp",
    )

    def code(self, model: nn.Module, folder: Path) -> Path:
        """See :class:`GGUF`.

        Raises:
            Unsupported: the quantizer refused, with its own last line.
        """
        tool = self.tools.get(self.declaration.tool_environment)
        if tool is None:
            raise Unsupported("gguf-llamacpp needs llama.cpp's quantizer: peft-matrix env create llamacpp")
        plain, file = folder / "plain.gguf", folder / "model.gguf"
        self._facts["tokenizer"] = write(model, self.tokenizer, plain, "f32")
        command = [tool, "-c", _TOOL, str(plain), str(file), self.params["type"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TOOL_S, cwd=folder)
        if done.returncode or not file.is_file():
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unsupported(f"llama.cpp's quantizer refused {self.params['type']}: {said[:200]}")
        plain.unlink()
        self._facts["tool"] = f"llama-cpp-python {done.stdout.split()[0]}"
        return file


# --- writing ---------------------------------------------------------------------------------------
def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, kind: str) -> str:
    """Write the model as a GGUF file; what was written of the tokenizer, in words.

    Matrices whose rows a block does not divide are stored in float16, as llama.cpp's own converter does.

    Args:
        kind: the type of the matrices; vectors are float32.

    Raises:
        Unsupported: a tensor has no name in GGUF.
    """
    import gguf

    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(Path(str(getattr(config, "_name_or_path", "") or "model")).name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope_base(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    said = write_tokenizer(writer, tokenizer, config.vocab_size)
    for ours, theirs, heads in names(model):
        values = permuted(model.get_parameter(ours).detach().float().cpu(), heads).numpy()
        stored = stored_type(values.shape, kind, embedding=theirs in ("token_embd.weight", "output.weight"))
        writer.add_tensor(theirs, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return said


def stored_type(shape: tuple[int, ...], kind: str, *, embedding: bool) -> GGMLQuantizationType:
    """The type that a tensor is stored in."""
    import gguf

    types = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return types.F32
    kind = EMBEDDINGS if embedding and TYPES.get(kind, 32) < TYPES[EMBEDDINGS] else kind
    found = types[kind.upper()]
    return found if shape[-1] % gguf.GGML_QUANT_SIZES[found][0] == 0 else types.F16


def names(model: PreTrainedModel) -> Iterator[tuple[str, str, int]]:
    """Every parameter: its name, its name in GGUF, and the heads whose rows are permuted (0: none).

    Raises:
        Unsupported: GGUF has no name for it.
    """
    import gguf

    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, _ in model.named_parameters():  # tied weights occur once
        found = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise Unsupported(f"GGUF has no name for the tensor {name!r} of the architecture {architecture!r}")
        part = found.split(".")[-2]
        yield name, found, heads.get(part, 0) if architecture == PERMUTED else 0


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in GGUF's order: the two halves of each head alternate. ``heads`` 0 leaves them."""
    if not heads:
        return weight
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape).contiguous()


def restored(weight: Tensor, heads: int) -> Tensor:
    """The inverse of :func:`permuted`."""
    if not heads:
        return weight
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape).contiguous()


def rope_base(config: PreTrainedConfig) -> float:
    """Base of the rotary positions, wherever this version of transformers keeps it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0)


def write_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int) -> str:
    """Write a byte-level BPE tokenizer; of any other kind the file gets none. What was written, in words.

    Args:
        rows: of the embedding; ids beyond the vocabulary get a placeholder.
    """
    content, split = _byte_level(tokenizer)
    if content is not None and max(content["model"]["vocab"].values()) >= rows:
        content, split = None, "it has more tokens than the model embeds"
    if content is None:
        writer.add_tokenizer_model("none")
        return f"none: {split}"
    beyond = [added["content"] for added in content["added_tokens"] if added["id"] >= rows]
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [_UNUSED] * rows
    for text, i in content["model"]["vocab"].items():
        tokens[i], types[i] = text, _NORMAL
    for added in (a for a in content["added_tokens"] if a["id"] < rows):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]])
    for name in ("bos", "eos", "pad", "unk"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None and token < rows:
            getattr(writer, f"add_{name}_token_id")(token)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    return f"gpt2/{split}" + (f", without {', '.join(beyond)}, which the model does not embed" if beyond else "")


def _byte_level(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any] | None, str]:
    """The content of a byte-level BPE tokenizer and llama.cpp's name of how it splits texts; None and why not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {}
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if content.get("model", {}).get("type") != "BPE" or "ByteLevel" not in kinds:
        return None, "only byte-level BPE is written"
    origin = gguf_files.facts_of(Path(str(getattr(tokenizer, "name_or_path", "")))) or {}
    model, _, split = str(origin.get("tokenizer", "")).partition("/")
    if model == "gpt2" and split not in ("", "None"):
        return content, split  # read from a GGUF file, which named it
    splits = [_SPLITS.get(step["pattern"].get("Regex", "")) for step in steps if step["type"] == "Split"]
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return content, "smollm"
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return content, "gpt-2"
    if kinds == ["Split", "ByteLevel"] and splits[0] is not None:
        return content, splits[0]
    return None, "llama.cpp's name for how it splits texts is not known here"


# --- reading back ----------------------------------------------------------------------------------
def read_into(path: Path, model: PreTrainedModel) -> dict[str, object]:
    """Put the weights of a file into the model it was written from; elements by type and bits per weight.

    Raises:
        Unsupported: the file lacks a tensor of the model.
    """
    import gguf
    import torch

    reader = gguf.GGUFReader(path)
    held = {tensor.name: tensor for tensor in reader.tensors}
    counts: dict[str, int] = {}
    stored = 0
    for ours, theirs, heads in names(model):
        tensor = held.get(theirs)
        if tensor is None:
            raise Unsupported(f"{path.name} holds no tensor {theirs!r}")
        parameter = model.get_parameter(ours)
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        parameter.data.copy_(restored(values.reshape(parameter.shape), heads))
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + parameter.numel()
        stored += int(tensor.n_bytes)
    elements = sum(counts.values())
    return {"elements_by_type": counts, "tensor_bytes": stored, "bits_per_weight": 8 * stored / elements}
