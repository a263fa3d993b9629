"""From a store to a report: the whole of the verb ``regressions``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.record import Record
from harness.store import index
from harness.store.store import Store, without_collection
from reports.apps.regressions import decisions as kept
from reports.apps.regressions.detect import CellFinding, PooledFinding, Report, detect
from reports.apps.regressions.series import History, Series, SeriesPoint, history
from reports.data.samples import samples_of_digests


def read(root: str, *, sweep: str | None = None) -> History:
    """The history that a store holds, of one sweep or of all."""
    store = Store(root)
    loaded = index.load(store)

    def record(row: int) -> Record:
        return Record.from_json((store.files.read(loaded.paths[row]) or b"").decode(), where=loaded.paths[row])

    return history(loaded.flat, lambda row: record(row).environment, cell=lambda row: record(row).cell, sweep=sweep)


def look(root: str, *, sweep: str | None = None) -> Report:
    """Changes in the records and samples of a store, given its baseline decisions."""
    with without_collection():
        return _look(root, sweep)


def _look(root: str, sweep: str | None) -> Report:
    store, found = Store(root), read(root, sweep=sweep)
    newest = {point.record for one in found.series for point in one.points[-2:]}
    samples = samples_of_digests(store, found.samples, newest)
    return detect(found, samples=samples, decisions=kept.load(store))


def false_alarms(found: History, *, rounds: int = 200, seed: int = 0) -> stats.Interval | None:
    """Share of nights on which identical runs would have alarmed: the series' own values in another order (A/A).

    Every kind of alarm counts, change points included, before reruns dismiss any.

    Each round shuffles the nights of the newest environment, the same for all series, so that what a night does to
    all cells stays together.

    Returns:
        None where no series has six values of one environment.
    """
    long = [s for s in found.series if len(s.segment()) >= 6]
    if not long:
        return None
    nights = min(len(s.segment()) for s in long)

    def draw(rng: np.random.Generator) -> NDArray[np.float64]:
        return np.asarray(rng.permutation(nights), dtype=np.float64)

    def alarms(order: NDArray[np.float64]) -> bool:
        shuffled = tuple(_reordered(s, order) for s in long)
        return detect(History(shuffled, {}, {}, {})).alarmed

    return stats.false_alarm_rate(alarms, draw, rounds=rounds, seed=seed)


def _reordered(series: Series, order: NDArray[np.float64]) -> Series:
    segment = series.segment()[-len(order) :]
    times = [p.finished for p in segment]
    points = tuple(
        SeriesPoint(time, segment[int(i)].record, segment[int(i)].value, segment[int(i)].fingerprint, segment[int(i)].n)
        for time, i in zip(times, order, strict=True)
    )
    return Series(series.key, series.label, series.metric, series.model, points)


SHOWN = 20
FLIPS_SHOWN = 3


def to_markdown(report: Report) -> str:
    """A summary that fits a chat message: counts first, then the strongest findings."""
    lines = ["# Regressions", ""]
    counted = report.looked_at
    lines.append(
        f"{len(report.cells)} cells and {len(report.pooled)} matrix-wide changes got worse, "
        f"{len(report.improvements)} got better, {len(report.environment_changes)} changes of environment. "
        f"Looked at {counted.get('series', 0)} series, {counted.get('with_history', 0)} of them with a history."
    )
    if report.flips:
        lost, gained, n = (sum(getattr(f, name) for f in report.flips) for name in ("lost", "gained", "n"))
        lines += ["", f"Since the last good records {lost} of {n:,} answers were lost and {gained} gained."]
        worst = sorted((f for f in report.flips if f.lost), key=lambda f: (-f.lost / f.n, f.label))[:FLIPS_SHOWN]
        lines += [f"- `{f.label}` `{f.metric}`: {f.lost} lost, {f.gained} gained of {f.n}" for f in worst]
    for change in report.environment_changes:
        lines += [
            "",
            f"**Environment changed** on {change.cells} cells since {change.since}: " + _list(change.suspects),
        ]
    if report.ended or report.began:
        lines += [
            "",
            f"{len(report.ended)} series ended and {len(report.began)} began on the newest day of their sweep.",
        ]
        named = [one for one in report.ended if one.differs][:SHOWN]
        lines += [f"- `{one.label}` ended: another cell of this label has {', '.join(one.differs)}" for one in named]
    if report.renamed:
        lines += ["", f"{len(report.renamed)} renamed cells continue the series of their old labels."]
        lines += [f"- `{old}` → `{new}`" for old, new in report.renamed[:SHOWN]]
    if report.undecided:
        lines += ["", "Perhaps only the load of one night, because fewer than three nights came before:", ""]
        lines += [f"- {sentence(f)}" for f in report.undecided[:SHOWN]]
    if undated := counted.get("records_without_a_date", 0):
        lines += ["", f"{undated} records do not say when they were made and were left out."]
    worse: list[CellFinding | PooledFinding] = [*report.pooled, *report.cells]
    for title, findings in (("Worse", worse), ("Better", report.improvements)):
        if findings:
            lines += ["", f"## {title}", ""]
            lines += [f"- {sentence(f)}" for f in findings[:SHOWN]]
            if len(findings) > SHOWN:
                lines.append(f"- … and {len(findings) - SHOWN} more (see --json)")
    return "\n".join(lines) + "\n"


def sentence(finding: CellFinding | PooledFinding) -> str:
    """One finding in a sentence."""
    if isinstance(finding, PooledFinding):
        suspects = f" Suspects: {_list(finding.suspects)}." if finding.suspects else ""
        return (
            f"`{finding.metric}` over {finding.pairs} cells: {_number(finding.before)} → {_number(finding.after)}, "
            f"effect {finding.effect:+.3g} [{finding.low:+.3g}, {finding.high:+.3g}], p {finding.p:.2g} "
            f"({finding.kind}).{suspects}"
        )
    if finding.kind in ("status", "condition", "missing"):
        return f"`{finding.label}` {finding.reason}"
    p = f", p {finding.p:.2g}" if finding.p is not None else ""
    effect = f", effect {finding.effect:+.3g}" if finding.effect is not None else ""
    if finding.low is not None and finding.high is not None:
        effect += f" [{finding.low:+.3g}, {finding.high:+.3g}]"
    return (
        f"`{finding.label}` `{finding.metric}`: {_number(finding.before)} → {_number(finding.after)}{effect}{p} "
        f"({finding.kind} since {finding.since}; {finding.reason})"
    )


def _list(items: tuple[str, ...]) -> str:
    return ", ".join(items) if items else "nothing that is recorded"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
