"""The inference probe: what it times, what it refuses, and what of it ends in a record."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.record import Record
from harness.spec import Probes
from harness.store.store import Store
from peft_matrix.claim_checks import count_missing
from runners.worker.inference_timing import Decoder, LengthMismatch, RequestShape, Timing
from runners.worker.latency import grid, headline, measure, percentiles, pooled_percentiles, summarise
from runners.worker.static_counts import count
from tests.meters.conftest import sim, sim_library  # noqa: F401 - fixtures
from tests.methods.tiny import VOCABULARY, bert, llama
from tests.runners.conftest import REPOSITORY, Bench
from tests.sim_nvml.simulator import SimDevice, Simulator, constant

CPU = torch.device("cpu")
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


def adapted(name: str) -> Any:
    """The tiny Llama under an adapter whose weights are not at their start, so that ignoring it would show."""
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    if name == "plain":
        return llama()
    virtual = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
    config = {
        "lora": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        "prompt": PromptTuningConfig(**virtual),
        "prefix": PrefixTuningConfig(**virtual),
    }[name]
    model = get_peft_model(llama(), config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def context(model: nn.Module, **probes: Any) -> Any:
    """The parts of a cell that the probe needs."""
    torch.manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (4, 8))
    return SimpleNamespace(
        model=model,
        device=CPU,
        kind="causal-lm",
        probes=Probes(**{"latency_repeats": 20, "prompt_tokens": (6,), **probes}),
        probe_batch={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        tokenizer=SimpleNamespace(model_max_length=64),
        job=SimpleNamespace(device="cpu", metered=()),
    )


# --- the loop ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["plain", "lora", "prompt", "prefix"])
def test_the_loop_generates_what_generate_does(name: str) -> None:
    model = adapted(name)
    ids = torch.arange(1, 15).reshape(2, 7)
    with torch.inference_mode():
        timing, tokens = Decoder(model, CPU).request(ids, 6)
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[:, -6:]
    assert tokens.tolist() == expected.tolist()
    assert len(timing.gaps_ms) == 5
    assert timing.ttft_ms > 0
    assert timing.e2e_ms >= timing.ttft_ms + sum(timing.gaps_ms)


def test_ttft_and_gaps_equal_prefill_and_step_durations() -> None:
    model = Slow(prefill_s=0.2, step_s=0.05)
    timing, _ = Decoder(model, CPU).request(torch.ones(1, 4, dtype=torch.long), 4)
    assert 200 <= timing.ttft_ms < timing.e2e_ms
    assert all(gap >= 50 for gap in timing.gaps_ms)
    assert timing.tpot_ms == pytest.approx(np.mean(timing.gaps_ms))


class Slow(nn.Module):
    """Gives token 1 after known times; ``grows`` is how many positions a step adds to its cache."""

    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self, prefill_s: float = 0.0, step_s: float = 0.0, grows: int = 1, largest_batch: int = 99) -> None:
        super().__init__()
        self.durations = {True: prefill_s, False: step_s}
        self.grows = grows
        self.largest_batch = largest_batch

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        if len(input_ids) > self.largest_batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB\nmore text")
        time.sleep(self.durations[past_key_values is None])
        if past_key_values is None:
            past_key_values = SimpleNamespace(length=input_ids.shape[1])
            past_key_values.get_seq_length = lambda: past_key_values.length
        else:
            past_key_values.length += self.grows
        logits = nn.functional.one_hot(torch.ones_like(input_ids), 3).float()
        return SimpleNamespace(logits=logits, past_key_values=past_key_values)


def test_request_with_incomplete_cache_has_no_latency() -> None:
    with pytest.raises(LengthMismatch, match="holds 6 positions after the request, 9 were expected"):
        Decoder(Slow(grows=0), CPU).request(torch.ones(1, 6, dtype=torch.long), 4)
    entry = measure(context(Slow(grows=0)), RequestShape(1, 6, 4), None)
    assert entry["status"] == "length_mismatch"
    assert "ttft_ms" not in entry


def test_oom_is_an_entry_and_the_next_shape_is_measured() -> None:
    ctx = context(Slow(largest_batch=2))
    entries = [measure(ctx, RequestShape(batch, 6, 2), None) for batch in (2, 4, 1)]
    assert [e["status"] for e in entries] == ["ok", "oom", "ok"]
    assert entries[1]["reason"] == "CUDA out of memory. Tried to allocate 1.00 GiB"


def test_unsupported_shape_is_an_entry_other_errors_raise() -> None:
    too_long = measure(context(llama().eval()), RequestShape(1, 60, 8), None)
    assert (too_long["status"], too_long["reason"]) == ("not_applicable", "68 positions, and the model has 64")
    without_cache = Slow()
    without_cache.forward = lambda **_: SimpleNamespace(logits=torch.zeros(1, 1, 3))  # type: ignore[method-assign]
    assert measure(context(without_cache), RequestShape(1, 6, 2), None)["status"] == "not_applicable"
    broken = Slow()
    broken.forward = lambda **_: (_ for _ in ()).throw(RuntimeError("shapes differ"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure(context(broken), RequestShape(1, 6, 2), None)


def test_a_classifier_has_forward_passes_and_no_tokens() -> None:
    ctx = context(bert())
    shapes = grid(Probes(prompt_tokens=(6, 8), output_tokens=(4,), latency_batch_sizes=(1, 2)), generates=False)
    assert [s.output_tokens for s in shapes] == [0, 0, 0, 0]
    entry = measure(ctx, shapes[0], None)
    assert entry["status"] == "ok"
    assert entry["forward_ms"]["p50"]["value"] > 0
    assert entry["prefill_tokens_per_s"]["n"] == 20
    assert entry["tpot_ms"] == {
        "value": None,
        "why_missing": "not_applicable",
        "reason": "a classifier generates nothing",
    }


def test_headline_is_first_batch_first_prompt_longest_output() -> None:
    probes = Probes(latency_batch_sizes=(4, 1), prompt_tokens=(32, 8), output_tokens=(1, 16, 4))
    shapes = grid(probes, generates=True)
    assert len(shapes) == 12
    assert headline(shapes) == RequestShape(4, 32, 16)
    assert grid(Probes(prompt_tokens=(8,)), generates=True) == [RequestShape(1, 8, 1)]


# --- the numbers ---------------------------------------------------------------------------------
def test_percentiles_are_shown_only_from_enough_requests_on() -> None:
    values = [float(v) for v in range(1, 300)]
    found = percentiles(values)
    assert found["n"] == 299
    assert found["p50"]["value"] == 150
    assert found["p50"]["low"] < 150 < found["p50"]["high"]
    assert found["p90"]["value"] == pytest.approx(np.quantile(values, 0.9))
    assert found["p99"] == {"value": None, "why_missing": "too_few", "needed": 300}
    assert percentiles([*values, 300.0])["p99"]["value"] == pytest.approx(np.quantile([*values, 300.0], 0.99))
    assert percentiles(values[:19])["p50"]["why_missing"] == "too_few"


def test_interval_of_pooled_gaps_accounts_for_dependence() -> None:
    levels = np.arange(20.0)
    gaps = np.repeat(levels[:, None], 50, axis=1)  # every request has one speed: 20 facts, not 1000
    pooled = pooled_percentiles(gaps)
    naive = percentiles(gaps.ravel().tolist())
    assert pooled["n"] == 1000
    assert pooled["p50"]["value"] == naive["p50"]["value"] == 9.5
    assert pooled["p50"]["high"] - pooled["p50"]["low"] > 3 * (naive["p50"]["high"] - naive["p50"]["low"])


def test_rates_follow_from_the_durations() -> None:
    timings = [Timing(ttft_ms=100.0, gaps_ms=(10.0, 30.0), e2e_ms=150.0)] * 10 + [
        Timing(ttft_ms=200.0, gaps_ms=(20.0, 40.0), e2e_ms=250.0)
    ] * 11
    entry = summarise(timings, batch=2, prompt_tokens=50)
    assert entry["ttft_ms"]["p50"]["value"] == 200
    assert entry["tpot_ms"]["p50"]["value"] == 30
    assert entry["itl_ms"]["mean"] == pytest.approx((10 * 40 + 11 * 60) / 42)
    assert entry["prefill_tokens_per_s"]["p50"]["value"] == 2 * 50 / 0.2
    assert entry["decode_tokens_per_s"]["p50"]["value"] == pytest.approx(2 / 0.03)
    assert entry["output_tokens_per_s"]["value"] == pytest.approx(21 * 2 * 3 / (10 * 0.150 + 11 * 0.250))


# --- energy --------------------------------------------------------------------------------------
ENERGY = """
import json
import torch
from harness.meters.catalog import build
from harness.meters.panel import Panel
from runners.worker.latency import decode_energy, joules_per_token
from runners.worker.inference_timing import Decoder
from tests.methods.tiny import llama
options = {"energy": {"floor_s": 2.0, "steady_s": 3.0, "cross_check": False}}
panel = Panel(build("cpu", uuids=["GPU-0"], names=["energy"], options=options))
decoder, ids = Decoder(llama(), torch.device("cpu")), torch.ones(2, 6, dtype=torch.long)
with torch.inference_mode():
    prefill = joules_per_token(panel, lambda: decoder.prefill(ids), ids.numel(), "cpu")
    decode = decode_energy(panel, decoder, ids, 5, "cpu")
