"""The stages of a cell, in order. Reading this tuple is reading what happens to a cell."""

from __future__ import annotations

from collections.abc import Callable, Collection

from runners.worker import parallel
from runners.worker.context import Context
from runners.worker.stages import (
    attach,
    evaluate,
    inspection,
    judge,
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
    ("inspect", inspection.run),  # real bytes, layer errors, kernels
    ("baseline", retain.run_on_base),  # what the base could do before: the paired half of retention
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

_AFTER_MERGE: tuple[tuple[str, Stage], ...] = (
    ("full_precision", merge.full_precision),  # the second arm: scored before it is quantized; then merged
    ("compress", merge.compress),  # merged weights to the cell's bit width; what is scored from here on
    ("inspect_compressed", inspection.run_merged),
)


TRIAL: tuple[tuple[str, Stage], ...] = (
    *(stage for stage in STAGES if stage[0] in ("load", "quantize", "prepare", "attach", "train")),
    ("validate", evaluate.validate),  # the validation split, and nothing of the test split
)


FURTHER: tuple[tuple[str, Stage, str, int], ...] = (
    ("recipe", prepare.apply_recipe, "prepare", 0),  # what is done to the training rows
    ("targets", prepare.read_targets, "prepare", 0),  # what other models say about them
    ("compile", train.compile_model, "train", 0),  # torch.compile, outside the times of training
    ("judge", judge.run, "evaluate", 1),  # which answers a judge prefers to the references
    ("finalize", attach.finalize, "train", 1),  # what the method does once training is over
    ("gather", parallel.gather, "train", 1),  # what several ranks trained, on one of them
)
"""Stages that only some cells have: name, work, and where it goes (0: before that stage, 1: behind it)."""


def stages_of(moment: str, role: str | None = None, *, further: Collection[str] = ()) -> tuple[tuple[str, Stage], ...]:
    """The stages of a cell that quantizes ``before_training`` or ``after_merge``; fewer for a trial of tuning.

    Args:
        further: those of :data:`FURTHER` that the cell has.
    """
    stages = _stages_of(moment, role)
    for name, work, beside, behind in FURTHER:
        if name in further:
            at = [stage for stage, _ in stages].index(beside) + behind
            stages = (*stages[:at], (name, work), *stages[at:])
    return stages


def _stages_of(moment: str, role: str | None) -> tuple[tuple[str, Stage], ...]:
    if role == "trial":
        return TRIAL
    if moment == "before_training":
        return STAGES
    ordinary = tuple(stage for stage in STAGES if stage[0] != "inspect")
    at = [name for name, _ in ordinary].index("evaluate")
    return (*ordinary[:at], *_AFTER_MERGE, *ordinary[at:])
