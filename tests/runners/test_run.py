"""A sweep from file to records, in real processes: what is run, what is kept, and every bad ending."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

import peft_matrix as pm
from harness.record import Outcome, Record
from runners.running import adapters, trackers
from runners.worker.job import Job
from runners.worker.stages import STAGES
from runners.workspace import Workspace
from tests.runners.conftest import REPOSITORY, Bench, bench_at


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


@dataclass
class Told:
    """The losses and the end that a tracker was told."""

    attempt: trackers.TrackedAttempt
    loss: list[tuple[int, list[float]]] = field(default_factory=list)
    status: str = ""

    def curve(self, name: str, first: int, values: list[float]) -> None:
        if name == "loss":
            self.loss.append((first, list(values)))

    def end(self, status: str, reason: str, values: dict[str, float]) -> None:
        self.status = status


def test_a_cell_gives_the_same_numbers_again_also_watched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.write(methods=["lora"])
    assert bench("run", str(path)).returncode == 0
    watched: list[Told] = []
    monkeypatch.setitem(
        trackers.TRACKERS, "watcher", trackers.TrackerLibrary((), lambda one: watched.append(Told(one)) or watched[-1])
    )
    assert bench("run", str(path), "--rerun", "all", "--tracker", "watcher").returncode == 0
    (told,) = watched
    assert told.status == "ok"
    assert told.attempt.settings["method.r"] == 8
    assert len(told.loss) > 5, "losses come while the cell trains"
    assert [step for step, _ in told.loss] == [1 + sum(len(v) for _, v in told.loss[:i]) for i in range(len(told.loss))]
    assert tuple(v for _, values in told.loss for v in values) == tuple(bench.records()[0]["series"]["loss"])
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
    path = str(bench.write(methods=[{"name": "lora", "params": {"target_modules": "no_such_layer.*"}}]))
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
    assert 0 < len(record["series"]["loss"]) < step, "the curve up to there"


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
    stages = [name for name, _ in STAGES]
    assert record["outcome"]["stage"] in stages[: stages.index("train") + 1]


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

    def slow_trains() -> bool:  # a job's folder is not enough: that of the first cell outlives its record for a moment
        cells = [cell for one in pm.running(results=bench.root / "results") for cell in one["cells"]]
        return any(".slow." in cell["cell"] and cell["stage"] == "train" for cell in cells)

    wait_for(slow_trains, "the second cell's training")
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


def test_status_shows_what_runs_and_names_a_dead_driver(bench: Bench) -> None:
    path = bench.write(methods=["full"], training={**bench.sweep["training"], "steps": 1_000_000})
    other = bench.root / "other.yaml"
    other.write_text(path.read_text().replace("name: quick", "name: other").replace("seeds:\n- 0", "seeds:\n- 7"))
    results = bench.root / "results"
    drivers = {name: bench.start("run", str(at)) for name, at in (("quick", path), ("other", other))}

    def training() -> list[dict[str, Any]]:
        found = pm.running(results=results)
        cells = [cell for one in found for cell in one["cells"]]
        return found if len(cells) == 2 and all(cell["eta_s"] is not None for cell in cells) else []

    try:
        found = {one["sweep"]: one for one in wait_for(training, "a second count of both")}
        for name, driver in drivers.items():
            one, (cell,) = found[name], found[name]["cells"]
            assert (one["state"], one["pid"], one["executor"]) == ("running", driver.pid, "local")
            assert (one["done"], one["failed"], one["total"]) == (0, 0, 1)
            assert cell["pid"] in {process.pid for process in workers(driver.pid)}
            assert (cell["stage"], cell["what"], cell["of"]) == ("train", "training", 1_000_000)
            assert 0 < cell["at"] < 1_000_000
            assert cell["eta_s"] > cell["seconds"] > 0
            assert ".full.none.strings-copy" in cell["cell"]
        stands = json.loads(bench("status", str(path), "--json").stdout)
        assert [one["sweep"] for one in stands["running"]] == ["quick"]
        words = bench("status").stdout
        assert f"quick: driver {drivers['quick'].pid}" in words
        assert f"other: driver {drivers['other'].pid}" in words
        assert re.search(r"train: training \d+/1000000, \d+:\d\d, about \d+:\d\d:\d\d to go, worker \d+", words), words
        key = found["other"]["cells"][0]["key"]
        so_far = bench("logs", key).stdout
        follower = bench.start("logs", "-f", key)
        drivers["quick"].kill()
        assert follower.poll() is None
        os.killpg(drivers["other"].pid, signal.SIGINT)
        followed, _ = follower.communicate(timeout=120)
        drivers["other"].wait(timeout=120)
    finally:
        for driver in drivers.values():
            driver.kill()
            driver.communicate()
    kept = bench("logs", key).stdout
    assert so_far
    assert followed.startswith(so_far)
    assert kept.startswith(followed)
    (dead,) = pm.running(results=results)
    assert (dead["state"], dead["pid"]) == ("dead", drivers["quick"].pid)
    assert f"driver {drivers['quick'].pid} of quick is gone" in bench("status", str(path)).stdout
    assert bench("run", str(bench.write(methods=["none"]))).returncode == 0
    assert pm.running(results=results) == []
    assert not list((results / "running").glob("*"))
    assert bench("status").stdout == "Nothing runs on these records.\n"


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
    assert len(made["run"]) == 8  # four methods and two seeds
    again = bench("init", str(folder))
    assert again.returncode == 2
    assert "not empty" in again.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, dict[str, Any]]:
    """Outcome of a cell of each method of :mod:`tests.runners.broken`, one process for all."""
    bench = bench_at(tmp_path_factory.mktemp("broken"), tiny_model)
    sweep = bench.write(methods=["wrong-count", "no-gradient", "unmoved", "lost-on-disk", "steady"])
    done = subprocess.run(
        [sys.executable, "-m", "tests.runners.broken", str(sweep), str(bench.root)],
        cwd=REPOSITORY,
        env=bench.environment,
        text=True,
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "check", "stage", "words"),
    [
        ("wrong-count", "trainable-count", "attach", "were declared"),
        ("no-gradient", "gradient-probe", "train", "layers.0.mlp"),
        ("unmoved", "unmoved", "train", "never changed, for example model.layers.0"),
        ("lost-on-disk", "reload", "reload", "read back from disk differs"),
    ],
)
def test_failed_guard_is_a_named_outcome_without_number(
    broken: dict[str, dict[str, Any]], name: str, check: str, stage: str, words: str
) -> None:
    outcome = broken[name]
    assert (outcome["status"], outcome["check"], outcome["stage"]) == ("error", check, stage)
    assert words in outcome["reason"]
    assert "accuracy" not in outcome["metrics"]


def test_the_same_cell_without_a_fault_passes_every_guard(broken: dict[str, dict[str, Any]]) -> None:
    outcome = broken["steady"]
    assert (outcome["status"], outcome["check"]) == ("ok", "")
    assert "accuracy" in outcome["metrics"]


def test_early_stopping_keeps_the_best_weights(bench: Bench) -> None:
    training = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "schedule": "constant",
        "max_length": 32,
        "early_stopping": {"every": 2, "patience": 1},
    }
    methods = ["full", {"name": "full", "label": "too-fast", "learning_rate": 3.0}, "lisa"]
    done = bench("run", str(bench.write(methods=methods, training=training)))
    found = {r["label"].split(".")[1]: r for r in bench.records()}
    assert {r["outcome"]["status"] for n, r in found.items() if n != "lisa"} == {"ok"}, done.stdout
    assert found["full"]["cell"]["method"]["steps"] == 24  # three epochs of 64 items in batches of 8
    for name in ("full", "too-fast"):
        record, facts = found[name], found[name]["environment"]["facts"]["early_stopping"]
        scores = record["series"]["early_stopping_score"]
        assert facts["best_score"] == min(scores)
        assert facts["best_step"] == 2 * (scores.index(min(scores)) + 1)
        assert len(record["series"]["step_ms"]) == facts["trained_steps"]
        assert record["metrics"]["validation_nll"]["value"] == pytest.approx(facts["best_score"], rel=1e-4)
    fast = found["too-fast"]["environment"]["facts"]["early_stopping"]
    assert fast["stopped_early"]
    assert fast["trained_steps"] == fast["best_step"] + 2 < 24
    assert found["lisa"]["outcome"]["status"] == "unsupported"
    assert "early stopping" in found["lisa"]["outcome"]["reason"]


def test_kept_weights_are_exported_and_load_in_plain_peft(bench: Bench, tiny_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    done = bench("run", str(bench.write(methods=["none", "full", "lora"], keep="all")))
    labels = {r["cell"]["method"]["name"]: r["label"] for r in bench.records()}
    assert set(bench.outcomes().values()) == {"ok"}, done.stdout
    kept = bench.root / "results" / "adapters"
    assert len(list(kept.iterdir())) == 2, "what did not train has nothing to keep"
    for method, form in (("lora", "adapter"), ("lora", "merged"), ("full", "merged")):
        told = bench("export", labels[method], "--to", f"{method}-{form}", "--as", form)
        assert told.returncode == 0, told.stdout + told.stderr
    ids = torch.arange(5, 20).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits

    adapted = logits(PeftModel.from_pretrained(base, bench.root / "lora-adapter"))
    merged = logits(AutoModelForCausalLM.from_pretrained(bench.root / "lora-merged"))
    assert torch.allclose(adapted, merged, atol=1e-4)
    fresh = logits(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert not torch.allclose(adapted, fresh, atol=1e-4), "it holds what was trained"
    card = (bench.root / "lora-adapter" / "README.md").read_text(encoding="utf-8")
    assert "model-index" in card
    assert "95 % interval" in card
    assert "Energy was not measured." in card
    assert str(bench.root) not in card + (bench.root / "lora-adapter" / "adapter_config.json").read_text()
    dry = bench("push", "lora-adapter", "someone/tiny")
    assert dry.returncode == 0, dry.stderr
    assert "nothing was sent" in dry.stdout
    refused = bench("export", labels["full"], "--to", "x", "--as", "adapter")
    assert refused.returncode == 2
    assert "does not save an adapter" in refused.stderr
    again = bench("export", labels["none"], "--to", "y")
    assert again.returncode == 2
    assert "nothing of" in again.stderr


def test_keep_best_is_chosen_on_validation_data(bench: Bench) -> None:
    bench("run", str(bench.write(methods=["lora", "bitfit"], seeds=[0, 1], keep="best")))
    losses = {r["key"]: r["metrics"]["validation_nll"]["value"] for r in bench.records()}
    (left,) = (bench.root / "results" / "adapters").iterdir()
    assert losses[left.name] == min(losses.values())


def test_a_run_that_fails_leaves_what_an_earlier_one_kept(bench: Bench) -> None:
    bench("run", str(bench.write(methods=["lora"], keep="all")))
    (kept,) = (bench.root / "results" / "adapters").iterdir()
    before = {p.name: p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    (record,) = bench.records()
    workspace = Workspace((), str(bench.root / "results"), None, bench.root / "cache")
    job = Job.read_dict(json.loads(before["kept.json"])["job"])
    incoming = adapters.place(workspace, record["key"]) / adapters.INCOMING
    incoming.mkdir()
    (incoming / "half.safetensors").write_bytes(b"half")  # saved before a later stage failed
    failed = Record.from_json(json.dumps(record)).model_copy(update={"outcome": Outcome(status="error", reason="why")})
    adapters.settle(workspace, job, failed, best=False)
    assert {p.name: p.read_bytes() for p in kept.rglob("*") if p.is_file()} == before
    edited = str(bench.write(methods=["bitfit"]))
    assert bench("results", "rm").returncode == 2, "every record is no choice"
    earlier = ("--sweep", edited, "--earlier-settings", "--to", "old")
    dry = bench("results", "archive", *earlier)
    assert f"{record['label']}  {record['key']}" in dry.stdout
    assert "Dry run: nothing was changed; --yes moves them to old." in dry.stdout
    assert len(bench.records()) == 1
    done = bench("results", "archive", *earlier, "--yes")
    assert re.search(r"1 records, 1 sample files, \d logs: [\d,]+ bytes moved to old", done.stdout), done.stderr
    assert bench.records() == []
    assert not kept.exists()
    assert record["label"] in bench("show", record["key"], "--results", "old").stdout
    assert (bench.root / "old" / "adapters" / kept.name / "kept.json").is_file()
    gone = bench("results", "rm", record["key"], "--results", "old", "--yes", "--json")
    assert json.loads(gone.stdout)["done"], gone.stderr
    assert not (bench.root / "old" / "adapters" / kept.name).exists()


def test_a_trained_cache_is_refused_under_checkpointing(bench: Bench) -> None:
    """Recomputed layers get no cache from transformers, so the trained entries would be missing from them."""
    path = bench.write(
        methods=["prefix", "cartridge", "mam", "prompt"],
        training={**bench.sweep["training"], "gradient_checkpointing": True},
    )
    refused = json.loads(bench("plan", str(path), "--json").stdout)["unsupported"]
    assert {one["cell"]["label"].split(".")[1]: "gradient_checkpointing" in one["why"] for one in refused} == {
        "prefix": True,
        "cartridge": True,
        "mam": True,
    }


def test_nothing_written_holds_a_planted_secret(bench: Bench, tiny_model: Path) -> None:
    """Token, account, machine and home folder, in the environment, a model's files, an error's text and a log."""
    token, user = "hf_" + "Zq7" * 11, "plantedperson"
    home = bench.root / f"home-{user}"
    for name in ("good", "bad"):
        shutil.copytree(tiny_model, home / name)
    for config in home.glob("*/config.json"):
        content = json.loads(config.read_text())
        config.write_text(json.dumps({**content, "_name_or_path": f"{home}/{token}"}))
    bad = home / "bad" / "config.json"
    bad.write_text(
        json.dumps({**content, "hidden_act": f"{home} {token} {user} {socket.gethostname()} planted-value-1"})
    )
    bench.environ.update(HF_TOKEN=token, USER=user, LOGNAME=user, HOME=str(home), MY_SECRET_KEY="planted-value-1")
    path = str(bench.write(models=[str(home / "good"), str(home / "bad")], methods=["none"]))
    done = bench("run", path)
    assert done.returncode == 1, "one model has an unknown activation, which its error names"
    (failed,) = [label for label, status in bench.outcomes().items() if status == "error"]
    assert sorted(bench.outcomes().values()) == ["error", "ok"]
    assert f"more: peft-matrix logs {failed}" in done.stderr + done.stdout
    log = bench("logs", failed).stdout
    assert "Traceback" in log
    assert "<secret>" in log
    for command in (["board", path], ["site"], ["publish", "a/b", "--to", "hf-dataset"]):
        done = bench(*command)
        assert done.returncode in (0, 1), done.stderr
    planted = [token, user, "planted-value-1"]
    if len(socket.gethostname()) >= 8:  # a shorter one is in files by chance
        planted.append(socket.gethostname())
    files = [f for top in ("results", "site") for f in (bench.root / top).rglob("*") if f.is_file()]
    assert len(files) > 10
    found = {
        (f.relative_to(bench.root).as_posix(), word)
        for f in files
        for word in planted
        if word in f.read_bytes().decode(errors="replace")
    }
    assert not found
