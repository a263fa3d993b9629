"""The loop: claim a cell, lease a share of the machine, launch, sleep, record. Resume and Ctrl-C live here."""

from __future__ import annotations

import json
import shutil
import signal
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from harness import hardware, provenance
from harness.errors import UserError
from harness.matrix import Cell
from harness.quantizers.catalog import QUANTIZERS
from harness.record import FINAL_STATUSES, Outcome, Record
from harness.store import Claim, Store, short_fingerprint
from runners import environments
from runners.executors.base import Ended, Executor, Lease, Message
from runners.ingredients import kept_at
from runners.plan import Plan
from runners.worker.job import LM_EVAL_FILES, LOG_FILE, RECORD_FILE, SAMPLES_FILE, Job
from runners.workspace import Workspace

HELD_POLL_S = 1.0
"""How often cells that another run holds are looked at again."""
STOP_GRACE_S = 10.0
START_LIMIT_S = 120.0
"""Until a worker's first word its time does not count: the first one waits for the template's imports."""
TICK_S = 5.0
"""Longest sleep; the parent wakes this rarely so that it does not disturb what is measured."""


class View(Protocol):
    """What shows a run to a person."""

    def started(self, job: Job) -> None: ...  # noqa: D102
    def message(self, job: Job, content: dict[str, object]) -> None: ...  # noqa: D102
    def ended(self, record: Record) -> None: ...  # noqa: D102
    def note(self, text: str) -> None: ...  # noqa: D102
    def tick(self) -> None: ...  # noqa: D102


@dataclass
class Running:
    """A launched job, what it holds, and when it must be over."""

    job: Job
    cell: Cell
    lease: Lease
    claim: Claim
    deadline: float
    stage: str = "start"
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    why_stopped: str = ""
    kill_at: float | None = None


