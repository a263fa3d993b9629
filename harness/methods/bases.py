"""The kinds of base a quantizer leaves, in groups, and the reasons that many methods share. Imports nothing.

What trains and merges where was measured: every method, three steps, then a merge, on a two-layer Llama per kind.
"""

from __future__ import annotations

BNB_4BIT = frozenset({"bnb-nf4", "bnb-fp4"})
BNB_INT8 = frozenset({"bnb-int8"})
BNB = BNB_4BIT | BNB_INT8
TORCHAO = frozenset({"torchao-int8", "torchao-int4", "torchao-intx", "torchao-float8"})
DYNAMIC = frozenset({"torchao-int8-dynamic"})
QUANTO = frozenset({"quanto-int8", "quanto-int4", "quanto-int2", "quanto-float8"})
QUANTO_8 = frozenset({"quanto-int8", "quanto-float8"})
HQQ = frozenset({"hqq"})
PACKED = frozenset({"rtn"})  # our own packed layer: codes, read back for every product
FLOAT = frozenset({"fp", "sparse"})  # floating-point weights, all or some of them there
QUANTIZED = BNB | TORCHAO | QUANTO | HQQ | PACKED
ALL = FLOAT | QUANTIZED
CHECKPOINTS = frozenset({"gptq", "awq"})  # gptqmodel's packed layers
OTHER = CHECKPOINTS | {"autoround"}  # back ends outside the standard environment
AFTER_TRAINING = frozenset({"gguf"})  # files coded after the merge: nothing trains on them

INTEGER_WEIGHTS = "its quantized weights are integers, which have no gradient; attach an adapter instead"
DENSE_AGAIN = "training every weight would fill the zeros of a sparse base; attach an adapter instead"
NO_GRADIENT = "rounding activations inside the product stops the gradient: nothing below the layer would train"

NO_FLOAT_WEIGHT = "its starting point is a decomposition of the floating-point weight, which a quantized layer lacks"
PACKED_BYTES = "peft computes with the weight tensor itself, which in this layer holds packed 4-bit codes"
RAW_CODES = "peft computes with the weight tensor itself, which in this layer holds raw int8 codes"
MISSING_OPERATION = "peft needs an operation on the weight that torchao's quantized tensors do not have"
PLAIN_LORA = "peft ignores the option on this back end's layers and would train plain LoRA"
NO_HQQ_LAYER = "peft has no layer of this method for HQQ weights"
VIEW_IN_PLACE = "peft adds to the output of a quanto layer in place, which autograd forbids there"

QUANTO_MERGE = "peft folds the adapter into a copy of a quanto weight and loses it: the merged model is wrong"
BNB_MERGE = "peft cannot fold this method into a bitsandbytes weight"
TORCHAO_MERGE = MISSING_OPERATION
HQQ_MERGE = "peft folds only LoRA into HQQ weights"
PACKED_MERGE = "peft replaces the weight tensor, which a packed layer does not have"
SPARSE_MERGE = "the merged weights would be dense again"


def because(reason: str, *kinds: str | frozenset[str]) -> dict[str, str]:
    """``reason`` for each of the base kinds (single kinds or groups)."""
    names = (name for kind in kinds for name in ([kind] if isinstance(kind, str) else sorted(kind)))
    return dict.fromkeys(names, reason)


NOT_IN_PLACE = {
    **because(INTEGER_WEIGHTS, QUANTIZED | DYNAMIC),
    **because(DENSE_AGAIN, "sparse"),
}
"""Reason why methods that train the base's own weights accept only a plain floating-point base."""

FLOAT_ONLY = because(NO_FLOAT_WEIGHT, QUANTIZED)
"""Refusals of initialisations that take the weight apart."""

MERGES_QUANTIZED = {**because(QUANTO_MERGE, QUANTO), **because(SPARSE_MERGE, "sparse")}
"""Bases that a method does not merge into if peft folds it into bitsandbytes, torchao and packed weights."""

MERGES_FLOAT = {
    **MERGES_QUANTIZED,
    **because(BNB_MERGE, BNB),
    **because(TORCHAO_MERGE, TORCHAO),
    **because(HQQ_MERGE, HQQ),
    **because(PACKED_MERGE, PACKED),
}
"""Bases that a method does not merge into if peft folds it into floating-point weights only."""


def merges_but(*kinds: str | frozenset[str]) -> dict[str, str]:
    """:data:`MERGES_FLOAT` without the refusals on these kinds."""
    allowed = {name for kind in kinds for name in ([kind] if isinstance(kind, str) else kind)}
    return {name: reason for name, reason in MERGES_FLOAT.items() if name not in allowed}


IN_RANKS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("lora", "rslora", "dora", "pissa", "lora-plus"), frozenset({"ddp", "fsdp"})),
    **dict.fromkeys(("ia3", "oft", "vera", "loha"), frozenset({"ddp", "fsdp"})),
    **dict.fromkeys(("olora", "ln-tuning"), frozenset({"ddp"})),
}
"""Methods of peft to the strategies under which two ranks were seen to train as one process does.

Five steps of a Llama of 24,000 parameters in float32: every loss within 1e-6 of the one process's (relative), and the
saved adapter was read back. AdaLoRA failed under fsdp; EVA did not end within a minute under either.
"""
