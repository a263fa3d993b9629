"""A sweep from file to records, in real processes: what is run, what is kept, and every bad ending."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.runners.conftest import Bench


def wait_for(condition, what: str, timeout_s: float = 90.0):
    """Poll until ``condition()`` gives something true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {timeout_s} s")


def workers(driver_pid: int) -> list[psutil.Process]:
    """The cell processes of a driver: grandchildren, below the template process."""
    try:
        children = psutil.Process(driver_pid).children(recursive=True)
        return [p for p in children if p.parent().pid != driver_pid]
    except psutil.NoSuchProcess:
        return []


def running_jobs(bench: Bench) -> list[Path]:
    """Job folders whose worker has opened its log: the cell is under way."""
    return list((bench.root / "cache" / "jobs").glob("*/worker.log"))


def test_a_sweep_runs_and_a_second_run_does_nothing(bench: Bench) -> None:
    path = bench.write()
    first = bench("run", str(path))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 ok" in first.stdout
    records = {r["cell"]["method"]["name"]: r for r in bench.records()}
    assert set(records) == {"none", "lora"}
    lora = records["lora"]
    stages = [s["stage"] for s in lora["spans"]]
    assert stages == [
        "load",
        "quantize",
        "inspect",
        "baseline",
        "prepare",
        "attach",
        "train",
        "save",
        "reload",
        "evaluate",
        "retain",
        "probe",
        "merge",
    ]
    metrics = lora["metrics"]
    assert metrics["accuracy"]["value"] is not None
    assert metrics["accuracy"]["n"] == 8
    assert metrics["trainable_parameters"]["value"] > 0
    assert metrics["adapter_bytes"]["value"] > 4 * metrics["trainable_parameters"]["value"]
    assert metrics["merged_accuracy"]["value"] is not None
    assert metrics["merge_error_max"]["value"] < 1e-3
    assert len(lora["series"]["loss"]) == 10
    assert lora["environment"]["facts"]["reload_error_relative"] < 1e-4
    train = next(s for s in lora["spans"] if s["stage"] == "train")
    assert any(r["quantity"] == "peak_rss_bytes" and r["value"] > 0 for r in train["readings"])
    names = sorted(p.name for p in (bench.root / "results" / "records").glob("*/*"))
    second = bench("run", str(path))
    assert second.returncode == 0
    assert "nothing to run; 2 already done" in second.stdout
    assert sorted(p.name for p in (bench.root / "results" / "records").glob("*/*")) == names
    assert not list((bench.root / "cache" / "jobs").iterdir())


def test_the_same_cell_gives_the_same_numbers_again(bench: Bench) -> None:
    path = bench.write(methods=["lora"])
    assert bench("run", str(path)).returncode == 0
    assert bench("run", str(path), "--rerun", "all").returncode == 0
    one, two = bench.records()
    assert one["key"] == two["key"]
    assert one["id"] != two["id"]
    assert one["series"]["loss"] == two["series"]["loss"]
    assert one["samples"] == two["samples"]


def test_impossible_cells_are_rows_with_their_reason(bench: Bench) -> None:
    path = bench.write(
        methods=["full"],
        quantization=["none", "bnb-nf4"],
        exclude=[{"quantization": "none", "why": "only the quantized arm is wanted here"}],
    )
    made = json.loads(bench("plan", str(path), "--json").stdout)
    assert set(made) == {
        *(
            "cells",
            "run",
            "done",
            "stale",
            "elsewhere",
            "unsupported",
            "later",
            "waiting_for_tuning",
            "unpinned",
            "unpinned_models",
            "remarks",
            "not_run",
        ),
        "predicted",
    }
    assert made["cells"] == 2
    assert len(made["unsupported"]) == 2
    assert bench("run", str(path)).returncode == 0
    outcomes = {r["cell"]["quantization"]["name"]: r["outcome"] for r in bench.records()}
    assert outcomes["none"]["status"] == "unsupported"
    assert "only the quantized arm is wanted here" in outcomes["none"]["reason"]
    assert outcomes["bnb-nf4"]["status"] == "unsupported"
    assert "quantized" in outcomes["bnb-nf4"]["reason"]


def test_what_only_the_worker_could_find_out_is_not_tried_again(bench: Bench) -> None:
    path = str(bench.write(methods=[{"name": "lora", "params": {"target_modules": ["no_such_layer"]}}]))
    assert bench("run", path).returncode == 0
    (record,) = bench.records()
    assert record["outcome"]["status"] == "unsupported"
    assert record["outcome"]["stage"] == "attach"
    assert "no_such_layer" in record["outcome"]["reason"]
    assert "nothing to run; 1 already done" in bench("run", path).stdout
    assert len(json.loads(bench("plan", path, "--json", "--rerun", "unsupported").stdout)["run"]) == 1


def test_a_loss_that_is_not_finite_ends_the_cell_at_once(bench: Bench) -> None:
    path = bench.write(
        methods=[{"name": "full", "learning_rate": 1e30}], training={**bench.sweep["training"], "steps": 200}
    )
    ended = bench("run", str(path))
    assert ended.returncode == 1
    (record,) = bench.records()
    assert record["outcome"]["status"] == "diverged"
    assert record["outcome"]["stage"] == "train"
    assert "loss became" in record["outcome"]["reason"]
    step = int(record["outcome"]["reason"].rpartition(" ")[2])
    assert step < 20
    assert "accuracy" not in record["metrics"]


