"""Effects on seconds, bytes and joules: ratios within blocks, never over seeds.

A seed does not repeat a time: runs share the machine's load with whatever ran beside them. Two configurations are
therefore compared inside the randomised blocks that both ran in (:mod:`runners.planning.blocks`, protocol 3.3 and
8.4), and a difference below the spread of two identical arms (A/A) of the same sweep is none. Records made without
blocks give a ratio without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.record import Record

RATIO_FAMILIES = frozenset({"time", "energy", "memory"})
"""Families of quantities that are compared as ratios within blocks."""
NO_BLOCKS = "not run in randomised blocks, so the ratio has no interval"

Block = tuple[str, int]
Value = Callable[[Record], "float | None"]


@dataclass(frozen=True)
class RatioEffect:
    """A over B.

    Attributes:
        ratio: geometric mean of the ratios within blocks; of all runs where no two blocks are shared.
        low: lower end of its 95 % interval; None where there is none.
        high: upper end.
        p: two-sided p value of a ratio of 1; None where there is no interval.
        se: standard error of the logarithm.
        df: its degrees of freedom.
        blocks: shared blocks.
        floor: ratio, at least 1, up to which two identical arms of the same sweep differed; None where none ran.
        method: how it was computed, or why there is no interval.
    """

    ratio: float
    low: float | None
    high: float | None
    p: float | None
    se: float
    df: float
    blocks: int
    floor: float | None
    method: str

    @property
    def differs(self) -> bool:
        """Whether the whole interval lies beyond 1 and beyond the floor of the A/A arm."""
        if self.low is None or self.high is None:
            return False
        floor = self.floor or 1.0
        return self.low > floor or self.high < 1 / floor


def block_of(record: Record) -> Block | None:
    """Run and block of a record; None where it did not run in a block."""
    order = record.environment.get("order")
    if not isinstance(order, Mapping) or "run" not in order or "block" not in order:
        return None
    return str(order["run"]), int(order["block"])


def by_block(records: Iterable[Record], value: Value) -> dict[Block, float]:
    """Positive values by block; the mean of the logarithms where a block holds several."""
    found: dict[Block, list[float]] = {}
    for record in records:
        block, number = block_of(record), value(record)
        if block is not None and number is not None and number > 0:
            found.setdefault(block, []).append(math.log(number))
    return {block: math.exp(math.fsum(logs) / len(logs)) for block, logs in found.items()}


def ratio(
    a: Sequence[Record],
    b: Sequence[Record],
    value: Value,
    *,
    value_b: Value | None = None,
    identical: Sequence[tuple[Sequence[Record], Sequence[Record]]] = (),
) -> RatioEffect | None:
    """A over B, paired within blocks.

    Args:
        a: records of A.
        b: records of B.
        value: of a record.
        value_b: of a record of B, where it is another quantity.
        identical: pairs of identical arms (A/A) of the same sweep.

    Returns:
        None where either side has no positive value.
    """
    of_b = value_b or value
    all_a = [x for r in a if (x := value(r)) is not None and x > 0]
    all_b = [x for r in b if (x := of_b(r)) is not None and x > 0]
    if not all_a or not all_b:
        return None
    floor = aa_floor(identical, value)
    first, second = by_block(a, value), by_block(b, of_b)
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        overall = math.exp(float(np.log(all_a).mean() - np.log(all_b).mean()))
        if len(set(all_a)) == len(set(all_b)) == 1 and min(len(all_a), len(all_b)) > 1:
            return RatioEffect(
                overall, overall, overall, float(overall == 1), 0.0, math.inf, 0, floor, "equal in all runs"
            )
        return RatioEffect(overall, None, None, None, 0.0, math.inf, len(shared), floor, NO_BLOCKS)
    logs = np.log([first[block] / second[block] for block in shared])
    found = stats.mean_interval(logs)
    test = stats.paired_t(logs, np.zeros(len(logs)))
    se = stats.standard_error(logs)
    middle, low, high = math.exp(found.estimate), math.exp(found.low), math.exp(found.high)
    return RatioEffect(middle, low, high, test.p, se, len(logs) - 1, len(shared), floor, f"t over {len(shared)} blocks")


def aa_floor(identical: Sequence[tuple[Sequence[Record], Sequence[Record]]], value: Value) -> float | None:
    """Ratio up to which identical arms differ: the further end of the interval of their ratio; None without two blocks.

    Of several A/A pairs the largest counts.
    """
    found = []
    for one, other in identical:
        effect = ratio(one, other, value)
        if effect is not None and effect.low is not None and effect.high is not None:
            found.append(max(effect.high, 1 / effect.low))
    return max(found, default=None)
