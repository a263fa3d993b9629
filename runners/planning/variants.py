"""Reasons why a variant, or a strategy on several devices, cannot train a cell.

What only the running machine can tell is refused by the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from harness.matrix import Cell
from harness.methods.base import Method
from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS


def why_not(cell: Cell, kind: str, device: str) -> str | None:
    """Reason why the cell's variant cannot train it on such a device, or None.

    Args:
        kind: model kind.
        device: ``cpu`` or ``cuda``.
    """
    if (apart := _parallel(cell, device)) is not None:
        return apart
    switches = cell.switches
    for name in ("attention", "dtype"):
        if switches.get(name) == cell.model.identity[name]:
            return f"the variant changes nothing: the model already has {name}: {switches[name]}"
    method = METHODS.get(cell.method.name)
    refusals: dict[str, Callable[[], str | None]] = {
        "dtype": lambda: _dtype(cell),
        "packing": lambda: _packing(cell, kind, method),
        "compile": lambda: _own_steps(method, "compiles the forward and backward pass of the training loop"),
        "optimizer": lambda: _optimizer(method),
        "offload": lambda: _offload(device, method),
        "kernels": lambda: _kernels(device),
    }
    for name, refusal in refusals.items():
        if switches.get(name) and (reason := refusal()) is not None:
            return f"{name}: {reason}"
    return None


def _dtype(cell: Cell) -> str | None:
    return "the earlier stages trained in another dtype" if cell.on("stages") is not None else None


def _packing(cell: Cell, kind: str, method: type[Method]) -> str | None:
    if kind != "causal-lm":
        return "a classifier reads one answer a sequence, and packed texts share a sequence"
    if cell.loading["attention"] == "flash_attention_2":
        return "flash_attention_2 takes no mask of blocks; use sdpa or eager"
    for axis, default in (("objective", "sft"), ("recipe", "plain")):
        point = cell.on(axis)
        if point is not None and point.name != default:
            return f"the {axis} {point.name} reads rows one by one"
    if method.declaration.family == "prompt":
        return f"{method.declaration.name} puts its own tokens in front of every row"
    if method.loss is not Method.loss or method.task_loss is not Method.task_loss:
        return f"{method.declaration.name} computes its own loss, which reads rows one by one"
    return _own_steps(method, "packs the batches of the training loop")


def _own_steps(method: type[Method], what: str) -> str | None:
    if method.training_step is Method.training_step:
        return None
    return f"{method.declaration.name} has a custom training step, and the variant {what}"


def _optimizer(method: type[Method]) -> str | None:
    if method.optimizer is not Method.optimizer:
        return f"{method.declaration.name} brings its own optimizer"
    return _own_steps(method, "replaces the optimizer of the training loop")


def _offload(device: str, method: type[Method]) -> str | None:
    if device == "cpu":
        return "the device is the CPU: there is no other memory to move activations to"
    return _own_steps(method, "moves the activations of the training loop")


def _kernels(device: str) -> str | None:
    if device != "cuda":
        return "Liger's kernels are written in Triton and need a GPU"
    if find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return None


# --- several devices --------------------------------------------------------------------------------
ZERO = ("zero1", "zero2", "zero3")
NO_ENGINE = {
    **{z: f"{z}: training through DeepSpeed is not there yet; 'fsdp' shards the same states" for z in ZERO},
    "tp": "tp: training through a tp_plan of transformers is not there yet; 'fsdp' divides the same weights",
}
"""Strategies that a sweep may name and nothing runs, with the reason."""
KEEPS_RANKS = frozenset({"batch_size", "gradient_accumulation", "max_length", "gradient_checkpointing"}) | frozenset(
    {"attention", "dtype"}
)
"""Switches of a variant that concern each rank alone."""


def _parallel(cell: Cell, device: str) -> str | None:
    """Reason why the cell's strategy on several devices cannot train it, or None."""
    point = cell.on("parallel")
    if point is None:
        return None
    strategy = str(point.identity["strategy"])
    training, quantization = cell.training, cell.quantization
    before = quantization.identity["moment"] == "before_training"
    return (
        no_engine(strategy, device, offload=point.identity.get("offload", False))
        or stands(METHODS.get(cell.method.name), strategy, cell.method.identity["params"])
        or (base_stands(quantization.name, strategy) if before else None)
        or _rows(training["batch_size"], cell.ranks)
        or _alone(cell, training)
    )


def no_engine(strategy: str, device: str, *, offload: bool = False) -> str | None:
    """Reason why nothing runs this strategy on such a device, or None."""
    if strategy in NO_ENGINE:
        return NO_ENGINE[strategy]
    if offload and device == "cpu":
        return "offload: the device is the CPU, whose memory is the host's"
    return None


def stands(method: type[Method], strategy: str, params: Mapping[str, Any]) -> str | None:
    """Reason why a method is not trained under a strategy, or None."""
    declared = method.declared(params)
    if strategy in declared.parallel:
        return None
    return f"{declared.name} is not declared to train the same model under {strategy} as in one process"


def base_stands(quantizer: str, strategy: str) -> str | None:
    """Reason why nothing is trained on such a base under a strategy, or None."""
    if strategy in QUANTIZERS.get(quantizer).declaration.parallel:
        return None
    return f"a base quantized by {quantizer} is not declared to train under {strategy}"


def _rows(batch_size: int, ranks: int) -> str | None:
    if batch_size % ranks == 0:
        return None
    return f"micro-batches of {batch_size} rows cannot be divided among {ranks} ranks"


def _alone(cell: Cell, training: Mapping[str, Any]) -> str | None:
    """Reason why the cell needs the whole model or the whole batch in one process, or None."""
    for axis in ("objective", "recipe"):
        if (point := cell.on(axis)) is not None:
            return f"the {axis} {point.name} is trained in one process only"
    for name in cell.switches:
        if name not in KEEPS_RANKS:
            return f"{name}: this switch is tried with one process only"
    if training.get("target") is not None:
        return "training.target scores the model between steps, which one process of several cannot"
    if training.get("early_stopping") is not None:
        return "training.early_stopping scores the model between steps, which one process of several cannot"
    if training.get("on_oom") == "halve_batch":
        return "training.on_oom: a batch is halved in one process only"
    return None