def test_a_cell_over_its_time_is_killed_and_recorded(bench: Bench) -> None:
    path = bench.write(
        methods=["full"],
        training={**bench.sweep["training"], "steps": 1_000_000},
        limits={"threads": 1, "timeout_s": 6},
    )
    assert bench("run", str(path)).returncode == 1
    (record,) = bench.records()
    assert record["outcome"]["status"] == "timeout"
    assert "6 s" in record["outcome"]["reason"]
    assert record["outcome"]["stage"] in {"load", "quantize", "prepare", "attach", "train"}


def test_killed_worker_is_lost_and_the_cell_runs_again(bench: Bench) -> None:
    path = bench.write(methods=["full"], training={**bench.sweep["training"], "steps": 1_000_000})
    driver = bench.start("run", str(path))
    wait_for(lambda: running_jobs(bench), "the cell's start")
    worker = wait_for(lambda: workers(driver.pid), "the worker process")[0]
    worker.send_signal(signal.SIGKILL)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 1, out + err
    (record,) = bench.records()
    assert record["outcome"]["status"] == "lost"
    assert "signal 9" in record["outcome"]["reason"]
    made = json.loads(bench("plan", str(path), "--json").stdout)
    assert len(made["run"]) == 1, "a lost cell is run again"


def test_ctrl_c_ends_cleanly_and_the_next_run_continues(bench: Bench) -> None:
    path = bench.write(
        methods=["none", {"name": "full", "label": "slow"}], training={**bench.sweep["training"], "steps": 1_000_000}
    )
    driver = bench.start("run", str(path))
    wait_for(lambda: "ok" in bench.outcomes().values() and running_jobs(bench), "the second cell's start")
    os.killpg(driver.pid, signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "run again to continue" in err
    assert sorted(bench.outcomes().values()) == ["interrupted", "ok"]
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(bench.root) in " ".join(p.info["cmdline"] or [])]
    made = json.loads(bench("plan", str(path), "--json").stdout)
    assert (len(made["done"]), len(made["run"])) == (1, 1)


def test_an_orphaned_worker_ends_itself(bench: Bench) -> None:
    path = bench.write(methods=["full"], training={**bench.sweep["training"], "steps": 1_000_000})
    driver = bench.start("run", str(path))
    wait_for(lambda: running_jobs(bench), "the cell's start")
    worker = wait_for(lambda: workers(driver.pid), "the worker process")[0]
    driver.kill()
    driver.communicate()
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the worker's end", 20)
    assert bench.records() == []


def test_two_runs_on_one_store_never_run_a_cell_twice(bench: Bench) -> None:
    path = bench.write(methods=["none", "lora", "full"], seeds=[0, 1])
    drivers = [bench.start("run", str(path)) for _ in range(2)]
    for driver in drivers:
        out, err = driver.communicate(timeout=240)
        assert driver.returncode == 0, out + err
    keys = [r["key"] for r in bench.records()]
    assert len(keys) == 6, "no cell is lost"
    assert len(set(keys)) == 6, "no cell is run twice"
    assert {r["outcome"]["status"] for r in bench.records()} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["lorra"]}, ["methods.0", "unknown method 'lorra'", "Did you mean", "'lora'"]),
        ({"methods": [{"name": "lora", "params": {"rang": 4}}]}, ["methods.0", "'rang'", "Allowed"]),
        ({"quantization": ["bnb-nf5"]}, ["quantization.0", "unknown quantizer", "'bnb-nf4'"]),
        ({"tasks": ["strings-copi"]}, ["tasks.0", "unknown task", "'strings-copy'"]),
        ({"models": ["./no-such-model"]}, ["models.0", "there is no model at './no-such-model'", "config.json"]),
        ({"models": ["builtin:nono"]}, ["models.0", "unknown built-in model 'nono'", "nano"]),
        ({"hardware": ["h1000"]}, ["hardware.0", "unknown hardware profile"]),
        ({"seedz": [1]}, ["line", "unknown key 'seedz'", "'seeds'"]),
        ({"exclude": [{"method": "lorra", "why": "a misspelling"}]}, ["exclude.0.method", "matches no method"]),
    ],
)
def test_sweep_mistake_is_one_sentence_with_file_line_key(
    bench: Bench, changes: dict[str, object], words: list[str]
) -> None:
    path = bench.write(**changes)
    ended = bench("run", str(path))
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    for word in [str(path), "line", *words]:
        assert word in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (bench.root / "results" / "records").exists()


TASK = """\
name: mine
version: 1
summary: a task of the user
kind: generation
licence: own
source: {files: {train: train.jsonl, test: test.jsonl}}
splits: {train: {from: train}, test: {from: test}}
prompt: "{question}="
answer: "{answer}"
"""


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ('{"question": "a", "answr": "b"}\n', ["train.jsonl", "line 1", "answer"]),
        ("", ["train.jsonl", "empty"]),
        ('{"question": "a", "answer": "b"}\nnot json\n', ["train.jsonl", "line 2", "JSON"]),
    ],
)
def test_data_file_mistake_is_reported_once_before_any_cell(bench: Bench, train: str, words: list[str]) -> None:
    folder = bench.root / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(TASK)
    (folder / "train.jsonl").write_text(train)
    (folder / "test.jsonl").write_text('{"question": "c", "answer": "d"}\n')
    ended = bench("run", str(bench.write(tasks=["mine"])))
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in ended.stderr


def test_a_new_workspace_runs(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("w") / "mine"
    assert bench("init", str(folder)).returncode == 0
    inside = Bench(folder, {}, bench.environ)
    sweeps = json.loads(inside("plan", "--list", "--json").stdout)
    assert "first" in {s["sweep"] for s in sweeps}
    assert "quickstart" in {s["sweep"] for s in sweeps}
    made = json.loads(inside("plan", "first", "--json").stdout)
    assert len(made["run"]) == 3
    again = bench("init", str(folder))
    assert again.returncode == 2
    assert "not empty" in again.stderr
