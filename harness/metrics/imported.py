"""Quantities that other tools define differently, under separate names; only imported records have them."""

from __future__ import annotations

from harness.metrics.definition import MetricDef

QUANTITIES: tuple[MetricDef, ...] = (
    # quantities that other tools define differently, under separate names; only imported records have them
    MetricDef(
        "forgetting_nll",
        "forgetting",
        "nat",
        "lower",
        "Rise of the mean loss per token on general text from the base to the adapted model.",
        "retention",
        source="huggingface/peft, method_comparison (WikiText)",
    ),
    MetricDef(
        "process_reserved_peak_bytes",
        "peak reserved, process",
        "B",
        "lower",
        "Peak bytes allocated by the CUDA caching allocator over a whole process: loading, training and scoring "
        "together.",
        "memory",
        source="torch.cuda.max_memory_reserved, never reset",
    ),
    MetricDef(
        "run_train_s",
        "train time, whole run",
        "s",
        "lower",
        "Wall time of a run less its in-loop evaluation: data preparation and the scoring of the test split included.",
        "time",
        source="huggingface/peft, method_comparison",
    ),
)
