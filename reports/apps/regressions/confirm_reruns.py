"""Confirm a provisional alarm with reruns (protocol 8.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness import stats
from harness.metrics import METRICS
from reports.apps.regressions.detect import ALPHA, CellFinding
from reports.apps.regressions.series import History

RERUNS = 5
"""Runs again of a suspected cell. Five against five earlier nights can reach p = 0.008."""


def provisional(findings: Sequence[CellFinding]) -> list[CellFinding]:
    """The findings that runs again can confirm or dismiss: levels outside their band, and change points."""
    return [f for f in findings if f.kind in ("level", "drift")]


def confirm(findings: Sequence[CellFinding], found: History, *, reruns: int = RERUNS) -> list[CellFinding]:
    """Provisional findings that remain after ``reruns`` additional records of their cells.

    The alarming value and the reruns are compared with the earlier values of the same environment (of a change point:
    with those before it): Mann-Whitney, adjusted over the findings (Benjamini and Hochberg), and the medians must
    differ by more than the floor.

    Returns:
        Every finding, with its p value and whether it was ``confirmed`` or is ``noise`` in its reason.
    """
    by_name = {(s.key, s.metric): s for s in found.series}
    tested: list[tuple[CellFinding, float, float]] = []
    for finding in findings:
        series = by_name.get((finding.key, finding.metric))
        segment = series.segment() if series is not None else ()
        if len(segment) < reruns + 2:
            continue
        cut = len(segment) - reruns - 1
        before = [p for p in segment[:cut] if finding.kind != "drift" or p.finished < finding.since]
        earlier, again = [p.value for p in before], [p.value for p in segment[cut:]]
        if len(earlier) < 2:
            continue
        middle, now = stats.median(earlier), stats.median(again)
        change = now - middle
        if METRICS[finding.metric.rpartition(".")[2]].unit != "fraction":
            change = change / abs(middle) if middle else 0.0
        tested.append((finding, stats.mann_whitney(again, earlier).p, change))
    if not tested:
        return list(findings)
    adjusted = stats.benjamini_hochberg([p for _, p, _ in tested])
    judged = {}
    for (finding, _, effect), p in zip(tested, adjusted, strict=True):
        quantity = METRICS[finding.metric.rpartition(".")[2]]
        floor = stats.RELATIVE_FLOORS.get(quantity.name, stats.RELATIVE_FLOORS.get(quantity.family, 0.0))
        stands = p < ALPHA and abs(effect) > floor
        word = "confirmed" if stands else "noise"
        judged[finding] = replace(
            finding,
            kind=word,
            effect=effect,
            p=float(p),
            reason=f"{word} by {reruns} reruns ({effect:+.1%} against the median before)",
        )
    return [judged.get(finding, finding) for finding in findings]
