"""The order of comparable cells: randomised blocks, so that the machine's load falls on all methods alike.

A *block* holds one run of every configuration that may be compared (same model, task, hardware and budget), next to
each other in time and in random order: methods are inner, blocks outer. Times are then compared within blocks (protocol
3.3 and 8.4). The order follows from the sweep alone, so that a plan printed twice is the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from harness.digests import canonical_json
from harness.matrix import TIMING_ROLE, Cell, make_cell

NOT_TIMED = frozenset({"role", "replicate", "arm", "evaluation", "probes", "held_out", "retain", "tuning", "pruning"})
"""Settings shared by a sweep's cells that do not decide which cells are compared."""


@dataclass(frozen=True)
class Slot:
    """Position of a cell in the order of a run.

    Attributes:
        block: number of its block, from 0, among the blocks of cells that may be compared with it.
        position: index inside the block, from 0.
        size: cells in the block.
    """

    block: int
    position: int
    size: int

    def as_json(self) -> dict[str, object]:
        """Plain JSON values, for the job and the record."""
        return asdict(self)


def timing_cells(
    cells: Sequence[Cell], *, replicates: int, first_seed: int, identical: Callable[[Cell], bool]
) -> list[Cell]:
    """Runs that are made for comparisons of time only: time replicates, and the second arms of A/A pairs.

    They are whole runs of the same cells under other keys, and no rows of a board: a repeated run of one seed
    gives the same answers.

    Args:
        cells: results of the sweep, without tuning trials.
        replicates: further runs of each cell of the first seed.
        identical: whether a cell runs twice in each of its blocks.
    """
    found = []
    for cell in cells:
        for replicate in range(1 + (replicates if cell.seed == first_seed else 0)):
            if replicate:
                found.append(_again(cell, {"replicate": replicate}))
            if identical(cell):
                found.append(_again(cell, {"arm": "identical", **({"replicate": replicate} if replicate else {})}))
    return found


def _again(cell: Cell, extra: dict[str, object]) -> Cell:
    common = replace(cell.common, identity={**cell.common.identity, "role": TIMING_ROLE, **extra})
    return make_cell((*cell.points[:5], common, *cell.further), cell.seed)


def in_blocks(
    cells: Sequence[Cell], *, name: str, seeds: Sequence[int], rank: dict[str, int] | None = None
) -> tuple[list[Cell], dict[str, Slot]]:
    """Cells in randomised blocks, and the slot of each.

    Tuning trials come first, in the given order, because their times are not reported. Then the first block of every
    comparable set, the second of every set, and so on: one block per seed, and one per replicate of time.

    Args:
        cells: to run.
        name: of the sweep; it decides the random order together with what is in a block.
        seeds: of the sweep, in its order.
        rank: priority by key; cells of different priority are in different blocks, the higher first.

    Returns:
        The cells in order, and key to slot of those in a block.
    """
    place = {seed: i for i, seed in enumerate(seeds)}
    first: list[Cell] = []
    blocks: dict[tuple[int, int, int, str], list[Cell]] = {}
    labels: dict[tuple[int, ...], str] = {}  # a sweep has few distinct combinations and many cells
    for cell in cells:
        if cell.common.identity.get("role") == "trial":
            first.append(cell)
            continue
        replicate = int(cell.common.identity.get("replicate", 0))
        priority = -(rank or {}).get(cell.key, 0)
        parts = (id(cell.model), id(cell.task), id(cell.hardware), id(cell.common))
        if parts not in labels:
            labels[parts] = _comparable(cell)
        seed = place.get(cell.seed, len(place))
        blocks.setdefault((priority, replicate, seed, labels[parts]), []).append(cell)
    order = sorted(blocks, key=lambda block: block[:3])  # stable: sets in the order in which they first appear
    ordered, slots, counts = list(first), dict[str, Slot](), dict[str, int]()
    for block in order:
        members, label = blocks[block], block[3]
        number = counts.get(label, 0)
        counts[label] = number + 1
        random.Random(f"{name}\n{number}\n{label}").shuffle(members)
        slots.update({cell.key: Slot(number, i, len(members)) for i, cell in enumerate(members)})
        ordered += members
    if rank:
        ordered = sorted(ordered, key=lambda cell: -rank.get(cell.key, 0))
    return ordered, slots


def _comparable(cell: Cell) -> str:
    """Settings that the cells of one block share."""
    shared = {k: v for k, v in cell.common.identity.items() if k not in NOT_TIMED}
    if cell.common.identity.get("role") == "shared-lr":
        shared["role"] = "shared-lr"
    return "\n".join([cell.model.canonical, cell.task.canonical, cell.hardware.canonical, canonical_json(shared)])
