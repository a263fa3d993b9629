"""Every CPU-runnable pair of the compatibility table, lived for three steps on a tiny model: declaration against fact.

``python -m tests.quantizers.compat_all [PATTERN]`` runs them all and prints every disagreement. What counts as one:
a promised pair that does not train, count, save, reload or merge as promised, or degrades without a word (plain LoRA
in another method's place, a layer left unquantized, a merge that loses the adapter); and a refused pair that works.
Quantizers of a side environment are among them where its interpreter runs this (with PYTHONPATH at the checkout).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import shutil
import sys
import tempfile
import warnings
from fnmatch import fnmatchcase
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.methods.base import Method
from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS
from harness.quantizers.layers import in_head
from harness.quantizers.measure import dequantize, linear_kinds
from runners.tools.compat import IN_PLACE, NOTHING_TRAINED, Compatibility, pair
from tests.methods.tiny import (
    CAUSAL,
    attached,
    batch,
    calibrated,
    finalized,
    gap,
    llama,
    logits,
    made,
    tokenizer,
    train,
)

RELOAD_GAP = 1e-4
MERGE_GAP = {True: 1e-3, False: 0.5}
"""Largest logit difference by a merge: absolute on floating-point weights, a share of what training moved otherwise."""
NOISE = 1.5
"""Merging into quantized weights rounds them again: as much difference as so many roundings of the base is allowed."""
WHOLE_GRADIENT = 0.998
"""Weight-only 8-bit bases reach 1.00 here; where products pass no gradient on, 0.61 to 0.992 was measured."""
START_GAP = 1e-3
"""A method that starts as the identity in full precision may move no logit on a quantized base by more than this."""
POLICY = (
    "raw int8 codes",
    "would fill the zeros",
    "fills its zeros",
    "sparse",
    "truncates a copy",
    "merging into such weights",
    "Llama, Mistral and GPT-2 only",
)
"""Refusals that are a choice, or a wrong meaning that trains all the same: three steps cannot disprove them."""


PARAMS: dict[str, dict[str, Any]] = {"gptqmodel-gptq": {"group_size": 32}, "gptqmodel-awq": {"group_size": 32}}
"""So that they divide the tiny model's rows."""


def plain(quantizer: str) -> nn.Module:
    """The tiny Llama; for AWQ's library with as many keys as queries, whose weights then have the 64 rows it needs."""
    return llama(key_value_heads=4 if quantizer == "gptqmodel-awq" else 2)


