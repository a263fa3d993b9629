"""Effects on seconds, bytes and joules: ratios within blocks, never over seeds.

A seed does not repeat a time: runs share the machine's load with whatever ran beside them. Two configurations are
therefore compared inside the randomised blocks that both ran in (:mod:`runners.planning.blocks`, protocol 3.3 and
8.4), and a difference below the spread of two identical arms (A/A) of the same sweep is none. Records made without
blocks give a ratio without an interval. A sweep's ``timing`` adds blocks and identical arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.comparability import TIMING_ROLE, comparable, configuration, marks, place, role
from harness.record import Record

RATIO_FAMILIES = frozenset({"time", "energy", "memory"})
"""Families of quantities that are compared as ratios within blocks."""
DISTURBED = frozenset({"throttled", "shared"})
"""Marks of records whose times are no evidence."""
NO_BLOCKS = "not run in randomised blocks, so the ratio has no interval"

Block = tuple[str, int]
Value = Callable[[Record], "float | None"]


@dataclass(frozen=True)
class RatioEffect:
    """A over B.

    Attributes:
        ratio: geometric mean of the ratios within blocks; of all runs where no two blocks are shared.
        low: lower end of its 95 % interval, widened to the floor of the A/A arm where that is wider; None where there
            is none.
        high: upper end.
        p: two-sided p value of a ratio of 1, and 1 where the ratio is within the floor; None without an interval.
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
        """Whether the interval leaves out 1, so that the ratio is beyond the floor of the A/A arm as well."""
        return self.low is not None and self.high is not None and (self.low > 1 or self.high < 1)

    @property
    def mde(self) -> float | None:
        """Smallest difference found 8 times in 10, as a fraction; at least the floor. None without an interval."""
        if self.low is None:
            return None
        found = math.expm1(stats.mde_from_error(self.se, self.df)) if self.se > 0 else 0.0
        return max(found, (self.floor or 1.0) - 1)


class TimedRuns:
    """Runs of a store whose time counts: results and their repeated runs, by configuration and machine.

    Args:
        records: current records; failed ones and those that a foreign process or heat disturbed are left out.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._runs: dict[tuple[str, str, str], list[Record]] = {}
        self._twins: dict[tuple[str, str, str], list[Record]] = {}
        for record in records:
            counts = record.outcome.status == "ok" and role(record) in ("result", TIMING_ROLE)
            if counts and not DISTURBED & set(marks(record)):
                into = self._twins if record.cell_view.second_arm else self._runs
                into.setdefault(self._where(record), []).append(record)

    @staticmethod
    def _where(record: Record) -> tuple[str, str, str]:
        return record.sweep, place(record), configuration(record)

    def of(self, record: Record) -> list[Record]:
        """All runs of the record's configuration in its sweep on its machine, second arms left out."""
        return self._runs.get(self._where(record), [])

    def identical(self, like: Record) -> list[tuple[list[Record], list[Record]]]:
        """A/A arms of the same sweep on the same machine, under the same conditions."""
        here, conditions = self._where(like)[:2], comparable(like)
        return [
            (self._runs.get(key, []), twins)
            for key, twins in self._twins.items()
            if key[:2] == here and comparable(twins[0]) == conditions
        ]


def block_of(record: Record) -> Block | None:
    """Run and block of a record; None where it did not run in a block."""
    order = record.environment.get("order")
    if not isinstance(order, Mapping) or "run" not in order or "block" not in order:
        return None
    return str(order["run"]), int(order["block"])


def value_of(record: Record, name: str) -> float | None:
    """Value of a metric, or of ``stage.metric``; None where the record has none."""
    return record.value(name)


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
    wide = math.log(floor) if floor is not None else 0.0
    low, high = min(found.low, found.estimate - wide), max(found.high, found.estimate + wide)
    method = f"t over {len(shared)} blocks"
    if floor is not None:
        method += f", no narrower than two identical arms (A/A) differ: {100 * (floor - 1):.1f} %"
    return RatioEffect(
        *(math.exp(found.estimate), math.exp(low), math.exp(high)),
        p=1.0 if abs(found.estimate) <= wide else test.p,
        se=se,
        df=len(logs) - 1,
        blocks=len(shared),
        floor=floor,
        method=method,
    )


def caption(runs: Sequence[Sequence[Record]], identical: Sequence[tuple[Sequence[Record], Sequence[Record]]]) -> str:
    """How large a difference of times must be on a board, as a sentence; empty where no row has a step time.

    Args:
        runs: of each row, repeated ones included.
        identical: pairs of identical arms (A/A) of the rows' sweep.
    """

    def value(record: Record) -> float | None:
        return value_of(record, "step_ms")

    if all(value(record) is None for records in runs for record in records):
        return ""
    blocks = {block for records in runs for record in records if (block := block_of(record)) is not None}
    floor = aa_floor(identical, value)
    if len(blocks) < 2:
        return f"Times: {NO_BLOCKS.replace('the ratio has', 'their differences have')}."
    if floor is None:
        return f"Times: {len(blocks)} randomised blocks without identical arms (A/A), so their spread is not known."
    return (
        f"Times: two identical arms (A/A) of the sweep differ by up to {100 * (floor - 1):.1f} % in step time over "
        f"{len(blocks)} randomised blocks; a smaller difference counts as none."
    )


def aa_floor(identical: Sequence[tuple[Sequence[Record], Sequence[Record]]], value: Value) -> float | None:
    """Ratio up to which identical arms differ: the further end of the interval of their ratio; None without two blocks.

    Of several A/A pairs the largest counts.
    """
    found = []
    for one, other in identical:
        effect = ratio(one, other, value)  # no floor under the floor
        if effect is not None and effect.low is not None and effect.high is not None:
            found.append(max(effect.high, 1 / effect.low))
    return max(found, default=None)


def clearly_less(runs: Sequence[Sequence[Record]], value: Value, floor: float | None) -> NDArray[np.float64]:
    """Pairs of rows that differ within blocks: 1 where row i is less than row j, 0 where not, NaN without blocks.

    The same test as :func:`ratio`, for all pairs of a board at once.

    Args:
        runs: of each row.
        value: of a record.
        floor: :func:`aa_floor` of the rows' sweep.

    Returns:
        Shape (rows, rows).
    """
    values = [by_block(records, value) for records in runs]
    blocks = sorted(set().union(*values))
    if not blocks:
        return np.broadcast_to(np.float64(math.nan), (len(runs), len(runs)))  # one number, for any number of rows
    logs = np.array([[math.log(of[b]) if b in of else math.nan for b in blocks] for of in values])
    out = np.full((len(runs), len(runs)), math.nan)
    for i in range(len(runs)):
        differences = logs[i] - logs
        shared = np.isfinite(differences).sum(axis=1)
        for j in np.flatnonzero(shared > 1):
            if i != j:
                found = stats.mean_interval(differences[j][np.isfinite(differences[j])])
                out[i, j] = found.high < 0 and found.estimate < -math.log(floor or 1.0)
    return out
