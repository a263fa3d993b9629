"""The stages of a cell, in order. Reading this tuple is reading what happens to a cell."""

from __future__ import annotations

from collections.abc import Callable

from runners.worker.context import Context
from runners.worker.stages import (
    attach,
    baseline,
    evaluate,
    load,
    merge,
    prepare,
    probe,
    quantize,
    reload,
    retain,
    save,
    train,
)

Stage = Callable[[Context], None]

STAGES: tuple[tuple[str, Stage], ...] = (
    ("load", load.run),  # tokenizer, items, where the weights are
    ("quantize", quantize.run),  # weights into memory at the cell's bit width
    ("baseline", baseline.run),  # what the base could do before: the paired half of retention
    ("prepare", prepare.run),  # tokenized batches, data-driven initialisation
    ("attach", attach.run),  # the method takes hold; trainable parameters are counted
    ("train", train.run),
    ("save", save.run),
    ("reload", reload.run),  # what was saved is what is scored from here on
    ("evaluate", evaluate.run),
    ("retain", retain.run),
    ("probe", probe.run),
    ("merge", merge.run),  # the second arm: merged into the base, and scored again
)
