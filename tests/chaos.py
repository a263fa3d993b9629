"""Disturbs drivers, workers, disks and clocks of real sweeps at random moments and checks the store afterwards.

python -m tests.chaos [ROUNDS] [CELLS] [SEED] [HAZARD ...]      20 rounds of 200 cells with every hazard by default

Each round has a separate store, three drivers at once on it (the command ``run``) of two workers each, and one hazard:

    signals     KILL, TERM, INT (once or twice), HUP, STOP and CONT to a driver, a worker or the template of the workers
    full-disk   the file system of the store is full for a while
    file-size   some drivers may write only small files, as under ``ulimit -f`` or a quota
    read-only   the store is mounted read-only for a while
    clock       the clock of every process jumps by hours, years and decades, forwards and back, while KILL strikes
    no-locks    every driver has a separate cache and the store is a URL: no driver sees the others' locks
    networks    the same, and the drivers are in two network namespaces with two host names. The URL leads to one disk:
                only the leases in the store keep the two sides apart
    ray         the cells run on a Ray cluster of this machine; KILL and TERM to drivers

Filling, mounting and namespaces need the right to make them, and Ray its package; without it these rounds are skipped
with the reason. A cell is cheap (tests/runners/cheap.py); command line, scheduler, processes, claims and store are the
real ones.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.errors import EXIT_INTERRUPTED, EXIT_OK
from harness.store.store import Store
from tests.runners import cheap

REPOSITORY = Path(__file__).parents[1]
HAZARDS = ("signals", "full-disk", "file-size", "read-only", "clock", "no-locks")
BY_HAND = ("networks", "ray")
"""Hazards of which the suite plays no short round."""
APART = ("no-locks", "networks")
DRIVERS, WORKERS = 3, 2
STORE_MIB = 64
LOST_AFTER_S = 4.0
"""A worker that is stopped for so long is killed by its driver."""
PAUSES_S = {"full-disk": (3.0, 8.0), "read-only": (3.0, 8.0), "ray": (6.0, 20.0)}
"""Between two strikes, where that is not a second at most; a driver needs seconds to join a Ray cluster."""
PATIENCE_S = 600.0
"""A round that makes no progress for so long has failed."""
ENDS_WITHIN_S = 30.0
"""Time that the processes of a round have to end after its last driver."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSTOP)
NO_SENTENCE = re.compile(r'^(?:Traceback \(|  File "|Exception ignored|[\w.]+(?:Error|Exception|Interrupt)\b(?::|$))')
"""Lines that an interpreter prints for an uncaught error."""
TOLD = re.compile(r"peft-matrix: .+|Records: ")
"""The last line of a command with an exit code that is not 0: its error, or the location of the records."""
COMMAND = """
import os, sys
try:
    if "CHEAP_CLOCK" in os.environ:
        import tests.runners.cheap
    from runners.executors.local import LocalExecutor
    cheap = dict(work="tests.runners.cheap:work", preload=("tests.runners.cheap",))
    LocalExecutor.__init__.__kwdefaults__.update(cheap)
    if "ray" in sys.argv:
        from runners.executors.ray import RayExecutor
        RayExecutor.__init__.__kwdefaults__.update(cheap)
    from peft_matrix import cli
except KeyboardInterrupt:
    sys.exit(130)
cli.main()
"""
"""The command ``peft-matrix`` with workers that do cheap cells. Ctrl-C while it is being imported is not its matter."""


