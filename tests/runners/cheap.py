"""A cell that costs milliseconds: the real plan, scheduler, executor, worker process and store, without a model.

Its behaviour is in the cell's label, so that a sweep decides what goes wrong:

    ok            waits as many milliseconds as it trains steps and leaves a record
    silent        stops itself, as a process does that hangs in a driver
    dies          is killed by the kernel
    breaks        meets an error of a kind that may pass; on its second attempt it does not
    fails         meets an error that will not pass
    needs-N       runs out of memory at a micro-batch above N
    learns        says two of its losses and leaves a record with three
    rises         likewise, and diverges
    waits         leaves a mark in the folder CHEAP_GATE and waits until ``go`` exists there

``python -m tests.runners.cheap SWEEP FOLDER [WORKERS] [slurm]`` runs a sweep of such cells. With CHEAP_CLOCK in the
environment the clock (``time.time``) of every process that imports this module jumps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - imported once, by the template of the workers; pyarrow asks for it
import pyarrow.parquet  # noqa: F401 - likewise
import yaml

from harness import hardware, provenance, spec
from harness.metrics import missing, reading
from harness.record import Outcome, Record, Span
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Store
from runners.executors.base import Executor, Lease
from runners.executors.local import LocalExecutor
from runners.planning import plan
from runners.planning.ordering import Budget
from runners.running import recovery
from runners.running.scheduler import Scheduler, View
from runners.worker.job import RECORD_FILE, SAMPLES_FILE, Job, write_atomically
from runners.worker.process import Say
from runners.workspace import Workspace

MODEL = "skeleton:llama-3.2-1b?num_hidden_layers=1&hidden_size=32&intermediate_size=64&vocab_size=300"
WORK = "tests.runners.cheap:work"


def sweep_of(path: Path, labels: list[str], *, seeds: int = 1, **changes: Any) -> spec.LoadedSweep:
    """A sweep with one method per label; the methods differ in their rank, so that they are different cells."""
    content = {
        "name": "cheap",
        "models": [MODEL],
        "methods": [{"name": "lora", "label": label, "params": {"r": i + 1}} for i, label in enumerate(labels)],
        "tasks": [{"name": "strings-copy", "train_items": 8, "validation_items": 4, "test_items": 4}],
        "seeds": list(range(seeds)),
        "training": {"steps": 5, "batch_size": 8},
        "limits": {"min_free_disk_gib": 0.0},
        **changes,
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return spec.load(path)


def work(job: Job, say: Say) -> None:
    """A worker process that does this instead of a cell."""
    says = job.cell["method"]["label"]
    say("stage", stage="train")
    if says == "silent":
        os.kill(os.getpid(), signal.SIGSTOP)
    if says == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if says in ("learns", "rises") and job.live_losses:
        say("progress", what="training", at=2, of=3, losses=[3.0, 2.0])
    if says.startswith("waits"):
        gate = Path(os.environ["CHEAP_GATE"])
        (gate / f"{job.key}.{job.attempt}").touch()
        while not (gate / "go").exists():
            time.sleep(0.05)
    time.sleep(job.cell["method"]["steps"] / 1000)
    training = job.cell["training"]
    used = training["batch_size"] // 2 ** len(job.out_of_memory)
    outcome, more = Outcome(status="ok", stage="train"), {}
    if says.startswith("needs-") and used > int(says.removeprefix("needs-")):
        outcome = Outcome(status="oom", stage="train", reason=f"a batch of {used} is too much")
    elif says == "breaks" and job.attempt == 1:
        outcome, more = Outcome(status="error", stage="load", reason="the line is down"), {"transient": "network"}
    elif says == "fails":
        outcome = Outcome(status="error", stage="load", reason="ValueError: a bug")
    elif says == "rises":
        outcome = Outcome(status="diverged", stage="train", reason="the training loss became nan at step 4")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"arm": "adapted", "task": "t", "item": job.key, "correct": True, "prediction": "a", "answer": "a"}
    samples = samples_to_parquet([{**row, "length": 1, "cut": False}])
    record = Record(
        key=job.key,
        label=job.label,
        sweep=job.sweep,
        cell=job.cell,
        outcome=outcome,
        spans=(Span(stage="train", seconds=job.cell["method"]["steps"] / 1000, readings=SPENT),),
        metrics={"accuracy": reading("accuracy", 0.5, source="scorer")} if outcome.status == "ok" else {},
        series={"loss": (3.0, 2.0, 1.5)} if says in ("learns", "rises") else {},
        samples=samples_ref(samples),
        environment={
            "run": uuid.uuid4().hex,  # no two runs of a cell leave the same record
            "gpus": list(job.gpus),
            "neighbours": job.neighbours,
            "order": job.order,
            "facts": {
                "batch": {"used": used, "out_of_memory": list(job.out_of_memory)},
                "note": os.environ.get("CHEAP_NOTE"),
                "template": os.getppid(),
            },
            **more,
        },
        fingerprint=FINGERPRINT,
        attempt=job.attempt,
        started=now,
        finished=now,
    )
    write_atomically(Path(job.folder) / SAMPLES_FILE, samples)
    write_atomically(Path(job.folder) / RECORD_FILE, record.to_json().encode())


SPENT = (
    reading("peak_rss_bytes", 4096, source="psutil"),
    reading("energy_gross_j", 7.5, source="NVML"),
    missing("energy_net_j", "no_device", source="NVML"),
)
FINGERPRINT = provenance.fingerprint(provenance.environment())


class Quiet:
    """A progress view that stores its messages."""

    live_losses = False

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.order: list[Job] = []

    def started(self, job: Job) -> None:
        self.order.append(job)

    def message(self, job: Job, content: dict[str, object]) -> None: ...

    def left(self, job: Job) -> None: ...

    def ended(self, record: Record) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def tick(self) -> None: ...


def scheduler(
    sweep: spec.LoadedSweep,
    folder: Path,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    hours: float | None = None,
    view: View | None = None,
) -> Scheduler:
    """The scheduler of a sweep of cheap cells, its results and its cache in ``folder``."""
    workspace = Workspace(roots=(), results=str(folder / "results"), data_root=None, cache=folder / "cache")
    store = Store(workspace.results)
    recovery.collect(workspace.cache / "jobs", store)
    made = plan.make(
        sweep, workspace, store=store, machine=hardware.Machine(2, 2**34, "any"), fingerprint=FINGERPRINT, hours=hours
    )
    made = replace(made, run=(*made.run, *(one.cell for one in made.not_run)), not_run=())
    local = LocalExecutor([Lease() for _ in range(workers)], work=WORK, preload=("tests.runners.cheap",))
    budget = Budget.of_hours(hours) if hours is not None else None
    return Scheduler(
        made,
        store=store,
        workspace=workspace,
        executor=executor or local,
        device="cpu",
        view=view or Quiet(),
        budget=budget,
    )


def on_slurm(folder: Path, places: int) -> Executor:
    """Slurm's executor for cheap cells."""
    from runners.executors.slurm import SlurmExecutor

    return SlurmExecutor(
        folder / "cache",
        {"partition": "low"},
        places=places,
        threads=1,
        timeout_s=600.0,
        results=str(folder / "results"),
        work=WORK,
        preload=("tests.runners.cheap",),
    )


def jumping_clock(every_s: float = 0.5) -> None:
    """Let ``time.time`` jump between now and hours, years and decades away; what is measured is monotonic."""
    true, jumps = time.time, (0.0, 7200.0, -7200.0, 366 * 86400.0, -366 * 86400.0, 74 * 366 * 86400.0)
    time.time = lambda: true() + jumps[int(time.monotonic() / every_s) % len(jumps)]


if "CHEAP_CLOCK" in os.environ:  # in the template of the workers too, which imports this module
    jumping_clock()


def main(sweep: str, folder: str, workers: str = "1", where: str = "local") -> None:
    executor = on_slurm(Path(folder), int(workers)) if where == "slurm" else None
    made = scheduler(spec.load(Path(sweep)), Path(folder), workers=int(workers), executor=executor)
    print(json.dumps(made.run()))


if __name__ == "__main__":
    main(*sys.argv[1:])
