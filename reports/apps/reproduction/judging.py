"""The verdict on a claim. The rules are those of the measuring protocol, section 7, and nothing else decides.

``reproduced``: the whole interval satisfies the claim. ``partially``: the direction holds, the size does not.
``not_reproduced``: the whole interval contradicts the claim. ``inconclusive``: the interval straddles the limit, or the
smallest effect that could have been found is larger than the claimed one. ``not_comparable``: the evidence has
another scope. ``not_run``: there is no evidence; a proxy's verdict is reported separately and never replaces it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from harness import stats
from harness.metrics import METRICS
from harness.record import Record
from reports.apps.reproduction.claims import Claim, Criterion, Paper
from reports.apps.reproduction.measuring import (
    NOTHING_LEARNED,
    ONE_SEED,
    RELATIVE_UNITS,
    SAMPLED_FAMILIES,
    Absent,
    Measured,
    measure,
)
from reports.apps.reproduction.record_lookup import Library, at_edge, outside, tuned

Verdict = Literal["reproduced", "partially", "not_reproduced", "inconclusive", "not_comparable", "not_run"]
Kind = Literal["arithmetic", "counted", "measured"]
ProxyVerdict = Literal["proxy_agrees", "proxy_partially", "proxy_disagrees", "proxy_inconclusive", "proxy_not_run"]

DEFINITE = ("reproduced", "partially", "not_reproduced")
AS_PROXY: dict[str, ProxyVerdict] = {
    "reproduced": "proxy_agrees",
    "partially": "proxy_partially",
    "not_reproduced": "proxy_disagrees",
    "inconclusive": "proxy_inconclusive",
    "not_comparable": "proxy_not_run",
    "not_run": "proxy_not_run",
}


@dataclass(frozen=True)
class Judgement:
    """A verdict with what it rests on."""

    verdict: str
    reason: str
    measured: Measured | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, its verdict, and the verdicts of its proxies in their order."""

    paper: Paper
    claim: Claim
    own: Judgement
    proxies: tuple[Judgement, ...]


def kind_of(test: Criterion) -> Kind:
    """Evidence of a verdict: arithmetic on printed numbers, a count of shapes, or measured records."""
    if test.evidence is not None and test.evidence.compute is not None:
        return "arithmetic"
    return "counted" if test.evidence is not None and test.evidence.count is not None else "measured"


def judge_claim(paper: Paper, claim: Claim, library: Library) -> JudgedClaim:
    """Judge a claim by its own evidence, and each proxy by the proxy's."""
    own = judge(claim, library, scope_of=claim)
    flags = set(own.flags) | set(claim.doubts) | disagreement(claim)
    verdict, reason = own.verdict, own.reason
    if claim.unstated and verdict in ("reproduced", "partially", "not_reproduced"):
        verdict, reason = "inconclusive", f"a choice that the source leaves open decides it: {claim.unstated}"
        flags.add("unstated-choice")
    own = Judgement(verdict, reason, own.measured, tuple(sorted(flags)))
    proxies = []
    for proxy in claim.proxies:
        found = judge(proxy, library)
        proxies.append(Judgement(AS_PROXY[found.verdict], found.reason, found.measured, found.flags))
    return JudgedClaim(paper, claim, own, tuple(proxies))


def disagreement(claim: Claim) -> set[str]:
    """``reference-inconsistent`` where two printed values differ by more than the rounding of the coarser one."""
    values = [p.value for p in claim.printed if p.value is not None]
    if len(values) < 2:
        return set()
    rounding = max(half_unit(v) for v in values)
    return {"reference-inconsistent"} if max(values) - min(values) > 2 * rounding else set()


def half_unit(value: float) -> float:
    """Half a unit in the last printed decimal place."""
    text = repr(value)
    decimals = len(text.split(".")[1]) if "." in text and not text.endswith(".0") else 0
    return 0.5 * 10.0**-decimals


def judge(test: Criterion, library: Library, *, scope_of: Claim | None = None) -> Judgement:
    """The verdict of one test."""
    measured = measure(test, library)
    if isinstance(measured, Absent):
        return Judgement("not_run", measured.reason, None, tuple(sorted(measured.flags)))
    flags = set(measured.flags)
    records = _records(library, test, measured)
    if scope_of is not None:
        why = outside(scope_of.scope, records)
        if why:
            return Judgement("not_comparable", why, measured, tuple(sorted(flags)))
    sampled = test.metric in METRICS and METRICS[test.metric].family in SAMPLED_FAMILIES
    if sampled and not all(map(tuned, records)):
        flags.add("untuned-baseline")
    if test.by_construction:
        flags.add("by-construction")
    verdict, reason = decide(test, measured)
    if sampled and any(map(at_edge, records)):
        flags.add("lr-at-edge")
    doubt = _doubt(test, library, measured) if sampled else ""
    if doubt and verdict in DEFINITE:
        verdict, reason = "inconclusive", f"{doubt} ({reason})"
    if verdict == "reproduced" and exceeds(test, measured):
        flags.add("exceeds")
    return Judgement(verdict, reason, measured, tuple(sorted(flags)))


def _doubt(test: Criterion, library: Library, measured: Measured) -> str:
    """Why scores decide nothing, whichever side they are on; empty where they may."""
    if ONE_SEED in measured.flags:
        return "one seed shows trained models, not their methods"
    if NOTHING_LEARNED in measured.flags:
        return "the arm learned nothing within its budget, which contradicts nothing and confirms nothing"
    if any(map(at_edge, _worse_side(test, library, measured))):
        return "the best learning rate of the lower side lies at the edge of the rates tried"
    return ""


