"""Skeleton models: the published architecture of a real model with random weights (``skeleton:NAME``).

Memory, speed and energy of training and inference follow from the architecture, the shapes and the dtype, not from
what the weights know; a skeleton measures them without a download. What it answers means nothing, so no score of it
is ever published. ``skeletons.yaml`` holds the architectures; ``skeleton:NAME?num_hidden_layers=2`` changes one.

The tokenizer is our own: one token per byte of UTF-8, behind four special tokens. The vocabulary of the model keeps
its published size, so embeddings and logits cost what they cost; a text has about four times the tokens that the
model's own tokenizer would give it, up to the sweep's ``max_length``.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl

from harness.digests import digest
from harness.errors import Unsupported, UserError, did_you_mean
from harness.models.build_once import made_once
from harness.yamlfile import load_yaml

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PRESETS = Path(__file__).with_name("skeletons.yaml")
SEED = 0
"""Seed of the weights: a base model is the same for every seed of a cell, as a downloaded one is."""
VERSION = 1
"""Raised when the same preset would give another model or tokenizer."""
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
TOKENS = len(SPECIAL_TOKENS) + 256
MARK = "skeleton.json"
"""File in a skeleton's folder; if it is there without safetensors, the weights are drawn in memory."""

Head = Literal["causal-lm", "sequence-classification", "none"]


@dataclass(frozen=True)
class Skeleton:
    """An architecture, resolved.

    Attributes:
        name: the preset's name.
        model_type: transformers' name of the architecture.
        config: configuration values, the overrides laid over the preset's.
        overrides: what the model id changed.
        parameters: published parameter count of the preset, without overrides.
        context: positions a text may fill, where the configuration counts more than that.
    """

    name: str
    model_type: str
    config: dict[str, Any]
    parameters: int
    context: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """Digest of everything that makes the model."""
        content = {"model_type": self.model_type, "config": self.config, "context": self.context}
        return digest({**content, "seed": SEED, "version": VERSION})[:16]

    @property
    def label(self) -> str:
        """The readable name: never the name of the real model alone, and a different one if a value was changed."""
        return f"{self.name}-random" + (f"-{self.revision[:6]}" if self.overrides else "")

    @property
    def encoder(self) -> bool:
        """True if the architecture has no causal language-model head."""
        return self.model_type == "roberta"


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """The architectures of ``skeletons.yaml`` by name."""
    data: dict[str, dict[str, Any]] = load_yaml(PRESETS)[0]
    return data


@functools.cache
def skeleton(model_id: str, *, where: str = "") -> Skeleton:
    """The skeleton that ``skeleton:NAME`` or ``skeleton:NAME?key=value&...`` names.

    Raises:
        UserError: no such preset; a key that its configuration does not have; fewer tokens than the tokenizer.
    """
    name, _, query = model_id.partition(":")[2].partition("?")
    if name not in presets():
        raise UserError(f"unknown architecture {name!r}", where=where, fix=did_you_mean(name, presets()))
    preset = presets()[name]
    overrides = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in preset["config"]:
            raise UserError(
                f"{name} has no configuration value {key!r} to change",
                where=where,
                fix=did_you_mean(key, preset["config"]),
            )
        try:
            overrides[key] = json.loads(text)
        except ValueError:
            raise UserError(f"{key}={text!r} is no JSON value", where=where) from None
    config = {**preset["config"], **overrides}
    if config["vocab_size"] < TOKENS:
        raise UserError(f"vocab_size must be at least {TOKENS}, the tokens of the byte tokenizer", where=where)
    return Skeleton(
        name=name,
        model_type=preset["model_type"],
        config=config,
        parameters=preset["parameters"],
        context=preset.get("context"),
        overrides=overrides,
    )


# --- making it -----------------------------------------------------------------------------------
def ensure(wanted: Skeleton, cache: Path) -> Path:
    """Folder with configuration and tokenizer of the skeleton, and no weights; made on the first call."""

    def make(folder: Path) -> None:
        configuration(wanted).save_pretrained(folder)
        build_tokenizer(wanted).save_pretrained(folder)
        facts = {"skeleton": wanted.name, "encoder": wanted.encoder, "seed": SEED, "overrides": wanted.overrides}
        (folder / MARK).write_text(json.dumps(facts))

    return made_once(cache / "models" / f"{wanted.name}-{wanted.revision}", make)


def with_weights(folder: Path, *, dtype: str) -> Path:
    """The skeleton of ``folder`` as a checkpoint that ``from_pretrained`` reads, made on the first call.

    For quantizers that act while a checkpoint is being read. The weights are drawn on the CPU, so the files are
    the same on every machine, and take as many bytes of host memory and disk as the model has in ``dtype``.
    """

    def make(scratch: Path) -> None:
        import torch
        from transformers import AutoTokenizer

        head: Head = "none" if json.loads((folder / MARK).read_text())["encoder"] else "causal-lm"
        model = build(folder, head, dtype=getattr(torch, dtype), device="cpu", attention="eager")
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(folder).save_pretrained(scratch)
        (scratch / MARK).write_bytes((folder / MARK).read_bytes())

    return made_once(folder.with_name(f"{folder.name}-{dtype}"), make)


def is_bare(path: str) -> bool:
    """True if ``path`` is a skeleton's folder without weights, whose weights are to be drawn in memory."""
    folder = Path(path)
    return (folder / MARK).is_file() and not any(folder.glob("*.safetensors"))


def build(
    folder: str | Path,
    head: Head,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str = "sdpa",
    **settings: object,
) -> PreTrainedModel:
    """The skeleton's model with seeded random weights, made directly on ``device`` in ``dtype``.

    The same seed gives the same weights on the same kind of device; CPU and CUDA draw different ones.

    Args:
        folder: what :func:`ensure` gave.
        head: which transformers class to build.
        settings: additional configuration values, such as ``num_labels``.

    Raises:
        Unsupported: the architecture does not have that attention.
    """
    from transformers import AutoConfig

    return _draw(AutoConfig.from_pretrained(folder, **settings), head, dtype=dtype, device=device, attention=attention)


def build_meta(architecture: str) -> PreTrainedModel:
    """The architecture in bfloat16 on torch's meta device: every shape and no storage. ``architecture`` as in the id.

    Raises:
        UserError: no such architecture.
    """
    import torch

    wanted = skeleton(f"skeleton:{architecture}")
    head: Head = "none" if wanted.encoder else "causal-lm"
    return _draw(configuration(wanted), head, dtype=torch.bfloat16, device="meta", attention="eager")


def configuration(wanted: Skeleton) -> PreTrainedConfig:
    """The transformers configuration, with the token ids of our tokenizer."""
    from transformers import AutoConfig

    tokens = {f"{name}_token_id": SPECIAL_TOKENS.index(f"<{name}>") for name in ("pad", "bos", "eos")}
    return AutoConfig.for_model(wanted.model_type, **wanted.config, **tokens)


def _draw(
    config: PreTrainedConfig, head: Head, *, dtype: torch.dtype, device: torch.device | str, attention: str
) -> PreTrainedModel:
    import torch
    import transformers as tf

    classes = {
        "causal-lm": tf.AutoModelForCausalLM,
        "sequence-classification": tf.AutoModelForSequenceClassification,
        "none": tf.AutoModel,
    }
    torch.manual_seed(SEED)
    try:
        with torch.device(device):
            model = classes[head].from_config(config, dtype=dtype, attn_implementation=attention)
    except ValueError as error:
        if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
            raise Unsupported(f"{config.model_type} has no sdpa attention; set 'attention: eager'") from error
        raise
    model.eval()
    return model


def build_tokenizer(wanted: Skeleton) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer: BOS in front, and for an encoder EOS behind, put there by its post-processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tail = " <eos>" if wanted.encoder else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<bos> $A{tail}",
        pair=f"<bos> $A{tail} <bos> $B{tail}",
        special_tokens=[(token, vocabulary[token]) for token in ("<bos>", "<eos>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=wanted.context or wanted.config["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
