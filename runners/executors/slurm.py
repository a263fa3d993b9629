"""Cells as Slurm jobs, through submitit: one array per resource class, in a folder that login and compute nodes share.

The driver only watches files and ``squeue``. The driver may be gone for hours: jobs continue, and the next run of the
sweep collects those that wait, run or have ended. A job that Slurm pre-empts is queued again by submitit and starts
from the beginning.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import math
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import hardware
from harness.digests import canonical_json
from harness.errors import UserError
from runners.executors.base import Ended, Lease, Message
from runners.executors.local import PRELOAD
from runners.executors.node import Node, at_home, machine_of, probe
from runners.worker.import_path import child_environment
from runners.worker.job import JOB_FILE, QUEUED_FILE, Job, write_atomically
from runners.worker.process import WORK

SAID_FILE = "said.jsonl"
ENDED_FILE = "ended.json"
LOOK_S = 1.0
"""Interval between checks of the shared folder."""
ASK_S = 5.0
"""Interval between calls of ``squeue``."""
UNSEEN = 3
"""A job that left no end is gone when so many answers of ``squeue`` in a row do not know it: its files may be late."""
GPU_OPTIONS = ("gres", "gpus", "gpus_per_node", "gpus_per_task")
"""Options of ``sbatch`` that ask for GPUs."""
SPARE_MIN = 15
"""Minutes beyond a cell's own limit: Python's start, and submitit's distinction of pre-emption from a time-out."""


# --- on a node -----------------------------------------------------------------------------------
class CellJob:
    """The function that submitit runs: one cell, from its job file.

    Not resumed half-way: after a pre-emption it starts from the beginning.
    """

    def __init__(self, work: str, preload: tuple[str, ...]) -> None:
        self.work = work
        self.preload = preload

    def __call__(self, job_file: str) -> None:
        """Run the cell; what it says is appended to a file, and its end is written last."""
        folder = Path(job_file).parent
        job = Job.read(Path(job_file))
        (folder / ENDED_FILE).unlink(missing_ok=True)
        end: dict[str, object] = {"exit_code": None}
        try:
            with (folder / SAID_FILE).open("a", buffering=1, encoding="utf-8") as log:
                log.write(json.dumps({"event": "begin"}) + "\n")
                for said in Node(self.work, self.preload).run(at_home(job, folder, Path(job.cache))):
                    if "exit_code" in said:
                        end = said
                    else:
                        log.write(json.dumps(said) + "\n")
        except Exception as error:
            end["why"] = f"the node could not run the cell: {error}"
        write_atomically(folder / ENDED_FILE, json.dumps(end).encode())

    def checkpoint(self, job_file: str) -> object:
        """submitit calls this before Slurm takes the node away: the same cell is queued again."""
        from submitit.helpers import DelayedSubmission

        with (Path(job_file).parent / SAID_FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"event": "requeued"}) + "\n")
        return DelayedSubmission(self, job_file)


def probe_node(path: str) -> None:
    """Write what the compute node is into a file."""
    write_atomically(Path(path), json.dumps(probe()).encode())