def _worse_side(test: Criterion, library: Library, measured: Measured) -> list[Record]:
    """Records of the side that scored lower; of both where the claim is that they are equal, or has several pairs."""
    evidence, both = test.evidence, _records(library, test, measured)
    if evidence is None or evidence.arm is None or evidence.baseline is None or test.form == "equivalence":
        return both
    neutral = 1.0 if test.unit == "ratio" else 0.0
    lower = evidence.arm if measured.value < neutral else evidence.baseline
    found = library.arm(evidence.sweep or "", lower, timed=False)
    return [record for _, record in found.records.values()]


def _records(library: Library, test: Criterion, measured: Measured) -> list[Record]:
    if test.evidence is None or test.evidence.sweep is None:
        return []
    return library.by_ids(test.evidence.sweep, measured.records)


def exceeds(test: Criterion, measured: Measured) -> bool:
    """True if the effect is beyond the claimed size by more than its interval."""
    if test.form not in ("difference", "upto") or test.value is None or measured.low is None or measured.high is None:
        return False
    return measured.low > test.value if test.expect == "greater" else measured.high < test.value


def decide(test: Criterion, m: Measured) -> tuple[Verdict, str]:
    """Verdict and reason from an effect alone."""
    if not m.exact and m.low is None:
        return "inconclusive", f"no interval ({m.n}), so the direction is not known"
    low, high = (m.value, m.value) if m.exact or m.low is None or m.high is None else (m.low, m.high)
    if test.form == "absolute":
        assert test.value is not None  # Criterion checks both
        assert test.tolerance is not None
        return _within(low, high, test.value - test.tolerance.value, test.value + test.tolerance.value)
    if test.form == "ratio":
        assert test.band is not None
        return _ratio(test.band, low, high)
    if test.form == "equivalence":
        return _equivalent(test, m, low, high)
    return _directed(test, m, low, high)


def _within(low: float, high: float, bottom: float, top: float) -> tuple[Verdict, str]:
    slack = 1e-9 * max(1.0, abs(bottom), abs(top))  # 0.1 + 0.2 is not outside 0.3
    if bottom - slack <= low and high <= top + slack:
        return "reproduced", "the whole interval is within the tolerance"
    if high < bottom or low > top:
        return "not_reproduced", "the whole interval is outside the tolerance"
    return "inconclusive", "the interval straddles the tolerance"


def _ratio(band: tuple[float, float], low: float, high: float) -> tuple[Verdict, str]:
    verdict, reason = _within(low, high, *band)
    if verdict == "not_reproduced" and not band[0] <= 1 <= band[1]:
        same_side = low > 1 if band[0] > 1 else high < 1
        if same_side:
            return "partially", "the direction agrees, the size is outside the band"
    return verdict, reason


def _equivalent(test: Criterion, m: Measured, low: float, high: float) -> tuple[Verdict, str]:
    assert test.margin is not None
    relative = test.unit in RELATIVE_UNITS
    bottom, top = (1 / (1 + test.margin), 1 + test.margin) if test.unit == "ratio" else (-test.margin, test.margin)
    if not m.exact:
        if relative:
            ends = (math.log(1 / (1 + test.margin)), math.log(1 + test.margin))
            centre = math.log(m.value + (1 if test.unit == "relative" else 0))
        else:
            ends, centre = (bottom, top), m.value
        found = stats.tost_from(centre, m.se, *ends, df=m.df)
        if found.equivalent:
            return "reproduced", f"equivalent within the margin (two one-sided tests, p = {found.p:.2g})"
    elif bottom <= m.value <= top:
        return "reproduced", "equal within the margin"
    if low > top or high < bottom:
        return "not_reproduced", "the whole interval is outside the margin"
    return "inconclusive", "the interval is wider than the margin, or straddles it"


def _directed(test: Criterion, m: Measured, low: float, high: float) -> tuple[Verdict, str]:
    """Forms ``order``, ``difference``, ``upto`` and ``interaction``, turned so that the claimed direction is up."""
    neutral = 1.0 if test.unit == "ratio" and test.form != "interaction" else 0.0
    sign = 1.0 if test.expect == "greater" else -1.0
    value, (low, high) = sign * (m.value - neutral), sorted((sign * (low - neutral), sign * (high - neutral)))
    claimed = 0.0 if test.value is None else sign * (test.value - neutral)
    tolerance = test.tolerance.value if test.tolerance else 0.0
    wanted = claimed - tolerance
    if low > 0 and low >= wanted:
        if m.mde is not None and value < m.mde:
            return "inconclusive", f"the effect is smaller than the smallest that could be found ({m.mde:.3g})"
        return "reproduced", "the whole interval is on the claimed side"
    if m.mde is not None and test.value is not None and 0 < claimed < m.mde:
        return "inconclusive", f"the smallest effect that could be found ({m.mde:.3g}) is above the claimed one"
    if high < 0 or (test.value is not None and high < wanted):
        if test.form == "upto" and not m.complete:
            return "inconclusive", "not reached, but not every member of the stated set was measured"
        if low > 0:
            return "partially", "the direction holds, the size is not reached"
        return "not_reproduced", "the whole interval is on the other side"
    return "inconclusive", "the interval straddles the limit"
