"""The inference probe: latency, throughput and energy of requests over a grid of shapes (protocol 5).

Every shape is one entry of ``environment.facts.latency`` in the record, failed shapes included; the headline shape's
numbers become metrics. A batch of requests is one sample: its members start and end together.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import torch

from harness.meters import catalog as meters
from harness.meters.instrument import synchronize
from harness.meters.panel import Panel
from harness.metrics import METRICS
from harness.record import Reading, WhyMissing
from harness.spec import Probes
from harness.stats import TOO_FEW, fewest_for, percentile
from runners.worker.context import Context, context_length
from runners.worker.inference_timing import Clock, Decoder, LengthMismatch, NoCache, RequestShape, Timing
from runners.worker.memory import is_out_of_memory, release

Arm = Literal["unmerged", "merged"]
Entry = dict[str, Any]

WARM_UP = 2
"""Requests of the measured shape before those that count, after the cold one."""
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
RESAMPLES = 200
"""Of whole requests, for the interval of pooled gaps: gaps of one request are not independent."""

WINDOWS = 3
"""Energy windows tried, at most: what a meter needs is known better after it has watched its sensor for a while."""
WINDOW_MARGIN = 1.05

LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms")
AFTER_THE_FIRST = ("tpot_ms", "itl_ms", "decode_tokens_per_s", "decode_j_per_token")
GENERATED = ("ttft_ms", "e2e_ms", "output_tokens_per_s", *AFTER_THE_FIRST)
BY_HOST = ("e2e_ms", "output_tokens_per_s")
SOURCE = "inference probe"
ENERGIES = ("prefill_j_per_token", "decode_j_per_token")


def probe_grid(ctx: Context, arm: Arm) -> None:
    """Measure the sweep's grid on the model as it is now; record its entries and the headline's metrics."""
    probes = ctx.probes
    if not probes.prompt_tokens or not probes.latency_repeats:
        return
    generates = ctx.kind == "causal-lm"
    wanted = grid(probes, generates=generates)
    panel = energy_panel(ctx)
    entries = []
    for position, shape in enumerate(wanted):
        ctx.say("progress", what=f"latency, {arm}", at=position + 1, of=len(wanted))
        measured = probes.energy == "grid" or (probes.energy == "headline" and shape == headline(wanted))
        entries.append(measure(ctx, shape, panel if measured else None))
    ctx.facts.setdefault("latency", {})[arm] = {"headline": headline(wanted).as_dict(), "entries": entries}
    record_headline(ctx, arm, entries[wanted.index(headline(wanted))])


def energy_panel(ctx: Context) -> Panel:
    """The cell's energy meter, with the options of its hardware profile, for windows inside the stage's own."""
    options = (ctx.job.cell["hardware"].get("meters") or {}).get("energy", {})
    settings = {"energy": {**options, "cross_check": False}}
    return Panel(meters.build(ctx.job.device, uuids=ctx.job.metered, names=["energy"], options=settings))


def grid(probes: Probes, *, generates: bool) -> list[RequestShape]:
    """The shapes of a sweep, in its order; a classifier's have no output."""
    outputs = (probes.output_tokens or (1,)) if generates else (0,)
    shapes = product(probes.latency_batch_sizes, probes.prompt_tokens, outputs)
    return [RequestShape(*sizes) for sizes in dict.fromkeys(shapes)]


def headline(shapes: Sequence[RequestShape]) -> RequestShape:
    """The shape whose numbers become metrics: first batch size, first prompt length, longest output."""
    first = [s for s in shapes if (s.batch, s.prompt_tokens) == (shapes[0].batch, shapes[0].prompt_tokens)]
    return max(first, key=lambda s: s.output_tokens)


