"""Findings in words: for a terminal, and as the short Markdown summary that a nightly job posts."""

from __future__ import annotations

from reports.apps.regressions.detect import CellFinding, PooledFinding, Report

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
    return (
        f"`{finding.label}` `{finding.metric}`: {_number(finding.before)} → {_number(finding.after)}{effect}{p} "
        f"({finding.kind} since {finding.since}; {finding.reason})"
    )


def _list(items: tuple[str, ...]) -> str:
    return ", ".join(items) if items else "nothing that is recorded"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
