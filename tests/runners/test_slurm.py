"""Cells on a real Slurm: arrays, a pre-emption, and a driver that is killed and comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runners.executors import slurm
from runners.worker.job import Job
from tests.runners import cheap, slurm_cluster
from tests.runners.conftest import REPOSITORY

pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")
CELLS = 5


def wait_until(condition: Any, what: str, timeout_s: float = 300.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.2)


def job_of(device: str, ranks: int) -> Job:
    cell = {"parallel": {"strategy": "fsdp", "world_size": ranks}} if ranks > 1 else {}
    return Job("k", "l", "s", cell, "m", "", device, (), (), (), None, "")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"gpus_per_node": "4"}),
        ({"gres": "gpu:h100:1,disk:5"}, {"gres": "gpu:h100:4,disk:5"}),
        ({"gpus-per-node": "1", "partition": "a"}, {"gpus-per-node": "4", "partition": "a"}),
        ({"gres": "gpu"}, {"gres": "gpu:4"}),
    ],
)
def test_a_cell_of_ranks_asks_slurm_for_its_gpus(given: dict[str, str], wanted: dict[str, str]) -> None:
    assert slurm.for_ranks(given, job_of("cuda", 4)) == {**wanted, "nodes": "1"}
    assert slurm.for_ranks(given, job_of("cuda", 1)) == given
    assert slurm.for_ranks({"partition": "a"}, job_of("cpu", 4)) == {"partition": "a", "nodes": "1"}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    reason = slurm_cluster.why_not()
    if reason is not None:
        pytest.skip(f"no Slurm can be started here: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge wants its socket within everybody's reach, which pytest's folders are not
    monkeypatch.setenv("PATH", slurm_cluster._path())
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("CHEAP_GATE", str(tmp_path))
    try:
        with slurm_cluster.cluster(folder) as conf:
            monkeypatch.setenv("SLURM_CONF", str(conf))
            yield conf
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def said(tmp_path: Path, event: str) -> int:
    files = (tmp_path / "cache" / "jobs").glob(f"*/{slurm.SAID_FILE}")
    return sum(file.read_text().count(f'"event": "{event}"') for file in files)


def states(conf: Path) -> Counter[str]:
    command = ["squeue", "--noheader", "--array", "--format", "%T"]
    return Counter(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_killed_driver_resumes_and_preempted_cell_restarts(conf: Path, tmp_path: Path) -> None:
    sweep = cheap.sweep_of(
        tmp_path / "sweep.yaml",
        [f"waits-{i}" for i in range(CELLS)],
        limits={"min_free_disk_gib": 0.0, "timeout_s": 600},
    )
    command = [sys.executable, "-m", "tests.runners.cheap", str(sweep.path), str(tmp_path), str(CELLS), "slurm"]
    driver = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.glob("*.1"))) == 2, "the start of the two cells there are CPUs for")
    driver.kill()
    driver.wait()
    assert states(conf) == {"RUNNING": 2, "PENDING": CELLS - 2}, "the jobs go on without their driver"

    urgent = ["sbatch", "--partition", "high", "--exclusive", "--output", str(tmp_path / "urgent"), "--wrap", "sleep 1"]
    subprocess.run(urgent, check=True, capture_output=True)
    wait_until(lambda: said(tmp_path, "requeued") == 2, "the pre-emption")
    (tmp_path / "go").touch()
    wait_until(lambda: states(conf)["COMPLETING"] + states(conf)["RUNNING"] < 2, "the end of the pre-empted")
    for number in slurm.active() or ():  # Slurm lets what was queued again wait for two minutes
        subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], capture_output=True, check=False)

    scheduler = cheap.scheduler(sweep, tmp_path, executor=cheap.on_slurm(tmp_path, CELLS))
    assert scheduler.run() == {"ok": CELLS}
    records, damaged = scheduler.store.records()
    assert not damaged
    assert len({r.key for r in records}) == len(records) == CELLS, "every cell ended once"
    assert {r.attempt for r in records} == {1}
    handed = list((tmp_path / "cache" / "slurm" / "submitit").glob("*_submitted.pkl"))
    assert len(handed) == CELLS, "the second driver handed nothing over again"
    assert len({p.name.partition("_")[0] for p in handed}) == 1, "one array"
    assert any("pre-empted" in note for note in scheduler.view.notes)


def test_node_is_probed_once_and_a_cancelled_job_is_lost(conf: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    machine, fingerprint = slurm.node_behind(cache, {"partition": "low"})
    assert machine.cores == len(os.sched_getaffinity(0))
    assert fingerprint == cheap.FINGERPRINT
    assert slurm.node_behind(cache, {"partition": "low"}) == (machine, fingerprint)
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["waits"])
    scheduler = cheap.scheduler(sweep, tmp_path, executor=cheap.on_slurm(tmp_path, 1))
    cancelled = []

    def tick() -> None:
        if not cancelled and list(tmp_path.glob("*.1")):
            cancelled.append(1)
            (number,) = slurm.active() or ()
            subprocess.run(["scancel", "--signal=KILL", number], check=True)
        elif list(tmp_path.glob("*.2")):
            (tmp_path / "go").touch()

    scheduler.view.tick = tick  # type: ignore[method-assign]
    assert scheduler.run() == {"ok": 1}
    records = sorted(scheduler.store.records()[0], key=lambda r: r.attempt)
    assert [(r.attempt, r.outcome.status) for r in records] == [(1, "lost"), (2, "ok")]
    assert records[0].outcome.reason
