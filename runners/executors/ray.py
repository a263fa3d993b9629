"""Cells as Ray tasks. Records travel back through Ray, so driver and nodes need no common disk.

On every node peft-matrix must be installed; the models and data a sweep reads must be there (or on the Hub), the
workspace's own tasks travel with the cells. Ray chooses the device; the cell still runs in a separate process.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import hardware
from harness.digests import digest_text
from harness.errors import UserError
from runners.executors.base import Ended, Lease, Message
from runners.executors.local import PRELOAD
from runners.executors.node import Node, at_home, machine_of, probe
from runners.worker.import_path import child_environment
from runners.worker.job import LOG_FILE, RECORD_FILE, SAMPLES_FILE, Job, write_atomically
from runners.worker.process import WORK
from runners.workspace import Workspace

MOST_BUNDLE_BYTES = 64 * 2**20
Bundle = dict[str, bytes]
"""Workspace root on the driver to a zip of its tasks."""


@dataclass(frozen=True)
class RayNode:
    """A node of the cluster.

    Attributes:
        cpus: Ray's count of CPUs.
        accelerators: names of its ``accelerator_type:NAME`` resources.
    """

    cpus: int
    accelerators: tuple[str, ...]
    machine: hardware.Machine
    fingerprint: str


# --- on a node -----------------------------------------------------------------------------------
_nodes: dict[tuple[str, tuple[str, ...]], Node] = {}
"""One template for all cells that this Ray worker process runs."""


def run_on_node(job: Job, work: str, preload: tuple[str, ...], bundle: Bundle) -> Iterator[dict[str, object]]:
    """The Ray task: yields what the cell says, and at the end its exit code and the files it left, as bytes."""
    node = _nodes.setdefault((work, preload), Node(work, preload))
    cache = Workspace.discover().cache
    folder = Path(tempfile.mkdtemp(prefix="peft-matrix-"))
    try:
        here = at_home(job, folder, cache)
        own = os.environ.get("PEFT_MATRIX_DATA")
        roots = tuple(str(_unpacked(root, bundle[root], cache)) for root in job.workspaces)
        data = job.data_root if job.data_root and Path(job.data_root).is_dir() else own
        for said in node.run(replace(here, workspaces=roots, data_root=data)):
            if "exit_code" in said:
                files = [folder / name for name in (RECORD_FILE, SAMPLES_FILE, LOG_FILE)]
                yield {**said, "files": {f.name: f.read_bytes() for f in files if f.is_file()}}
            else:
                yield said
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpacked(root: str, data: bytes, cache: Path) -> Path:
    """The workspace's tasks on this node; unpacked once."""
    folder = cache / "workspaces" / digest_text(root + data.hex())[:16]
    if not folder.is_dir():
        scratch = Path(tempfile.mkdtemp(dir=_made(folder.parent)))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another cell was faster
            shutil.rmtree(scratch)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- on the driver -------------------------------------------------------------------------------
def bundle_of(roots: Sequence[Path]) -> Bundle:
    """The tasks of the workspaces, as zips.

    Raises:
        UserError: too large to travel with every cell.
    """
    bundle: Bundle = {}
    for root in roots:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for path in sorted((root / "tasks").rglob("*")):
                if path.is_file():
                    # a fixed time, so that the same tasks give the same bytes
                    archive.writestr(zipfile.ZipInfo(str(path.relative_to(root))), path.read_bytes())
        bundle[str(root)] = stream.getvalue()
    if sum(map(len, bundle.values())) > MOST_BUNDLE_BYTES:
        raise UserError(
            f"the workspace's tasks are larger than {MOST_BUNDLE_BYTES >> 20} MiB and cannot travel with the cells",
            where=", ".join(map(str, roots)),
            fix="Put the data on every node and name it with --data-root.",
        )
    return bundle


