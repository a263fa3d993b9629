"""Retry policy: another attempt for errors that may pass, half the batch after running out of memory if the sweep
allows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.matrix import Cell
from harness.methods.base import Method
from harness.methods.catalog import METHODS
from harness.record import Outcome, Record
from runners.worker.transient import KINDS

HALVED_IN = frozenset({"prepare", "train"})
"""Stages whose memory the training batch decides."""


@dataclass(frozen=True)
class CellAttempt:
    """One try at a cell.

    Attributes:
        number: counts from 1.
        out_of_memory: what the tries before had for a batch when memory ran out.
    """

    number: int = 1
    out_of_memory: tuple[dict[str, Any], ...] = ()


def next_attempt(attempt: CellAttempt, record: Record, *, retries: int) -> CellAttempt | None:
    """The attempt after one that was lost or met an error of a passing kind; None if nothing would change.

    Args:
        retries: allowed additional attempts.
    """
    outcome = record.outcome
    passing = outcome.status == "error" and record.environment.get("transient") in KINDS
    tried = attempt.number - len(attempt.out_of_memory)  # backing off is no retry
    if (outcome.status == "lost" or passing) and tried <= retries:
        return replace(attempt, number=attempt.number + 1)
    return None


def back_off(cell: Cell, attempt: CellAttempt, outcome: Outcome) -> CellAttempt | str | None:
    """The attempt with half the batch and twice the accumulation after a cell ran out of memory.

    Returns:
        None where the sweep does not ask for it; the reason in words where it cannot be done.
    """
    training = cell.common.identity["training"]
    if outcome.status != "oom" or training.get("on_oom") != "halve_batch":
        return None
    factor = 2 ** len(attempt.out_of_memory)
    batch, accumulation = training["batch_size"] // factor, training["gradient_accumulation"] * factor
    if outcome.stage not in HALVED_IN:
        return f"the batch was not halved: stage {outcome.stage!r} does not depend on it"
    if METHODS.get(cell.method.name).training_step is not Method.training_step:
        return f"the batch was not halved: {cell.method.name} has a custom training step and accumulates no gradients"
    if batch % 2:
        return f"a batch of {batch} cannot be halved"
    met = {
        "batch_size": batch,
        "gradient_accumulation": accumulation,
        "stage": outcome.stage,
        "reason": outcome.reason,
    }
    return CellAttempt(attempt.number + 1, (*attempt.out_of_memory, met))