def measure(ctx: Context, shape: RequestShape, panel: Panel | None) -> Entry:
    """One entry of the grid; a failure of a shape is its status, and never the cell's failure.

    Args:
        panel: measures energy, in separate windows; None skips energy.
    """
    entry: Entry = {**shape.as_dict(), "requests": ctx.probes.latency_repeats, **_not_applicable(shape)}
    decoder = Decoder(ctx.model, ctx.device) if shape.output_tokens else None
    positions = shape.prompt_tokens + shape.output_tokens + (decoder.virtual_tokens if decoder else 0)
    if positions > context_length(ctx):
        reason = f"{positions} positions, and the model has {context_length(ctx)}"
        return {**entry, "status": "not_applicable", "reason": reason}
    try:
        with torch.inference_mode():
            ids = prompts(ctx, shape)
            if decoder is None:
                entry |= forward_passes(ctx, ids, panel)
            else:
                entry |= requests(ctx, decoder, ids, shape.output_tokens, panel)
        return {**entry, "status": "ok", "clock": Clock(ctx.device).source}
    except LengthMismatch as error:
        return {**entry, "status": "length_mismatch", "reason": str(error)}
    except NoCache as error:
        return {**entry, "status": "not_applicable", "reason": str(error)}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    release()  # outside the handler: the traceback holds the tensors that did not fit
    return {**entry, "status": "oom", "reason": reason}


def _not_applicable(shape: RequestShape) -> Entry:
    """Quantities without meaning at this shape, with the reason."""
    names: tuple[str, ...]
    if shape.output_tokens == 0:
        names, why = GENERATED, "a classifier generates nothing"
    else:
        names, why = AFTER_THE_FIRST if shape.output_tokens == 1 else (), "one output token has no next one"
    return {name: {"value": None, "why_missing": "not_applicable", "reason": why} for name in names}


def prompts(ctx: Context, shape: RequestShape) -> torch.Tensor:
    """Token ids, shape (batch, prompt tokens): the test items' tokens in a row, each request shifted by one token."""
    tokens = ctx.probe_batch["input_ids"][ctx.probe_batch["attention_mask"].bool()]
    at = (
        torch.arange(shape.prompt_tokens, device=ctx.device)[None]
        + torch.arange(shape.batch, device=ctx.device)[:, None]
    )
    return tokens[at % tokens.numel()]


# --- what is done at one shape -------------------------------------------------------------------
def requests(ctx: Context, decoder: Decoder, ids: torch.Tensor, output_tokens: int, panel: Panel | None) -> Entry:
    """Cold request, warm-up, the requests that count, then energy."""
    cold, _ = decoder.request(ids, output_tokens)
    for _ in range(WARM_UP):
        decoder.request(ids, output_tokens)
    timings = [decoder.request(ids, output_tokens)[0] for _ in range(ctx.probes.latency_repeats)]
    entry = {"cold": {"ttft_ms": cold.ttft_ms, "e2e_ms": cold.e2e_ms}, **summarise(timings, *ids.shape)}
    entry["samples"] = {name: [getattr(t, name) for t in timings] for name in ("ttft_ms", "tpot_ms", "e2e_ms")}
    device = ctx.job.device
    measures: dict[str, Callable[[Panel], Entry]] = {
        "prefill_j_per_token": lambda p: joules_per_token(p, lambda: decoder.prefill(ids), ids.numel(), device)
    }
    if output_tokens > 1:
        measures["decode_j_per_token"] = lambda p: decode_energy(p, decoder, ids, output_tokens, device)
    return entry | energies(panel, measures)


def forward_passes(ctx: Context, ids: torch.Tensor, panel: Panel | None) -> Entry:
    """The same for a classifier, whose request is one forward pass."""
    clock = Clock(ctx.device)

    def forward() -> float:
        began = clock.sync()
        marks = [clock.mark()]
        ctx.model(input_ids=ids)
        marks.append(clock.mark())
        waited = clock.sync() - began
        return clock.between_ms(marks)[0] if clock.cuda else waited * 1e3

    cold = forward()
    for _ in range(WARM_UP):
        forward()
    times = [forward() for _ in range(ctx.probes.latency_repeats)]
    rates = [ids.numel() / (ms / 1e3) for ms in times]
    entry: Entry = {"cold": {"forward_ms": cold}, "forward_ms": percentiles(times), "samples": {"forward_ms": times}}
    entry["prefill_tokens_per_s"] = percentiles(rates, only="p50")
    passes = {
        "prefill_j_per_token": lambda p: joules_per_token(p, forward, ids.numel(), ctx.job.device),
    }
    return entry | energies(panel, passes)


