"""A small frame for people: few columns with documented names and units, taken from the wide frame."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from harness.comparability import SETTINGS
from reports.data.frame import COUNTS, aggregate
from reports.data.samples import SampleSource

Per = Literal["cell", "configuration"]

LABELS = {
    "sweep": "sweep under which the cell was first run",
    "model": "base model",
    "method": "fine-tuning method",
    "quantization": "how the base model's weights are stored",
    "task": "task that is learned and scored",
    "hardware": "hardware profile",
}
SET = {**SETTINGS, "date": "when the cell ended, of several the last"}
"""Settings of the cell, and when and with what it ran."""
MEASURED = {
    "model_parameters": ("total_parameters", "count; of the model, with what the method added"),
    "accuracy": ("accuracy", "fraction of the test items answered correctly"),
    "retained_accuracy": ("retained_accuracy", "fraction; skills of the base model after adaptation"),
    "base_retained_accuracy": ("base_retained_accuracy", "fraction; the same skills before adaptation"),
    "perplexity": ("perplexity", "1; language-modelling tasks"),
    "validation_nll": ("validation_nll", "nat per answer token on the validation split"),
    "trainable_parameters": ("trainable_parameters", "count"),
    "adapter_bytes": ("adapter_bytes", "B; the saved adapter on disk"),
    "base_bytes": ("base_bytes", "B; weights of the base model in memory"),
    "train_peak_rss_bytes": ("train.peak_rss_bytes", "B; peak host memory of the training stage"),
    "train_peak_cuda_allocated_bytes": ("train.cuda_allocated_peak_bytes", "B; peak GPU memory of tensors in training"),
    "train_peak_cuda_reserved_bytes": ("train.cuda_reserved_peak_bytes", "B; peak GPU memory that torch reserved"),
    "train_s": ("train_s", "s; training time"),
    "step_ms": ("step_ms", "ms; median training step"),
    "train_tokens_per_s": ("train_tokens_per_s", "1/s; tokens trained on"),
    "latency_ms": ("latency_ms", "ms; median forward pass of the probe batch"),
    "ttft_ms": ("ttft_ms", "ms; median time to the first token"),
    "tpot_ms": ("tpot_ms", "ms; median time per further token"),
    "train_energy_gross_j": ("train.energy_gross_j", "J; energy of the training stage, idle power included"),
}
"""Column of the small frame to its column in the wide frame, and its unit and meaning."""

PER_CELL = {
    **LABELS,
    "seed": "seed of the cell",
    "status": "ok, or how the cell ended",
    "reason": "why it did not end ok",
    **SET,
    **{name: text for name, (_, text) in MEASURED.items()},
    "label": "name of the cell",
    "key": "digest of everything that defines the cell",
    "record": "id of the record",
}
"""Columns of a frame with one row per cell, machine and seed."""

PER_CONFIGURATION = {
    **LABELS,
    "seeds": "number of seeds that ended ok",
    "status": "ok, or how the cells ended",
    "reason": "why they did not end ok",
    **SET,
    "accuracy_low": "fraction; lower end of the 95 % interval of accuracy",
    "accuracy_high": "fraction; upper end of it",
    **{name: f"mean over seeds: {text}" for name, (_, text) in MEASURED.items()},
}
"""Columns of a frame with one row per configuration: everything of a cell but its seed."""


def columns(per: Per = "cell") -> dict[str, str]:
    """Column to its unit and meaning, in the order of the frame."""
    return dict(PER_CELL if per == "cell" else PER_CONFIGURATION)


def tidy(wide: pd.DataFrame, *, per: Per = "cell", samples: SampleSource | None = None) -> pd.DataFrame:
    """The small frame; a quantity that no record holds is a column of NaN.

    Args:
        wide: what :func:`reports.data.frame.frame` gives.
        per: a row per ``cell`` (and seed), or per ``configuration`` with the mean over its seeds.
        samples: record id to its scored items, for the intervals of ``per="configuration"``.
    """
    names = list(columns(per))
    if wide.empty:
        return pd.DataFrame(columns=names)
    rows = wide if per == "cell" else aggregate(wide, samples)
    source = {name: at for name, (at, _) in MEASURED.items()}
    source |= {"record": "id", "date": "finished", "accuracy_low": "accuracy:low", "accuracy_high": "accuracy:high"}
    out = {name: rows[at] if (at := source.get(name, name)) in rows else float("nan") for name in names}
    if per == "configuration":
        out["seeds"] = rows["seeds"].map(len)
    made = pd.DataFrame(out, index=rows.index).reset_index(drop=True)[names]
    return made.astype(dict.fromkeys(COUNTS, "Int64"))
