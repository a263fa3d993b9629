"""Floating-point operations of a step: counted by operator, checked against the analytic count of its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.metrics import missing, reading
from harness.record import Reading

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn
    from torch.utils.hooks import RemovableHandle

SOURCE = "torch.utils.flop_counter"
LEAST_SHARE = 0.9
"""Counted operations below this share of the linear layers' analytic ones: some operators were not seen."""


def count_flops(step: Callable[[], object]) -> int:
    """Operations of one call of ``step``, forward and backward, recomputation included; a multiply-add counts as 2.

    Attention is counted by our own formulas: torch's table has none on CPUs, and before torch 2.13 none for queries
    with more heads than keys (grouped-query attention).
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_attention_formulas()) as counter:
        step()
    return int(counter.get_total_flops())


def attention_products(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> tuple[int, int]:
    """Operations of the two products of attention: queries with keys, and probabilities with values.

    A causal mask is not accounted for, as in torch's own table.

    Args:
        query: shape (batch, heads, queries, width).
        key: shape (batch, key heads, keys, width); key heads are repeated to the heads of the queries.
        value: shape (batch, key heads, keys, value width).
    """
    batch, heads, queries, width = query
    scores = batch * heads * queries * key[2]
    return 2 * scores * width, 2 * scores * value[3]


def _attention_formulas() -> dict[object, Callable[..., int]]:
    """Torch's attention operators and what counts them, from the shapes of their arguments."""
    import torch

    def forward(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
        return sum(attention_products(query, key, value))

    def backward(_gradient: object, query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
        scores, mixed = attention_products(query, key, value)
        # the scores are computed again; two products give the gradients of query and key, two of value and scores
        return 3 * scores + 2 * mixed

    names = ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu")
    formulas: dict[object, Callable[..., int]] = {}
    for name in names:
        for suffix, formula in (("", forward), ("_backward", backward)):
            operator = getattr(torch.ops.aten, f"_scaled_dot_product_{name}{suffix}", None)
            if operator is not None:
                formulas[operator] = formula
    return formulas


class LinearLayers:
    """Analytic operations of the linear layers while a step runs: 2 * m * n * tokens for the forward pass, as much
    again where the layer's input needs a gradient, and again where its weight does.

    Packed quantized layers count by their logical shape. Attention and element-wise work are left out, and so are
    layers whose weight is used without calling them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forward = 0
        self.step = 0
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> LinearLayers:
        for module in self.model.modules():
            shape = _linear_shape(module)
            if shape is not None:
                self._hooks.append(module.register_forward_hook(partial(self._count, shape)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, shape: tuple[int, int], module: nn.Module, args: tuple[Any, ...], _output: object) -> None:
        import torch

        if not args:  # called by keyword: its tokens are not known
            return
        tokens = args[0].numel() // args[0].shape[-1]
        forward = 2 * shape[0] * shape[1] * tokens
        self.forward += forward
        if torch.is_grad_enabled():
            weight = getattr(module, "weight", None)
            trained = weight is not None and weight.requires_grad
            self.step += forward * (1 + bool(args[0].requires_grad) + bool(trained))
        else:
            self.step += forward


def step_flops(step: Callable[[], object], model: nn.Module, tokens: int, *, micro_batches: int = 1) -> Reading:
    """``step_flops`` of one training or inference step.

    The counter sees only operators it has a formula for; kernels of quantized layers are often none of them.
    A count below what the linear layers need by their shapes is therefore no value but ``not_supported``.

    Args:
        step: one micro-batch of it, at least a forward pass through all of ``model``.
        model: the model in the step.
        tokens: tokens of the micro-batch, padding included, since it is computed too.
        micro_batches: how many of them make a step.
    """
    with LinearLayers(model) as linear:
        counted = count_flops(step)
    details: dict[str, object] = {
        "micro_batch_flops": counted,
        "linear_forward_flops": linear.forward,
        "linear_step_flops": linear.step,
        "micro_batches": micro_batches,
        "tokens": tokens * micro_batches,
    }
    if counted < LEAST_SHARE * linear.step:
        details["why"] = "the counter does not see all linear layers of this model"
        return missing("step_flops", "not_supported", source=SOURCE, details=details)
    return reading("step_flops", counted * micro_batches, source=SOURCE, details=details)


def mfu(flops: Reading, tokens_per_step: float, step_s: float, peak_flops_per_s: float | None) -> Reading:
    """Model-FLOPs utilisation against the device peak stated in the hardware profile (never a guess).

    The FLOPs of a token, from the counted step, times the tokens computed per second.

    Args:
        flops: ``step_flops``, of a step without gradient checkpointing: recomputed operations are the hardware's
            work, not the model's. Its details hold the ``tokens`` of the counted step.
        tokens_per_step: mean over the steps, padding included.
        step_s: duration of a step, seconds.
        peak_flops_per_s: stated peak for the data type in use, or None where the profile states none.
    """
    source = "step_flops per token, tokens over step time"
    if flops.value is None:
        why = flops.why_missing or "not_measured"
        return missing("mfu", why, source=source, details={"why": "no FLOPs per step"})
    if peak_flops_per_s is None:
        return missing("mfu", "not_measured", source=source, details={"why": "the hardware profile states no peak"})
    details = {"peak_flops_per_s": peak_flops_per_s, "step_s": step_s, "tokens_per_step": tokens_per_step}
    per_token = flops.value / flops.details["tokens"]
    return reading("mfu", per_token * tokens_per_step / step_s / peak_flops_per_s, source=source, details=details)


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
