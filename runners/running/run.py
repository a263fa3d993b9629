"""One run of a sweep, from file to records: what the verbs ``run`` and ``plan`` do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console

from harness import hardware, provenance, spec
from harness.errors import UserError, did_you_mean
from harness.spec import LoadedSweep
from runners import environments
from runners.executors.backends import EXECUTORS, ExecutionTarget, ExecutorChoice, place
from runners.planning import plan as planning
from runners.planning.cost_model import device_of
from runners.planning.ordering import Budget
from runners.planning.plan import NotRun, Plan
from runners.planning.refusals import check_named_modules
from runners.running import preflight, recovery
from runners.running.job_logs import LOGS
from runners.running.job_results import EXPECTED
from runners.running.live import RunFile
from runners.running.progress import Progress
from runners.running.scheduler import Scheduler
from runners.running.trackers import FOLDER as TRACKERS_FOLDER
from runners.running.trackers import chosen, tracked
from runners.tools.fetch import go_offline
from runners.workspace import Workspace
from tasks.data import in_file, load_split
from tasks.task import load_task


@dataclass(frozen=True)
class RunSummary:
    """Result of a run: the plan it followed and how many cells ended with which status."""

    plan: Plan
    outcomes: Counter[str]
    not_run: list[NotRun] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Number of failed cells, and of those that did not start for lack of disk space or memory."""
        ended = sum(n for status, n in self.outcomes.items() if status not in EXPECTED)
        return ended + sum(one.kind != "budget" for one in self.not_run)


def load_sweep(name: str, workspace: Workspace, changes: Sequence[str] = ()) -> LoadedSweep:
    """The sweep called ``name`` (or at that path), with values set as in ``training.steps=10``.

    Hardware profiles that it does not name are those of the workspace.

    Raises:
        UserError: no such sweep, a mistake in its file, or a default profile that is not known.
    """
    loaded = spec.load(workspace.sweep(name), changes)
    profiles = workspace.defaults.hardware
    if profiles is None or "hardware" in loaded.spec.model_fields_set:
        return loaded
    known = hardware.load_profiles(workspace.roots)
    if unknown := [profile for profile in profiles if profile not in known]:
        fix = did_you_mean(unknown[0], known)
        raise UserError(f"unknown hardware profile {unknown[0]!r}", where=workspace.default("hardware"), fix=fix)
    return replace(loaded, spec=loaded.spec.model_copy(update={"hardware": profiles}))


def choice_of(
    sweep: LoadedSweep,
    workspace: Workspace,
    *,
    executor: str | None = None,
    address: str | None = None,
    slurm: Mapping[str, str] | None = None,
    workers: int | None = None,
) -> ExecutorChoice:
    """Where a sweep runs and how many cells at once: as asked for, else what the sweep says, else the workspace.

    Raises:
        UserError: the workspace names an executor that is not known.
    """
    defaults = workspace.defaults
    if executor is None and defaults.executor not in EXECUTORS:
        fix = did_you_mean(defaults.executor, EXECUTORS)
        raise UserError(f"unknown executor {defaults.executor!r}", where=workspace.default("executor"), fix=fix)
    options = {name: str(value) for name, value in defaults.slurm.items()}
    return ExecutorChoice(
        executor or defaults.executor,
        address or defaults.address,
        {**options, **(slurm or {})},
        workers or sweep.spec.limits.workers or defaults.workers,
    )


def make_plan(
    sweep: LoadedSweep,
    workspace: Workspace,
    *,
    machine: hardware.Machine,
    fingerprint: str | None = None,
    only: str | None = None,
    rerun: Sequence[str] = (),
    hours: float | None = None,
    slots: int = 1,
) -> Plan:
    """Plan of a sweep without running it; the arguments are those of :func:`runners.planning.plan.make`.

    Args:
        fingerprint: None: that of this process.

    Raises:
        UserError: as there, and where a method names a module that no model of the sweep has.
    """
    environment = provenance.environment()
    made = planning.make(
        sweep,
        workspace,
        store=workspace.open_store(),
        machine=machine,
        fingerprint=fingerprint or provenance.fingerprint(environment),
        outside=environments.fingerprints(environment, workspace.cache),
        only=only,
        rerun=rerun,
        hours=hours,
        slots=slots,
    )
    check_named_modules(made.cells, sweep)
    return made


def run_sweep(
    sweep: LoadedSweep,
    workspace: Workspace,
    console: Console,
    *,
    only: str | None = None,
    rerun: Sequence[str] = (),
    choice: ExecutorChoice | None = None,
    hours: float | None = None,
    trackers: Sequence[str] | None = None,
) -> RunSummary:
    """Run what is to be run of ``sweep``.

    Args:
        choice: where it runs; None: what the workspace says, else on this machine.
        hours: no cell starts that is predicted to end later than this many hours from now.
        trackers: libraries that show the run (:mod:`runners.running.trackers`); None: what the workspace says.

    Raises:
        KeyboardInterrupt: after running cells were stopped and recorded.
        UserError: the sweep is wrong, a tracker is unknown or not installed, or the store cannot be written.
    """
    shown_in = chosen(trackers, workspace)
    if workspace.fetched is not None:
        go_offline(workspace.fetched)
    if recovered := recovery.collect(workspace.cache / "jobs", workspace.open_store(), workspace.local(LOGS)):
        console.print(f"{recovered} finished cells of a killed run were recovered.")
    choice = choice or choice_of(sweep, workspace)
    where = place(choice, workspace)
    budget = Budget.of_hours(hours) if hours is not None else None
    with RunFile(workspace, sweep.spec.name, choice.name) as file:
        return _in_phases(_SweepRun(sweep, workspace, console, where, budget, file, shown_in), only=only, rerun=rerun)


