"""Records and samples that the tests of several modules share."""

from __future__ import annotations

from typing import Any

from harness.metrics import missing, reading
from harness.record import Outcome, Record, SamplesRef, Span
from harness.store.samples import samples_ref, samples_to_parquet


def make_record(number: int = 0, **changes: Any) -> Record:
    """A small record; ``number`` chooses its key."""
    fields: dict[str, Any] = {
        "key": f"{number:016x}",
        "label": f"nano.lora.none.copy.s{number}",
        "sweep": "quickstart",
        "cell": {"method": {"label": "lora", "name": "lora", "params": {"rank": 8}}, "seed": number},
        "outcome": Outcome(status="ok", stage="evaluate"),
        "metrics": {"accuracy": reading("accuracy", 0.5, source="test")},
        "fingerprint": "0123456789abcdef",
        "started": "2026-11-21T10:00:00+00:00",
        "finished": "2026-11-21T10:01:00+00:00",
    }
    return Record(**{**fields, **changes})


def make_samples(rows: int = 3) -> bytes:
    """Parquet bytes of a few scored items, every second one right."""
    return samples_to_parquet([sample(i) for i in range(rows)])


def sample(number: int = 0, **changes: Any) -> dict[str, Any]:
    """One scored item."""
    fields: dict[str, Any] = {
        "arm": "adapted",
        "task": "copy",
        "item": f"item-{number}",
        "correct": number % 2 == 0,
        "prediction": "ab",
        "answer": "ab",
        "logp_answer": -0.25 * number,
        "logp_choices": [-1.0, -2.0],
        "margin": 1.0,
        "length": 2,
        "cut": False,
    }
    return {**fields, **changes}


def full_record() -> Record:
    """A record in which every field of every part has a value: what the golden file was made from."""
    samples = make_samples()
    spread = reading(
        "step_ms", 12.5, source="monotonic clock", resolution=1e-06, n=40, spread=0.75, details={"warm_up": 5}
    )
    return make_record(
        7,
        outcome=Outcome(
            status="error", stage="reload", reason="scores differ: ü ≠ u", check="reload", log_tail="line 1\nline 2\n"
        ),
        metrics={
            "accuracy": reading("accuracy", 0.1, source="exact match", n=3),
            "energy_gross_j": missing("energy_gross_j", "no_device", source="NVML", details={"detail": "not found"}),
        },
        spans=(Span(stage="load", seconds=0.125), Span(stage="train", seconds=1.5, readings=(spread,))),
        series={"loss": (2.0, 1.0, 0.5), "learning_rate": (0.001, 0.0005, 1e-05)},
        samples=SamplesRef(digest=GOLDEN_SAMPLES, rows=samples_ref(samples).rows),
        environment={"python": "3.11.7", "packages": {"torch": "2.13.0", "lm-eval": None}, "gpus": []},
        attempt=2,
        supersedes="f" * 64,
    )


GOLDEN_SAMPLES = "5" * 64  # not that of real samples: Parquet bytes differ from one pyarrow to the next