def summarise(timings: Sequence[Timing], batch: int, prompt_tokens: int) -> Entry:
    """Percentiles of the requests' durations and rates."""
    entry: Entry = {
        "ttft_ms": percentiles([t.ttft_ms for t in timings]),
        "e2e_ms": percentiles([t.e2e_ms for t in timings]),
        "prefill_tokens_per_s": percentiles([batch * prompt_tokens / (t.ttft_ms / 1e3) for t in timings], only="p50"),
    }
    output_tokens = batch * (len(timings[0].gaps_ms) + 1)
    wall_s = sum(t.e2e_ms for t in timings) / 1e3
    entry["output_tokens_per_s"] = {"value": len(timings) * output_tokens / wall_s, "n": len(timings)}
    tpot = [t.tpot_ms for t in timings if t.tpot_ms is not None]
    if tpot:
        entry["tpot_ms"] = percentiles(tpot)
        entry["itl_ms"] = pooled_percentiles(np.array([t.gaps_ms for t in timings]))
        entry["decode_tokens_per_s"] = percentiles([batch / (ms / 1e3) for ms in tpot], only="p50")
    return entry


# --- statistics ----------------------------------------------------------------------------------
def percentiles(values: Sequence[float], *, only: str | None = None) -> Entry:
    """Mean, standard deviation and percentiles with their 95 % intervals; ``too_few`` where n does not carry one."""
    out = _mean(values)
    for name, q in PERCENTILES.items():
        if only in (None, name):
            found = percentile(values, q)
            if found == TOO_FEW:
                out[name] = {"value": None, "why_missing": TOO_FEW, "needed": fewest_for(q)}
            else:
                out[name] = {"value": found.estimate, "low": found.low, "high": found.high}
    return out


def pooled_percentiles(gaps: np.ndarray[Any, np.dtype[np.float64]]) -> Entry:
    """The same for gaps, shape (requests, gaps), pooled; the intervals come from resampling whole requests."""
    out = _mean(gaps.ravel().tolist())
    random = np.random.default_rng(0)
    drawn = random.integers(len(gaps), size=(RESAMPLES, len(gaps)))
    for name, q in PERCENTILES.items():
        if gaps.size < fewest_for(q):
            out[name] = {"value": None, "why_missing": TOO_FEW, "needed": fewest_for(q)}
            continue
        resampled = [float(np.quantile(gaps[rows], q)) for rows in drawn]
        low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
        out[name] = {"value": float(np.quantile(gaps, q)), "low": low, "high": high}
    return out


def _mean(values: Sequence[float]) -> Entry:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": statistics.fmean(values), "spread": spread}


# --- energy --------------------------------------------------------------------------------------
def energies(panel: Panel | None, measures: Mapping[str, Callable[[Panel], Entry]]) -> Entry:
    """Readings of each of ``measures``, by name, or the reason why there is no energy; then nothing is run."""
    if panel is None:
        why = "the sweep does not ask for it at this shape"
        return {name: {"value": None, "why_missing": "not_measured", "reason": why} for name in measures}
    if not panel.meters:
        return {name: _joules(panel.absent(), 0, 0) for name in measures}
    return {name: measure(panel) for name, measure in measures.items()}


def joules_per_token(panel: Panel, work: Callable[[], object], tokens: int, device: str) -> Entry:
    """Joules per token of ``work``, which handles ``tokens`` of them, in a separate window.

    The work is repeated until the window is as long as the meters need; nothing is subtracted.
    """
    for _ in range(WINDOWS):
        passes, readings = _window(panel, work, device)
        if _gross(readings).details.get("meets_protocol", True):
            break
    return _joules(readings, passes, tokens)