def _in_phases(run: _SweepRun, *, only: str | None, rerun: Sequence[str]) -> RunSummary:
    """Plan and run until nothing new can run."""
    sweep, workspace = run.sweep, run.workspace
    plan = run.plan(only=only, rerun=rerun)
    check_data(plan, sweep, workspace)
    summary = RunSummary(plan, Counter())
    attempted: set[str] = set()
    # a sweep that tunes is planned again after its trials, one that combines rows after their cells; others are not
    while new := [cell for cell in plan.run if cell.key not in attempted]:
        attempted.update(cell.key for cell in new)
        run.through(replace(plan, run=tuple(new)), summary)
        if sweep.spec.tune is None and not plan.waiting:
            break
        told = {cell.key for cell, _ in plan.unsupported}
        plan = run.plan(only=only)
        plan = replace(plan, unsupported=tuple(one for one in plan.unsupported if one[0].key not in told))
    else:
        # nothing is left to launch, but what cannot run is still to be written down
        if not attempted or plan.unsupported:
            run.through(replace(plan, run=()), summary)
    preflight.keep(workspace.results, sweep.spec.name, summary.not_run)
    return summary


@dataclass
class _SweepRun:
    """State shared by the plans of one run."""

    sweep: LoadedSweep
    workspace: Workspace
    console: Console
    place: ExecutionTarget
    budget: Budget | None
    file: RunFile
    trackers: Sequence[str]

    def plan(self, *, only: str | None, rerun: Sequence[str] = ()) -> Plan:
        """Cells to run now. Under a budget, what it is not expected to hold comes last, and the clock decides."""
        hours = self.budget.seconds / 3600 if self.budget else None
        plan = make_plan(
            self.sweep,
            self.workspace,
            machine=self.place.machine,
            fingerprint=self.place.fingerprint,
            only=only,
            rerun=rerun,
            hours=hours,
        )
        return replace(plan, run=(*plan.run, *(one.cell for one in plan.not_run)), not_run=())

    def through(self, plan: Plan, summary: RunSummary) -> None:
        """Run one plan's cells and add to the summary what came of them."""
        sweep = plan.sweep
        store = self.workspace.open_store()
        devices = {device_of(cell) for cell in plan.run}
        if len(devices) > 1:
            raise UserError(
                "this sweep has cells for the CPU and for the GPU of this machine",
                where=sweep.source,
                fix="Run them in two runs: --only '*.cpu.*', then the rest.",
            )
        device = devices.pop() if devices else "cpu"
        executor = self.place.executor(plan, device)
        if executor.remote and sweep.spec.keep != "none":
            raise UserError(
                f"keep: {sweep.spec.keep} writes into a folder of this machine, and a cluster's nodes do not see it",
                where=sweep.source,
                fix="Run this sweep with the local executor, or without 'keep'.",
            )
        if executor.remote and (plan.ingredients or plan.keep):
            raise UserError(
                "cells that combine others read what those kept on this machine, and a cluster's nodes do not see it",
                where=sweep.source,
                fix="Run this sweep with the local executor.",
            )
        slots = len(executor.leases) if executor.remote else executor.neighbours + 1
        with (
            Progress(self.console, total=len(plan.run), slots=slots, file=self.file) as progress,
            tracked(progress, self.trackers, self.workspace.local(TRACKERS_FOLDER)) as view,
        ):
            scheduler = Scheduler(
                plan,
                store=store,
                workspace=self.workspace,
                executor=executor,
                device=device,
                view=view,
                budget=self.budget,
            )
            summary.outcomes.update(scheduler.run())
            summary.not_run.extend(scheduler.not_run)


def check_data(plan: Plan, sweep: LoadedSweep, workspace: Workspace) -> None:
    """Read the splits of every task that is to run and is on this machine, so that a mistake in a data file is reported
    once and not as the same failure in every cell.

    Raises:
        UserError: a missing file or column, an empty split, a label outside the set.
    """
    evaluation = sweep.spec.evaluation
    for name in (*evaluation.held_out, *(skill.name for skill in evaluation.retain)) if plan.run else ():
        task = load_task(name, list(workspace.roots))
        if in_file(task, "test", data_root=workspace.data_root):
            load_split(task, "test", data_root=workspace.data_root, max_items=None, seed=0)
    wanted = {cell.task.name for cell in plan.run}
    for use in sweep.spec.tasks:
        if use.name not in wanted:
            continue
        task = load_task(use.name, list(workspace.roots))
        for split in task.definition.splits:
            if use.test_only and split != "test":
                continue
            if in_file(task, split, data_root=workspace.data_root):
                items: int | None = getattr(use, f"{split}_items")
                load_split(task, split, data_root=workspace.data_root, max_items=items, seed=0)
