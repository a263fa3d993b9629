"""The nightly job: run what is stale, find and confirm regressions, write a summary, the board and the site."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peft_matrix.pages import build_site_of
from peft_matrix.targets import target

if TYPE_CHECKING:
    from rich.console import Console

    from harness.spec import LoadedSweep
    from reports.apps.regressions.detect import Report
    from reports.board.checks import Smell
    from runners.running.run import RunSummary
    from runners.workspace import Workspace


SMELLS_SHOWN = 20


@dataclass(frozen=True)
class Night:
    """Result of a nightly job.

    Attributes:
        summary: the run.
        report: what moved; suspected cells were run again and judged.
        text: the summary as Markdown.
        folder: where ``summary.md``, ``regressions.json``, ``board/`` and ``site/`` were written.
        smells: findings of the checks on the board that was written.
    """

    summary: RunSummary
    report: Report
    text: str
    folder: Path
    smells: tuple[Smell, ...] = ()

    @property
    def quiet(self) -> bool:
        """No cell failed, none regressed, and the board passes its checks."""
        return not (self.summary.failed or self.report.alarmed or self.smells)


def run_night(
    loaded: LoadedSweep,
    workspace: Workspace,
    console: Console,
    *,
    again: bool = False,
    out: Path | None = None,
    confirm: bool = True,
) -> Night:
    """Run the nightly job of a sweep.

    Args:
        again: run every cell again, not only stale ones.
        out: folder for what is written; None: ``nightly`` beside the records.
        confirm: run cells with a suspected regression again before they count.

    Raises:
        KeyboardInterrupt: after running cells were stopped and recorded.
        UserError: the sweep is wrong, or a folder cannot be written.
    """
    from reports.apps.regressions import analyze
    from reports.apps.regressions.analyze import to_markdown
    from reports.apps.regressions.detect import missing
    from reports.board.publish import publish_board
    from runners.running.run import run_sweep

    name = loaded.spec.name
    before = _final(workspace)
    summary = run_sweep(loaded, workspace, console, rerun=("all",) if again else ("stale",))
    report = analyze.look(workspace.results, sweep=name)
    after = _final(workspace)
    left = [(c.key, c.label) for c in summary.plan.run if not after.get(c.key, set()) - before.get(c.key, set())]
    report.cells += missing(left, report.cells)
    if confirm:
        _confirm(report, loaded, workspace, console)
    folder = out or workspace.beside("nightly")
    folder.mkdir(parents=True, exist_ok=True)
    shown = target(loaded, workspace, "recorded")
    smells = publish_board(
        shown.board,
        workspace.roots,
        results=workspace.results,
        keys=shown.keys,
        out=folder / "board",
        title=name,
        summary=shown.summary,
    ).smells
    ran = ", ".join(f"{n} {status}" for status, n in sorted(summary.outcomes.items())) or "nothing was stale"
    text = to_markdown(report).replace("# Regressions\n", f"# Night of {name}\n\nRan: {ran}.\n", 1)
    if smells:
        listed = "\n".join(f"- {one.smell}: {one.where}: {one.what}" for one in smells[:SMELLS_SHOWN])
        text += f"\n## Checks of the board\n\n{len(smells)} found (`peft-matrix check`):\n\n{listed}\n"
    (folder / "summary.md").write_text(text, encoding="utf-8")
    (folder / "regressions.json").write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    build_site_of(workspace, folder / "site")
    return Night(summary, report, text, folder, smells)


def _final(workspace: Workspace) -> dict[str, set[str]]:
    """Key of every cell to the ids of its final records."""
    from harness.record import FINAL_STATUSES

    entries = workspace.open_store().entries()
    return {key: {e.id for e in group if e.status in FINAL_STATUSES} for key, group in entries.items()}


def _confirm(report: Report, loaded: LoadedSweep, workspace: Workspace, console: Console) -> None:
    """Run suspected cells again, in turns, so that a slow drift of the machine falls on all of them alike."""
    from reports.apps.regressions import analyze
    from reports.apps.regressions.confirm_reruns import RERUNS, confirm, provisional
    from runners.running.run import run_sweep

    suspected = provisional(report.cells)
    if not suspected:
        return
    keys = sorted({finding.key for finding in suspected})
    for _ in range(RERUNS):
        for key in keys:
            run_sweep(loaded, workspace, console, only=key, rerun=("all",))
    judged = confirm(suspected, analyze.read(workspace.results, sweep=loaded.spec.name))
    others = [finding for finding in report.cells if finding not in suspected]
    report.cells = others + [finding for finding in judged if finding.kind != "noise"]
