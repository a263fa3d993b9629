"""Cost of the inspection: none where the sweep does not ask for it."""

from __future__ import annotations

from harness.spec import Probes
from tests.runners.conftest import Bench


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