@functools.cache
def cache() -> Path:
    """Folder of checkpoints during this process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


def base(quantizer: str) -> nn.Module:
    """The tiny Llama under that quantizer, calibrated where it asks for it; the same weights every time."""
    cls = QUANTIZERS.get(quantizer)
    made_of = cls(cls.resolve(PARAMS.get(quantizer, {})), CAUSAL)
    made_of.cache, made_of.tokenizer = cache(), tokenizer()
    model = plain(quantizer)
    made_of.calibrate(model, lambda n: [batch(CAUSAL, seed) for seed in range(n)])
    return made_of.apply(model).eval()


@functools.cache
def rounding(quantizer: str) -> float:
    """Greatest logit difference that quantizing the base alone makes."""
    return gap(logits(base(quantizer), CAUSAL), logits(plain(quantizer), CAUSAL))


def runnable() -> list[tuple[str, str]]:
    """(method, quantizer) pairs whose parts this machine can run on a CPU."""
    outside = util.find_spec("gptqmodel") is not None
    here = [
        q
        for q in QUANTIZERS
        if (QUANTIZERS.get(q).check("cpu", "before_training") or QUANTIZERS.get(q).missing("cpu")) is None
        and (outside or not QUANTIZERS.get(q).declaration.environment)
        and not q.startswith("prequantized")
    ]
    return [(m, q) for m in METHODS for q in here if "cpu" in METHODS.get(m).declaration.devices]


def disagreements(method: str, quantizer: str) -> list[str]:
    """Difference between the fact and the declared pair; empty if they agree."""
    declared = pair(method, quantizer, "cpu", CAUSAL)  # type: ignore[arg-type]  # the constant is one of the two kinds
    if pair(method, "none", "cpu", CAUSAL).scores:  # type: ignore[arg-type]
        return []  # refused for other reasons, on every base
    try:
        found = _live(method, quantizer, declared)
    except Exception as error:  # any way of failing is a fact
        found = [f"fails: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"]
    if not declared.scores:
        return found
    if found or any(word in declared.scores for word in POLICY):
        return []
    if declared.scores == QUANTIZERS.get(quantizer).declaration.no_gradient:
        same = gradient_likeness(method, quantizer)
        if same < WHOLE_GRADIENT:
            return []  # every tensor has a gradient, but it is not the model's: what passes the layers is missing
    return [f"refused, but works: {declared.scores}"]


def gradient_likeness(method: str, quantizer: str) -> float:
    """Cosine of the first gradient on this base and on the full-precision one, adapters moved off their start."""
    ours, theirs = (_first_gradient(method, q) for q in (quantizer, "none"))
    both = sorted(ours.keys() & theirs.keys())
    a, b = (torch.cat([g[n] for n in both]) for g in (ours, theirs))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def _first_gradient(name: str, quantizer: str) -> dict[str, torch.Tensor]:
    method = made(name, CAUSAL, QUANTIZERS.get(quantizer).declaration.base)
    model, inputs = attached(method, base(quantizer)), batch(CAUSAL)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
                parameter.add_(0.02 * noise)
    torch.manual_seed(0)
    outputs = model(**inputs)
    method.loss(outputs, inputs, outputs.loss).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.float().flatten() for n, p in model.named_parameters() if p.grad is not None}


def _live(name: str, quantizer: str, declared: Compatibility) -> list[str]:
    """Attach, train, save, load, merge; what went otherwise than a whole life should."""
    kind = QUANTIZERS.get(quantizer).declaration.base
    method, model = made(name, CAUSAL, kind), base(quantizer)
    found: list[str] = _first_step(name, quantizer) if METHODS.get(name).declaration.trains else []
    before, quantized = logits(model, CAUSAL), linear_kinds(model)
    left = [p for p in quantized.plain if not in_head(p)]
    if kind not in ("fp", "sparse") and left:
        found.append(f"layers left unquantized: {left[:2]}")
    calibrated(method, model)
    expected = method.expected_trainable(model)
    model = method.attach(model)
    moved = gap(logits(model, CAUSAL), before)
    if moved > _rounding_in(before, START_GAP) and _identity_at_start(name):
        found.append(f"attaching alone moves the logits by {moved:.3g}")
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if expected is not None and expected != sum(p.numel() for p in trainable.values()):
        found.append(f"{sum(p.numel() for p in trainable.values())} parameters train, {expected} declared")
    if sum(linear_kinds(model).quantized.values()) < sum(quantized.quantized.values()):
        found.append("attaching turned quantized layers into others")
    if not method.declaration.trains:
        return found
    embeds = name in ("embed-head", "bitfit")  # in place, and not in the body's weights
    silent = {n for n in train(method, model) if method.expects_gradient(n)}
    if (
        method.declaration.in_place
        and not embeds
        and kind not in ("fp", "sparse")
        and not _body_moved(model, quantizer)
    ):
        found.append("trained in place, but no quantized layer changed")
    if silent:
        found.append(f"no gradient: {len(silent)} tensors, for example {min(silent)}")
    model = finalized(method, method.finish(model))
    after = logits(model, CAUSAL)
    moved = gap(after, before)
    if not torch.isfinite(after).all() or not moved > 1e-6:
        found.append(f"training moved the logits by {moved:.3g}")
    return found + _reload(method, quantizer, model, after) + _merge(method, quantizer, model, after, moved, declared)


def _first_step(name: str, quantizer: str) -> list[str]:
    """Tensors that the first step reaches on a full-precision base and not on this one: later ones hide it.

    A method that searches may choose other layers here; what it does not train there is no loss.
    """
    (here, _), (there, trained_there) = (_silent_at_first(name, q) for q in (quantizer, "none"))
    lost = (here - there) & trained_there
    return [f"no gradient in the first step: {len(lost)} tensors, for example {min(lost)}"] if lost else []


@functools.cache
def _silent_at_first(name: str, quantizer: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the tensors that the first step does not reach, and of all that train."""
    method = made(name, CAUSAL, QUANTIZERS.get(quantizer).declaration.base)
    model = attached(method, base(quantizer))
    trained = frozenset(n for n, p in model.named_parameters() if p.requires_grad)
    return frozenset(train(method, model, steps=1)), trained


