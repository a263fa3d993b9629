"""The scheduler with cells that fail, devices that are in use, and too little time."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness import hardware
from harness.errors import UserError
from harness.matrix import Cell
from harness.record import Outcome, Record
from harness.registry import Registry
from harness.spec import LoadedSweep
from harness.spec_axes import Priority
from runners.executors.backends import EXECUTORS, ExecutorChoice, Local, place
from runners.executors.base import Lease
from runners.planning.blocks import Slot, in_blocks
from runners.planning.cost_model import Prediction, Predictor
from runners.planning.ordering import Budget, fitting, in_order
from runners.running import job_logs, live, progress
from runners.running.leases import Pool
from runners.running.live import RunningCell
from runners.running.preflight import kept, no_room
from runners.running.recovery import CellAttempt
from runners.running.scheduler import Scheduler
from runners.tools import logs
from runners.workspace import Workspace
from tests.chaos import HAZARDS, chaos
from tests.runners import cheap
from tests.runners.conftest import REPOSITORY

GIB = 2**30


def run(sweep: LoadedSweep, folder: Path, **options: object) -> tuple[Scheduler, dict[str, list[Record]]]:
    """Run cheap cells in real processes; records by method label, in the order of their attempts."""
    scheduler = cheap.scheduler(sweep, folder, **options)
    scheduler.run()
    records, damaged = scheduler.store.records()
    assert not damaged
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.attempt):
        found.setdefault(record.cell["method"]["label"], []).append(record)
    return scheduler, found


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scheduler, dict[str, list[Record]]]:
    folder = tmp_path_factory.mktemp("endings")
    sweep = cheap.sweep_of(
        folder / "sweep.yaml",
        ["ok", "silent", "dies", "breaks", "fails", "needs-2", "needs-0"],
        training={"steps": 5, "batch_size": 8, "gradient_accumulation": 3, "on_oom": "halve_batch"},
        limits={"retries": 1, "lost_after_s": 3.0, "min_free_disk_gib": 0.0},
    )
    return run(sweep, folder, workers=4)


def statuses(records: list[Record]) -> list[str]:
    return [r.outcome.status for r in records]


def test_only_what_may_end_otherwise_is_tried_again(endings: tuple[Scheduler, dict[str, list[Record]]]) -> None:
    scheduler, found = endings
    assert statuses(found["ok"]) == ["ok"]
    assert statuses(found["breaks"]) == ["error", "ok"]
    assert statuses(found["fails"]) == ["error"], "a bug is not tried again"
    assert statuses(found["dies"]) == ["lost", "lost"]
    assert [r.attempt for r in found["dies"]] == [1, 2]
    assert "signal 9" in found["dies"][0].outcome.reason
    assert scheduler.outcomes == {"ok": 3, "error": 1, "lost": 2, "oom": 1}


def test_a_worker_that_falls_silent_is_killed_and_lost(endings: tuple[Scheduler, dict[str, list[Record]]]) -> None:
    _, found = endings
    assert statuses(found["silent"]) == ["lost", "lost"]
    assert "no heartbeat for 3 s" in found["silent"][0].outcome.reason
    assert found["silent"][0].outcome.stage == "train"


def test_batch_is_halved_only_on_request_and_recorded(
    endings: tuple[Scheduler, dict[str, list[Record]]], tmp_path: Path
) -> None:
    _, found = endings
    (fits,), (never,) = found["needs-2"], found["needs-0"]
    batch = fits.environment["facts"]["batch"]
    assert fits.outcome.status == "ok"
    assert batch["used"] == 2
    assert [(m["batch_size"], m["gradient_accumulation"]) for m in batch["out_of_memory"]] == [(8, 3), (4, 6)]
    assert never.outcome.status == "oom"
    assert "a batch of 1 cannot be halved" in never.outcome.reason
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["needs-2"])
    _, found = run(sweep, tmp_path)
    assert statuses(found["needs-2"]) == ["oom"], "without being asked, memory that ran out is the result"
    assert found["needs-2"][0].key != fits.key, "a cell that may back off is another cell"


def test_a_method_that_accumulates_no_gradients_says_so(tmp_path: Path) -> None:
    training = {"steps": 5, "batch_size": 8, "on_oom": "halve_batch"}
    sweep = cheap.sweep_of(
        tmp_path / "sweep.yaml", [], training=training, methods=[{"name": "mezo", "label": "needs-2"}]
    )
    _, found = run(sweep, tmp_path)
    assert statuses(found["needs-2"]) == ["oom"]
    assert "has a custom training step" in found["needs-2"][0].outcome.reason


def test_no_second_attempt_if_another_run_finished_the_cell(tmp_path: Path) -> None:
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["ok"])
    first, second = cheap.scheduler(sweep, tmp_path), cheap.scheduler(sweep, tmp_path)
    second._queue = type(second._queue)((cell, CellAttempt(2)) for cell, _ in second._queue)
    first.run()
    second.run()
    assert len(first.store.records()[0]) == 1


# --- devices -------------------------------------------------------------------------------------
def test_measured_cell_has_its_device_alone_trials_may_share(tmp_path: Path) -> None:
    leases = [Lease(gpus=("GPU-a",)), Lease(gpus=("GPU-b",))]
    pool = Pool(leases, cells_per_device=2, locks=tmp_path)
    measured = pool.take(shares=False)
    trials = [pool.take(shares=True) for _ in range(2)]
    assert measured is leases[0]
    assert trials == [leases[1], leases[1]]
    assert pool.take(shares=True) is None
    assert pool.take(shares=False) is None
    pool.give(leases[1])
    assert pool.take(shares=False) is None, "a trial is still there"
    pool.give(leases[1])
    assert pool.take(shares=False) is leases[1]


def test_several_devices_are_leased_all_or_none(tmp_path: Path) -> None:
    leases = [Lease(gpus=(name,)) for name in ("GPU-c", "GPU-a", "GPU-b")]
    one, other = Pool(leases, locks=tmp_path), Pool(leases, locks=tmp_path)
    single = one.take(shares=False)
    assert single is leases[0]
    assert other.take(shares=False, devices=3) is None
    pair = other.take(shares=False, devices=2)
    assert pair == Lease(gpus=("GPU-a", "GPU-b")), "a refused lease held nothing back"
    assert one.take(shares=False) is None
    one.give(single)
    assert other.take(shares=False, devices=2) is None
    other.give(pair)
    everything = one.take(shares=True, devices=3)
    assert everything is not None
    assert set(everything.gpus) == {"GPU-a", "GPU-b", "GPU-c"}
    assert one.take(shares=True) is None, "several devices are never shared"


def test_a_wide_cell_does_not_add_neighbours_on_a_cpu() -> None:
    leases = [Lease(cores=(0,)), Lease(cores=(1,))]
    pool = Pool(leases, at_once=1)
    narrow = pool.take(shares=False)
    assert narrow is leases[0]
    assert not pool.free
    assert pool.take(shares=False) is None, "one cell at a time, although two parts are there"
    pool.give(narrow)
    assert pool.take(shares=False, devices=2) == Lease(cores=(0, 1))


def test_another_run_on_the_machine_cannot_lease_the_same_gpu(tmp_path: Path) -> None:
    pool = Pool([Lease(gpus=("GPU-a",))], locks=tmp_path)
    lease = pool.take(shares=False)
    assert lease is not None
    other = (
        "import sys; from pathlib import Path\n"
        "from runners.executors.base import Lease; from runners.running.leases import Pool\n"
        "print(Pool([Lease(gpus=('GPU-a',))], locks=Path(sys.argv[1])).take(shares=False))"
    )

    def asks() -> str:
        command = [sys.executable, "-c", other, str(tmp_path)]
        return subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=True).stdout.strip()

    assert asks() == "None"
    pool.give(lease)
    assert "GPU-a" in asks()


# --- order, time, disk and memory ----------------------------------------------------------------
def cells_of(tmp_path: Path, labels: list[str], **changes: object) -> list[Cell]:
    return cheap.scheduler(cheap.sweep_of(tmp_path / "sweep.yaml", labels, **changes), tmp_path).plan.run


def test_comparable_cells_run_in_randomised_blocks(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, list("abcdef"), seeds=4)
    by_method = sorted(cells, key=lambda cell: cell.method.label)  # as tuning hands them over: seeds innermost
    ordered, slots = in_blocks(by_method, name="cheap", seeds=range(4))
    assert [c.seed for c in ordered] == [seed for seed in range(4) for _ in range(6)]
    blocks = ["".join(c.method.label for c in ordered[at : at + 6]) for at in range(0, 24, 6)]
    assert all(sorted(block) == list("abcdef") for block in blocks)
    assert len(set(blocks)) == 4, "each block has an order of its own"
    assert [slots[c.key] for c in ordered[6:9]] == [Slot(1, 0, 6), Slot(1, 1, 6), Slot(1, 2, 6)]
    again, _ = in_blocks(by_method, name="cheap", seeds=range(4))
    other, _ = in_blocks(by_method, name="another", seeds=range(4))
    assert again == ordered, "the order follows from the sweep"
    assert other != ordered


def test_repeated_runs_share_the_blocks_of_their_cells(tmp_path: Path) -> None:
    timing = {"replicates": 2, "identical": {"method": "b"}}
    made = cheap.scheduler(cheap.sweep_of(tmp_path / "s.yaml", list("abc"), seeds=2, timing=timing), tmp_path).plan
    plain = cells_of(tmp_path, list("abc"), seeds=2)
    assert {c.key for c in plain} < {c.key for c in made.run}, "the results keep their keys"
    assert len({c.key for c in made.run}) == len(made.run) == 6 + 2 * 3 + 4, "two more blocks, and b twice in each"
    blocks: dict[int, list[str]] = {}
    for cell in made.run:
        arm = cell.common.identity.get("arm", "")
        blocks.setdefault(made.slots[cell.key].block, []).append(cell.method.label + arm[:1])
    assert [sorted(members) for members in blocks.values()] == [["a", "b", "bi", "c"]] * 4
    assert "nothing-like-it" in cells_error(tmp_path, identical={"method": "nothing-like-it"})


def cells_error(tmp_path: Path, **timing: object) -> str:
    with pytest.raises(UserError) as error:
        cells_of(tmp_path, ["a"], timing=timing)
    return str(error.value)


def test_cells_of_higher_priority_have_earlier_blocks(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, list("abcd"), seeds=2)
    first = {c.key: 1 for c in cells if c.method.label == "c"}
    ordered, slots = in_blocks(cells, name="cheap", seeds=range(2), rank=first)
    assert [c.method.label for c in ordered[:2]] == ["c", "c"]
    assert [slots[c.key].size for c in ordered] == [1, 1, 3, 3, 3, 3, 3, 3]


def test_a_record_says_its_place_in_the_order(tmp_path: Path) -> None:
    scheduler, found = run(cheap.sweep_of(tmp_path / "sweep.yaml", ["ok", "slow"], seeds=2), tmp_path)
    orders = {r.key: r.environment["order"] for records in found.values() for r in records}
    assert len({order["run"] for order in orders.values()}) == 1
    told = [(orders[c.key]["block"], orders[c.key]["position"], orders[c.key]["size"]) for c in scheduler.plan.run]
    assert told == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]
    started = [job.key for job in scheduler.view.order]
    assert started == [c.key for c in scheduler.plan.run]


def test_budget_order_is_priority_first_seeds_then_cost(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, ["dear", "cheap", "wanted"], seeds=2)
    costs = {"dear": 100.0, "cheap": 10.0, "wanted": 50.0}

    def predicted(cell: Cell) -> Prediction:
        return Prediction(seconds=costs[cell.method.label])

    ranked = in_order(cells, [Priority(method="wanted", value=1)], seeds=[0, 1], predicted=predicted)
    assert [(c.method.label, c.seed) for c in ranked] == [
        *(("wanted", 0), ("wanted", 1), ("cheap", 0), ("dear", 0), ("cheap", 1), ("dear", 1))
    ]
    inside, outside = fitting(ranked, predicted, seconds=130, slots=1)
    assert [c.method.label for c in inside] == ["wanted", "wanted", "cheap", "cheap"]
    assert [c.method.label for c in outside] == ["dear", "dear"]


def test_what_a_budget_does_not_hold_is_not_run_and_says_why(tmp_path: Path) -> None:
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["ok", "slow"], seeds=2)
    scheduler = cheap.scheduler(sweep, tmp_path, hours=1.0)
    slow = {c.key for c in scheduler.plan.run if c.method.label == "slow"}

    class Told(Predictor):
        def __call__(self, cell: Cell) -> Prediction:
            return Prediction(seconds=7200.0 if cell.key in slow else 0.1)

    scheduler.plan = replace(scheduler.plan, predict=Told(hardware.load_profiles(), hardware.probe()))
    assert scheduler.run() == {"ok": 2}
    assert {n.cell.key for n in scheduler.not_run} == slow
    assert {n.kind for n in scheduler.not_run} == {"budget"}
    assert "predicted to take 7200 s" in scheduler.not_run[0].reason
    assert Budget(0.0, 0.0).refuses(None) is not None


def test_cell_waits_for_free_memory_or_is_not_run(tmp_path: Path) -> None:
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["ok"], limits={"min_free_disk_gib": 1e9})
    scheduler = cheap.scheduler(sweep, tmp_path)
    assert scheduler.run() == {}
    assert [n.kind for n in scheduler.not_run] == ["disk"]
    assert "1e+09 GiB are wanted" in scheduler.not_run[0].reason
    free = {"min_free_disk_gib": 0.0, "memory_free_bytes": GIB}
    assert no_room([tmp_path / "new"], needs_bytes=GIB - 1, **free) is None
    assert no_room([tmp_path], needs_bytes=2 * GIB, **free) == (
        *("memory", "2.00 GiB of memory are needed, 1.00 GiB are free"),
    )


def test_the_run_command_stores_cells_not_run(tmp_path: Path) -> None:
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["ok"])
    command = [sys.executable, "-m", "peft_matrix.cli"]
    where = [str(sweep.path), "--results", str(tmp_path / "results")]
    done = subprocess.run(
        [*command, "run", *where, "--hours", "0"], cwd=REPOSITORY, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 not_run" in done.stdout
    ((key, one),) = kept(str(tmp_path / "results"), "cheap").items()
    assert (len(key), one["kind"]) == (16, "budget")
    status = subprocess.run([*command, "status", *where], cwd=REPOSITORY, text=True, capture_output=True, check=True)
    assert "[budget] the budget of 0 h is used up" in status.stdout


def test_executors_are_found_by_name_and_added_by_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workspace = Workspace.discover(start=tmp_path)
    assert list(EXECUTORS) == ["local", "ray", "slurm"]
    assert isinstance(place(ExecutorChoice("local"), workspace), Local)
    with pytest.raises(UserError, match="unknown executor 'locl'"):
        place(ExecutorChoice("locl"), workspace)
    toy = Registry("executor", {"toy": "tests.runners.test_scheduler:Toy"})
    monkeypatch.setattr("runners.executors.backends.EXECUTORS", toy)
    assert type(place(ExecutorChoice("toy"), workspace)).__name__ == "Toy"


class Toy(Local):
    """This machine under another name."""


@pytest.mark.parametrize("hazard", HAZARDS)
def test_chaos_loses_and_repeats_no_finished_cell(hazard: str, tmp_path: Path) -> None:
    strikes = 1 if hazard in ("full-disk", "read-only") else 3
    one = chaos(tmp_path / "round", 8, random.Random(8), hazard, most_strikes=strikes, drivers=2)
    if one.skipped:
        pytest.skip(one.skipped)
    assert one.clean, one
    assert one.strikes.total() > 0


def test_a_template_that_is_killed_at_a_start_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing.context import ForkServerProcess

    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["ok", "other"])
    begin, failures = ForkServerProcess.start, [EOFError("unexpected EOF"), BrokenPipeError(), None]

    def start(process: ForkServerProcess) -> None:
        if failures and (error := failures.pop(0)) is not None:
            raise error
        begin(process)

    monkeypatch.setattr(ForkServerProcess, "start", start)
    assert cheap.scheduler(sweep, tmp_path).run() == {"ok": 2}
    failures[:] = [EOFError()] * 9
    again = cheap.scheduler(cheap.sweep_of(tmp_path / "third.yaml", ["third"], seeds=2), tmp_path)
    with pytest.raises(UserError, match="the process that starts the workers was ended 5 times"):
        again.run()


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


def test_a_log_is_cut_between_lines_and_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "one-secret-of-26-characters")
    monkeypatch.setattr(job_logs, "HEAD_BYTES", 40)
    monkeypatch.setattr(job_logs, "TAIL_BYTES", 40)
    said = "step 1\nlogin with one-secret-of-26-characters\n"
    (tmp_path / "worker.log").write_text(said + "x\n" * 50 + said)
    record = Record(key="a" * 16, label="a", sweep="s", cell={}, outcome=Outcome(status="ok"))
    job_logs.keep_log(tmp_path, tmp_path / "logs", record)
    (kept,) = (tmp_path / "logs").iterdir()
    text = kept.read_text()
    assert text.startswith("step 1\n\n... 1")
    assert not [part for part in ("one-", "-characters") if part in text]
    (tmp_path / "worker.log").write_text(said)
    job_logs.keep_log(tmp_path, tmp_path / "logs", record)
    assert kept.read_text() == "step 1\nlogin with <secret>\n"


def test_following_ends_with_the_process_that_runs_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = cheap.scheduler(cheap.sweep_of(tmp_path / "sweep.yaml", ["ok"]), tmp_path)
    ((cell, attempt),) = scheduler._queue
    job = scheduler._job(cell, scheduler.executor.leases[0], attempt)
    file = job.write()
    (file.parent / "worker.log").write_text("one line\nhalf a li")
    monkeypatch.setattr(logs, "FOLLOW_S", 0.01)
    with live.RunFile(scheduler.workspace, "cheap") as told:
        told.write([RunningCell(cell.label, cell.key, 1, 0.0)], done=0, failed=0, total=1)
        parts = logs.follow(cell.key, scheduler.workspace)
        assert next(parts) == "one line\n"
        file.write_text(file.read_text().replace(f" {scheduler._owner[1]},", " 999999999,"))
        assert list(parts) == ["half a li"]


# --- what a run prints without a terminal ----------------------------------------------------------
@pytest.mark.parametrize(
    ("every_s", "lines"), [(0.0, ["  a.cell: train, 0:00", "  a.cell: training 5/9, 0:00"]), (99.0, [])]
)
def test_a_piped_run_says_what_it_does(every_s: float, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", every_s)
    out = io.StringIO()
    job: Any = SimpleNamespace(key="k", label="a.cell", attempt=1, only_build=False)
    with progress.Progress(Console(file=out, force_terminal=False), total=3, slots=2) as view:
        view.started(job)
        view.message(job, {"event": "stage", "stage": "train"})
        view.message(job, {"event": "progress", "what": "training", "at": 5, "of": 9})
    assert out.getvalue().splitlines() == ["3 cells to run, 2 at once", *lines]


def test_time_to_go_follows_the_pace_of_one_count() -> None:
    cell = RunningCell("a.cell", "k", 1, started=90.0)
    told: list[tuple[dict[str, Any], float, float | None]] = [
        ({"event": "stage", "stage": "train"}, 100.0, None),
        ({"event": "progress", "what": "training", "at": 2, "of": 10}, 105.0, None),
        ({"event": "progress", "what": "training", "at": 4, "of": 10}, 115.0, 30.0),  # 2 in 10 s, 6 to do
        ({"event": "beat", "pid": 7}, 125.0, 20.0),
        ({"event": "progress", "what": "scoring", "at": 3, "of": 10}, 130.0, None),
        ({"event": "stage", "stage": "evaluate"}, 131.0, None),
    ]
    for content, now, eta in told:
        cell.hear(content, now)
        assert cell.eta_s(now) == (None if eta is None else pytest.approx(eta)), content
    assert (cell.pid, cell.text) == (7, "evaluate")


def test_later_runs_share_a_template_and_see_new_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def facts(name: str) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        _, records = run(cheap.sweep_of(folder / "sweep.yaml", ["ok"]), folder)
        return dict(records["ok"][0].environment["facts"])

    monkeypatch.setenv("CHEAP_NOTE", "one")
    one = facts("one")
    monkeypatch.setenv("CHEAP_NOTE", "two")
    two = facts("two")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # libraries of the template have read the old one
    three = facts("three")
    assert [f["note"] for f in (one, two, three)] == ["one", "two", "two"]
    assert one["template"] == two["template"] != three["template"]