@dataclass
class Round:
    """Actions of one round, and the content of the store afterwards.

    Attributes:
        run_twice: finished records of cells that had one before.
        vanished: finished records that were seen and are gone.
        lost_records: attempts whose worker died; such a cell is tried again.
        no_sentences: lines of tracebacks in the drivers' output, and ends without a message.
        left_running: processes that were alive long after the last driver.
    """

    hazard: str
    cells: int
    skipped: str = ""
    strikes: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    run_twice: int = 0
    vanished: int = 0
    damaged: int = 0
    lost_records: int = 0
    run_afterwards: int = 0
    left_running: int = 0
    no_sentences: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Every cell is finished once, no finished cell is lost, and another run has nothing to do."""
        wrong = self.run_twice, self.vanished, self.damaged, self.run_afterwards, self.left_running, self.no_sentences
        return bool(self.skipped) or (self.finished == self.cells and not any(wrong))


class Driver:
    """The command ``run`` in a process, its output in a file."""

    def __init__(self, game: Game, number: int, *, disturbed: bool = True) -> None:
        self.number = number
        self.sent: set[int] = set()
        self.log = game.folder / f"driver-{uuid.uuid4().hex[:8]}.log"
        cache = game.folder / (f"cache-{number}" if game.hazard in APART else "cache")
        own = {"PEFT_MATRIX_CACHE": str(cache), "CHAOS_ROUND": game.name, "COLUMNS": "400"}
        if game.hazard == "clock" and disturbed:
            own["CHEAP_CLOCK"] = "jumps"
        small = game.hazard == "file-size" and disturbed and game.chance.random() < 0.6
        bytes_at_most = game.chance.choice((0, 100, 1000, 3000))
        game.done.strikes["small-files"] += small
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*game.inside(number), sys.executable, "-c", COMMAND, *game.arguments],
                cwd=REPOSITORY,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if small else log,
                stderr=subprocess.STDOUT,
                preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_at_most,) * 2)) if small else None,
            )

    def below(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """The template of the workers, and the workers."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            workers = [p for p in children if p.ppid() != self.process.pid]
            parents = {p.ppid() for p in workers}
            return [p for p in children if p.pid in parents], workers
        return [], []

    def ended(self) -> bool:
        return self.process.poll() is not None

    def complaints(self) -> list[str]:
        """Faults in the output and the exit code of a driver that has ended."""
        if self.process.stdout is not None:  # a file would be one of the small ones
            self.log.write_bytes(self.process.stdout.read())
            self.process.stdout.close()
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [f"{self.log.name}: {line}" for line in lines if NO_SENTENCE.match(line)]
        code = self.process.returncode
        told = code in (EXIT_OK, EXIT_INTERRUPTED) or any(TOLD.match(line) for line in lines)
        if not told and -code not in self.sent:
            found.append(f"{self.log.name}: exit code {code} without a message")
        return found


@dataclass
class Game:
    """State shared by the processes of a round."""

    folder: Path
    hazard: str
    chance: random.Random
    done: Round
    sweep: str = ""
    results: str = ""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    continued: list[tuple[float, psutil.Process]] = field(default_factory=list)
    next_strike: float = 0.0
    namespaces: tuple[str, ...] = ()
    address: str = ""

    @property
    def arguments(self) -> list[str]:
        """Of the command ``peft-matrix``."""
        on = ["--executor", "ray", "--address", self.address] if self.address else []
        return ["run", self.sweep, "--results", self.results, *on]

    def inside(self, number: int) -> list[str]:
        """Beginning of a driver's command: its namespace and a host name in it. The process stays the same."""
        if not self.namespaces:
            return []
        name = self.namespaces[number % len(self.namespaces)]
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]

    def store(self) -> Store:
        """The store as the drivers name it."""
        return Store(self.results, claims_dir=self.folder / "claims" if "://" in self.results else None)


def finished(store: Store) -> dict[str, list[str]]:
    """Ids of the ``ok`` records by key."""
    entries = store.entries()
    return {key: ids for key, found in entries.items() if (ids := [e.id for e in found if e.status == "ok"])}


def chaos(
    folder: Path,
    cells: int,
    chance: random.Random,
    hazard: str,
    *,
    most_strikes: int | None = None,
    drivers: int = DRIVERS,
) -> Round:
    """One round.

    Args:
        most_strikes: then the drivers are left in peace.
        drivers: how many at once.

    Raises:
        AssertionError: nothing moved for too long.
    """
    folder.mkdir()
    (folder / "results").mkdir()
    game = Game(folder, hazard, chance, Round(hazard, cells))
    limits = {"min_free_disk_gib": 0.0, "lost_after_s": LOST_AFTER_S, "workers": WORKERS}
    labels = [f"cell-{i}" for i in range(cells)]
    game.sweep = str(cheap.sweep_of(folder / "sweep.yaml", labels, training={"steps": 20}, limits=limits).path)
    game.results = str(folder / "results") if hazard not in APART else f"dir::file://{folder}/results"
    if hazard in ("full-disk", "read-only") and (why := cannot_mount(folder)):
        game.done.skipped = why
        return game.done
    with contextlib.ExitStack() as stack:
        try:
            if hazard == "full-disk":
                stack.enter_context(mounted(folder / "results"))
            elif hazard == "networks":
                game.namespaces = stack.enter_context(namespaces())
            elif hazard == "ray":
                game.address = stack.enter_context(ray_cluster())
        except Skipped as why_not:
            game.done.skipped = str(why_not)
            return game.done
        _play(game, most_strikes, drivers)
    return game.done


