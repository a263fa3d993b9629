"""The backend of a run: the machine that the plan is made for, and the executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from harness import hardware, provenance
from harness.errors import UserError
from harness.registry import Registry
from runners.executors.base import Executor
from runners.executors.local import LocalExecutor, leases
from runners.planning.plan import Plan
from runners.workspace import Workspace


@dataclass(frozen=True)
class ExecutorChoice:
    """The executor that the user chose.

    Attributes:
        address: of a Ray cluster; None starts one of this machine.
        slurm: ``sbatch`` options by name.
        workers: cells at once, over the sweep's ``limits.workers``.
    """

    name: str = "local"
    address: str | None = None
    slurm: dict[str, str] = field(default_factory=dict)
    workers: int | None = None


class ExecutionTarget(Protocol):
    """A machine or a cluster.

    Attributes:
        machine: what cells may run on.
        fingerprint: of the environment there.
    """

    machine: hardware.Machine
    fingerprint: str

    def executor(self, plan: Plan, device: str) -> Executor:
        """The executor for this plan's cells."""
        ...


EXECUTORS: Registry[Callable[[ExecutorChoice, Workspace], ExecutionTarget]] = Registry(
    "executor",
    {
        "local": "runners.executors.backends:Local",
        "ray": "runners.executors.backends:Ray",
        "slurm": "runners.executors.backends:Slurm",
    },
)


def place(choice: ExecutorChoice, workspace: Workspace) -> ExecutionTarget:
    """The place a user asked for.

    Raises:
        UserError: no such executor, its package is missing, or its cluster cannot be reached.
    """
    return EXECUTORS.get(choice.name, where="--executor")(choice, workspace)


class Local:
    """This machine."""

    def __init__(self, choice: ExecutorChoice, workspace: Workspace) -> None:
        self.machine = hardware.probe()
        self.fingerprint = provenance.fingerprint(provenance.environment())
        self._workers = choice.workers
        self._workspace = workspace

    def executor(self, plan: Plan, device: str) -> Executor:
        """Processes on this machine's cores or GPUs."""
        limits = plan.sweep.spec.limits
        widest = max((cell.ranks for cell in plan.run), default=1)
        shares, at_once = leases(
            device=device,
            threads=limits.threads,
            workers=self._workers or limits.workers,
            uuids=self._gpus(plan) if device == "cuda" else (),
            widest=widest,
        )
        if len(shares) < widest:
            raise UserError(
                f"a cell needs {widest} devices, and {len(shares)} satisfy the hardware profiles of all cells",
                where=plan.sweep.source,
                fix="Run one profile at a time: --only '*.PROFILE.*'.",
            )
        return LocalExecutor(shares, at_once=at_once)

    def _gpus(self, plan: Plan) -> tuple[str, ...]:
        """The GPUs that every cell of the plan may run on: those that all its hardware profiles accept."""
        profiles = hardware.load_profiles(self._workspace.roots)
        names = {cell.hardware.name for cell in plan.run}
        accepted = [{gpu.uuid for gpu in hardware.gpus_for(profiles[name], self.machine)} for name in names]
        uuids = tuple(gpu.uuid for gpu in self.machine.gpus if all(gpu.uuid in some for some in accepted))
        if not uuids:
            raise UserError(
                "no GPU of this machine satisfies all hardware profiles of the cells to run",
                where=plan.sweep.source,
                fix="Run one profile at a time: --only '*.PROFILE.*'.",
            )
        return uuids


class Ray:
    """A Ray cluster."""

    def __init__(self, choice: ExecutorChoice, workspace: Workspace) -> None:
        from runners.executors import ray

        self._ray = ray
        self._nodes = ray.connect(choice.address)
        self.machine = ray.whole(self._nodes)
        with_gpu = [node for node in self._nodes if node.machine.gpus]
        self.fingerprint = (with_gpu or self._nodes)[0].fingerprint
        self._workers = choice.workers
        self._workspace = workspace

    def executor(self, plan: Plan, device: str) -> Executor:
        """Ray tasks."""
        limits = plan.sweep.spec.limits
        return self._ray.RayExecutor(
            self._nodes,
            device=device,
            threads=limits.threads,
            workers=self._workers or limits.workers,
            roots=self._workspace.roots,
        )


class Slurm:
    """The nodes behind some ``sbatch`` options."""

    def __init__(self, choice: ExecutorChoice, workspace: Workspace) -> None:
        from runners.executors import slurm

        self._slurm = slurm
        self._options = choice.slurm
        self.machine, self.fingerprint = slurm.node_behind(workspace.cache, choice.slurm)
        self._workers = choice.workers
        self._workspace = workspace

    def executor(self, plan: Plan, device: str) -> Executor:
        """Slurm jobs: all cells are submitted at once unless the user wants fewer."""
        limits = plan.sweep.spec.limits
        return self._slurm.SlurmExecutor(
            self._workspace.cache,
            self._options,
            places=self._workers or limits.workers or max(1, min(len(plan.run), 1000)),
            threads=limits.threads,
            timeout_s=limits.timeout_s,
            results=self._workspace.results,
        )
