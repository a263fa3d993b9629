"""The loop: lease a share of the machine, claim a cell, launch, sleep, record. Resume and Ctrl-C live here."""

from __future__ import annotations

import shutil
import signal
import threading
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from harness import hardware, provenance
from harness.errors import UserError
from harness.matrix import Cell, EarlierPoints, earlier_cells, teacher_cells
from harness.models import sources
from harness.quantizers.catalog import QUANTIZERS
from harness.record import FINAL_STATUSES, Outcome, Record
from harness.store.store import CellClaim, Store, short_fingerprint
from runners import environments
from runners.executors.base import Ended, Executor, Lease, Message
from runners.planning.cell_dependencies import kept_at
from runners.planning.ordering import Budget
from runners.planning.plan import NotRun, Plan
from runners.running import adapters, recovery
from runners.running.job_logs import LOGS, keep_log
from runners.running.job_results import Endings, counted_as, how_it_died, log_tail
from runners.running.leases import Pool
from runners.running.preflight import no_room
from runners.running.recovery import CellAttempt, back_off, next_attempt
from runners.worker.job import Job
from runners.worker.process import BEAT_S
from runners.workspace import Workspace

HELD_POLL_S = 1.0
"""Interval between attempts at cells and devices that are locked by another run."""
STOP_GRACE_S = 10.0
START_LIMIT_S = 120.0
"""Until a worker's first word its time does not count: the first one waits for the template's imports."""
TICK_S = 5.0
"""Longest sleep; the parent wakes this rarely so that it does not disturb what is measured."""


class View(Protocol):
    """Progress display of a run; ``live_losses``: workers send their losses with their progress."""

    live_losses: bool

    def started(self, job: Job) -> None: ...  # noqa: D102
    def message(self, job: Job, content: dict[str, object]) -> None: ...  # noqa: D102
    def left(self, job: Job) -> None: ...  # noqa: D102
    def ended(self, record: Record) -> None: ...  # noqa: D102
    def note(self, text: str) -> None: ...  # noqa: D102
    def tick(self) -> None: ...  # noqa: D102


@dataclass
class Running:
    """A launched job, what it holds, and when it must be over.

    Attributes:
        silent_at: when it counts as lost unless it gives a sign of life before; None until its first one.
    """

    job: Job
    cell: Cell
    attempt: CellAttempt
    lease: Lease
    claim: CellClaim
    deadline: float
    stage: str = "start"
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    silent_at: float | None = None
    why_stopped: str = ""
    kill_at: float | None = None