class Skipped(Exception):
    """This machine has not what a hazard needs."""


def _play(game: Game, most_strikes: int | None, at_once: int) -> None:
    done, store = game.done, game.store()
    drivers = [Driver(game, number) for number in range(at_once)]
    seen: set[str] = set()
    try:
        moved, count = time.monotonic(), 0
        while (now := len(finished(store))) < done.cells:
            if now > count:
                moved, count = time.monotonic(), now
            assert time.monotonic() < moved + PATIENCE_S, "no cell was finished for too long"
            peace = most_strikes is not None and done.strikes.total() >= most_strikes
            if not peace and time.monotonic() >= game.next_strike:
                if game.hazard != "ray" or count:  # the first cells have come back: the cluster is up
                    strike(game, drivers)
                pause = PAUSES_S.get(game.hazard, (0.1, 1.0))
                game.next_strike = time.monotonic() + game.chance.uniform(*pause)
            wake(game)
            for i, driver in enumerate(drivers):
                if driver.ended():
                    done.no_sentences += driver.complaints()
                    drivers[i] = Driver(game, driver.number, disturbed=not peace)
            time.sleep(0.1)
            seen |= {i for ids in finished(store).values() for i in ids}
        wake(game, everyone=True)
        for driver in drivers:
            driver.process.wait(timeout=PATIENCE_S)
            done.no_sentences += driver.complaints()
    finally:
        wake(game, everyone=True)
        for driver in drivers:
            driver.process.kill()
            driver.process.wait()
    inspect(game, store, seen)


# --- hazards -------------------------------------------------------------------------------------
def strike(game: Game, drivers: list[Driver]) -> None:
    """One disturbance of the round's kind."""
    driver, results = game.chance.choice(drivers), game.folder / "results"
    if driver.ended():
        return
    if game.hazard == "signals":
        send(game, driver, game.chance.choice(SIGNALS))
    elif game.hazard in ("clock", *APART):
        send(game, driver, signal.SIGKILL)
    elif game.hazard == "ray":
        send(game, driver, game.chance.choice((signal.SIGKILL, signal.SIGTERM)), who="driver")
    elif game.hazard == "full-disk":
        filler = results / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"\0" * 4096)
        _until_ended(drivers)
        filler.unlink()
        game.done.strikes["full-disk"] += 1
    elif game.hazard == "read-only":
        with mounted(results, read_only=True):
            _until_ended(drivers)
        game.done.strikes["read-only"] += 1


def send(game: Game, driver: Driver, number: signal.Signals, *, who: str = "") -> None:
    """A signal to a driver, one of its workers or their template; what was stopped continues a while later."""
    template, workers = driver.below()
    who = who or game.chance.choice(("driver", "worker", "worker", "template"))
    found = {"driver": [psutil.Process(driver.process.pid)], "worker": workers, "template": template}[who]
    if not found:
        return
    victim = game.chance.choice(found)
    try:
        victim.send_signal(number)
        if number == signal.SIGINT and game.chance.random() < 0.5:
            time.sleep(game.chance.random() * 0.2)
            victim.send_signal(number)
    except psutil.NoSuchProcess:  # it was faster
        return
    if who == "driver":
        driver.sent.add(number)
    if number == signal.SIGSTOP:
        game.continued.append((time.monotonic() + game.chance.uniform(0.1, 1.5 * LOST_AFTER_S), victim))
    game.done.strikes[f"{who} {number.name.removeprefix('SIG')}"] += 1


def wake(game: Game, *, everyone: bool = False) -> None:
    """Let stopped processes continue whose time is over."""
    for due, process in list(game.continued):
        if everyone or time.monotonic() >= due:
            game.continued.remove((due, process))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def _until_ended(drivers: list[Driver]) -> None:
    """Until one of the drivers has met the disturbance, at most a few seconds."""
    end = time.monotonic() + 6.0
    while time.monotonic() < end and not all(driver.ended() for driver in drivers):
        time.sleep(0.05)


