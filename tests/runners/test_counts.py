"""Counting on real architectures without weights: the numbers that published runs print, and honest refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.record import Record
from harness.spec import Probes
from harness.store.store import Store
from runners.running.counts import count_missing
from runners.worker.static_counts import count
from tests.runners.conftest import Bench

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
    assert "inspect" not in Probes().identity()
    assert Probes(inspect="full").identity()["inspect"] == "full"