class Scheduler:
    """Runs a plan.

    Args:
        plan: what to run.
        device: ``cpu`` or ``cuda``: where the cells of this plan run.
        view: shows progress.
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
    ) -> None:
        self.plan = plan
        self.store = store
        self.workspace = workspace
        self.executor = executor
        self.device = device
        self.view = view
        self.outcomes: Counter[str] = Counter()
        self._limits = plan.sweep.spec.limits
        self._profiles = hardware.load_profiles(workspace.roots)
        self._environment = provenance.environment()
        self._free: deque[Lease] = deque(executor.leases)
        self._running: dict[str, Running] = {}
        self._queue: deque[tuple[Cell, int]] = deque((cell, 1) for cell in plan.run)
        self._held: deque[tuple[Cell, int]] = deque()
        self._named_as_held: set[str] = set()

    # --- the loop ------------------------------------------------------------------------------
    def run(self) -> Counter[str]:
        """Run every cell of the plan; returns how many ended with which status.

        Raises:
            KeyboardInterrupt: after running cells were stopped and recorded.
            UserError: the store cannot be written.
        """
        handler = signal.signal(signal.SIGTERM, _as_interrupt)
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
            signal.signal(signal.SIGTERM, handler)
            self.executor.close()
            for running in self._running.values():
                running.claim.release()

    def _launch(self) -> None:
        """Start cells while a lease is free."""
        while self._free and self._queue:
            self._start(*self._queue.popleft())
        if self._free and self._held and not self._queue:
            waiting, self._held = self._held, deque()
            for cell, attempt in waiting:
                if self._free:
                    self._start(cell, attempt)
                else:
                    self._held.append((cell, attempt))

    def _start(self, cell: Cell, attempt: int) -> None:
        """Claim and launch one cell, unless another run holds it or has just finished it."""
        claim = self.store.claim(cell.key)
        if claim is None:
            if cell.key not in self._named_as_held:
                self._named_as_held.add(cell.key)
                self.view.note(f"{cell.label} is held by another run; it is looked at again later")
            self._held.append((cell, attempt))
            return
        if attempt == 1 and self._finished_meanwhile(cell):
            claim.release()
            return
        lease = self._free.popleft()
        job = self._job(cell, lease, attempt)
        job.write()
        self._running[cell.key] = Running(
            job, cell, lease, claim, deadline=time.monotonic() + self._start_limit_s(cell) + self._limits.timeout_s
        )
        self.view.started(job)
        self.executor.start(job)

    def _start_limit_s(self, cell: Cell) -> float:
        """Until a worker's first word its time does not count; cooling down and the idle baseline come before it."""
        thermal = self._profiles[cell.hardware.name].thermal
        return START_LIMIT_S + (thermal.cool_cap_s if thermal and thermal.cool_below_c is not None else 0.0)

    def _finished_meanwhile(self, cell: Cell) -> bool:
        """Whether a record appeared since the plan was made (the plan held none that counts)."""
        before = self.plan.known.get(cell.key, frozenset())
        now = {e.id for e in self.store.entries_of(cell.key) if e.status in FINAL_STATUSES}
        return bool(now - before)

    def _job(self, cell: Cell, lease: Lease, attempt: int) -> Job:
        folder = self.workspace.cache / "jobs" / f"{cell.key}-{uuid.uuid4().hex[:8]}"
        outside = QUANTIZERS.get(cell.quantization.name).declaration.environment
        python = environments.interpreter(outside, self.workspace.cache) if outside else None
        return Job(
            key=cell.key,
            label=cell.label,
            sweep=self.plan.sweep.spec.name,
            cell=cell.as_dict(),
            model=cell.model.name,
            folder=str(folder),
            device=self.device,
            gpus=lease.gpus,
            cores=lease.cores,
            workspaces=tuple(str(r) for r in self.workspace.roots),
            data_root=str(self.workspace.data_root) if self.workspace.data_root else None,
            cache=str(self.workspace.cache),
            attempt=attempt,
            neighbours=len(self.executor.leases) - 1,
            accounting=self.plan.sweep.spec.accounting.model_dump(mode="json", exclude_none=True),
            side_environment={"name": outside, "digest": environments.digest(outside)} if outside else {},
            python=str(python or ""),
            tuning=self.plan.tuning.get(cell.key, {}),
            keep=str(kept_at(self.workspace.cache, cell)) if cell.key in self.plan.keep else "",
            ingredients=tuple(
                {
                    "label": part.label,
                    "cell": part.as_dict(),
                    "model": part.model.name,
                    "folder": str(kept_at(self.workspace.cache, part)),
                }
                for part in self.plan.ingredients.get(cell.key, ())
            ),
            peak_tflops=(self._profiles[cell.hardware.name].peak_tflops or {}).get(cell.model.identity["dtype"]),
        )

    # --- what happens --------------------------------------------------------------------------
    def _sleep_s(self) -> float:
        due = [r.kill_at or r.deadline for r in self._running.values()]
        longest = HELD_POLL_S if self._held and self._free else TICK_S
        return max(0.0, min([longest, *(d - time.monotonic() for d in due)]))

    def _handle(self, events: list[Message | Ended]) -> None:
        for event in events:
            running = self._running.get(event.job.key)
            if running is None:
                continue
            if isinstance(event, Message):
                if running.stage == "start":
                    running.deadline = time.monotonic() + self._limits.timeout_s
                running.stage = str(event.content.get("stage", running.stage))
                self.view.message(event.job, event.content)
            else:
                self._finish(running, event.exit_code)

    def _enforce_deadlines(self) -> None:
        """A cell over its time is killed; one that was asked to stop and does not is killed after a grace."""
        now = time.monotonic()
        for running in self._running.values():
            if running.kill_at is not None:
                if now >= running.kill_at:
                    self.executor.stop(running.job, kill=True)
            elif now >= running.deadline:
                running.why_stopped = "timeout"
                running.kill_at = now + STOP_GRACE_S
                self.executor.stop(running.job, kill=True)

    def _finish(self, running: Running, exit_code: int | None) -> None:
        """Store the record of a job that is over, free what it held, and retry what may be retried."""
        folder = Path(running.job.folder)
        record, samples = self._result(running, exit_code)
        try:
            self.store.append(record, samples)
        finally:
            running.claim.release()
            del self._running[running.cell.key]
            self._free.append(running.lease)
        shutil.rmtree(folder, ignore_errors=True)
        status = record.outcome.status
        if status == "lost" and running.job.attempt <= self._limits.retries:
            self._queue.append((running.cell, running.job.attempt + 1))
            self.view.note(f"{running.cell.label} was lost ({record.outcome.reason}); it is tried again")
            return
        self.outcomes[status] += 1
        self.view.ended(record)

    def _result(self, running: Running, exit_code: int | None) -> tuple[Record, bytes | None]:
        """The worker's record, or the one the parent writes because the worker could not."""
        folder = Path(running.job.folder)
        written = folder / RECORD_FILE
        if written.is_file():
            try:
                record = Record.from_json(written.read_text(encoding="utf-8"), where=str(written))
            except UserError as error:
                return self._parents_record(running, "error", f"the worker's record is damaged: {error.what}"), None
            samples = folder / SAMPLES_FILE
            return record, samples.read_bytes() if record.samples is not None else None
        if running.why_stopped == "timeout":
            limit = self._limits.timeout_s
            return self._parents_record(running, "timeout", f"not finished within {limit:g} s"), None
        if running.why_stopped == "interrupted":
            return self._parents_record(running, "interrupted", "the sweep was stopped"), None
        return self._parents_record(running, "lost", _how_it_died(exit_code)), None

    def _parents_record(self, running: Running, status: str, reason: str) -> Record:
        log = Path(running.job.folder) / LOG_FILE
        tail = log.read_text(errors="replace")[-4000:] if log.is_file() else ""
        return self._record(
            running.cell,
            Outcome.model_validate({"status": status, "stage": running.stage, "reason": reason, "log_tail": tail}),
            started=running.started,
            attempt=running.job.attempt,
            facts=finished_tasks(Path(running.job.folder)),
        )

    def _record(
        self,
        cell: Cell,
        outcome: Outcome,
        *,
        started: str = "",
        attempt: int = 1,
        facts: dict[str, Any] | None = None,
    ) -> Record:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Record(
            key=cell.key,
            label=cell.label,
            sweep=self.plan.sweep.spec.name,
            cell=cell.as_dict(),
            outcome=outcome,
            environment={**self._environment, **({"facts": facts} if facts else {})},
            fingerprint=provenance.fingerprint(self._environment),
            attempt=attempt,
            started=started or now,
            finished=now,
        )

    # --- before and after the cells ------------------------------------------------------------
    def _record_unsupported(self) -> None:
        """Every planned cell is a row: those that cannot run get their record now, once per environment."""
        present = short_fingerprint(provenance.fingerprint(self._environment))
        entries = self.store.entries() if self.plan.unsupported else {}
        for cell, why in self.plan.unsupported:
            known = entries.get(cell.key, ())
            if not any(e.status == "unsupported" and e.fingerprint == present for e in known):
                self.store.append(self._record(cell, Outcome(status="unsupported", stage="plan", reason=why)))
            self.outcomes["unsupported"] += 1

    def _build_models(self) -> None:
        """Build the built-in models of the plan that the cache does not hold, alone and with all cores.

        A cell that finds its model missing would build it as well; doing it before keeps the seconds out of
        that cell's timeout and its neighbours' measurements.
        """
        wanted = {c.model.name: c for c in self.plan.run if c.model.name.startswith("builtin:")}
        for name, cell in wanted.items():
            folder = f"{name.partition(':')[2]}-{cell.model.identity['revision']}"
            if (self.workspace.cache / "models" / folder).is_dir():
                continue
            job = self._job(cell, Lease(), 1)
            job = type(job)(**{**job.__dict__, "only_build": True, "python": "", "label": f"build {name}"})
            job.write()
            self.view.started(job)
            self.executor.start(job)
            self._wait_for_build(job)
            shutil.rmtree(job.folder, ignore_errors=True)

    def _wait_for_build(self, job: Job) -> None:
        while True:
            for event in self.executor.wait(TICK_S):
                if isinstance(event, Message):
                    self.view.message(job, event.content)
                elif event.exit_code == 0:
                    return
                else:
                    log = Path(job.folder) / LOG_FILE
                    last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.is_file() else []
                    raise UserError(
                        f"the model could not be built: {last[0] if last else _how_it_died(event.exit_code)}",
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
            self._finish(running, None)


def _as_interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def finished_tasks(folder: Path) -> dict[str, Any]:
    """Results of lm-eval tasks that a worker had finished before it died."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(LM_EVAL_FILES))]
    results: dict[str, Any] = {}
    for one in found:
        results.setdefault(one.pop("arm"), {})[one.pop("task")] = one
    return {"lm_eval": results} if results else {}


def _how_it_died(exit_code: int | None) -> str:
    if exit_code is None:
        return "the worker process is gone"
    if exit_code < 0:
        return f"the worker was killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"the worker ended with exit code {exit_code} and without a record"
