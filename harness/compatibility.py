"""Whether a method runs with a quantizer, by their declarations: the one rule of ``plan``, ``compat`` and the worker.

Nothing heavy is imported, and no answer depends on the packages of this machine: those are ``missing`` of
:class:`harness.methods.base.Method` and :class:`harness.quantizers.base.Quantizer`.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.methods.base import Method
from harness.quantizers.base import Quantizer


def refusal(
    method: type[Method],
    quantizer: type[Quantizer],
    *,
    kind: str,
    device: str,
    moment: str,
    params: Mapping[str, object],
) -> str | None:
    """Reason why a model is not adapted by this method with this quantizer, or None.

    Args:
        kind: of model: ``causal-lm`` or ``sequence-classification``.
        device: ``cpu`` or ``cuda``.
        moment: when it is quantized: ``before_training`` or ``after_merge``.
        params: of the method, resolved.
    """
    declared, before = method.declared(params), moment == "before_training"
    if (reason := quantizer.check(device, moment)) is not None:
        return reason
    if device not in declared.devices:
        return f"{declared.name} needs a {' or '.join(sorted(declared.devices))} device"
    if before and declared.trains and (reason := quantizer.check_method(declared)):
        return reason
    if (reason := method.check(kind, quantizer.declaration.base if before else "fp", params)) is not None:
        return reason
    if not before and declared.trains and not declared.in_place and (reason := method.check_merge("fp", params)):
        return f"to be quantized after the merge it must be merged: {reason}"
    return None


def merge_refusal(method: type[Method], quantizer: type[Quantizer], params: Mapping[str, object]) -> str | None:
    """Reason why what the method trained on a base quantized before is not merged into that base, or None."""
    d = quantizer.declaration
    return d.refuses_merge or method.check_merge(d.base, params)


def parallel_refusal(
    method: type[Method], quantizer: type[Quantizer], *, strategy: str, moment: str, params: Mapping[str, object]
) -> str | None:
    """Reason why they are not trained under such a strategy on several devices, or None."""
    declared = method.declared(params)
    if strategy not in declared.parallel:
        return f"{declared.name} is not declared to train the same model under {strategy} as in one process"
    if moment == "before_training" and strategy not in quantizer.declaration.parallel:
        return f"a base quantized by {quantizer.declaration.name} is not declared to train under {strategy}"
    return None
