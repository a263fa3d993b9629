"""Reasons why a variant cannot train a cell. What only the running machine can tell is refused by the worker."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from harness.matrix import Cell
from harness.methods.base import Method
from harness.methods.catalog import METHODS


def why_not(cell: Cell, kind: str, device: str) -> str | None:
    """Reason why the cell's variant cannot train it on such a device, or None.

    Args:
        kind: model kind.
        device: ``cpu`` or ``cuda``.
    """
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
