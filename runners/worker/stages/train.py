"""Stage ``train``: transformers' Trainer is the loop; the method's hooks and the guards ride on it.

What is measured about training is measured around it too: warm-up and the count of operations before the stage's
windows open, what follows from its energy after they are closed.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from harness.errors import CheckFailed, Diverged, Unsupported
from harness.hardware import Thermal
from harness.meters.attribution import SOURCE, Attribution
from harness.meters.flops import SOURCE as FLOP_COUNTER
from harness.meters.flops import mfu, step_flops
from harness.meters.thermal import thermometer, warm_up
from harness.methods.base import Method
from harness.metrics import missing, reading
from harness.record import Reading, Span, WhyMissing
from harness.spec import Accounting
from runners.worker import parallel
from runners.worker.batches import to_device, training_collator
from runners.worker.context import Context
from runners.worker.encoding import Collator
from runners.worker.memory import forked_random, is_out_of_memory, synchronize
from runners.worker.trainer import Hooks, MatrixTrainer, StepClock, arguments, loss_of

STEPS_LEFT_OUT = 3
"""First steps that are not in the median: they allocate optimizer state and warm caches."""
J_PER_KWH = 3.6e6
SPOILED = ("shared", "device_lost", "failed")
"""Reasons of the stage's energy that hold for every part of it."""
PACKED_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Relative difference of the packed loss from the padded one that rounding may cause."""


def before(ctx: Context) -> None:
    """Outside every window of the stage: warm the device up if the profile says so, and count a step's operations."""
    if not ctx.trains:
        return
    if ctx.rank.number == 0:
        prepare(ctx)
    parallel.begin(ctx)


def prepare(ctx: Context) -> None:
    """Checks and counts of one process before the stage."""
    check_packing(ctx)
    thermal = Thermal(**(ctx.job.cell["hardware"].get("thermal") or {}))
    if thermal.warm_cap_s is not None:
        read_c = thermometer(ctx.job.metered)
        ctx.facts["warm_up"] = warm_up(lambda: forward_once(ctx), read_c, cap_s=thermal.warm_cap_s).facts()
    with torch.compiler.set_stance("force_eager"):  # operations inside compiled code are not seen
        ctx.keep(count_step(ctx))