@contextlib.contextmanager
def mounted(folder: Path, *, read_only: bool = False) -> Iterator[None]:
    """A small file system on ``folder``, or the same folder read-only, meanwhile."""
    other = folder.with_name(f"{folder.name}-mount")
    other.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        if read_only:  # elsewhere first: what is in use cannot be made read-only
            stack.enter_context(_mount(other, "--bind", str(folder)))
            subprocess.run(["mount", "-o", "remount,bind,ro", str(other)], check=True, capture_output=True)
            stack.enter_context(_mount(folder, "--bind", str(other)))
        else:
            stack.enter_context(_mount(folder, "-t", "tmpfs", "-o", f"size={STORE_MIB}m", "tmpfs"))
        yield


@contextlib.contextmanager
def _mount(folder: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces while the block runs; each has a separate loopback and no other network.

    Raises:
        Skipped: this user may not make them.
    """
    names = (f"chaos-{os.getpid()}-a", f"chaos-{os.getpid()}-b")
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
                stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
                subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Skipped(f"no network namespaces: {getattr(error, 'stderr', b'') or error!r}") from error
        yield names


@contextlib.contextmanager
def ray_cluster() -> Iterator[str]:
    """The address of a Ray cluster of three nodes on this machine, which lives while the block runs.

    Raises:
        Skipped: Ray is not installed, or no cluster came up.
    """
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # for the nodes' workers
    try:
        from tests.runners.test_ray import started

        cluster, _ = started()
    except Exception as error:  # Ray raises whatever its processes report
        raise Skipped(f"no Ray cluster: {error}") from error
    try:
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def cannot_mount(folder: Path) -> str:
    """Why file systems cannot be mounted here; "" if they can."""
    (folder / "mount").mkdir(exist_ok=True)
    try:
        with mounted(folder / "mount"):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this user may not mount: {getattr(error, 'stderr', b'') or error!r}"


# --- afterwards ----------------------------------------------------------------------------------
def inspect(game: Game, store: Store, seen: set[str]) -> None:
    """Load everything, let one more driver search for something to do, and look for processes that did not end."""
    done, now = game.done, finished(store)
    records, damaged = store.records()
    done.finished = len(now)
    done.run_twice = sum(len(ids) - 1 for ids in now.values())
    done.vanished = len(seen - {i for ids in now.values() for i in ids})
    done.damaged = len(damaged) + len(list((game.folder / "results").rglob("quarantine/*")))
    done.lost_records = Counter(r.outcome.status for r in records)["lost"]
    for record in records:
        if record.samples is not None:
            store.samples(record)
    last = Driver(game, 0, disturbed=False)
    last.process.wait(timeout=PATIENCE_S)
    done.no_sentences += last.complaints()
    done.run_afterwards = int("nothing to run" not in last.log.read_text(encoding="utf-8"))
    end = time.monotonic() + ENDS_WITHIN_S
    while (left := _of_round(game.name)) and time.monotonic() < end:
        time.sleep(0.2)
    done.left_running = len(left)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _of_round(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("CHAOS_ROUND") == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def main(rounds: int = 20, cells: int = 200, seed: int = 0, *hazards: str) -> int:
    """Print every round and the sum; the exit code is 1 if one was not clean."""
    chance = random.Random(seed)
    results = []
    chosen = hazards or (*HAZARDS, *BY_HAND)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            began = time.monotonic()
            one = chaos(Path(scratch) / str(number), cells, chance, chosen[number % len(chosen)])
            results.append(one)
            word = f"skipped: {one.skipped}" if one.skipped else "clean" if one.clean else "NOT CLEAN"
            print(f"round {number + 1}: {word}  {one}  {time.monotonic() - began:.0f} s", flush=True)
    played = [r for r in results if not r.skipped]
    print(
        f"{sum(r.clean for r in played)} of {len(played)} rounds clean, {rounds - len(played)} skipped: "
        f"{sum(r.finished for r in played)} of {sum(r.cells for r in played)} cells finished, "
        f"{sum(r.strikes.total() for r in played)} strikes, {sum(r.run_twice for r in played)} cells run twice, "
        f"{sum(r.vanished for r in played)} finished cells lost, {sum(len(r.no_sentences) for r in played)} messages "
        f"that are no sentence, {sum(r.left_running for r in played)} processes left running"
    )
    return int(not all(r.clean for r in results))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4]), *sys.argv[4:]))
