"""Records as a worker writes them, with samples, appended through the real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.metrics import missing, reading
from harness.record import Outcome, Reading, Record, Span
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Store

ITEMS = 200
ENVIRONMENT: dict[str, Any] = {
    "python": "3.11.9",
    "implementation": "CPython",
    "platform": "Linux",
    "packages": {"torch": "2.13.0", "peft": "0.21.2", "lm-eval": None},
    "harness": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False, "why": ""},
    "cpu": {"model": "Example CPU 3000", "cores": 2, "physical_cores": 2},
    "memory_bytes": 8 << 30,
    "host": "aaaaaaaaaaaa",
    "gpus": [],
    "gpus_missing": "no_device",
    "gpus_missing_detail": "NVML: no GPU",
}


def cell(method: str = "lora", quantization: str = "none", seed: int = 0, **other: Any) -> dict[str, Any]:
    """A cell dictionary in its fixed shape; ``other`` replaces whole parts or merges into them."""
    base: dict[str, Any] = {
        "model": {"label": "nano", "id": "builtin:nano", "revision": None, "dtype": "float32", "attention": "sdpa"},
        "method": {
            "label": method,
            "name": method,
            "params": {},
            "learning_rate": None if method == "none" else 1e-3,
            "steps": None,
        },
        "quantization": {
            "label": quantization,
            "name": quantization,
            "params": {},
            "moment": "before_training",
            "base": "fp" if quantization == "none" else f"bnb-{quantization}",
            "bits": 32,
        },
        "task": {
            "label": "reverse",
            "name": "reverse",
            "version": 1,
            "digest": "d" * 64,
            "kind": "generation",
            "train_items": 2000,
            "validation_items": 100,
            "test_items": ITEMS,
        },
        "hardware": {"label": "any", "device": "cpu"},
        "training": {"steps": 300, "batch_size": 16, "schedule": "cosine"},
        "evaluation": {"batch_size": 64, "retention": True, "merged": True},
        "probes": {"latency_repeats": 20},
        "threads": 1,
        "protocol": 1,
        "seed": seed,
        "key_version": 1,
    }
    for name, value in other.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) else value
    return base


def key_of(of: dict[str, Any]) -> str:
    """A key: the same for the same cell."""
    from harness.digests import digest

    return digest({k: v for k, v in of.items() if k != "label"})[:16]


def right_answers(rate: float, *, seed: int, items: int = ITEMS) -> list[bool]:
    """Right and wrong, correlated between configurations as a shared difficulty of items makes it."""
    hard = np.random.default_rng(7).random(items)
    own = np.random.default_rng(1000 + seed).normal(0, 0.08, items)
    return [bool(value) for value in (hard + own) < rate]


def sample_rows(arm: str, right: list[bool], task: str = "reverse") -> list[dict[str, Any]]:
    """Scored items."""
    return [
        {
            "arm": arm,
            "task": task,
            "item": str(number),
            "correct": correct,
            "prediction": f"a{number % 7}" if correct else "z",
            "answer": f"a{number % 7}",
            "length": 3,
            "cut": False,
        }
        for number, correct in enumerate(right)
    ]


def ok_record(
    of: dict[str, Any],
    *,
    accuracy: float = 0.6,
    retained: float | None = 0.4,
    merged: bool = True,
    rss: float = 5e8,
    step_ms: float = 12.0,
    trainable: int = 12_288,
    environment: dict[str, Any] | None = None,
    with_samples: bool = True,
    items: int = ITEMS,
    **fields: Any,
) -> tuple[Record, bytes | None]:
    """A finished cell and its samples. Rates are those the samples show, as in a real run."""
    number = int(key_of(of), 16) % 10_000
    arms = {"adapted": right_answers(accuracy, seed=number, items=items)}
    if merged:
        arms["merged"] = arms["adapted"]
    if retained is not None:
        arms["retained"] = right_answers(retained, seed=number + 1, items=items)
        arms["base"] = right_answers(0.95, seed=3, items=items)
    data = samples_to_parquet([row for arm, right in arms.items() for row in sample_rows(arm, right)])
    metrics: dict[str, Reading] = {}
    names = {
        "adapted": "accuracy",
        "merged": "merged_accuracy",
        "retained": "retained_accuracy",
        "base": "base_retained_accuracy",
    }
    for arm, right in arms.items():
        metrics[names[arm]] = reading(names[arm], sum(right) / len(right), source="exact match", n=len(right))
    if not merged:
        metrics["merged_accuracy"] = missing("merged_accuracy", "not_applicable", source="worker")
    metrics["trainable_parameters"] = reading("trainable_parameters", trainable, source="requires_grad")
    metrics["adapter_bytes"] = reading("adapter_bytes", trainable * 4 + 700, source="file size")
    metrics["base_bytes"] = reading("base_bytes", 1_700_000, source="tensors")
    metrics["step_ms"] = reading("step_ms", step_ms + number % 7 / 10, source="perf_counter", n=290, spread=0.4)
    metrics["train_tokens_per_s"] = reading("train_tokens_per_s", 4e5 / step_ms, source="perf_counter")
    metrics["latency_ms"] = reading("latency_ms", step_ms / 4, source="perf_counter", n=20)
    spans = (
        Span(stage="load", seconds=0.2, readings=(reading("peak_rss_bytes", 3e8, source="VmHWM"),)),
        Span(
            stage="train",
            seconds=step_ms * 0.3,
            readings=(
                reading("peak_rss_bytes", rss + number % 11 * 1e6, source="VmHWM"),
                reading("rss_growth_bytes", rss - 4e8 + number % 11 * 1e6, source="VmHWM less VmRSS"),
                missing("energy_gross_j", "no_device", source="NVML"),
            ),
        ),
    )
    record = Record(
        **{
            "key": key_of(of),
            "label": ".".join(of[a]["label"] for a in ("model", "method", "quantization", "task")) + f".s{of['seed']}",
            "sweep": "quickstart",
            "cell": of,
            "outcome": Outcome(status="ok", stage="merge"),
            "metrics": metrics,
            "spans": spans,
            "samples": samples_ref(data) if with_samples else None,
            "environment": ENVIRONMENT if environment is None else environment,
            "fingerprint": "f" * 64,
            "started": "2026-01-01T00:00:00+00:00",
            "finished": "2026-01-01T00:01:00+00:00",
            **fields,
        }
    )
    return record, data if with_samples else None


def failed_record(of: dict[str, Any], status: str, *, stage: str = "train", reason: str, **fields: Any) -> Record:
    """A cell that did not end ok."""
    return Record(
        **{
            "key": key_of(of),
            "label": ".".join(of[a]["label"] for a in ("model", "method", "quantization", "task")) + f".s{of['seed']}",
            "sweep": "quickstart",
            "cell": of,
            "outcome": Outcome.model_validate({"status": status, "stage": stage, "reason": reason}),
            "started": "2026-01-01T00:00:00+00:00",
            "finished": "2026-01-01T00:01:00+00:00",
            **fields,
        }
    )


METHODS: dict[str, dict[str, Any]] = {
    "none": {"accuracy": 0.02, "retained": 0.95, "trainable": 0, "rss": 4.1e8, "step_ms": 6.0, "merged": False},
    "full": {"accuracy": 0.97, "retained": 0.22, "trainable": 425_472, "rss": 6.4e8, "step_ms": 15.0, "merged": False},
    "lora": {"accuracy": 0.96, "retained": 0.35, "trainable": 24_576, "rss": 4.8e8, "step_ms": 13.0},
    "lora-r1": {"accuracy": 0.62, "retained": 0.52, "trainable": 768, "rss": 4.6e8, "step_ms": 12.5},
    "dora": {"accuracy": 0.95, "retained": 0.34, "trainable": 25_344, "rss": 5.3e8, "step_ms": 19.0},
    "alora": {"accuracy": 0.91, "retained": 0.95, "trainable": 24_576, "rss": 4.9e8, "step_ms": 14.0, "merged": False},
    "ia3": {"accuracy": 0.31, "retained": 0.70, "trainable": 1_536, "rss": 4.5e8, "step_ms": 12.0},
    "prompt": {"accuracy": 0.18, "retained": 0.80, "trainable": 640, "rss": 4.7e8, "step_ms": 13.5, "merged": False},
}


def fill(store: Store) -> None:
    """A small sweep: eight methods, three quantizations, two seeds, with impossible and failed cells."""
    for method, numbers in METHODS.items():
        for quantization in ("none", "nf4", "int8"):
            for seed in (0, 1):
                of = cell(method, quantization, seed)
                if method in ("full", "dora") and quantization == "int8":
                    why = f"{method} trains on fp bases, not on bnb-int8"
                    store.append(failed_record(of, "unsupported", stage="", reason=why))
                elif (method, quantization, seed) == ("ia3", "nf4", 1):
                    store.append(failed_record(of, "oom", reason="CPU memory limit of 2 GiB reached"))
                else:
                    loss = {"none": 0.0, "nf4": 0.07, "int8": 0.01}[quantization]
                    changed = {**numbers, "accuracy": max(0.0, numbers["accuracy"] - loss)}
                    store.append(*ok_record(of, **changed))


def filled_store(root: Path) -> Store:
    """A store that holds what :func:`fill` makes."""
    store = Store(root)
    fill(store)
    return store
