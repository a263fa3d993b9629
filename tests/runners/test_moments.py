"""Quantized before training and after the merge, in real processes: what is scored, and what is recorded."""

from __future__ import annotations

from tests.runners.conftest import Bench


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