def _body_moved(model: nn.Module, quantizer: str) -> bool:
    before = base(quantizer)
    names = [n for n, m in before.named_modules() if hasattr(m, "in_features") and not in_head(n)]
    return any(not torch.equal(dequantize(before.get_submodule(n)), dequantize(model.get_submodule(n))) for n in names)


def _reload(method: Method, quantizer: str, model: nn.Module, after: torch.Tensor) -> list[str]:
    kind = method.setting.base
    with tempfile.TemporaryDirectory() as folder:
        method.save(model, Path(folder))
        again = made(method.declaration.name, CAUSAL, kind)
        difference = gap(logits(again.load(base(quantizer), Path(folder)), CAUSAL), after)
    allowed = _rounding_in(after, RELOAD_GAP)
    return [f"reloading moves the logits by {difference:.3g}"] if not difference <= allowed else []


def _rounding_in(found: torch.Tensor, allowed: float) -> float:
    """The logit difference that is allowed, or what 16 bits make of it."""
    return max(allowed, 0.05 * float(found.abs().max()) if found.dtype != torch.float32 else 0.0)


@functools.cache
def _identity_at_start(name: str) -> bool:
    model = base("none")
    before = logits(model, CAUSAL)
    return gap(logits(attached(made(name, CAUSAL, "fp"), model), CAUSAL), before) < START_GAP / 10


def _merge(
    method: Method, quantizer: str, model: nn.Module, after: torch.Tensor, moved: float, declared: Compatibility
) -> list[str]:
    if declared.scores or method.declaration.in_place or declared.merges in (IN_PLACE, NOTHING_TRAINED):
        return []
    plain = method.setting.base in ("fp", "sparse") and after.dtype == torch.float32
    allowed = MERGE_GAP[True] if plain else max(MERGE_GAP[False] * moved, NOISE * rounding(quantizer))
    if declared.merges:
        if declared.merges == QUANTIZERS.get(quantizer).declaration.refuses_merge:
            return []  # declared for every method, although one that does not change linear weights would merge
        if method.declaration.mergeable == "no" or any(word in declared.merges for word in POLICY):
            return []
        try:
            model = method.merge(model)
            works = gap(logits(model, CAUSAL), after) <= MERGE_GAP[False] * moved and _still_quantized(model, quantizer)
        except Exception:  # the refusal is right
            return []
        return [f"merge refused, but works: {declared.merges}"] if works else []
    model = method.merge(model)
    difference = gap(logits(model, CAUSAL), after)
    found = [f"merging moves the logits by {difference:.3g}, {allowed:.3g} allowed"] if difference > allowed else []
    if not _still_quantized(model, quantizer):
        found.append("merging left layers unquantized")
    return found


def _still_quantized(model: nn.Module, quantizer: str) -> bool:
    if QUANTIZERS.get(quantizer).declaration.base in ("fp", "sparse"):
        return True
    kinds: Any = linear_kinds(model)
    for name, module in model.named_modules():
        if name in kinds.plain:
            dequantize(module)
    return not [p for p in kinds.plain if not in_head(p)]


def main(pattern: str = "*") -> int:
    """Run every pair whose quantizer or method matches; 1 if anything disagrees."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    chosen = [(m, q) for m, q in runnable() if fnmatchcase(f"{m}.{q}", pattern)]
    wrong = 0
    for method, quantizer in chosen:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            found = disagreements(method, quantizer)
        wrong += bool(found)
        for line in found:
            print(f"{method} x {quantizer}: {line}", flush=True)
    print(f"{len(chosen)} pairs run, {wrong} disagree")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
