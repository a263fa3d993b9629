"""Quantities that follow from shapes: trainable parameters, adapter file, optimizer state of a real architecture.

The architecture is built on torch's meta device, so no weight is allocated or downloaded; the method attaches to it
as it would to the real model. What is counted becomes a record like any other.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness import provenance
from harness.errors import CheckFailed, UserError
from harness.meters.attribution import model_bytes
from harness.methods.base import Method, Setting
from harness.methods.catalog import METHODS
from harness.metrics import missing, reading
from harness.models import skeleton
from harness.record import PROTOCOL, Outcome, Reading, Record

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedModel

LARGEST_FILE_BYTES = 2**30
"""A result of training above this is not written only to learn its size."""
BYTES_PER_STATE = {"adam": 2.0, "adam-8bit": 1.0}
"""Bytes of one optimizer state: bfloat16, or 8-bit blocks (their scales, below 1 %, are left out)."""


def count(key: str, wanted: Mapping[str, Any], *, sweep: str) -> Record:
    """Count one method on one architecture.

    Args:
        key: key of the record.
        wanted: ``architecture`` (a skeleton's name), ``method``, ``params``, and for the optimizer's state
            ``optimizer`` and ``rank``.
        sweep: name the record is filed under.

    Returns:
        A record that ended ``ok``, or ``error`` with the reason why it cannot be counted.
    """
    started = _now()
    method_name, params = str(wanted["method"]), dict(wanted["params"])
    metrics: dict[str, Reading] = {}
    try:
        metrics = _metrics(wanted)
        outcome = Outcome(status="ok", stage="attach")
    except Exception as error:  # any library may refuse a model without weights
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        outcome = Outcome(status="error", stage="attach", reason=reason[:500], log_tail=traceback.format_exc()[-2000:])
    environment = provenance.environment()
    return Record(
        key=key,
        label=f"count/{wanted['architecture']}/{method_name}/{key[:8]}",
        sweep=sweep,
        cell={
            "model": {"label": wanted["architecture"], "id": f"skeleton:{wanted['architecture']}", "weights": "none"},
            "method": {"label": method_name, "name": method_name, "params": params, "learning_rate": None},
            "quantization": {"label": "none", "name": "none"},
            "task": {"label": "count"},
            "hardware": {"label": "none", "device": "meta"},
            "optimizer": {"name": wanted.get("optimizer"), "rank": wanted.get("rank")},
            "seed": 0,
            "protocol": PROTOCOL,
        },
        outcome=outcome,
        metrics=metrics,
        environment=environment,
        fingerprint=provenance.fingerprint(environment),
        started=started,
        finished=_now(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _metrics(wanted: Mapping[str, Any]) -> dict[str, Reading]:
    model = skeleton.build_meta(str(wanted["architecture"]))
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    method = _method(str(wanted["method"]), dict(wanted["params"]))
    expected = method.expected_trainable(model)
    found = [reading("base_bytes", model_bytes(model), source="sum over tensors on the meta device, bfloat16")]
    try:
        with torch.device("meta"):
            model = method.attach(model)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        # some methods compute with the weights when they attach: then only their declared formula is left
        if expected is None:
            raise
        why = {"attach": f"{type(error).__name__}: {str(error)[:200]}"}
        source = "the method's declared formula; it cannot attach without weights"
        found.append(reading("trainable_parameters", expected, source=source, details=why))
        found.append(missing("adapter_bytes", "not_supported", source="safetensors files", details=why))
        return {r.quantity: r for r in found}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if expected is not None and expected != trainable:
        raise CheckFailed("trainable-count", f"{trainable} parameters are trainable, its formula says {expected}")
    found.append(reading("trainable_parameters", trainable, source="counted on the meta device"))
    found.append(_optimizer_state(model, wanted.get("optimizer"), wanted.get("rank")))
    found.append(_adapter_bytes(method, model, own))
    return {r.quantity: r for r in found}


def _method(name: str, params: dict[str, object]) -> Method:
    kind = METHODS.get(name, where="count")
    setting = Setting(
        kind="causal-lm",
        base="fp",
        seed=0,
        steps=1,
        learning_rate=1e-4,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        device="cpu",
    )
    return kind(kind.resolve(params, where=f"count of {name}"), setting)


def _adapter_bytes(method: Method, model: PreTrainedModel, own: set[int]) -> Reading:
    """Size of the safetensors files, written with zeros in place of the values that the method would have added."""
    source = "safetensors files of these shapes, written once"
    added = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if method.promise.in_place or added > LARGEST_FILE_BYTES:
        details = {"note": "the whole model would be written" if method.promise.in_place else "above 1 GiB"}
        return missing("adapter_bytes", "not_measured", source=source, details=details)
    _materialise(model, own)
    with tempfile.TemporaryDirectory() as folder:
        try:
            method.save(model, Path(folder))
        except NotImplementedError as error:  # what is saved is computed from the base's weights
            return missing("adapter_bytes", "not_supported", source=source, details={"save": str(error)[:200]})
        files = [p for p in Path(folder).rglob("*") if p.suffix == ".safetensors"]
        return reading("adapter_bytes", sum(p.stat().st_size for p in files), source=source, n=len(files))


def _materialise(model: nn.Module, own: set[int]) -> None:
    """Zeros in memory for every tensor that the method brought; the base's stay without storage."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in own and parameter.is_meta:
                zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(zeros, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if id(buffer) not in own and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def _optimizer_state(model: nn.Module, optimizer: str | None, rank: int | None) -> Reading:
    """Estimated bytes of the optimizer's states.

    Adam keeps two states a trained entry. GaLore (arXiv:2403.03507, table 1) keeps, for a matrix m x n with
    m <= n, two states r x n and its projector m x r; here for matrices inside the blocks, as its released
    settings do, with plain Adam for embeddings, heads and vectors.
    """
    name = "optimizer_state_bytes_estimated"
    source = "estimated from shapes"
    if optimizer is None:
        return missing(name, "not_measured", source=source)
    each = BYTES_PER_STATE[optimizer.replace("galore", "adam")]
    total = 0.0
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        projected = optimizer.startswith("galore") and parameter.ndim == 2 and ".layers." in f".{path}"
        if projected and rank is not None and rank < min(parameter.shape):
            small, large = sorted(parameter.shape)
            total += each * 2 * rank * large + 2.0 * small * rank  # the projector stays in bfloat16
        else:
            total += each * 2 * parameter.numel()
    return reading(name, total, source=source, details={"optimizer": optimizer, "rank": rank})
