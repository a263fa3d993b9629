"""Compatibility of methods, quantizers and devices: computed from declarations alone, no model library loaded.

``tests/quantizers/compat_all.py`` runs the pairs that a CPU can run and fails where this table and the facts differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from harness.compatibility import merge_refusal, refusal
from harness.errors import UserError
from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS
from runners.planning.refusals import NO_ENGINE, ZERO

Kind = Literal["causal-lm", "sequence-classification"]
DEVICES = ("cpu", "cuda")
NOTHING_TRAINED = "it trains nothing"
IN_PLACE = "trained in place: there is nothing to merge"


@dataclass(frozen=True)
class Compatibility:
    """Compatibility of a method with a quantizer. Each answer is "" for yes, or the reason why not.

    Attributes:
        scores: the quantized model with this method attached can be scored.
        trains: it can be trained, quantized before training.
        merges: what was trained can be merged into the quantized base.
        after_merge: it can be trained and merged in full precision and quantized then.
    """

    method: str
    quantizer: str
    device: str
    kind: str
    scores: str
    trains: str
    merges: str
    after_merge: str


def pair(method: str, quantizer: str, device: str, kind: Kind) -> Compatibility:
    """Compatibility of one pair on one device, the method's parameters at their defaults.

    ``plan`` gives the same answers (:mod:`harness.compatibility`) and adds what this machine lacks.
    """
    m, q = METHODS.get(method), QUANTIZERS.get(quantizer)
    params = dict(m.declaration.defaults)
    declared = m.declared(params)

    def refused(moment: str) -> str:
        return refusal(m, q, kind=kind, device=device, moment=moment, params=params) or ""

    scores = refused("before_training")
    trains = scores or ("" if declared.trains else NOTHING_TRAINED)
    merges = trains or (IN_PLACE if declared.in_place else "") or merge_refusal(m, q, params) or ""
    return Compatibility(method, quantizer, device, kind, scores, trains, merges, refused("after_merge"))


def pairs(
    *, device: str = "*", kind: Kind = "causal-lm", method: str = "*", quantizer: str = "*"
) -> list[Compatibility]:
    """All pairs whose device, method and quantizer match these shell-style patterns, in the catalogues' order."""
    return [
        pair(m, q, d, kind)
        for d in DEVICES
        if fnmatchcase(d, device)
        for m in METHODS
        if fnmatchcase(m, method)
        for q in QUANTIZERS
        if fnmatchcase(q, quantizer)
    ]


def select(
    *, device: str = "*", kind: str = "causal-lm", method: str = "*", quantizer: str = "*"
) -> list[Compatibility]:
    """:func:`pairs`, where a kind of model that there is not, or patterns without a match, are mistakes.

    Raises:
        UserError: an unknown kind of model, or no pair matches.
    """
    kinds: dict[str, Kind] = {"causal-lm": "causal-lm", "sequence-classification": "sequence-classification"}
    if kind not in kinds:
        raise UserError(f"unknown model kind {kind!r}", where="--kind", fix=f"One of: {', '.join(kinds)}.")
    found = pairs(device=device, kind=kinds[kind], method=method, quantizer=quantizer)
    if not found:
        raise UserError("no pair matches", fix="See: peft-matrix methods; peft-matrix quantizers.")
    return found


def as_rows(found: list[Compatibility]) -> list[dict[str, object]]:
    """Plain rows for ``--json``: ``true`` or the reason."""
    answers = ("scores", "trains", "merges", "after_merge")
    return [{k: (v or True) if k in answers else v for k, v in asdict(p).items()} for p in found]


