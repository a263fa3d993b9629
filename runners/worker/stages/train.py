"""Stage ``train``: transformers' Trainer is the loop; the method's hooks and the guards ride on it."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

from runners.worker.context import Context
from runners.worker.encoding import Collator
from runners.worker.trainer import MatrixTrainer, StepClock, arguments

STEPS_LEFT_OUT = 3
"""First steps that are not in the median: they allocate optimizer state and warm caches."""


def run(ctx: Context) -> None:
    """Train; record loss, step times and throughput.

    Raises:
        Diverged: the loss is no longer finite.
        CheckFailed: ``gradient-probe``: a trainable tensor never received a gradient.
    """
    if not ctx.trains:
        return
    clock = StepClock(ctx.device)
    trainer = MatrixTrainer(
        model=ctx.model,
        args=arguments(ctx),
        data_collator=Collator(ctx.tokenizer.pad_token_id),
        train_dataset=ctx.train_rows,
        context=ctx,
        clock=clock,
    )
    trainer.train()
    ctx.model = ctx.method.finish(trainer.model)
    ctx.model.eval()
    record_speed(ctx, clock, tokens=trainer.tokens)
    losses = torch.stack(trainer.losses).float().cpu().tolist()
    ctx.series["loss"] = tuple(losses)
    ctx.series["grad_norm"] = tuple(torch.stack(trainer.grad_norms).float().cpu().tolist())
    tail = losses[-max(1, len(losses) // 10) :]
    ctx.record("train_loss", statistics.fmean(tail), source="mean over the last tenth of the steps", n=len(tail))


def record_speed(ctx: Context, clock: StepClock, *, tokens: int) -> None:
    """Step times from the clock; throughput over all steps."""
    steps = clock.step_ms()
    waits = clock.wait_ms()
    source = clock.source
    ctx.series["step_ms"] = tuple(steps)
    seconds = math.fsum(steps) / 1e3
    ctx.record("train_s", seconds, source=source, n=len(steps))
    ctx.record("first_step_ms", steps[0], source=source, n=1)
    steady: dict[str, Any] = {"step_ms": steps[STEPS_LEFT_OUT:], "data_wait_ms": waits[STEPS_LEFT_OUT:]}
    for name, values in steady.items():
        if len(values) < 2:
            ctx.record_missing(name, "too_few", source=source, steps=len(steps))
        else:
            ctx.record(name, statistics.median(values), source=source, n=len(values), spread=statistics.stdev(values))
    samples = len(steps) * ctx.training.batch_size * ctx.training.gradient_accumulation
    ctx.record("train_tokens_per_s", tokens / seconds, source=source, n=len(steps))
    ctx.record("train_samples_per_s", samples / seconds, source=source, n=len(steps))