class Scheduler:
    """Runs a plan.

    Args:
        plan: what to run.
        device: ``cpu`` or ``cuda``: where the cells of this plan run.
        view: shows progress.
        budget: how long cells may be started; None: until all have run.

    Attributes:
        outcomes: how many cells ended with which status.
        not_run: cells that were not started, and why.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        store: Store,
        workspace: Workspace,
        executor: Executor,
        device: str,
        view: View,
        budget: Budget | None = None,
    ) -> None:
        self.plan, self._known = plan, dict(plan.known)
        self.store = store
        self.workspace = workspace
        self.executor = executor
        self.device = device
        self.view = view
        self.budget = budget
        self.outcomes: Counter[str] = Counter()
        self.not_run: list[NotRun] = []
        self._limits = plan.sweep.spec.limits
        self._profiles = hardware.load_profiles(workspace.roots)
        self._endings = Endings(plan.sweep.spec.name, provenance.environment())
        self._measures_cost = plan.sweep.spec.measure_cost
        self._per_device = self._limits.trials_per_device if self._measures_cost else self._limits.cells_per_device
        at_once = None if executor.remote else executor.neighbours + 1
        self._pool = Pool(executor.leases, cells_per_device=self._per_device, at_once=at_once)
        self._owner = recovery.owner()
        self._run_id = uuid.uuid4().hex[:12]  # blocks of two runs are different blocks
        self._running: dict[str, Running] = {}
        self._queue: deque[tuple[Cell, CellAttempt]] = deque((cell, CellAttempt()) for cell in plan.run)
        self._held: deque[tuple[Cell, CellAttempt]] = deque()
        self._said: set[str] = set()
        self._waits_for_device = False

    # --- the loop ------------------------------------------------------------------------------
    def run(self) -> Counter[str]:
        """Run every cell of the plan; returns how many ended with which status.

        Raises:
            KeyboardInterrupt: after running cells were stopped and recorded.
            UserError: the store cannot be written.
        """
        # Python sets signal handlers in the main thread only; a run in another thread keeps the program's own
        main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGTERM, _as_interrupt) if main_thread else None
        try:
            self._record_unsupported()
            self._build_models()
            while self._queue or self._held or self._running:
                self._launch()
                self._handle(self.executor.wait(self._sleep_s()))
                self._enforce_deadlines()
                self.view.tick()
            return self.outcomes
        except KeyboardInterrupt:
            self._stop_all()
            raise
        finally:
            if main_thread:
                signal.signal(signal.SIGTERM, handler)
            self.executor.close()
            self._pool.close()
            for running in self._running.values():
                running.claim.release()

    def _launch(self) -> None:
        """Start cells while a device is free; those locked by another run come last."""
        self._waits_for_device = False
        while self._queue and self._start(*self._queue[0]):
            self._queue.popleft()
        if not self._queue:
            waiting, self._held = self._held, deque()
            while waiting and self._start(*waiting[0]):
                waiting.popleft()
            self._held.extendleft(reversed(waiting))

    def _start(self, cell: Cell, attempt: CellAttempt) -> bool:
        """Launch one cell, or put it where it belongs: held, done by another run, not run.

        Returns:
            False while there is no device for it.
        """
        if (refusal := self.budget.refuses(self.plan.predict(cell).seconds) if self.budget else None) is not None:
            self.not_run.append(NotRun(cell, "budget", refusal))
            return True
        shares = not self._measures_cost or cell.common.identity.get("role") == "trial"
        lease = self._pool.take(shares=shares, devices=1 if self.executor.remote else cell.ranks)
        if lease is None:
            self._waits_for_device = True
            return False
        claim = self._claimed(cell, attempt)
        if claim is None:
            self._pool.give(lease)
            return True
        job = adopted = self.executor.adopt(cell.key)
        if job is None:
            job = self._job(cell, lease, attempt)
            job.write()
        else:
            attempt = CellAttempt(job.attempt, job.out_of_memory)
        self._running[cell.key] = Running(
            job,
            cell,
            attempt,
            lease,
            claim,
            deadline=time.monotonic() + self._start_limit_s(cell) + self._limits.timeout_s,
        )
        self.view.started(job)
        if adopted is None:
            self.executor.start(job)
        return True

    def _claimed(self, cell: Cell, attempt: CellAttempt) -> CellClaim | None:
        """The right to run a cell now; without it the cell is held, not run, or finished by another run."""
        refused = self._no_room(cell)
        if refused is not None:
            if self._running:  # what runs may free what is missing
                self._hold(cell, attempt, f"{cell.label} waits: {refused.reason}")
            else:
                self.not_run.append(refused)
            return None
        claim = self.store.claim(cell.key)
        if claim is None:
            self._hold(cell, attempt, f"{cell.label} is locked by another run; it is retried later")
            return None
        if self._finished_meanwhile(cell):
            claim.release()
            return None
        return claim

    def _hold(self, cell: Cell, attempt: CellAttempt, why: str) -> None:
        self._held.append((cell, attempt))
        if cell.key not in self._said:
            self._said.add(cell.key)
            self.view.note(why)

    def _no_room(self, cell: Cell) -> NotRun | None:
        """True if the machine lacks disk or memory for the cell; a cluster's nodes are not checked from here."""
        if self.executor.remote:
            return None
        results = [] if "://" in self.workspace.results else [Path(self.workspace.results)]
        least = self.plan.predict.analytic(cell).least_bytes
        found = no_room(
            [self.workspace.cache, *results],
            min_free_disk_gib=self._limits.min_free_disk_gib,
            needs_bytes=least * cell.ranks if least is not None and self.device == "cpu" else None,
        )
        return NotRun(cell, *found) if found is not None else None

    def _start_limit_s(self, cell: Cell) -> float:
        """Until a worker's first word its time does not count; cooling down and the idle baseline come before it.

        A cluster may let a job wait as long as it wants to.
        """
        if self.executor.remote:
            return float("inf")
        thermal = self._profiles[cell.hardware.name].thermal
        return START_LIMIT_S + (thermal.cool_cap_s if thermal and thermal.cool_below_c is not None else 0.0)

    def _finished_meanwhile(self, cell: Cell) -> bool:
        """True if a final record appeared that neither the plan knew nor this run wrote."""
        before = self._known.get(cell.key, frozenset())
        now = {e.id for e in self.store.entries_of(cell.key) if e.status in FINAL_STATUSES}
        return bool(now - before)

    def _job(self, cell: Cell, lease: Lease, attempt: CellAttempt) -> Job:
        folder = self.workspace.cache / "jobs" / f"{cell.key}-{uuid.uuid4().hex[:8]}"
        outside = QUANTIZERS.get(cell.quantization.name).declaration.environment
        python = environments.interpreter(outside, self.workspace.cache) if outside else None
        return Job(
            key=cell.key,
            label=cell.label,
            sweep=self.plan.sweep.spec.name,
            cell=cell.as_dict(),
            model=sources.absolute(cell.model.name),
            folder=str(folder),
            device=self.device,
            gpus=lease.gpus,
            cores=lease.cores,
            workspaces=tuple(str(r) for r in self.workspace.roots),
            data_root=str(self.workspace.data_root) if self.workspace.data_root else None,
            cache=str(self.workspace.cache),
            attempt=attempt.number,
            neighbours=(self.executor.neighbours + 1) * self._per_device - 1,
            accounting=self.plan.sweep.spec.accounting.model_dump(mode="json", exclude_none=True),
            side_environment={"name": outside, "digest": environments.digest(outside)} if outside else {},
            python=str(python or ""),
            tools=environments.interpreters(self.workspace.cache),
            others={
                at: sources.absolute(name)
                for point in (cell.common, *cell.further)
                for at, name in point.others.items()
            },
            tuning=self.plan.tuning.get(cell.key, {}),
            keep=str(self._keep_at(cell) or ""),
            ingredients=tuple(self._part(part) for part in self._combined(cell)),
            earlier=tuple(
                {**self._part(part), "handover": one.handover}
                for part, one in zip(earlier_cells(cell), self._stages(cell), strict=True)
            ),
            trained={place: self._part(part) for place, part in teacher_cells(cell).items()},
            peak_tflops=(self._profiles[cell.hardware.name].peak_tflops or {}).get(cell.loading["dtype"]),
            out_of_memory=attempt.out_of_memory,
            owner=self._owner,
            results=self.store.root,
            order=self._order_of(cell, attempt),
            beat_s=min(BEAT_S, self._limits.lost_after_s / 4),
            live_losses=self.view.live_losses,
        )

    def _keep_at(self, cell: Cell) -> Path | None:
        """Folder for what the cell saves: the cache for cells that combine it, the results where the sweep keeps it."""
        if cell.key in self.plan.keep:
            return kept_at(self.workspace.cache, cell)
        return adapters.place(self.workspace, cell.key) / adapters.INCOMING if self._keeps(cell) else None

    def _keeps(self, cell: Cell) -> bool:
        return self.plan.sweep.spec.keep != "none" and cell.common.identity.get("role") != "trial"

    def _part(self, part: Cell) -> dict[str, object]:
        """A cell that trained something for another one, and the folder where that is kept."""
        return {
            "label": part.label,
            "key": part.key,
            "cell": part.as_dict(),
            "model": sources.absolute(part.model.name),
            "folder": str(kept_at(self.workspace.cache, part)),
        }

    def _combined(self, cell: Cell) -> list[Cell]:
        """The cells whose results this one combines; those that it starts from or asks are other ones."""
        others = {part.key for part in (*earlier_cells(cell), *teacher_cells(cell).values())}
        return [part for part in self.plan.ingredients.get(cell.key, ()) if part.key not in others]

    @staticmethod
    def _stages(cell: Cell) -> tuple[EarlierPoints, ...]:
        stages = cell.on("stages")
        return () if stages is None else stages.earlier

    def _order_of(self, cell: Cell, attempt: CellAttempt) -> dict[str, object]:
        """The run and the block of a cell; {} for a later attempt, which runs when its block is over."""
        slot = self.plan.slots.get(cell.key)
        return {"run": self._run_id, **slot.as_json()} if slot is not None and attempt.number == 1 else {}

    # --- what happens --------------------------------------------------------------------------
    def _sleep_s(self) -> float:
        due = [r.kill_at or min(r.deadline, r.silent_at or r.deadline) for r in self._running.values()]
        waits = self._waits_for_device and not self._running
        longest = HELD_POLL_S if waits or (self._held and not self._queue and self._pool.free) else TICK_S
        return max(0.0, min([longest, *(d - time.monotonic() for d in due)]))

    def _handle(self, events: list[Message | Ended]) -> None:
        for event in events:
            running = self._running.get(event.job.key)
            if running is None:
                continue
            if isinstance(event, Ended):
                self._finish(running, how_it_died(event.exit_code, event.why))
                continue
            running.silent_at = time.monotonic() + self._limits.lost_after_s
            said = event.content.get("event")
            if said == "requeued":  # it waits again, and starts from the beginning
                running.silent_at, running.deadline, running.stage = None, float("inf"), "start"
                self.view.note(f"{running.cell.label} was pre-empted; it is queued again")
            if said == "beat":
                self.view.message(event.job, event.content)
            if said in ("beat", "begin", "requeued"):
                continue
            if running.stage == "start":
                running.deadline = time.monotonic() + self._limits.timeout_s
            running.stage = str(event.content.get("stage", running.stage))
            self.view.message(event.job, event.content)

    def _enforce_deadlines(self) -> None:
        """A cell over its time is killed, and so is one that fell silent or does not stop when asked to."""
        now = time.monotonic()
        for running in self._running.values():
            if running.kill_at is not None:
                if now >= running.kill_at:
                    self.executor.stop(running.job, kill=True)
                continue
            silent = running.silent_at is not None and now >= running.silent_at
            if silent or now >= running.deadline:
                running.why_stopped = "silent" if silent else "timeout"
                running.kill_at = now + STOP_GRACE_S
                self.executor.stop(running.job, kill=True)

    def _finish(self, running: Running, how_it_died: str) -> None:
        """Store the record of a job that is over, free what it held, and try again what may end otherwise."""
        cell, attempt = running.cell, running.attempt
        status, reason = self._why(running, how_it_died)
        record, samples = self._endings.of_job(
            cell, running.job, stage=running.stage, started=running.started, status=status, reason=reason
        )
        smaller = back_off(cell, attempt, record.outcome)
        if isinstance(smaller, str):
            outcome = record.outcome.model_copy(update={"reason": f"{record.outcome.reason} ({smaller})"})
            record = record.model_copy(update={"outcome": outcome})
        again = smaller if isinstance(smaller, CellAttempt) else None
        try:
            if again is None:  # a cell that backs off has one record, which holds what it met before
                entry = self.store.append(record, samples)
                self._known[cell.key] = self._known.get(cell.key, frozenset()) | {entry.id}
                keep_log(Path(running.job.folder), self.workspace.local(LOGS), record)
        finally:
            running.claim.release()
            del self._running[cell.key]
            self._pool.give(running.lease)
        if self._keeps(cell) and again is None:
            adapters.settle(self.workspace, running.job, record, best=self.plan.sweep.spec.keep == "best")
        shutil.rmtree(running.job.folder, ignore_errors=True)
        if again is not None:
            self.view.left(running.job)
            self._queue.appendleft((cell, again))
            self.view.note(f"{cell.label} ran out of memory; it is retried with half the batch")
            return
        retries = max(self._limits.retries, int(self.executor.remote and record.outcome.status == "lost"))
        retry = next_attempt(attempt, record, retries=retries)
        if retry is not None:
            self.view.left(running.job)
            self._queue.append((cell, retry))
            what = "was lost" if record.outcome.status == "lost" else "met an error that may pass"
            self.view.note(f"{cell.label} {what} ({record.outcome.reason}); it is retried")
            return
        self.outcomes[counted_as(record)] += 1
        self.view.ended(record)

    def _why(self, running: Running, how_it_died: str) -> tuple[str, str]:
        """Status and reason of a job that left no record."""
        if running.why_stopped == "timeout":
            return "timeout", f"not finished within {self._limits.timeout_s:g} s"
        if running.why_stopped == "interrupted":
            return "interrupted", "the sweep was stopped"
        if running.why_stopped == "silent":
            return "lost", f"the worker sent no heartbeat for {self._limits.lost_after_s:g} s and was killed"
        return "lost", how_it_died

    # --- before and after the cells ------------------------------------------------------------
    def _record_unsupported(self) -> None:
        """Every planned cell is a row: those that cannot run get their record now, once per environment."""
        present = short_fingerprint(self._endings.fingerprint)
        entries = self.store.entries() if self.plan.unsupported else {}
        for cell, why in self.plan.unsupported:
            known = entries.get(cell.key, ())
            if not any(e.status == "unsupported" and e.fingerprint == present for e in known):
                outcome = Outcome(status="unsupported", stage="plan", reason=why)
                self.store.append(self._endings.record(cell, outcome))
            self.outcomes["unsupported"] += 1

    def _build_models(self) -> None:
        """Build the built-in models of the plan that the cache does not hold, alone and with all cores.

        A cell that finds its model missing would build it as well; doing it before keeps the seconds out of
        that cell's timeout and its neighbours' measurements.
        """
        if self.executor.remote:  # each node has a separate cache
            return
        wanted = {c.model.name: c for c in self.plan.run if c.model.name.startswith("builtin:")}
        for name, cell in wanted.items():
            folder = f"{name.partition(':')[2]}-{cell.model.identity['revision']}"
            if (self.workspace.cache / "models" / folder).is_dir():
                continue
            job = self._job(cell, Lease(), CellAttempt())
            job = replace(job, only_build=True, python="", label=f"build {name}")
            job.write()
            self.view.started(job)
            self.executor.start(job)
            self._wait_for_build(job)
            self.view.left(job)
            shutil.rmtree(job.folder, ignore_errors=True)

    def _wait_for_build(self, job: Job) -> None:
        while True:
            for event in self.executor.wait(TICK_S):
                if isinstance(event, Message):
                    self.view.message(job, event.content)
                elif event.exit_code == 0:
                    return
                else:
                    last = log_tail(Path(job.folder)).strip().splitlines()[-1:]
                    raise UserError(
                        f"the model could not be built: {last[0] if last else how_it_died(event.exit_code, event.why)}",
                        where=job.label,
                    )

    def _stop_all(self) -> None:
        """Ask every cell to stop, give it time to write its record, then kill. A second Ctrl-C kills at once."""
        self.view.note("Stopping: running cells are recorded as interrupted; the next run continues.")
        end = time.monotonic() + STOP_GRACE_S
        for running in self._running.values():
            running.why_stopped = "interrupted"
            self.executor.stop(running.job, kill=False)
        try:
            while self._running and time.monotonic() < end:
                self._handle(self.executor.wait(max(0.0, end - time.monotonic())))
        except KeyboardInterrupt:
            self.view.note("Killing running cells.")
        for running in list(self._running.values()):
            self.executor.stop(running.job, kill=True)
            self._finish(running, "")


def _as_interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt
