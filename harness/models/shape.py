"""Sizes of a model from its configuration, and names of its modules from its files; the model is not loaded."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.models import gguf_files
from harness.models.files import safetensors_elements, safetensors_shapes
from harness.models.skeleton import skeleton
from harness.models.sources import local_folder, read_config, recipe, scheme_of


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer.

    Attributes:
        parameters: counted in the files of a local model, as published for a skeleton, else from the configuration:
            projections, feed-forward and embeddings; norms are left out.
    """

    parameters: int
    layers: int
    hidden: int
    vocabulary: int


@functools.cache
def shape_of(model_id: str, revision: str | None = None) -> Shape | None:
    """The shape of a model with a local configuration, None if that would need a download or cannot be read."""
    config = _config(model_id, revision)
    shape = from_config(config) if config is not None else None
    if shape is None:
        return None
    folder = local_folder(model_id) if scheme_of(model_id) in ("path", "package") else None
    if folder is not None:
        return replace(shape, parameters=sum(map(safetensors_elements, folder.glob("*.safetensors"))))
    if scheme_of(model_id) == "gguf" and (file := gguf_files.local_file(model_id)) is not None:
        return replace(shape, parameters=sum(gguf_files.header(file).tensor_types.values()))
    if scheme_of(model_id) == "skeleton" and not skeleton(model_id).overrides:
        return replace(shape, parameters=skeleton(model_id).parameters)
    return shape


def from_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a transformers configuration describes; None without the usual names."""
    if "kv_lora_rank" in config:  # latent attention has other matrices
        return None
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        vocabulary, heads = int(config.get("vocab_size") or 0), int(config["num_attention_heads"])
        inner = int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 4 * hidden)
        head = int(config.get("head_dim") or hidden // heads)
        kv = int(config.get("num_key_value_heads") or heads)
        experts = int(config.get("num_local_experts") or config.get("num_experts") or 1)
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    if min(hidden, layers, heads, inner, head, kv, experts) < 1 or vocabulary < 0:
        return None
    attention = 2 * hidden * heads * head + 2 * hidden * kv * head
    gated = "rms_norm_eps" in config or config.get("hidden_act") == "silu"  # the Llama family has three matrices
    feed_forward = (3 if gated else 2) * hidden * inner
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", True) else 2)
    return Shape(layers * (attention + experts * feed_forward) + embeddings, layers, hidden, vocabulary)


def _config(model_id: str, revision: str | None) -> Mapping[str, object] | None:
    scheme = scheme_of(model_id)
    if scheme == "builtin":
        data = recipe(model_id.partition(":")[2]).data
        return {"vocab_size": len(data["alphabet"]) + 4, "rms_norm_eps": 1e-6, **data["config"]}
    if scheme == "skeleton":
        return skeleton(model_id).config
    if scheme == "gguf":
        return gguf_files.config(model_id)
    folder = local_folder(model_id)
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model_id, "config.json", revision=revision)
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    else:
        path = folder / "config.json"
    try:
        return read_config(path)
    except UserError:  # said where the model is named; here there is no size
        return None


# --- names of modules --------------------------------------------------------------------------------
LLAMA = (*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down")))
"""Linear layers of a block of the built-in models, which are Llamas."""
RENAMED = ("num_local_experts", "num_experts", "n_routed_experts", "text_config", "vision_config", "auto_map")
"""Keys of configurations whose modules may be called otherwise than the tensors in the files."""


@functools.cache
def module_names(model_id: str, revision: str | None = None) -> frozenset[str] | None:
    """Full names of the modules with weights of a model whose files are at hand; None where they are not known here.

    They are those of the files. The model that is trained may have a prefix before them, or they one before its own.
    """
    scheme = scheme_of(model_id)
    if scheme == "builtin":
        layers = recipe(model_id.partition(":")[2]).data["config"]["num_hidden_layers"]
        return frozenset(f"model.layers.{at}.{name}" for at in range(layers) for name in LLAMA)
    config = _config(model_id, revision) if scheme in ("path", "package", "hub") else None
    if config is None or any(key in config for key in RENAMED):
        return None
    try:
        tensors = [name for path in _weights(model_id, revision) for name in safetensors_shapes(path)]
    except UserError:  # said where the model is named; here there are no names
        return None
    return frozenset(name.rpartition(".")[0] for name in tensors if name.endswith(".weight")) or None


def _weights(model_id: str, revision: str | None) -> list[Path]:
    """The safetensors files of a model; none where they are not on this machine."""
    folder = local_folder(model_id)
    if folder is not None:
        return sorted(folder.glob("*.safetensors"))
    from huggingface_hub import try_to_load_from_cache

    whole = try_to_load_from_cache(model_id, "model.safetensors", revision=revision)
    return [Path(whole)] if isinstance(whole, str) else []