def connect(address: str | None) -> list[RayNode]:
    """Join a cluster and probe each of its nodes.

    Args:
        address: as of ``ray.init``: ``auto``, ``HOST:PORT``; None starts a cluster of this machine alone.

    Raises:
        UserError: Ray is not installed, or no cluster is there.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"Ray is not installed: {error}", fix="pip install 'peft-matrix[ray]'") from error
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        with child_environment():  # for workers of a cluster that is started here
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster can be joined: {error}", where=f"--address {address}") from error
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    task = ray.remote(probe)
    probed = ray.get(
        [
            task.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in alive
        ]
    )
    prefix = "accelerator_type:"
    return [
        RayNode(
            cpus=int(node["Resources"]["CPU"]),
            accelerators=tuple(sorted(r.removeprefix(prefix) for r in node["Resources"] if r.startswith(prefix))),
            machine=machine_of(found),
            fingerprint=found["fingerprint"],
        )
        for node, found in zip(alive, probed, strict=True)
    ]


def whole(nodes: Sequence[RayNode]) -> hardware.Machine:
    """The cluster as one machine for the plan: all its GPUs, and the cores and memory of its largest node.

    Raises:
        UserError: no node has a CPU for cells.
    """
    if not nodes:
        raise UserError("the Ray cluster has no node with a CPU", fix="Start one: ray start --address HOST:PORT")
    largest = max((node.machine for node in nodes), key=lambda m: m.memory_bytes)
    gpus = tuple(gpu for node in nodes for gpu in node.machine.gpus)
    return replace(
        largest,
        cores=max(node.machine.cores for node in nodes),
        gpus=gpus,
        most_gpus_together=max(len(node.machine.gpus) for node in nodes),
        why_no_gpu=None if gpus else largest.why_no_gpu,
    )


def accelerator_for(cell: dict[str, Any], nodes: Sequence[RayNode]) -> str | None:
    """The accelerator type a GPU cell must ask Ray for; None if every GPU of the cluster satisfies its profile.

    Raises:
        UserError: no node satisfies it, or those that do have no accelerator type by which Ray could distinguish them.
    """
    asked = {k: v for k, v in cell["hardware"].items() if k != "label"}
    profile = hardware.HardwareProfile.model_validate({"name": "asked", **asked})
    with_gpu = [node for node in nodes if node.machine.gpus]
    # Ray cannot distinguish the GPUs of one node, so all of them must satisfy the profile
    fitting = [node for node in with_gpu if len(hardware.gpus_for(profile, node.machine)) == len(node.machine.gpus)]
    if with_gpu and len(fitting) == len(with_gpu):
        return None
    other = {name for node in with_gpu if node not in fitting for name in node.accelerators}
    names = sorted({name for node in fitting for name in node.accelerators} - other)
    if not names:
        raise UserError(
            "no accelerator type of this Ray cluster corresponds to the hardware profile",
            where=f"hardware {cell['hardware']['label']}",
            fix="Start such nodes with: ray start --resources '{\"accelerator_type:NAME\": 1}'",
        )
    return names[0]


def resources(job: Job, threads: int) -> dict[str, int]:
    """CPUs and GPUs of a cell's task. Ray gives a task all of them on one node, or lets it wait."""
    return {"num_cpus": threads * job.ranks, "num_gpus": job.ranks if job.device == "cuda" else 0}


class RayExecutor:
    """Runs jobs as Ray tasks.

    Args:
        nodes: what :func:`connect` found.
        device: ``cpu`` or ``cuda``.
        threads: CPUs that a cell asks for.
        workers: cells at once at most; None: as many as the cluster has places for.
        roots: workspaces whose tasks travel with the cells.
    """

    remote = True

    def __init__(
        self,
        nodes: Sequence[RayNode],
        *,
        device: str,
        threads: int,
        workers: int | None,
        roots: Sequence[Path] = (),
        work: str = WORK,
        preload: Sequence[str] = PRELOAD,
    ) -> None:
        import ray

        places = [len(n.machine.gpus) if device == "cuda" else n.cpus // threads for n in nodes]
        self.leases = [Lease() for _ in range(min(workers or sum(places), sum(places)))]
        self.neighbours = max(0, min(len(self.leases), max(places, default=1)) - 1)
        self._ray = ray
        self._nodes = nodes
        # retries are the scheduler's: each attempt leaves a record
        self._options: dict[str, object] = {"max_retries": 0, "num_returns": "streaming"}
        self._threads = threads
        self._bundle = ray.put(bundle_of(roots))
        self._work, self._preload = work, tuple(preload)
        self._task = ray.remote(run_on_node)
        self._running: dict[object, Job] = {}

    def start(self, job: Job) -> None:
        """Hand the job to Ray; it waits there for a place."""
        options = {**self._options, **resources(job, self._threads)}
        if job.device == "cuda" and (accelerator := accelerator_for(job.cell, self._nodes)) is not None:
            options["accelerator_type"] = accelerator
        stream = self._task.options(**options).remote(job, self._work, self._preload, self._bundle)
        self._running[stream] = job

    def adopt(self, key: str) -> Job | None:
        """None: these jobs end with the run that started them."""
        return None

    def wait(self, timeout_s: float) -> list[Message | Ended]:
        """Results that came back since the last call; sleeps in Ray until there is one."""
        events: list[Message | Ended] = []
        while self._running:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=0 if events else timeout_s)
            if not ready:
                break
            events.append(self._next(ready[0]))
        return events

    def _next(self, stream: Any) -> Message | Ended:
        job = self._running[stream]
        try:
            said = self._ray.get(next(stream))
        except StopIteration:
            said = {"exit_code": None, "files": {}}
        except self._ray.exceptions.RayTaskError as error:
            return self._over(stream, Ended(job, None, f"the node could not run the cell: {error.cause}"))
        except self._ray.exceptions.RayError as error:
            words = (str(error).strip().splitlines() or [""])[0]
            return self._over(stream, Ended(job, None, f"the node was lost: {type(error).__name__}: {words}"))
        if "exit_code" not in said:
            return Message(job, said)
        for name, content in said["files"].items():
            write_atomically(Path(job.folder) / name, content)
        return self._over(stream, Ended(job, said["exit_code"]))

    def _over(self, stream: object, ended: Ended) -> Ended:
        del self._running[stream]
        return ended

    def stop(self, job: Job, *, kill: bool) -> None:
        """Cancel the task; with ``kill`` its process is killed, and the cell's with it."""
        for stream, running in self._running.items():
            if running is job:
                self._ray.cancel(stream, force=kill)

    def close(self) -> None:
        """Kill what still runs. The connection stays, for the next plan of the run."""
        for stream in list(self._running):
            self._ray.cancel(stream, force=True)
        self._running.clear()