print(json.dumps([prefill, decode]))
"""


def test_joules_per_token_come_from_separate_windows(sim: Simulator) -> None:  # noqa: F811 - a fixture
    script = sim.script([SimDevice("GPU-0", constant(250))])
    done = subprocess.run(
        [sys.executable, "-c", ENERGY],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=sim.environment(script),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for entry, tokens_a_pass in zip(json.loads(done.stdout), (12, 8), strict=True):
        assert entry["window_s"] >= 2.0
        assert entry["tokens"] == entry["passes"] * tokens_a_pass
        assert entry["joules"] == pytest.approx(250 * entry["window_s"], rel=0.02)
        assert entry["value"] == pytest.approx(entry["joules"] / entry["tokens"])


# --- the whole -----------------------------------------------------------------------------------
def test_skeleton_sweep_has_both_arms_and_no_score(bench: Bench) -> None:
    path = bench.write(
        models=[{"architecture": "smollm2-135m", "weights": "random", "overrides": {**TINY, "num_key_value_heads": 2}}],
        methods=["lora"],
        quantization=["none", "bnb-int8"],  # int8 is made while a checkpoint is read
        probes={"latency_repeats": 20, "prompt_tokens": [16, 9000], "output_tokens": [1, 6]},
    )
    done = bench("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    records = {r["cell"]["quantization"]["name"]: r for r in bench.records()}
    assert {r["cell"]["model"]["label"][:19] for r in records.values()} == {"smollm2-135m-random"}
    for record in records.values():
        metrics, arms = record["metrics"], record["environment"]["facts"]["latency"]
        for name in ("accuracy", "validation_nll", "train_loss", "merged_accuracy"):
            assert metrics[name]["value"] is None
            assert metrics[name]["why_missing"] == "not_applicable"
            assert "random weights" in metrics[name]["details"]["note"]
        assert record["samples"] is None
        assert metrics["step_ms"]["value"] > 0
        assert set(arms) == {"unmerged", "merged"}
        for arm, prefix in (("unmerged", ""), ("merged", "merged_")):
            statuses = [(e["prompt_tokens"], e["output_tokens"], e["status"]) for e in arms[arm]["entries"]]
            assert statuses == [(16, 1, "ok"), (16, 6, "ok"), (9000, 1, "not_applicable"), (9000, 6, "not_applicable")]
            assert arms[arm]["headline"] == {"batch": 1, "prompt_tokens": 16, "output_tokens": 6}
            for name in ("ttft_ms", "tpot_ms", "itl_ms", "decode_tokens_per_s", "latency_ms"):
                reading = metrics[prefix + name]
                assert reading["value"] > 0
                assert reading["details"]["arm"] == arm
            assert metrics[f"{prefix}decode_j_per_token"]["why_missing"] == "no_device"
            entry = arms[arm]["entries"][1]
            assert np.median(entry["samples"]["ttft_ms"]) == pytest.approx(metrics[f"{prefix}ttft_ms"]["value"])
            kept = record["environment"]["facts"]["latency_samples_ms"][prefix + "latency_ms"]
            assert len(kept) == 20
            assert np.median(kept) == pytest.approx(metrics[prefix + "latency_ms"]["value"])
            assert entry["cold"]["e2e_ms"] >= entry["cold"]["ttft_ms"]
            assert entry["ttft_ms"]["p50"]["value"] == metrics[f"{prefix}ttft_ms"]["value"]
        assert metrics["ttft_p90_ms"]["why_missing"] == "too_few"
    assert records["none"]["environment"]["facts"]["weights_sha256"] is None  # drawn in memory
    assert records["bnb-int8"]["environment"]["facts"]["weights_sha256"]  # read from the files made for it
    full, packed = (records[name]["metrics"]["base_bytes"]["value"] for name in ("none", "bnb-int8"))
    assert packed < full


def test_latency_grid_is_complete_and_keeps_old_keys() -> None:
    with pytest.raises(ValueError, match="output_tokens needs prompt_tokens"):
        Probes(output_tokens=(8,))
    with pytest.raises(ValueError, match="greater than 0"):
        Probes(prompt_tokens=(0,))
    assert set(Probes().model_dump()) == {"latency_repeats", "latency_batch_sizes", "prompt_tokens", "output_tokens"}
    assert Probes(energy="grid").model_dump()["energy"] == "grid"


TARGETS = ["q_proj", "v_proj"]


def counted(method: str, architecture: str = "llama-3.2-3b", **more: object) -> Record:
    wanted = {"architecture": architecture, "method": method, "params": {}, "optimizer": None, "rank": None, **more}
    return count("k" * 64, wanted, sweep="counts")


def values(record: Record) -> dict[str, object]:
    assert record.outcome.status == "ok", record.outcome
    return {name: r.value if r.value is not None else r.why_missing for name, r in record.metrics.items()}


@pytest.mark.parametrize(
    ("method", "params", "trainable", "size"),
    [  # peft's own comparison, Llama-3.2-3B: num_trainable_params and file_size of the published runs
        ("lora", {"r": 32, "target_modules": TARGETS}, 9_175_040, 36_715_216),
        ("vera", {"r": 256, "target_modules": TARGETS}, 129_024, 6_821_968),
        ("oft", {"r": 32, "oft_block_size": 0, "target_modules": TARGETS}, 8_171_520, 32_693_568),
        ("prompt", {"num_virtual_tokens": 200}, 614_400, "not_supported"),
        ("full", {}, 3_212_749_824, "not_measured"),
    ],
)
def test_counts_are_those_of_published_runs(
    method: str, params: dict[str, object], trainable: int, size: object
) -> None:
    found = values(counted(method, params=params))
    assert found["trainable_parameters"] == trainable
    assert found["adapter_bytes"] == size


def test_the_estimated_state_of_galore_follows_from_shapes() -> None:
    full = values(counted("full", "smollm2-135m", optimizer="adam"))["optimizer_state_bytes_estimated"]
    small = values(counted("full", "smollm2-135m", optimizer="galore", rank=64))["optimizer_state_bytes_estimated"]
    assert full == 2 * 2 * 134_515_008  # two bfloat16 states a parameter; embeddings are tied
    assert isinstance(small, float)
    assert 0.3 * full < small < 0.6 * full  # the embeddings, a fifth of the model, are not projected


def test_uncountable_says_why_and_nothing_counts_twice(tmp_path: Path) -> None:
    record = counted("no-such-method")
    assert record.outcome.status == "error"
    assert "no-such-method" in record.outcome.reason
    store = Store(tmp_path)
    wanted = {
        "a" * 64: {"architecture": "smollm2-135m", "method": "lora", "params": {}, "optimizer": None, "rank": None}
    }
    assert count_missing(wanted, store, sweep="counts") == 1
    assert count_missing(wanted, store, sweep="counts") == 0


def test_unquantized_base_is_not_saved_again(bench: Bench) -> None:
    quantization = ["none", {"name": "rtn", "params": {"bits": 4, "group_size": 32}}]
    path = bench.write(methods=["none"], quantization=quantization, probes={"latency_repeats": 0})
    done = bench("run", str(path))
    assert "ok" in done.stdout, done.stdout + done.stderr
    found = {r["cell"]["quantization"]["name"]: r for r in bench.records()}
    plain, quantized = found["none"], found["rtn"]
    assert "kernels" not in plain["environment"]["facts"]
    assert plain["metrics"]["layer_error_mean"]["why_missing"] == "not_measured"
    disk, held = (plain["metrics"][name]["value"] for name in ("base_disk_bytes", "base_bytes"))
    assert held * 0.98 <= disk <= held * 1.02 + 20_000  # the file's header
    assert plain["metrics"]["base_disk_bytes"]["source"] == "the checkpoint's own safetensors files"
    assert quantized["environment"]["facts"]["kernels"], "quantizing asks what became of the weights"
    assert quantized["metrics"]["layer_error_mean"]["value"] > 0
    spent = {s["stage"]: s["seconds"] for s in plain["spans"]}
    assert spent["inspect"] < spent["load"]
    assert spent["probe"] < spent["load"]


def test_looking_closely_is_part_of_a_cell_only_where_asked() -> None:
    assert "inspect" not in Probes().model_dump()
    assert Probes(inspect="full").model_dump()["inspect"] == "full"
