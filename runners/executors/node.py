"""Code that Ray and Slurm run on a node: one cell, in a separate process, as on this machine.

The node chooses nothing but the device: that is what the cluster gave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import hardware, provenance
from harness.errors import UserError
from runners import environments
from runners.executors.base import Lease, Message
from runners.executors.local import PRELOAD, LocalExecutor
from runners.worker.job import Job
from runners.worker.process import WORK

WAIT_S = 5.0


def probe() -> dict[str, object]:
    """Properties of this node, as plain values."""
    environment = provenance.environment()
    return {"machine": hardware.probe().as_dict(), "fingerprint": provenance.fingerprint(environment)}


def machine_of(probed: dict[str, Any]) -> hardware.Machine:
    """The machine that :func:`probe` described."""
    fields = {k: v for k, v in probed["machine"].items() if k != "device_types"}
    return hardware.Machine(**{**fields, "gpus": tuple(hardware.Gpu(**gpu) for gpu in fields["gpus"])})


def at_home(job: Job, folder: Path, cache: Path) -> Job:
    """The job with this node's device, folders and interpreters.

    Raises:
        UserError: the cell wants a GPU and the cluster gave none; its side environment is not built here.
    """
    python = ""
    if job.side_environment:
        name = job.side_environment["name"]
        found = environments.interpreter(name, cache)
        if found is None:
            raise UserError(
                f"the side environment {name!r} is not built on this node",
                fix=f"Run there: peft-matrix env create {name}",
            )
        python = str(found)
    gpus = tuple(gpu.uuid for gpu in hardware.probe().gpus) if job.device == "cuda" else ()
    if job.device == "cuda" and len(gpus) != job.ranks:
        raise UserError(f"the cell wants {job.ranks} GPUs, and this node shows {len(gpus)}", where=job.label)
    return replace(
        job,
        folder=str(folder),
        cache=str(cache),
        gpus=gpus,
        cores=(),
        python=python,
        tools=environments.interpreters(cache),
    )


class Node:
    """Runs cells on this node, one after the other, from one warm template.

    Args:
        work: what a worker process runs.
        preload: modules of the template.
    """

    def __init__(self, work: str = WORK, preload: Sequence[str] = PRELOAD) -> None:
        self._executor = LocalExecutor([Lease()], work=work, preload=preload)

    def run(self, job: Job) -> Iterator[dict[str, Any]]:
        """Run a cell; yields what its worker says, and at the end ``{"exit_code": ...}``."""
        job.write()
        self._executor.start(job)
        try:
            while True:
                for event in self._executor.wait(WAIT_S):
                    if isinstance(event, Message):
                        yield event.content
                    else:
                        yield {"exit_code": event.exit_code}
                        return
        finally:
            self._executor.close()