def run(ctx: Context) -> None:
    """Train; record loss, step times, throughput and whose bytes the memory is.

    Raises:
        Diverged: the loss is no longer finite.
        CheckFailed: ``gradient-probe``: a trainable tensor never received a gradient; ``unmoved``: one of which none
            is expected did not change.
        Unsupported: the method takes whole steps and the sweep accumulates gradients.
    """
    if not ctx.trains:
        return
    if ctx.method.whole_steps and ctx.training.gradient_accumulation > 1:
        raise Unsupported(
            f"{ctx.method.declaration.name} has a custom training step; with gradient accumulation each micro-batch "
            "would be one step"
        )
    if (window := micro_batches(ctx))["of_the_last_step_of_an_epoch"] != window["wanted"]:
        ctx.facts["micro_batches"] = window
    clock = StepClock(ctx.device)
    hooks = Hooks(ctx, clock)
    trainer = MatrixTrainer(
        model=ctx.model,
        args=arguments(ctx),
        data_collator=ctx.rank.share(training_collator(ctx)),
        train_dataset=ctx.loop_rows,
        context=ctx,
        hooks=hooks,
    )
    train_through(ctx, trainer)
    uncompile(ctx)
    hooks.check_moved(trainer.model)
    if hooks.best is not None:
        hooks.best.restore(trainer.model)
        ctx.facts["early_stopping"] = hooks.best.facts(trainer.state.global_step)
        ctx.series["early_stopping_score"] = tuple(hooks.best.scores)
    if ctx.rank.alone:
        ctx.model = finished(ctx, trainer)
    else:
        ctx.model = trainer.model
        share_measurements(ctx, clock, trainer)
        if ctx.rank.number:
            return
    if type(ctx.method).finalize is Method.finalize and (chosen := ctx.method.facts()):
        ctx.facts["method"] = chosen
    ctx.model.eval()
    record_speed(ctx, clock, trainer)
    record_memory(ctx, hooks.attribution)
    if hooks.target is not None:
        ctx.keep(hooks.target.time_reading(clock.step_ms(), clock.source))
        ctx.keep(hooks.target.energy_reading())
        ctx.series["target_score"] = tuple(hooks.target.scores)
    losses = torch.stack(trainer.losses).float().cpu().tolist()
    ctx.series["loss"] = tuple(losses)
    ctx.series["grad_norm"] = tuple(torch.stack(trainer.grad_norms).float().cpu().tolist())
    task = torch.stack(trainer.task_losses).float().cpu().tolist() if trainer.task_losses else losses
    if task != losses:
        ctx.series["task_loss"] = tuple(task)
    tail = task[-max(1, len(task) // 10) :]
    ctx.record("train_loss", statistics.fmean(tail), source="mean over the last tenth of the steps", n=len(tail))


def share_measurements(ctx: Context, clock: StepClock, trainer: MatrixTrainer) -> None:
    """Losses, tokens and samples of this trainer become those of all ranks."""
    found = parallel.collect(
        ctx, trainer.losses, tokens=trainer.tokens, samples=trainer.samples, step_ms=clock.step_ms()
    )
    trainer.losses, trainer.task_losses = list(found.losses), []
    trainer.tokens, trainer.samples = found.tokens, found.samples


def finished(ctx: Context, trainer: MatrixTrainer) -> Any:
    """The model after the method's ``finish``, whose time is training's where it takes steps of the budget."""
    if not ctx.method.search_steps:
        return ctx.method.finish(trainer.model)
    with ctx.searched.timed(ctx.device):
        return ctx.method.finish(trainer.model)


def after(ctx: Context, span: Span) -> None:
    """Once the stage's energy is known: what is derived from it with constants that the sweep states."""
    if not ctx.trains or "train_s" not in ctx.metrics:
        return
    energy = span.get("energy_gross_j")
    if energy is not None and energy.why_missing in SPOILED and "energy_to_target_j" in ctx.metrics:
        why, source = energy.why_missing, energy.source
        ctx.metrics["energy_to_target_j"] = missing("energy_to_target_j", why, source=source, details=energy.details)
    stated = Accounting(**ctx.job.accounting)
    for name, per_kwh, constant in (
        ("train_co2_g", stated.grid_gco2_per_kwh, {"grid_gco2_per_kwh": stated.grid_gco2_per_kwh}),
        (
            "train_energy_cost",
            stated.price_per_kwh,
            {"price_per_kwh": stated.price_per_kwh, "currency": stated.currency},
        ),
    ):
        if per_kwh is not None:
            ctx.keep(_per_kwh(name, energy, per_kwh, constant))
    if stated.price_per_gpu_hour is not None:
        details = {"price_per_gpu_hour": stated.price_per_gpu_hour, "currency": stated.currency}
        ctx.keep(_gpu_cost(ctx, stated.price_per_gpu_hour, details))


def micro_batches(ctx: Context) -> dict[str, int]:
    """How many micro-batches a step has: the last step of an epoch takes those that are left of it."""
    epoch = len(ctx.train_rows) // (ctx.training.batch_size * ctx.rank.of)
    wanted = ctx.training.gradient_accumulation
    full = min(wanted, epoch)
    return {"wanted": wanted, "of_a_full_step": full, "of_the_last_step_of_an_epoch": epoch % full or full}


# --- variants of the pass -----------------------------------------------------------------------------
def compile_model(ctx: Context) -> None:
    """Compile the model for training, with one forward and backward pass whose gradients are dropped.

    Lengths are dynamic, so that batches of other lengths are not compiled again.

    Raises:
        Unsupported: the compiler cannot be used here, or does not take this model.
    """
    import torch._inductor.config as inductor

    inductor.compile_threads = ctx.job.cell["threads"]  # the cell's share of the machine, as for its tensors
    ctx.model.compile(dynamic=True)
    try:
        with as_it_was(ctx):
            batch, extra = first_batch(ctx)
            loss_of(ctx, ctx.model, batch, extra).backward()  # type: ignore[no-untyped-call]  # torch has no types here
    except Exception as error:
        uncompile(ctx)
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise Unsupported(f"torch.compile does not take this cell: {type(error).__name__}: {first}") from error
        raise
    finally:
        ctx.model.zero_grad(set_to_none=True)
    ctx.facts["compile"] = {"graphs": compiled_graphs()}


def compiled_graphs() -> int:
    """Graphs compiled so far in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def uncompile(ctx: Context) -> None:
    """Back to the uncompiled model: what is saved and scored is what every other cell saves and scores."""
    if getattr(ctx.model, "_compiled_call_impl", None) is not None:
        ctx.model._compiled_call_impl = None
        if "compile" in ctx.facts:
            ctx.facts["compile"]["graphs_made_in_training"] = compiled_graphs() - ctx.facts["compile"]["graphs"]


def check_packing(ctx: Context) -> None:
    """The loss of the first batch must not depend on packing.

    Raises:
        CheckFailed: ``packing``: it does: the model or the method does not keep packed rows apart.
    """
    if not (ctx.trains and ctx.switches.get("packing")):
        return
    padded = Collator(ctx.tokenizer.pad_token_id)(ctx.loop_rows[: ctx.training.batch_size])
    dtype = getattr(torch, ctx.job.cell["model"]["dtype"])

    def loss(batch: dict[str, Any]) -> float:
        return float(loss_of(ctx, ctx.model, batch, {}))

    ctx.model.eval()
    with torch.no_grad(), torch.autocast(ctx.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        packed_loss, padded_loss = loss(first_batch(ctx)[0]), loss(to_device(ctx, padded))
    found = {"packed_loss": packed_loss, "padded_loss": padded_loss}
    ctx.facts["packing"] = found
    if abs(packed_loss - padded_loss) > PACKED_TOLERANCE[dtype] * max(abs(padded_loss), 1e-6):
        raise CheckFailed(
            "packing",
            f"the first batch has a loss of {packed_loss:.6g} packed and {padded_loss:.6g} padded: this model or "
            "method does not keep packed rows apart",
        )


# --- around the stage ---------------------------------------------------------------------------------
def forward_once(ctx: Context) -> None:
    """A forward pass of the shape that will be trained; changes neither the model nor any random number."""
    with torch.no_grad(), as_it_was(ctx):
        ctx.model(**first_batch(ctx)[0])
        synchronize(ctx.device)


@contextlib.contextmanager
def as_it_was(ctx: Context) -> Iterator[None]:
    """Training mode without side effects: random numbers, mode and checkpointing are as before afterwards."""
    checkpointing = bool(getattr(ctx.model, "is_gradient_checkpointing", False))
    training = ctx.model.training
    if checkpointing:
        ctx.model.gradient_checkpointing_disable()
    try:
        with (
            forked_random(ctx.device),
            torch.autocast(ctx.device.type, torch.bfloat16, enabled=ctx.job.cell["model"]["dtype"] == "bfloat16"),
        ):
            ctx.model.train()
            yield
    finally:
        ctx.model.train(training)
        if checkpointing:
            ctx.model.gradient_checkpointing_enable()


def first_batch(ctx: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first rows as one micro-batch on the device, and what they hold besides."""
    rows = ctx.loop_rows[: ctx.training.batch_size]
    batch = training_collator(ctx)(rows)
    extra = batch.pop("extra", {})
    return to_device(ctx, batch), to_device(ctx, extra) if isinstance(extra, dict) else {}


def count_step(ctx: Context) -> Reading:
    """``step_flops``, on a forward and backward pass whose gradients are dropped; the weights are not touched.

    Gradient checkpointing is off meanwhile: what it computes twice is the hardware's work, not the model's.
    """

    def step() -> None:
        loss_of(ctx, ctx.model, batch, extra).backward()  # type: ignore[no-untyped-call]  # torch has no types here

    try:
        batch, extra = first_batch(ctx)
        tokens = batch["input_ids"].numel()
        if ctx.method.whole_steps:
            with as_it_was(ctx), _undone(ctx.model), _step_of_its_own(ctx, batch) as own:
                return step_flops(own, ctx.model, tokens)
        with as_it_was(ctx), ctx.method.counted(ctx.model):
            return step_flops(step, ctx.model, tokens, micro_batches=micro_batches(ctx)["of_a_full_step"])
    except Exception as error:  # an instrument never harms the cell
        why_missing: WhyMissing = "oom" if is_out_of_memory(error) else "failed"
        details = {"error": f"{type(error).__name__}: {error}"}
        return missing("step_flops", why_missing, source=FLOP_COUNTER, details=details)
    finally:
        ctx.model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _undone(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards the trainable parameters are as before; meanwhile a copy of them is in the host's memory."""
    kept = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, values in kept.items():
                model.get_parameter(name).copy_(values)


@contextlib.contextmanager
def _step_of_its_own(ctx: Context, batch: dict[str, Any]) -> Iterator[Callable[[], object]]:
    """The method's own training step, of a copy of the method: its counters and states are those of no real step."""
    method = copy.copy(ctx.method)
    optimizer = method.optimizer(ctx.model)
    try:
        yield lambda: method.training_step(ctx.model, batch)
    finally:
        release = getattr(optimizer, "release", None)
        if release is not None:
            release()


def train_through(ctx: Context, trainer: MatrixTrainer) -> None:
    """The whole training. One that diverges leaves its losses and gradient norms as far as they are numbers.

    Raises:
        Diverged: the loss is no longer finite.
    """
    try:
        trainer.train()
    except Diverged:
        for name, found in (("loss", trainer.losses), ("grad_norm", trainer.grad_norms)):
            values = torch.stack(found).float().cpu().tolist() if found else []
            if kept := tuple(itertools.takewhile(math.isfinite, values)):
                ctx.series[name] = kept
        raise


def record_speed(ctx: Context, clock: StepClock, trainer: MatrixTrainer) -> None:
    """Step times from the clock; throughput over all steps; utilisation of the device."""
    steps = clock.step_ms()
    waits = clock.wait_ms()
    source = clock.source
    ctx.series["step_ms"] = tuple(steps)
    if min(steps) < 0:
        for name in (
            "train_s",
            "first_step_ms",
            "step_ms",
            "data_wait_ms",
            "train_tokens_per_s",
            "train_samples_per_s",
        ):
            ctx.record_missing(name, "failed", source=source, error="the clock went back")
        ctx.record_missing("mfu", "failed", source=source, error="the clock went back")
        return
    taken, searched = ctx.method.search_steps, ctx.searched
    seconds = math.fsum(steps) / 1e3
    if taken:
        seconds += searched.seconds
        ctx.record("search_steps", taken, source="the method's parameters")
        ctx.record("search_s", searched.seconds, source="time.perf_counter", n=taken)
        ctx.facts["budget"] = {"steps": ctx.steps, "search_steps": taken, "loop_steps": len(steps)}
    ctx.record("train_s", seconds, source=source, n=len(steps), details={"search_s": searched.seconds} if taken else {})
    ctx.record("first_step_ms", steps[0], source=source, n=1)
    steady: dict[str, Any] = {"step_ms": steps[STEPS_LEFT_OUT:], "data_wait_ms": waits[STEPS_LEFT_OUT:]}
    for name, values in steady.items():
        if len(values) < 2:
            ctx.record_missing(name, "too_few", source=source, steps=len(steps))
        else:
            ctx.record(name, statistics.median(values), source=source, n=len(values), spread=statistics.stdev(values))
    samples, tokens = trainer.samples, trainer.tokens
    if taken:
        samples, tokens = samples + searched.samples, tokens + searched.tokens
    ctx.record("train_tokens_per_s", tokens / seconds, source=source, n=len(steps))
    ctx.record("train_samples_per_s", samples / seconds, source=source, n=len(steps))
    step_ms = ctx.metrics["step_ms"].value
    if step_ms is None:
        ctx.record_missing("mfu", "too_few", source=source, steps=len(steps))
    else:
        peak = None if ctx.job.peak_tflops is None else ctx.job.peak_tflops * 1e12
        ctx.keep(mfu(ctx.metrics["step_flops"], trainer.computed_tokens / len(steps), step_ms / 1e3, peak))
    flops = ctx.metrics["step_flops"]
    if not ctx.rank.alone and flops.value is not None:  # counted on the rows of one rank
        details = {**flops.details, "ranks": ctx.rank.of}
        ctx.metrics["step_flops"] = reading(
            "step_flops", flops.value * ctx.rank.of, source=flops.source, details=details
        )


def record_memory(ctx: Context, attribution: Attribution | Exception | None) -> None:
    """Attribution of a step's memory. The peak is the stage's own: the panel reset it when the stage began."""
    if isinstance(attribution, Attribution):
        peak = torch.cuda.max_memory_allocated(ctx.device) if ctx.device.type == "cuda" else None
        for found in attribution.readings(peak):
            ctx.keep(found)
        return
    for name in (
        "weights_bytes",
        "gradient_bytes",
        "optimizer_state_bytes",
        "method_state_bytes",
        "activation_peak_bytes",
    ):
        ctx.record_missing(name, "failed", source=SOURCE, error=repr(attribution))


def _per_kwh(name: str, energy: Reading | None, per_kwh: float, constant: dict[str, Any]) -> Reading:
    source = "derived from the stated constant and the training stage's energy_gross_j"
    if energy is None or energy.value is None:
        why = "no_device" if energy is None else energy.why_missing or "not_measured"
        return missing(name, why, source=source, details={**constant, "why": "the stage has no energy"})
    return reading(name, energy.value / J_PER_KWH * per_kwh, source=source, details=constant)


def _gpu_cost(ctx: Context, price: float, details: dict[str, Any]) -> Reading:
    name, source = "train_gpu_cost", "derived from the stated price and train_s"
    seconds = ctx.metrics["train_s"].value
    if not ctx.job.gpus:
        return missing(name, "not_applicable", source=source, details={**details, "why": "the cell has no GPU"})
    if seconds is None:
        return missing(name, "failed", source=source, details={**details, "why": "training has no duration"})
    return reading(name, seconds / 3600 * len(ctx.job.gpus) * price, source=source, details=details)