def by_answer(found: list[Compatibility]) -> list[dict[str, object]]:
    """Rows for a terminal: of every method on every device, the quantizers that answer alike, and their answers."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for p in found:
        before = p.scores or (f"scored only: {p.trains}" if p.trains else "trains")
        merge = "-" if p.scores or p.trains else p.merges or "merges"
        groups.setdefault((p.method, p.device, before, merge, p.after_merge or "works"), []).append(p.quantizer)
    return [
        {
            "method": method,
            "device": device,
            "quantizers": ", ".join(quantizers),
            "quantized before training": before,
            "merge into it": merge,
            "quantized after the merge": after,
        }
        for (method, device, before, merge, after), quantizers in groups.items()
    ]


def to_markdown(found: list[Compatibility]) -> str:
    """One table per device: a row per method, a column per group of quantizers that answer alike; then the reasons."""
    lines = [
        "# Compatibility",
        "",
        "Computed from the declarations of methods and quantizers (`peft-matrix compat`); causal language models."
        " Each cell says what works when the base is quantized before training: **T** trains, **M** merges into the"
        " quantized base, **S** is scored only. A number is the reason below why the pair, or its merge (after T), is"
        " refused."
        " The last column is the other moment: trained and merged in full precision, quantized then (**Q**), on the"
        " same quantizers.",
    ]
    reasons: dict[str, int] = {}
    for device in dict.fromkeys(p.device for p in found):
        lines += _table([p for p in found if p.device == device], device, reasons)
    lines += several_devices()
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def several_devices() -> list[str]:
    """Section of the page: strategy, method and quantizer, run or refused."""
    trained = [name for name in METHODS if METHODS.get(name).declaration.trains]

    def declared(names: Iterable[str], catalog: Any, strategies: set[str]) -> str:
        found = [name for name in names if set(catalog.get(name).declaration.parallel) == strategies]
        return ", ".join(f"`{name}`" for name in found) or "none"

    lines = [
        "",
        "## Several devices",
        "",
        "Strategies of `parallel:` in a sweep ([measuring](measuring.md#several-devices)). A method and a quantizer run"
        " together under a strategy where both are in a row that names it, and the tables above say that the method"
        " trains on the quantizer's base; `plan` refuses all others with the reason. Where a base is quantized after"
        " the merge, only the method counts.",
        "",
        "| strategies | methods | quantizers, before training |",
        "|---|---|---|",
    ]
    for strategies in ({"ddp", "fsdp"}, {"ddp"}, {"fsdp"}, set[str]()):
        words = " and ".join(sorted(strategies)) or "refused under both: not declared"
        methods = declared(trained, METHODS, strategies)
        lines.append(f"| {words} | {methods} | {declared(QUANTIZERS, QUANTIZERS, strategies)} |")
    lines += ["", "Refused for every method and quantizer:", ""]
    for strategy in (*ZERO, "tp"):
        lines.append(f"- {NO_ENGINE[strategy]}")
    return lines


def _table(found: list[Compatibility], device: str, reasons: dict[str, int]) -> list[str]:
    by_quantizer: dict[str, list[Compatibility]] = {}
    for p in found:
        by_quantizer.setdefault(p.quantizer, []).append(p)
    groups: dict[tuple[str, ...], list[str]] = {}
    missing = [q for q in by_quantizer if device not in QUANTIZERS.get(q).declaration.devices]
    later = [q for q in by_quantizer if "before_training" not in QUANTIZERS.get(q).declaration.moments]
    for quantizer, column in by_quantizer.items():
        if quantizer in missing or quantizer in later:
            continue
        groups.setdefault(tuple(_cell(p, reasons) for p in column), []).append(quantizer)
    methods = list(dict.fromkeys(p.method for p in found))
    after = {p.method: p.after_merge for p in found if p.quantizer == "none"}
    head = [", ".join(names) for names in groups.values()]
    lines = ["", f"## {device}", ""]
    if missing:
        lines += [f"Not on this device: {', '.join(missing)}.", ""]
    if later:
        lines += [f"Only after the merge: {', '.join(later)}.", ""]
    lines += ["| method | " + " | ".join([*head, "after merge"]) + " |", "|---" * (len(head) + 2) + "|"]
    for row, method in enumerate(methods):
        last = "" if method not in after else _number(after[method], reasons) if after[method] else "Q"
        lines.append("| " + " | ".join([method, *(column[row] for column in groups), last]) + " |")
    return lines


def _cell(p: Compatibility, reasons: dict[str, int]) -> str:
    if p.scores:
        return _number(p.scores, reasons)
    if p.trains:
        return "S"
    return "T M" if not p.merges else "T " + _number(p.merges, reasons)


def _number(reason: str, reasons: dict[str, int]) -> str:
    return str(reasons.setdefault(reason, len(reasons) + 1))
