"""One run of a sweep, from file to records: what the verbs ``run`` and ``plan`` do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from harness import hardware, provenance, spec
from harness.errors import UserError
from harness.spec import LoadedSweep
from runners import plan as planning
from runners.executors.local import LocalExecutor, leases
from runners.fetch import go_offline
from runners.plan import Plan
from runners.progress import Progress
from runners.scheduler import Scheduler
from runners.workspace import Workspace
from tasks.data import in_file, load_split
from tasks.task import load_task


@dataclass(frozen=True)
class Summary:
    """What a run did: the plan it followed and how many cells ended with which status."""

    plan: Plan
    outcomes: Counter[str]

    @property
    def failed(self) -> int:
        """Cells that ended neither ok nor unsupported."""
        return sum(n for status, n in self.outcomes.items() if status not in ("ok", "unsupported"))


def load_sweep(name: str, workspace: Workspace) -> LoadedSweep:
    """The sweep called ``name`` (or at that path)."""
    return spec.load(workspace.sweep(name))


def make_plan(
    sweep: LoadedSweep,
    workspace: Workspace,
    *,
    machine: hardware.Machine,
    only: str | None = None,
    rerun: Sequence[str] = (),
) -> Plan:
    """What would happen to each cell now."""
    return planning.make(
        sweep,
        workspace,
        store=workspace.open_store(),
        machine=machine,
        fingerprint=provenance.fingerprint(provenance.environment()),
        only=only,
        rerun=rerun,
    )


def run_sweep(
    sweep: LoadedSweep,
    workspace: Workspace,
    console: Console,
    *,
    only: str | None = None,
    rerun: Sequence[str] = (),
    workers: int | None = None,
) -> Summary:
    """Run what is to be run of ``sweep``.

    Args:
        workers: overrides the sweep's ``limits.workers``.

    Raises:
        KeyboardInterrupt: after running cells were stopped and recorded.
        UserError: the sweep is wrong, or the store cannot be written.
    """
    if workspace.fetched is not None:
        go_offline(workspace.fetched)
    machine = hardware.probe()
    plan = make_plan(sweep, workspace, machine=machine, only=only, rerun=rerun)
    check_data(plan, sweep, workspace)
    summary = Summary(plan, Counter())
    attempted: set[str] = set()
    # a sweep that tunes is planned again after its trials; any other has nothing new the second time
    while new := [cell for cell in plan.run if cell.key not in attempted]:
        attempted.update(cell.key for cell in new)
        plan.run = new
        summary.outcomes.update(_run_plan(plan, workspace, console, machine, workers=workers))
        if sweep.spec.tune is None:
            break
        plan = make_plan(sweep, workspace, machine=machine, only=only)
    else:
        # nothing is left to launch, but what cannot run is still to be written down
        if not attempted:
            summary.outcomes.update(_run_plan(plan, workspace, console, machine, workers=workers))
    return summary


def _run_plan(
    plan: Plan, workspace: Workspace, console: Console, machine: hardware.Machine, *, workers: int | None
) -> Counter[str]:
    """Run one plan's cells on this machine."""
    sweep = plan.sweep
    store = workspace.open_store()
    devices = {planning.device_of(cell) for cell in plan.run}
    if len(devices) > 1:
        raise UserError(
            "this sweep holds cells for the CPU and for the GPU of this machine at once",
            where=str(sweep.path),
            fix="Run them one after the other: --only '*.cpu.*', then the rest.",
        )
    device = devices.pop() if devices else "cpu"
    limits = sweep.spec.limits
    shares = leases(
        device=device,
        threads=limits.threads,
        workers=workers or limits.workers,
        uuids=tuple(gpu.uuid for gpu in machine.gpus),
    )
    with Progress(console, total=len(plan.run), slots=len(shares)) as view:
        scheduler = Scheduler(
            plan,
            store=store,
            workspace=workspace,
            executor=LocalExecutor(shares),
            device=device,
            view=view,
        )
        return scheduler.run()


def check_data(plan: Plan, sweep: LoadedSweep, workspace: Workspace) -> None:
    """Read the splits of every task that is to run and lies on this machine, so that a mistake in a data file
    is one sentence now and not the same failure in every cell.

    Raises:
        UserError: a missing file or column, an empty split, a label outside the set.
    """
    wanted = {cell.task.name for cell in plan.run}
    for use in sweep.spec.tasks:
        if use.name not in wanted:
            continue
        task = load_task(use.name, list(workspace.roots))
        for split in task.definition.splits:
            if in_file(task, split, data_root=workspace.data_root):
                items: int | None = getattr(use, f"{split}_items")
                load_split(task, split, data_root=workspace.data_root, max_items=items, seed=0)
