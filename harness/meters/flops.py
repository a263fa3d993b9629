"""Floating-point operations of a step: counted by operator, checked against the analytic count of its linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.metrics import missing, reading
from harness.record import Reading

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

SOURCE = "torch.utils.flop_counter"
LEAST_SHARE = 0.9
"""Counted operations below this share of the linear layers' forward pass: some operators were not seen."""


def count_flops(step: Callable[[], Any]) -> int:
    """Operations of one call of ``step``, forward and backward, recomputation included; a multiply-add counts as 2."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def linear_forward_flops(model: nn.Module, tokens: int) -> int:
    """``2 * m * n * tokens`` summed over the model's linear layers, packed quantized layers by their logical shape.

    Every linear layer is taken to see every token; attention and element-wise work are left out.
    """
    total = 0
    for module in model.modules():
        shape = _linear_shape(module)
        if shape is not None:
            total += 2 * shape[0] * shape[1] * tokens
    return total


def step_flops(step: Callable[[], Any], model: nn.Module, tokens: int) -> Reading:
    """``step_flops`` of one training or inference step.

    The counter sees only operators it has a formula for; kernels of quantized layers are often none of them.
    A count below the linear layers' analytic forward pass is therefore no value but ``not_supported``.

    Args:
        step: one whole step, at least a forward pass through all of ``model``.
        model: the model in the step.
        tokens: tokens of the batch, padding included, since it is computed too.
    """
    counted = count_flops(step)
    analytic = linear_forward_flops(model, tokens)
    details: dict[str, Any] = {"counted": counted, "linear_forward": analytic, "tokens": tokens}
    if counted < LEAST_SHARE * analytic:
        details["why"] = "the counter does not see all linear layers of this model"
        return missing("step_flops", "not_supported", source=SOURCE, details=details)
    return reading("step_flops", counted, source=SOURCE, details=details)


def mfu(flops: Reading, step_s: float, peak_flops_per_s: float | None) -> Reading:
    """Model-FLOPs utilisation against the device peak stated in the hardware profile (never a guess).

    Args:
        flops: ``step_flops``, of a step without gradient checkpointing: recomputed operations are the hardware's
            work, not the model's.
        step_s: duration of such a step, seconds.
        peak_flops_per_s: stated peak for the data type in use, or None where the profile states none.
    """
    source = "step_flops over step time"
    if flops.value is None:
        why = flops.why_missing or "not_measured"
        return missing("mfu", why, source=source, details={"why": "no FLOPs per step"})
    if peak_flops_per_s is None:
        return missing("mfu", "not_measured", source=source, details={"why": "the hardware profile states no peak"})
    details = {"peak_flops_per_s": peak_flops_per_s, "step_s": step_s}
    return reading("mfu", flops.value / step_s / peak_flops_per_s, source=source, details=details)


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, by the attributes that all of them keep, packed or not."""
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(features[0], int) and isinstance(features[1], int) and not any(_shapes_of_children(module)):
        return features[0], features[1]
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:  # GPT-2's transposed linear layer
        return int(weight.shape[0]), int(weight.shape[1])
    return None


def _shapes_of_children(module: nn.Module) -> list[bool]:
    """For wrappers such as peft's LoRA layers, which repeat the shape of the layer they hold."""
    return [_linear_shape(child) is not None for child in module.modules() if child is not module]