# --- on the driver -------------------------------------------------------------------------------
def submitter(folder: Path, options: dict[str, str], *, minutes: int, cpus: int) -> Any:
    """submitit's executor.

    Args:
        options: ``sbatch`` options by name, as the user gave them.

    Raises:
        UserError: submitit is not installed, this is no Slurm machine, or an option is not known.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"submitit is not installed: {error}", fix="pip install 'peft-matrix[slurm]'") from error
    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=0)
        further = {k.replace("_", "-"): v for k, v in options.items() if k not in executor._valid_parameters()}
        known = {k: v for k, v in options.items() if k in executor._valid_parameters()}
        executor.update_parameters(
            **{
                "job_name": "peft-matrix",
                "time": minutes,
                "cpus_per_task": cpus,
                "signal_delay_s": 30,
                "stderr_to_stdout": True,
                **known,
                "additional_parameters": {"requeue": True, **further},
            }
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"Slurm cannot be used: {error}", where="--executor slurm") from error
    return executor


def for_ranks(options: dict[str, str], job: Job) -> dict[str, str]:
    """``sbatch`` options of a cell: those of the user, with as many GPUs as it has ranks, on one node.

    A count of GPUs that the user gave (``gres=gpu:h100:1``) is that of a cell with one rank, and is replaced.
    """
    if job.ranks == 1:
        return options
    found = {**options, "nodes": "1"}
    if job.device != "cuda":
        return found
    count = str(job.ranks)
    given = {name: value for name, value in options.items() if name.replace("-", "_") in GPU_OPTIONS}
    asked = {n: ",".join(_counted(n, part, count) for part in v.split(",")) for n, v in given.items()}
    return {**found, **(asked or {"gpus_per_node": count})}


def _counted(option: str, part: str, count: str) -> str:
    """``gpu:h100:1``, ``h100:1`` or ``1`` with another count; other resources of ``gres`` are left as they are."""
    if option == "gres" and not part.startswith("gpu"):
        return part
    kind, _, last = part.rpartition(":")
    if last.isdigit():
        return f"{kind}:{count}" if kind else count
    return f"{part}:{count}"


def node_behind(cache: Path, options: dict[str, str], *, patience_s: float = 600.0) -> tuple[hardware.Machine, str]:
    """Machine and fingerprint of the nodes that these options lead to, found out by a small job once and kept.

    Raises:
        UserError: the job did not run in time.
    """
    digest = hashlib.sha256(canonical_json(options).encode()).hexdigest()[:12]
    folder = cache / "slurm"
    file = folder / f"node-{digest}.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        job = submitter(folder / "submitit", options, minutes=5, cpus=1).submit(probe_node, str(file))
        end = time.monotonic() + patience_s
        while not file.is_file():
            if time.monotonic() > end:
                job.cancel()
                raise UserError(
                    f"Slurm ran no job within {patience_s:g} s, so the compute node is not known",
                    where=f"job {job.job_id}",
                    fix="See squeue and sinfo; name a partition with --slurm partition=NAME.",
                )
            time.sleep(LOOK_S)
    probed = json.loads(file.read_text(encoding="utf-8"))
    return machine_of(probed), str(probed["fingerprint"])


class SlurmExecutor:
    """Runs jobs through Slurm.

    Args:
        cache: folder that login and compute nodes share.
        options: ``sbatch`` options by name.
        places: jobs submitted to Slurm at once; those without a node wait in its queue.
        threads: CPUs of a cell.
        timeout_s: of a cell.
        results: the store the cells are for: jobs of an earlier run on it are collected.
    """

    remote = True
    neighbours = 0

    def __init__(
        self,
        cache: Path,
        options: dict[str, str],
        *,
        places: int,
        threads: int,
        timeout_s: float,
        results: str,
        work: str = WORK,
        preload: Sequence[str] = PRELOAD,
    ) -> None:
        self.leases = [Lease() for _ in range(places)]
        self._folder = cache / "slurm" / "submitit"
        self._options = options
        self._threads = threads
        self._minutes = math.ceil(timeout_s / 60) + SPARE_MIN
        self._cell_job = CellJob(work, tuple(preload))
        self._pending: list[Job] = []
        self._running: dict[str, Job] = {}
        self._read: dict[str, int] = {}
        self._unseen: dict[str, int] = {}
        self._asked_at = 0.0
        self._earlier = _earlier(cache / "jobs", results)

    def adopt(self, key: str) -> Job | None:
        """The job that an earlier run submitted to Slurm for this cell, if it still waits, runs or has ended."""
        found = self._earlier.pop(key, None)
        if found is None:
            return None
        job, number = found
        self._running[number] = job
        self._read[number] = 0
        return job

    def start(self, job: Job) -> None:
        """Note the job; those noted between two waits become one array."""
        self._pending.append(job)

    def wait(self, timeout_s: float) -> list[Message | Ended]:
        """News in the shared folder since the last call; checks once a second: nothing is measured on this machine."""
        self._submit()
        end = time.monotonic() + timeout_s
        while True:
            events = self._look()
            left = end - time.monotonic()
            if events or left <= 0:
                return events
            time.sleep(min(LOOK_S, left))

    def _submit(self) -> None:
        """One array per resource class: device, and number of ranks."""
        classes: dict[tuple[str, int], list[Job]] = {}
        for job in self._pending:
            classes.setdefault((job.device, job.ranks), []).append(job)
        self._pending = []
        for jobs in classes.values():
            asked = for_ranks(self._options, jobs[0])
            cpus = self._threads * jobs[0].ranks
            with child_environment():  # Slurm hands it on to the job
                handed = submitter(self._folder, asked, minutes=self._minutes, cpus=cpus).map_array(
                    self._cell_job, [str(Path(j.folder) / JOB_FILE) for j in jobs]
                )
            for job, slurm in zip(jobs, handed, strict=True):
                number = str(slurm.job_id)
                write_atomically(Path(job.folder) / QUEUED_FILE, json.dumps({"slurm": number}).encode())
                self._running[number] = job
                self._read[number] = 0

    def _look(self) -> list[Message | Ended]:
        events: list[Message | Ended] = []
        known = self._ask()
        for number, job in list(self._running.items()):
            events += [Message(job, said) for said in self._said(number, Path(job.folder))]
            ended = Path(job.folder) / ENDED_FILE
            if ended.is_file():
                found = json.loads(ended.read_text(encoding="utf-8"))
                events.append(self._over(number, Ended(job, found["exit_code"], found.get("why", ""))))
            elif known is not None:
                self._unseen[number] = 0 if number in known else self._unseen.get(number, 0) + 1
                if self._unseen[number] >= UNSEEN:
                    why = f"Slurm job {number} is gone and left no end: its node failed, or it was cancelled or killed"
                    events.append(self._over(number, Ended(job, None, why)))
        return events

    def _said(self, number: str, folder: Path) -> list[dict[str, object]]:
        """New whole lines of what a cell said."""
        try:
            with (folder / SAID_FILE).open("rb") as log:
                log.seek(self._read[number])
                text = log.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read[number] += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _ask(self) -> set[str] | None:
        """Numbers of the jobs that Slurm knows; None between two questions and while the controller does not answer."""
        if not self._running or time.monotonic() - self._asked_at < ASK_S:
            return None
        self._asked_at = time.monotonic()
        return active()

    def _over(self, number: str, ended: Ended) -> Ended:
        del self._running[number]
        self._unseen.pop(number, None)
        return ended

    def stop(self, job: Job, *, kill: bool) -> None:
        """Take the job out of Slurm. There is no gentle way: submitit lets SIGTERM pass."""
        self._pending = [waiting for waiting in self._pending if waiting is not job]
        for number, running in self._running.items():
            if running is job:
                _cancel([number])

    def close(self) -> None:
        """Take everything out of Slurm that this run still has there."""
        _cancel(list(self._running))
        self._running.clear()


def active() -> set[str] | None:
    """Jobs of this user that wait or run; None if the controller does not answer."""
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return set(done.stdout.split())
    return None


def _cancel(numbers: list[str]) -> None:
    if numbers:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            # waiting ones are removed by the first, running ones end at once by the second
            subprocess.run(["scancel", *numbers], capture_output=True, timeout=60, check=False)
            subprocess.run(["scancel", "--signal=KILL", *numbers], capture_output=True, timeout=60, check=False)


def _earlier(jobs: Path, results: str) -> dict[str, tuple[Job, str]]:
    """Jobs that an earlier run submitted to Slurm for this store and did not collect: cell key to job and number."""
    found: dict[str, tuple[Job, str]] = {}
    known: set[str] | None = None
    for file in sorted(jobs.glob(f"*/{QUEUED_FILE}")):
        try:
            job = Job.read(file.with_name(JOB_FILE))
            number = str(json.loads(file.read_text(encoding="utf-8"))["slurm"])
        except (OSError, ValueError, KeyError, TypeError):  # another run removes or writes it, or an older layout
            continue
        if job.results != results:
            continue
        known = active() or set() if known is None else known
        if number in known or file.with_name(ENDED_FILE).is_file():
            found[job.key] = (job, number)
    return found
