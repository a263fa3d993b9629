"""A small, seeded version of tests/chaos.py: drivers and workers die, and the store holds every cell once."""

from __future__ import annotations

import random
from pathlib import Path

from tests.chaos import chaos


def test_random_kills_lose_and_repeat_no_finished_cell(tmp_path: Path) -> None:
    chance = random.Random(8)
    rounds = [chaos(tmp_path / str(i), 24, chance, most_kills=3) for i in range(3)]
    for one in rounds:
        assert one.clean, one
    assert sum(r.drivers_killed for r in rounds) > 0
    assert sum(r.workers_killed for r in rounds) > 0


def test_a_finished_record_of_a_dead_driver_is_kept(tmp_path: Path) -> None:
    """The moment between the worker's record and the store's."""
    from harness.store.store import Store
    from runners.running import recovery
    from tests.runners import cheap

    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["ok", "other"])
    scheduler = cheap.scheduler(sweep, tmp_path)
    jobs = tmp_path / "cache" / "jobs"
    for cell, attempt in list(scheduler._queue):
        job = scheduler._job(cell, scheduler.executor.leases[0], attempt)
        job.write()
        if cell.method.label == "ok":
            cheap.work(job, lambda *_, **__: None)
    store = Store(str(tmp_path / "results"))
    assert recovery.collect(jobs, store) == 0, "its driver lives: this process"
    for file in jobs.glob("*/job.json"):
        file.write_text(file.read_text().replace(f" {scheduler._owner[1]},", " 999999999,"))
    assert recovery.collect(jobs, Store(str(tmp_path / "elsewhere"))) == 0, "another store's"
    assert recovery.collect(jobs, store) == 1
    assert [r.outcome.status for r in store.records()[0]] == ["ok"]
    assert list(jobs.iterdir()) == []
