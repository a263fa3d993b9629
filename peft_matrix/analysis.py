"""Questions to the records: comparisons, regressions, the nightly job, bisection, claims of papers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from peft_matrix.results import Rows
from peft_matrix.targets import Location, make_console, open_workspace
from peft_matrix.targets import load as load_sweep_of

if TYPE_CHECKING:
    from harness.spec import LoadedSweep
    from harness.stats import Interval
    from peft_matrix.claim_checks import Verdicts
    from peft_matrix.night import Night
    from reports.apps.compare import Compared
    from reports.apps.regressions.detect import Report
    from runners.tools.bisection import Bisection


def compare(a: str, b: str, *, metric: str = "accuracy", results: Location = None) -> Compared:
    """Compare two configurations: effect, interval, p, smallest detectable effect.

    Args:
        a: beginning of a configuration's labels, or a pattern; ``b`` likewise.
        metric: any quantity of docs/metrics.md.
    """
    from reports.apps.compare import compare as of
    from reports.apps.compare import select
    from reports.data.samples import samples_of_records

    store = open_workspace(results).open_store()
    records, _ = store.records()
    return of(select(records, a), select(records, b), metric, samples_of_records(store, records), records=records)


def regressions(*, sweep: str | None = None, results: Location = None) -> Report:
    """Regressions and other changes over the records of a store."""
    from reports.apps.regressions.analyze import look

    return look(open_workspace(results).results, sweep=sweep)


def false_alarm_rate(*, sweep: str | None = None, results: Location = None) -> Interval | None:
    """How often identical nights would raise an alarm; None where no series is long enough."""
    from reports.apps.regressions.analyze import false_alarms, read

    return false_alarms(read(open_workspace(results).results, sweep=sweep))


def accept_baseline(cells: str, *, why: str, metric: str = "*", results: Location = None) -> str:
    """Record a decision: for cells that match this pattern a new baseline begins.

    Args:
        why: the reason, at least three characters; it is kept with the decision.

    Returns:
        Path of the file of decisions.
    """
    from datetime import UTC, datetime

    from reports.apps.regressions import decisions

    if len(why.strip()) < 3:
        raise UserError("--accept needs a reason", where="--accept", fix="Add --why '...' (at least 3 characters).")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    decision = decisions.Decision(cells=cells, metric=metric, since=since, why=why)
    return str(decisions.record(open_workspace(results).open_store(), decision))


def nightly(
    sweep: str | Path | LoadedSweep,
    *,
    results: Location = None,
    data_root: str | Path | None = None,
    again: bool = False,
    out: str | Path | None = None,
    confirm: bool = True,
    quiet: bool = False,
) -> Night:
    """Run what is stale, find and confirm regressions, and write a summary, the board and the site.

    Args:
        again: run every cell again.
        out: folder for what is written; None: ``nightly`` beside the records.
        confirm: run cells with a suspected regression again before they count.
    """
    from peft_matrix.night import run_night

    workspace = open_workspace(results, data_root, sweep=sweep)
    folder = Path(out) if out is not None else None
    return run_night(
        load_sweep_of(sweep, workspace), workspace, make_console(quiet), again=again, out=folder, confirm=confirm
    )


def bisect(
    sweep: str | Path,
    *,
    cell: str,
    good: str | Path,
    bad: str | Path,
    metric: str = "accuracy",
    runs: int = 5,
    data_root: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bisection:
    """Name the package whose new version made a cell worse.

    Args:
        sweep: name or file of a sweep.
        cell: key or label of the cell.
        good: lock file (NAME==VERSION lines) of an environment without the regression; ``bad``: of one with it.
        metric: what got worse, such as ``step_ms`` or ``train.peak_rss_bytes``.
        runs: runs of each side for every environment, at least 5.
    """
    from harness import stats
    from harness.metrics import METRICS
    from runners.tools import bisection as tool

    workspace = open_workspace(None, data_root)
    quantity = METRICS.get(metric.rpartition(".")[2])
    if quantity is None:
        raise UserError(f"unknown quantity {metric!r}", where="--metric", fix="docs/metrics.md lists them.")
    further = ("--data-root", str(workspace.data_root)) if workspace.data_root else ()
    file = workspace.sweep(str(sweep))
    return tool.bisect(
        tool.read_lock(Path(good)),
        tool.read_lock(Path(bad)),
        tool.Environments(workspace.cache / "bisect", file, cell, metric, further),
        runs=runs,
        floor=stats.RELATIVE_FLOORS.get(quantity.name, stats.RELATIVE_FLOORS.get(quantity.family, 0.0)),
        say=say,
    )


def reproduce(
    *claims: str | Path,
    run: bool = False,
    results: Location = None,
    data_root: str | Path | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Verdicts:
    """Judge claims of papers by the records at hand.

    Args:
        claims: claim files or folders; none: the built-in ones.
        run: first run what this machine can of the missing evidence.
    """
    from peft_matrix import claim_checks

    workspace = open_workspace(results, data_root)
    asked = claim_checks.load([Path(path) for path in claims])
    failed = claim_checks.run_missing(asked, workspace, make_console(quiet), say) if run else 0
    return claim_checks.judge(asked, workspace, failed=failed)


def reproduce_plan(*claims: str | Path, results: Location = None, data_root: str | Path | None = None) -> Rows:
    """List the runs that judging these claims needs. Runs nothing."""
    from peft_matrix import claim_checks

    return claim_checks.plan_missing(
        claim_checks.load([Path(path) for path in claims]), open_workspace(results, data_root)
    )
