"""Cells on a real Ray cluster of several nodes, one of which dies in the middle."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.hardware import Gpu, Machine
from runners.executors import ray as on_ray
from runners.worker.job import Job
from tests.runners import cheap
from tests.runners.conftest import REPOSITORY

pytest.importorskip("ray", reason="the extra 'ray' is not installed")


def wait_until(condition: Any, what: str, timeout_s: float = 300.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.1)


def ports() -> dict[str, int]:
    """Free ports for a node's agents. A raylet that must choose them itself stops when they are slow to report."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def started() -> tuple[Any, list[Any]]:
    """Three nodes of one CPU: raylets and workers are separate processes."""
    from ray.cluster_utils import Cluster

    common = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**common, **ports(), "include_dashboard": False})
    try:
        return cluster, [cluster.add_node(**common, **ports()) for _ in range(2)]
    except Exception:  # Ray gives a node 30 s to come up, which a busy machine may exceed
        cluster.shutdown()
        raise


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import ray

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("CHEAP_GATE", str(tmp_path))
    for left in reversed(range(3)):
        try:
            cluster, nodes = started()
            break
        except Exception as error:
            if not left:
                pytest.skip(f"no Ray cluster came up on this machine in three attempts: {error}")
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def test_dying_node_loses_and_repeats_no_cell(cluster: Any, tmp_path: Path) -> None:
    running, (_, doomed) = cluster
    nodes = on_ray.connect(running.address)
    assert [node.cpus for node in nodes] == [1, 1, 1]
    executor = on_ray.RayExecutor(
        nodes, device="cpu", threads=1, workers=None, work=cheap.WORK, preload=("tests.runners.cheap",)
    )
    assert len(executor.leases) == 3
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", [f"waits-{i}" for i in range(4)] + ["ok", "fails"], seeds=2)
    scheduler = cheap.scheduler(sweep, tmp_path, executor=executor)

    def kill_one() -> None:
        wait_until(lambda: len(list(tmp_path.glob("*.1"))) == 3, "the start of three cells")
        running.remove_node(doomed, allow_graceful=False)
        wait_until(lambda: any((tmp_path / "results").glob("records/*/*.lost.*")), "the loss of its cell")
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    outcomes = scheduler.run()
    killer.join()
    records, damaged = scheduler.store.records()
    ends = Counter((r.key, r.outcome.status) for r in records)
    assert not damaged
    assert outcomes == {"ok": 10, "error": 2}
    assert len({key for key, _ in ends}) == 12, "nothing is lost"
    final = [n for (_, status), n in ends.items() if status in ("ok", "error")]
    assert final == [1] * 12, "every cell ends once"
    lost = [r for r in records if r.outcome.status == "lost"]
    assert len(lost) == 1, "the cell of the dead node"
    assert all("node was lost" in r.outcome.reason for r in lost)
    assert {r.attempt for r in records if r.key in {one.key for one in lost}} == {1, 2}
    ok = next(r for r in records if r.outcome.status == "ok")
    assert scheduler.store.samples(ok).num_rows == 1, "samples travel with the record"
    assert os.listdir(tmp_path / "cache" / "jobs") == []


# --- which node ----------------------------------------------------------------------------------
def node(gpu: str, *accelerators: str, gib: int = 80) -> on_ray.RayNode:
    gpus = (Gpu(f"GPU-{gpu}", gpu, gib * 2**30, 9.0, "580", "13.0"),) if gpu else ()
    return on_ray.RayNode(4, accelerators, Machine(4, 2**35, "cpu", gpus), "f")


def cell(**asked: Any) -> dict[str, Any]:
    return {"hardware": {"label": "wanted", "device": "cuda", **asked}}


def test_ray_gpu_cell_requests_its_profile_accelerator() -> None:
    big, small = node("NVIDIA H100", "H100"), node("NVIDIA L4", "L4", gib=24)
    assert on_ray.accelerator_for(cell(gpu="*H100*"), [big, small, node("")]) == "H100"
    assert on_ray.accelerator_for(cell(min_memory_gib=40), [small, big]) == "H100"
    assert on_ray.accelerator_for(cell(), [big, small]) is None
    assert on_ray.accelerator_for(cell(gpu="*H100*"), [big]) is None
    with pytest.raises(UserError, match="accelerator_type"):
        on_ray.accelerator_for(cell(gpu="*H100*"), [node("NVIDIA H100"), small])


def test_a_cell_of_ranks_asks_ray_for_all_its_devices() -> None:
    cell = {"parallel": {"strategy": "ddp", "world_size": 4}}
    job = Job("k", "l", "s", cell, "m", "", "cuda", (), (), (), None, "")
    assert on_ray.resources(job, 2) == {"num_cpus": 8, "num_gpus": 4}
    assert on_ray.resources(replace(job, cell={}, device="cpu"), 2) == {"num_cpus": 2, "num_gpus": 0}


def test_plan_sees_a_cluster_as_one_machine_with_all_gpus() -> None:
    seen = on_ray.whole([node("NVIDIA H100"), node("NVIDIA L4"), node("")])
    assert [gpu.name for gpu in seen.gpus] == ["NVIDIA H100", "NVIDIA L4"]
    with pytest.raises(UserError, match="no node with a CPU"):
        on_ray.whole([])


def test_the_tasks_of_a_workspace_travel_with_its_cells(tmp_path: Path) -> None:
    (tmp_path / "mine" / "tasks").mkdir(parents=True)
    (tmp_path / "mine" / "tasks" / "own.yaml").write_text("name: own\n")
    bundle = on_ray.bundle_of([tmp_path / "mine"])
    assert bundle == on_ray.bundle_of([tmp_path / "mine"]), "the same tasks are the same bytes"
    ((root, data),) = bundle.items()
    there = on_ray._unpacked(root, data, tmp_path / "cache")
    assert (there / "tasks" / "own.yaml").read_text() == "name: own\n"
    assert on_ray._unpacked(root, data, tmp_path / "cache") == there
