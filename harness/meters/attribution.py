"""Attribute memory to weights, gradients, optimizer state and, by difference, activations.

Counted from the tensors themselves. A library's own footprint call is not used: some add up logical sizes of
packed weights, some leave out scales and zero points.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from harness.metrics import missing, reading
from harness.record import Reading

if TYPE_CHECKING:
    import torch
    from torch import nn


SOURCE = "tensor storages"


def tensor_bytes(*tensors: torch.Tensor) -> int:
    """Bytes of tensors: each storage once, however many tensors share it; meta tensors count zero.

    A tensor subclass is counted by its inner tensors (``__tensor_flatten__``), and by its quantization state
    (bitsandbytes' ``quant_state``, ``CB``, ``SCB``).
    """
    return _storage_bytes(tensors)


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model: parameters, buffers, and quantization state stored next to them. Tied weights count once.

    Gradients are not part of it (:func:`gradient_bytes`).
    """
    return _storage_bytes(_model_parts(model))


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the existing gradients; meaningful between ``backward`` and ``zero_grad``."""
    return _storage_bytes(p.grad for p in model.parameters() if p.grad is not None)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state, projectors and quantized moments included.

    Zero before the first step of most optimizers, which make their state lazily.
    """
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return _storage_bytes(part for part in optimizer.state.values() if id(part) not in parameters)


@dataclass(frozen=True)
class Attribution:
    """Bytes of a training step by owner, counted while the gradients are there.

    Attributes:
        weights: parameters, buffers and quantization state of the model.
        gradients: gradients between ``backward`` and ``zero_grad``.
        optimizer_state: after at least one step of the optimizer.
        method_state: what the method holds outside of both, such as a copy of the weights it started from.
    """

    weights: int
    gradients: int
    optimizer_state: int
    method_state: int = 0

    @classmethod
    def take(
        cls, model: nn.Module, optimizer: torch.optim.Optimizer | None, held: Iterable[torch.Tensor] = ()
    ) -> Attribution:
        """Count now: after a step's ``backward`` (best its optimizer step too), before gradients are dropped."""
        state = optimizer_bytes(optimizer) if optimizer is not None else 0
        return cls(model_bytes(model), gradient_bytes(model), state, tensor_bytes(*held))

    def readings(self, peak_allocated_bytes: int | None) -> list[Reading]:
        """``weights_bytes``, ``gradient_bytes``, ``optimizer_state_bytes``, ``method_state_bytes``,
        ``activation_peak_bytes``.

        Args:
            peak_allocated_bytes: ``torch.cuda.max_memory_allocated`` over whole steps, with optimizer state
                present; None on a CPU, where nothing counts live tensors.
        """
        readings = [
            reading("weights_bytes", self.weights, source=SOURCE),
            reading("gradient_bytes", self.gradients, source=SOURCE),
            reading("optimizer_state_bytes", self.optimizer_state, source=SOURCE),
            reading("method_state_bytes", self.method_state, source=SOURCE),
        ]
        if peak_allocated_bytes is None:
            why = {"why": "no allocator statistics on this device"}
            return [*readings, missing("activation_peak_bytes", "not_supported", source=SOURCE, details=why)]
        rest = peak_allocated_bytes - self.weights - self.gradients - self.optimizer_state - self.method_state
        if rest < 0:
            # weights shared with the host, or offloaded: the difference says nothing about activations
            why = {"why": "the attributed parts exceed the device's peak: some of them are elsewhere"}
            return [*readings, missing("activation_peak_bytes", "not_applicable", source=SOURCE, details=why)]
        source = "cuda_allocated_peak_bytes less " + SOURCE
        return [*readings, reading("activation_peak_bytes", rest, source=source)]


def _model_parts(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        registered = {"_parameters", "_buffers", "_modules"}
        yield module._parameters
        yield module._buffers
        # stored by quantized layers next to their parameters (bitsandbytes' MatmulLtState, HQQ's meta, ...)
        yield from (value for name, value in vars(module).items() if name not in registered)


def _storage_bytes(parts: Iterable[object]) -> int:
    """Sum of the distinct storages reachable from ``parts``."""
    sizes: dict[tuple[str, int], int] = {}
    seen: set[int] = set()
    for part in parts:
        for tensor in _plain_tensors(part, seen):
            if tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                sizes[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _plain_tensors(part: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Plain tensors reachable from a value: through containers, tensor subclasses and library state objects.

    Modules are not entered: :func:`_model_parts` lists each of them. ``seen`` ends cycles. What torch.distributed
    keeps of a sharded module (process groups, gathered parameters) is not the model.
    """
    import torch

    if isinstance(part, torch.nn.Module | ModuleType) or id(part) in seen:
        return
    if type(part).__module__.startswith("torch.distributed") and not isinstance(part, torch.Tensor):
        return
    if isinstance(part, torch.Tensor):
        seen.add(id(part))
        if hasattr(part, "__tensor_flatten__"):
            names, _ = part.__tensor_flatten__()
            children = [getattr(part, name) for name in names]
        else:
            yield part
            # state attached to a parameter; .grad is not in vars()
            children = list(getattr(part, "__dict__", {}).values())
    elif isinstance(part, dict):
        children = list(part.values())
    elif isinstance(part, list | tuple | set | frozenset):
        children = list(part)
    elif hasattr(part, "__dict__") and not isinstance(part, type) and not callable(part):
        children = list(vars(part).values())
    else:
        return
    seen.add(id(part))
    for child in children:
        yield from _plain_tensors(child, seen)


LARGEST = 10
"""Number of leading singular vectors of the tuned matrix that are compared, the paper's k."""
ALIKE = 0.5
"""A vector whose largest absolute cosine with the base's singular vectors is below this is an intruder."""


def intruder_dimensions(before: torch.Tensor, after: torch.Tensor) -> int:
    """How many of the leading left singular vectors of ``after`` resemble no left singular vector of ``before``.

    Args:
        before: the base's weight, [outputs, inputs].
        after: the tuned one, of the same shape.

    Returns:
        0 to :data:`LARGEST`.
    """
    import torch

    known, sizes, _ = torch.linalg.svd(before.float(), full_matrices=False)
    # vectors whose singular value is zero but for rounding are an arbitrary basis of the null space: not the base's
    known = known[:, sizes > sizes[0] * torch.finfo(torch.float32).eps * max(before.shape)]
    now, _, _ = torch.linalg.svd(after.float(), full_matrices=False)
    cosines = (known.T @ now[:, :LARGEST]).abs()
    return int((cosines.amax(dim=0) < ALIKE).sum())