def _window(panel: Panel, work: Callable[[], object], device: str) -> tuple[int, tuple[Reading, ...]]:
    """Number of runs of ``work`` in one window, and the window's readings."""
    passes = 0
    panel.begin("probe")
    try:
        ends = time.monotonic() + WINDOW_MARGIN * panel.minimum_window_s
        while passes == 0 or time.monotonic() < ends:
            work()
            synchronize(device)  # else the loop would only fill the queue
            passes += 1
    finally:
        readings = panel.end("probe")
    return passes, readings


def _gross(readings: Sequence[Reading]) -> Reading:
    return next(r for r in readings if r.quantity == "energy_gross_j")


def decode_energy(panel: Panel, decoder: Decoder, ids: torch.Tensor, output_tokens: int, device: str) -> Entry:
    """Joules per generated token after the first. The prompt is prefilled once, outside the window, and the cache
    is cut back to it after every pass."""
    steps = output_tokens - 1
    token, cache = decoder.prefill(ids)

    def decode() -> None:
        following = token
        for _ in range(steps):
            following = decoder.step(following, cache)
        cache.crop(-steps)

    try:
        decode()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return {"value": None, "why_missing": "not_supported", "reason": f"the cache cannot be cut back: {error}"}
    found = joules_per_token(panel, decode, ids.shape[0] * steps, device)
    decoder.verify(cache, ids.shape[1], 1)  # every pass decoded at the same positions
    return found


def _joules(readings: Sequence[Reading], passes: int, tokens: int) -> Entry:
    gross = _gross(readings)
    common = {"passes": passes, "tokens": passes * tokens, "source": gross.source}
    if gross.value is None:
        reason = gross.details.get("why") or gross.details.get("error", "")
        return {"value": None, "why_missing": gross.why_missing, "reason": reason, **common}
    return {"value": gross.value / (passes * tokens), "joules": gross.value, **common, **gross.details}


# --- into the record -----------------------------------------------------------------------------
def record_headline(ctx: Context, arm: Arm, entry: Entry) -> None:
    """The headline entry's numbers as metrics; those of the merged arm under ``merged_``."""
    details = {"arm": arm, **{k: entry[k] for k in ("batch", "prompt_tokens", "output_tokens")}}
    for quantity, key, statistic in headline_quantities():
        name = f"merged_{quantity}" if arm == "merged" else quantity
        if name not in METRICS:
            continue
        if entry["status"] != "ok":
            ctx.record_missing(name, entry["status"], source=SOURCE, reason=entry["reason"], **details)
            continue
        found = entry[key]
        value = found if "value" in found else found[statistic]
        more = details | {k: v for k, v in value.items() if k not in ("value", "why_missing", "n", "source")}
        source = f"{SOURCE}, {value.get('source') or ('time.perf_counter' if key in BY_HOST else entry['clock'])}"
        if value["value"] is None:
            ctx.record_missing(name, value["why_missing"], source=source, **more)
        else:
            n, spread = found.get("n"), found.get("spread")
            ctx.record(name, value["value"], source=source, n=n, spread=spread, details=more)


def record_not_merged(ctx: Context, why: WhyMissing, note: str) -> None:
    """The merged arm's metrics where there is no merged model, if the sweep asks for them."""
    names = ["latency_ms", *(quantity for quantity, _, _ in headline_quantities() if ctx.probes.prompt_tokens)]
    for name in names if ctx.probes.latency_repeats else ():
        if f"merged_{name}" in METRICS:
            ctx.record_missing(f"merged_{name}", why, source=SOURCE, note=note)


def headline_quantities() -> list[tuple[str, str, str]]:
    """(metric, key in an entry, statistic there)."""
    medians = (*LATENCIES, "e2e_ms", "prefill_tokens_per_s", "decode_tokens_per_s")
    rows = [(name, name, "p50") for name in medians]
    for tail in ("p90", "p99"):
        rows += [(name.replace("_ms", f"_{tail}_ms"), name, tail) for name in LATENCIES]
    return [*rows, *((name, name, "value") for name in ("output_tokens_per_s", *ENERGIES))]
