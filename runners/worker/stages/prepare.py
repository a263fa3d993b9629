"""Stage ``prepare``: data-driven initialisations see their batches. Billed as its own span, time and energy."""

from __future__ import annotations

from runners.worker.batches import calibration_batches
from runners.worker.context import Context


def run(ctx: Context) -> None:
    """Call the method's ``calibrate``."""
    if ctx.trains:
        ctx.method.calibrate(ctx.model, lambda n: calibration_batches(ctx, n))
