"""Stage ``probe``: inference latency of the adapted model, unmerged, with the shapes the sweep asks for.

The merge stage calls :func:`probe_arm` again on the merged model.
"""

from __future__ import annotations

import statistics
import time

import torch

from runners.worker.context import Context
from runners.worker.latency import Arm, probe_grid
from runners.worker.memory import synchronize

WARM_UP = 3
MIN_SAMPLES_P50 = 20
"""A median is published from 20 samples on (protocol 5.5)."""


def run(ctx: Context) -> None:
    """Measure the model as it is: the forward pass of one probe item, then the sweep's grid of requests."""
    probe_arm(ctx, "unmerged")


def probe_arm(ctx: Context, arm: Arm) -> None:
    """Measure one arm: the unmerged adapter, or the merged model."""
    probe_forward(ctx, arm)
    probe_grid(ctx, arm)


def probe_forward(ctx: Context, arm: Arm) -> None:
    """Record the median latency of a forward pass of one probe item; other batch sizes go into the details.

    The single passes stay in ``facts.latency_samples_ms``.
    """
    repeats = ctx.probes.latency_repeats
    name = "latency_ms" if arm == "unmerged" else "merged_latency_ms"
    source = "time.perf_counter, device synced"
    if repeats == 0:
        ctx.record_missing(name, "not_measured", source=source)
        return
    if repeats < MIN_SAMPLES_P50:
        ctx.record_missing(name, "too_few", source=source, repeats=repeats, needed=MIN_SAMPLES_P50)
        return
    medians: dict[str, float] = {}
    for size in ctx.probes.latency_batch_sizes:
        times = forward_ms(ctx, size, repeats)
        medians[f"batch_{size}_p50_ms"] = statistics.median(times)
        if size == ctx.probes.latency_batch_sizes[0]:
            first = times
    ctx.facts.setdefault("latency_samples_ms", {})[name] = first
    ctx.record(
        name,
        statistics.median(first),
        source=source,
        n=len(first),
        spread=statistics.stdev(first),
        details={"batch_size": ctx.probes.latency_batch_sizes[0], "arm": arm, **medians},
    )


def forward_ms(ctx: Context, batch_size: int, repeats: int) -> list[float]:
    """Durations of ``repeats`` forward passes after a warm-up with the same shape, ms."""
    have = ctx.probe_batch["input_ids"].shape[0]
    rows = torch.arange(batch_size, device=ctx.device) % have
    inputs = {k: v[rows] for k, v in ctx.probe_batch.items() if k != "labels"}
    times = []
    with torch.inference_mode():
        for repeat in range(WARM_UP + repeats):
            began = time.perf_counter()
            ctx.model(**inputs)
            synchronize(ctx.device)
            if repeat >= WARM_UP:
                times.append((time.perf_counter() - began) * 1e3)
    return times
