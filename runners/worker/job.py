"""The contract between the scheduler and a worker: one JSON file in, a record and samples out.

A worker gets all input here; it reads no environment variable of ours and no store.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RECORD_FILE = "record.json"
SAMPLES_FILE = "samples.parquet"
LOG_FILE = "worker.log"
JOB_FILE = "job.json"
LM_EVAL_FILES = "lm-eval-*.json"
"""Results of single lm-eval tasks; a parent whose worker died keeps them."""
QUEUED_FILE = "queued.json"
"""For a job in a queueing system: it outlives the process that submitted it."""
CURVE = "validation_nll_curve"
"""Series of a trial's record that a pruner compares: the validation NLL every ``prune_every`` steps."""


@dataclass(frozen=True)
class Job:
    """One attempt at one cell.

    Attributes:
        key: the cell's key.
        label: the cell's readable name.
        sweep: the sweep's name.
        cell: the resolved cell as plain JSON.
        model: the model's id in the sweep; for a folder the path on this machine, which is not part of the cell.
        folder: scratch folder of this attempt; the worker writes only here and into the cache.
        device: ``cpu`` or ``cuda``.
        gpus: UUIDs of the leased GPUs, empty on a CPU.
        cores: numbers of the leased CPU cores, empty for no pinning.
        workspaces: roots searched for task files.
        data_root: folder of local data sets, or None.
        cache: folder of what can be made again.
        attempt: counts from 1.
        neighbours: maximum number of other cells that ran at the same time on the same machine.
        accounting: constants stated in the sweep (:class:`harness.spec.Accounting`), as plain JSON.
        peak_tflops: the device's peak for the cell's data type, as the hardware profile states it.
        side_environment: name and lock digest of the environment that the cell's quantizer needs, {} for ours.
        python: that environment's interpreter.
        tools: interpreters of the side environments there are, for back ends that call one of their tools.
        keep: folder that what is saved is copied to, because another cell combines it; "" for none.
        ingredients: what this cell combines: the cell that trained it, its model's id on this machine, and its folder.
        earlier: trainings this cell starts from, in order: label, key and cell, the folder of what each saved, and its
            ``handover``.
        trained: place of a second model to what trained it first: label, key and cell, and the folder of what it saved.
        others: place of a second model in the cell (``objective.teacher``) to its id on this machine.
        tuning: how the cell's learning rate was chosen (:mod:`runners.planning.tuning`), for the record.
        out_of_memory: earlier attempts that ran out of memory under ``on_oom: halve_batch``: their batch size,
            accumulation, stage and reason; this attempt halves the batch as many times.
        beat_s: seconds between two signs of life.
        owner: which process scheduled it (:func:`runners.running.recovery.owner`).
        results: the store its record is for.
        order: the run and the place in its randomised blocks (:mod:`runners.planning.blocks`), for the record; {} where
            the cell does not run in a block.
        live_losses: send the training losses with the progress; a tracker shows them.
        only_build: make the cell's built-in model and end, without running the cell.
    """

    key: str
    label: str
    sweep: str
    cell: dict[str, Any]
    model: str
    folder: str
    device: str
    gpus: tuple[str, ...]
    cores: tuple[int, ...]
    workspaces: tuple[str, ...]
    data_root: str | None
    cache: str
    attempt: int = 1
    neighbours: int = 0
    accounting: dict[str, object] = field(default_factory=dict)
    peak_tflops: float | None = None
    side_environment: dict[str, str] = field(default_factory=dict)
    python: str = ""
    tools: dict[str, str] = field(default_factory=dict)
    tuning: dict[str, object] = field(default_factory=dict)
    keep: str = ""
    ingredients: tuple[dict[str, object], ...] = ()
    earlier: tuple[dict[str, Any], ...] = ()
    trained: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    out_of_memory: tuple[dict[str, object], ...] = ()
    beat_s: float = 5.0
    owner: tuple[str, int, float] | None = None
    results: str = ""
    order: dict[str, object] = field(default_factory=dict)
    live_losses: bool = False
    only_build: bool = False

    @property
    def ranks(self) -> int:
        """Processes that train the cell, one device each."""
        return int((self.cell.get("parallel") or {}).get("world_size", 1))

    @property
    def metered(self) -> tuple[str, ...]:
        """UUIDs of the devices that the meters read: the leased GPUs, or those the hardware profile names for a CPU."""
        return self.gpus or tuple(self.cell["hardware"].get("nvml_devices") or ())

    def write(self) -> Path:
        """Write the job file into the job's folder."""
        path = Path(self.folder) / JOB_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), sort_keys=True, indent=1))
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job file."""
        return cls.read_dict(json.loads(path.read_text()))

    @classmethod
    def read_dict(cls, data: dict[str, Any]) -> Job:
        """A job from plain JSON values."""
        data = dict(data)
        for name in ("gpus", "cores", "workspaces", "out_of_memory", "ingredients", "earlier"):
            data[name] = tuple(data[name])
        data["owner"] = tuple(data["owner"]) if data["owner"] else None
        return cls(**data)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    scratch = path.with_suffix(path.suffix + ".tmp")
    scratch.write_bytes(content)
    os.replace(scratch, path)
