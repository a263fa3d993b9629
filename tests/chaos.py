"""Kills drivers and workers of real sweeps at random moments and checks the store afterwards.

python -m tests.chaos [ROUNDS] [CELLS] [SEED] 20 rounds of 200 cells by default

Each round has a separate store and two drivers at once on it, of two workers each. Every few finished cells a process
is ended with ``kill -9``: a driver, which is restarted, or one of the workers. A cell is cheap
(tests/runners/cheap.py); scheduler, processes, claims and store are the real ones.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.store.store import Store
from tests.runners import cheap

REPOSITORY = Path(__file__).parents[1]
DRIVERS, WORKERS = 2, 2
PATIENCE_S = 600.0
"""A round that makes no progress for so long has failed."""


@dataclass
class Round:
    """Actions of one round, and the content of the store afterwards."""

    cells: int
    drivers_killed: int = 0
    workers_killed: int = 0
    finished: int = 0
    run_twice: int = 0
    lost_records: int = 0
    vanished: int = 0
    damaged: int = 0
    run_afterwards: int = 0

    @property
    def clean(self) -> bool:
        """Every cell is finished once, no finished cell is lost, and another run has nothing to do."""
        wrong = self.run_twice, self.vanished, self.damaged, self.run_afterwards
        return self.finished == self.cells and not any(wrong)


def start(sweep: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.runners.cheap", str(sweep), str(folder), str(WORKERS)]
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Cell processes of a driver: below its template process."""
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        return [p for p in children if p.ppid() != driver.pid]
    except psutil.NoSuchProcess:
        return []


def finished(store: Store) -> dict[str, list[str]]:
    """Ids of the ``ok`` records by key."""
    entries = store.entries()
    return {key: ids for key, found in entries.items() if (ids := [e.id for e in found if e.status == "ok"])}


def chaos(folder: Path, cells: int, chance: random.Random, *, most_kills: int | None = None) -> Round:
    """One round.

    Args:
        most_kills: then they are left in peace.

    Raises:
        AssertionError: a driver ended without being killed, or nothing moved for too long.
    """
    folder.mkdir()
    sweep = cheap.sweep_of(folder / "sweep.yaml", [f"cell-{i}" for i in range(cells)], training={"steps": 20})
    store = Store(str(folder / "results"))
    done = Round(cells)
    drivers = [start(sweep.path, folder) for _ in range(DRIVERS)]
    seen: set[str] = set()
    try:
        while len(seen_keys := finished(store)) < cells:
            kills = done.drivers_killed + done.workers_killed
            if most_kills is None or kills < most_kills:
                strike(drivers, done, chance)
            for i, driver in enumerate(drivers):
                if driver.poll() is None:
                    continue
                _, err = driver.communicate()
                assert driver.returncode in (0, -signal.SIGKILL), err
                drivers[i] = start(sweep.path, folder)
            wait_for_progress(store, len(seen_keys) + chance.randint(1, max(2, cells // 8)), cells, drivers)
            seen |= {i for ids in finished(store).values() for i in ids}
        for driver in drivers:
            _, err = driver.communicate(timeout=PATIENCE_S)
            assert driver.returncode in (0, -signal.SIGKILL), err
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    inspect(store, sweep.path, folder, seen, done)
    return done


def strike(drivers: list[subprocess.Popen[str]], done: Round, chance: random.Random) -> None:
    """Kill a process at a random moment."""
    time.sleep(chance.random() * 0.05)
    driver = chance.choice(drivers)
    if driver.poll() is not None:
        return
    if chance.random() < 0.3:
        driver.kill()
        driver.wait()
        done.drivers_killed += 1
    elif victims := workers(driver):
        try:
            chance.choice(victims).kill()
            done.workers_killed += 1
        except psutil.NoSuchProcess:  # it was faster
            pass


def wait_for_progress(store: Store, wanted: int, cells: int, drivers: list[subprocess.Popen[str]]) -> None:
    """Until so many cells are finished, or a driver has ended."""
    end = time.monotonic() + PATIENCE_S
    while len(finished(store)) < min(wanted, cells) and all(driver.poll() is None for driver in drivers):
        assert time.monotonic() < end, "no cell was finished for too long"
        time.sleep(0.05)


def inspect(store: Store, sweep: Path, folder: Path, seen: set[str], done: Round) -> None:
    """Load everything, and let one more driver search for something to do."""
    now = finished(store)
    records, damaged = store.records()
    done.finished = len(now)
    done.run_twice = sum(len(ids) - 1 for ids in now.values())
    done.vanished = len(seen - {i for ids in now.values() for i in ids})
    done.damaged = len(damaged) + len(list((folder / "results").glob("quarantine/*")))
    done.lost_records = Counter(r.outcome.status for r in records)["lost"]
    for record in records:
        if record.samples is not None:
            store.samples(record)
    last = start(sweep, folder)
    out, err = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, err
    done.run_afterwards = int(out.strip() != "{}")


def main(rounds: int = 20, cells: int = 200, seed: int = 0) -> int:
    """Print every round and the sum; the exit code is 1 if one was not clean."""
    chance = random.Random(seed)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            began = time.monotonic()
            one = chaos(Path(scratch) / str(number), cells, chance)
            results.append(one)
            print(
                f"round {number + 1}: {'clean' if one.clean else 'NOT CLEAN'}  {one}  {time.monotonic() - began:.0f} s"
            )
            sys.stdout.flush()
    drivers, cell_workers = sum(r.drivers_killed for r in results), sum(r.workers_killed for r in results)
    print(
        f"{sum(r.clean for r in results)} of {rounds} rounds clean: {sum(r.finished for r in results)} cells finished, "
        f"{drivers} drivers and {cell_workers} workers killed, {sum(r.run_twice for r in results)} cells run twice, "
        f"{sum(r.vanished for r in results)} lost"
    )
    return int(not all(r.clean for r in results))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
