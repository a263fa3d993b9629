"""A store that holds everything a page can meet: a whole sweep, GPU readings, trials, repeated cells, hostile text."""

from __future__ import annotations

from typing import Any

from harness.metrics import reading
from harness.record import Outcome, Span
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Store
from tests.reports.making import ENVIRONMENT, cell, failed_record, fill, ok_record, sample_rows

SCRIPT = "<script>alert(1)</script>"
IMAGE = '<img src="x" onerror="alert(2)">'
FORMULA = '=HYPERLINK("x","y")'
RIGHT_TO_LEFT = "\u05e9\u05dc\u05d5\u05dd \u202e evil"
EMOJI = "\U0001f9ea\U0001f469\u200d\U0001f52c"
HOSTILE_SWEEP = f"../../{SCRIPT}"
MEGABYTE = "A" * 1_000_000
GPU = {"name": "Example GPU", "power_limit_w": 300, "uuid": "GPU-0"}


def fill_store(store: Store) -> None:
    """The sweeps ``quickstart`` (small, as a CPU gives it), ``gpu`` and one with a hostile name."""
    fill(store)
    _repeat_and_tune(store)
    _gpu(store)
    _hostile(store)


def _repeat_and_tune(store: Store) -> None:
    """One cell once more a night later on another stack, and two tuning trials."""
    record, data = ok_record(cell("lora"), accuracy=0.9, fingerprint="e" * 64, finished="2026-01-02T00:01:00+00:00")
    store.append(record, data)
    for rate in (1e-4, 1e-2):
        method = {"label": "lora", "name": "lora", "params": {}, "learning_rate": rate, "steps": None}
        trial, _ = ok_record({**cell("lora"), "method": method, "role": "trial"}, with_samples=False)
        metrics = {"validation_nll": reading("validation_nll", 0.5 + rate, source="scorer", n=100)}
        store.append(trial.model_copy(update={"metrics": metrics, "samples": None}))


def _gpu(store: Store) -> None:
    """Rows with GPU memory, latency per token, energy and a power trace; one was throttled, one not run here."""
    environment = {**ENVIRONMENT, "gpus": [GPU]}
    hardware = {"label": "one-gpu", "device": "cuda", "gpu": "*"}
    for number, (method, accuracy) in enumerate({"lora": 0.9, "dora": 0.9, "full": 0.92, "ia3": 0.4}.items()):
        for seed in (0, 1):
            of = {**cell(method, seed=seed), "hardware": hardware}
            marked = {**environment, "imported": {"kind": "test"}} if method == "ia3" else environment
            record, data = ok_record(of, accuracy=accuracy, environment=marked, sweep="gpu")
            gib = 2**30 * (4 + 6 * number) + seed
            readings = (
                reading("cuda_allocated_peak_bytes", gib, source="torch"),
                reading("cuda_reserved_peak_bytes", 1.1 * gib, source="torch"),
                reading("energy_gross_j", 500.0 + 100 * number, source="NVML"),
                *([reading("throttled_fraction", 0.2, source="NVML")] if method == "dora" else []),
            )
            span = Span(stage="train", seconds=30.0, readings=readings)
            metrics = {**record.metrics, "tpot_ms": reading("tpot_ms", 9.0 + number, source="clock", n=100)}
            series = {"loss": (3.0, 2.0, 1.0), "power_s": (0.0, 0.5, 1.0), "power_w": (90.0, 280.0, 100.0)}
            store.append(record.model_copy(update={"spans": (span,), "metrics": metrics, "series": series}), data)


def _hostile(store: Store) -> None:
    """Text that would do harm if anything took it for markup, a formula, a path or a direction."""
    labels = [SCRIPT, FORMULA, f"{RIGHT_TO_LEFT} {EMOJI}", f"{IMAGE}{'x' * 300}", "../../../etc/passwd"]
    model = {"label": f"{IMAGE} {EMOJI}", "id": "../../up", "revision": None, "dtype": "float32", "attention": "sdpa"}
    for number, label in enumerate(labels):
        method = {"label": label, "name": label, "params": {SCRIPT: IMAGE}, "learning_rate": 1e-3, "steps": None}
        of = {**cell("x"), "method": method, "model": model}
        rows = sample_rows("adapted", [True, False] * 20)
        rows[0] |= {"prediction": SCRIPT, "answer": f"{RIGHT_TO_LEFT} {EMOJI}"}
        rows[1] |= {"prediction": MEGABYTE if number == 0 else IMAGE, "item": "../../item"}
        data = samples_to_parquet(rows)
        changed: dict[str, Any] = {"samples": samples_ref(data), "sweep": HOSTILE_SWEEP, "label": f"{label}.{number}"}
        record, _ = ok_record(of, accuracy=0.5)
        changed["outcome"] = Outcome(status="ok", stage="merge", log_tail=f"{SCRIPT}\n{RIGHT_TO_LEFT}\n{MEGABYTE}")
        store.append(record.model_copy(update=changed), data)
    of = {**cell("failed", "nf4"), "model": model}
    store.append(failed_record(of, "error", reason=f"{SCRIPT} {IMAGE} {MEGABYTE}", sweep=HOSTILE_SWEEP))
