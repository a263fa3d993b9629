"""Claims of papers judged by records: what would have to run, running it, and the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.record import FINAL_STATUSES
from harness.silence_stderr import quiet_stderr
from harness.store.store import Store
from peft_matrix.results import Rows

if TYPE_CHECKING:
    from rich.console import Console

    from reports.apps.reproduction.claims import Claim, Needs, Paper
    from reports.apps.reproduction.judging import JudgedClaim
    from reports.board.checks import Smell
    from runners.workspace import Workspace

    Claims = Sequence[tuple[Paper, Claim]]


REPORT = "reproduction.md"


@dataclass(frozen=True)
class Verdicts:
    """Claims with their verdicts.

    Attributes:
        results: one for every claim, in order.
        failed: cells of the sweeps that failed, if sweeps were run.
    """

    results: tuple[JudgedClaim, ...]
    failed: int = 0

    def rows(self) -> Rows:
        """One row per claim, as printed by ``reproduce --json``."""
        from reports.apps.reproduction.report import as_rows

        return Rows(as_rows(self.results))

    def to_markdown(self) -> str:
        """The report."""
        from reports.apps.reproduction.report import to_markdown

        return to_markdown(self.results)

    def save(self, folder: Path) -> Path:
        """Write the report into ``folder``; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(self.to_markdown(), encoding="utf-8")
        return folder / REPORT

    def _repr_html_(self) -> str:
        return self.rows()._repr_html_()


def load(claims: Sequence[Path]) -> Claims:
    """Claims of these files and folders; none: the built-in ones."""
    from reports.apps.reproduction.claims import BUILT_IN, load_claims

    return load_claims(list(claims) or [BUILT_IN])


def judge(claims: Claims, workspace: Workspace, *, failed: int = 0) -> Verdicts:
    """Judge claims by the records at hand; runs nothing."""
    from reports.apps.reproduction import run

    return Verdicts(tuple(run.answer(claims, run.library(stores(workspace)))), failed)


def stale_report(folder: Path, workspace: Workspace) -> list[Smell]:
    """Claims whose text or verdict in a report differs from the claim files and records as they are now."""
    from reports.board.checks import Smell

    shown = (folder / REPORT).read_text(encoding="utf-8").splitlines()
    now = judge(load(()), workspace).to_markdown().splitlines()
    rows = {line.split("`")[1]: line for line in now if line.startswith("| `")}
    there = {line.split("`")[1]: line for line in shown if line.startswith("| `")}
    found = [
        Smell(
            "unsound", REPORT, f"the claim {name} {'is not in the report' if name not in there else 'reads otherwise'}"
        )
        for name, line in rows.items()
        if there.get(name) != line
    ]
    found += [Smell("unsound", REPORT, f"the claim {name} is in no claim file") for name in there.keys() - rows.keys()]
    if not found and shown != now:
        found.append(Smell("unsound", REPORT, "its summary or notes differ from what the claims and records give"))
    return found


def stores(workspace: Workspace) -> list[str]:
    """The workspace's own records, and those committed as reference."""
    reference = Path("results/reference")
    committed = sorted(str(p) for p in reference.iterdir() if p.is_dir()) if reference.is_dir() else []
    return list(dict.fromkeys([workspace.results, *committed]))


def run_missing(claims: Claims, workspace: Workspace, console: Console, say: Callable[[str], None]) -> int:
    """Count what has to be counted and run the sweeps of the claims.

    Returns:
        How many cells failed.
    """
    from harness.store.store import Store
    from reports.apps.reproduction import run
    from runners.running.run import load_sweep, run_sweep

    wanted = {key: count.model_dump(mode="json") for key, count in run.counts_of(claims).items()}
    made = count_missing(wanted, Store(workspace.results), sweep=run.COUNTS)
    say(f"{made} counted, {len(wanted) - made} already done")
    return sum(run_sweep(load_sweep(name, workspace), workspace, console).failed for name in run.sweeps_of(claims))


def plan_missing(claims: Claims, workspace: Workspace) -> Rows:
    """The runs that these claims need, one row per sweep."""
    from harness import hardware
    from reports.apps.reproduction import run
    from runners.running.run import load_sweep, make_plan

    found = run.library(stores(workspace))
    counts = run.counts_of(claims)
    rows: list[dict[str, Any]] = [
        {
            "evidence": "counts from shapes",
            "to run": sum(found.count(count) is None for count in counts.values()),
            "done": sum(found.count(count) is not None for count in counts.values()),
            "not here": 0,
        }
    ]
    machine = hardware.probe()
    for name in run.sweeps_of(claims):
        plan = make_plan(load_sweep(name, workspace), workspace, machine=machine)
        rows.append(
            {
                "evidence": f"sweep {name}",
                "to run": len(plan.run),
                "done": len(plan.done) + len(plan.stale),
                "not here": len(plan.elsewhere) + len(plan.unsupported),
            }
        )
    for _, claim in claims:
        if claim.evidence is None:
            rows.append({"evidence": f"claim {claim.id}: no sweep of this project yet", "needs": _needs(claim.needs)})
    return Rows(rows)


def _needs(needs: Needs) -> str:
    hours = f"{needs.gpu_hours:g} GPU-hours" if needs.gpu_hours is not None else ""
    memory = f"{needs.memory_gib:g} GiB" if needs.memory_gib is not None else ""
    return ", ".join(text for text in (hours, memory, needs.why) if text)


def count_missing(wanted: Mapping[str, Mapping[str, object]], store: Store, *, sweep: str) -> int:
    """Count what the store does not hold yet.

    Args:
        wanted: record key to what :func:`runners.worker.static_counts.count` takes.
        sweep: name the records are filed under.

    Returns:
        How many were counted now.
    """
    held = store.entries()
    missing = [k for k in wanted if not any(e.status in FINAL_STATUSES for e in held.get(k, ()))]
    if not missing:
        return 0
    with quiet_stderr():
        from runners.worker.static_counts import count
    for key in missing:
        store.append(count(key, wanted[key], sweep=sweep))
    return len(missing)
