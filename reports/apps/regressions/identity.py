"""Identity of a series: a changed key does not start a new series unless a requested setting changed.

A cell's key changes when a model or data set gets another revision, when a list that is a set is written in another
order, and when a later version of a tool stores a field at its default. Two keys of one label (and sweep and machine)
are one series if the later begins when the earlier has ended, and every field that both cells state has the same value:
lists of plain values count as sets, ``null`` states nothing, and fields that only name a version (:data:`VERSIONS`) may
differ; where they differ for the task, its numbers of items may too. What differs is a change of environment inside the
series. A field that both state with different values begins another series.

Renamed cells: a series that ended and one that began on a later day under another label are one, if they fit by the
same rule, the later states every field that the earlier does, and neither fits another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.digests import canonical_json

VERSIONS = frozenset({"revision", "digest", "version", "data_revisions", "key_version", "protocol", "pin", "files"})
"""Names of fields that say which version of the same thing was used."""
LABELS = frozenset({"label"})
ABSENT = "absent"
ITEM_COUNTS = frozenset({"task.train_items", "task.validation_items", "task.test_items"})
"""Fields that an edit of a task may change with its version."""

Facts = dict[str, str]


def facts(cell: Mapping[str, object]) -> Facts:
    """Every field of a cell by its path, lists of plain values sorted; labels and fields that are ``null`` left out."""
    return dict(_walk("", cell))


def _walk(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            if name not in LABELS:
                yield from _walk(f"{path}.{name}" if path else str(name), value[name])
    elif isinstance(value, list | tuple):
        plain = all(isinstance(item, str | int | float | bool) for item in value)
        texts = [canonical_json(item) for item in value]
        yield path, ", ".join(sorted(texts) if plain else texts)
    elif value is not None:
        yield path, canonical_json(value)


def is_version(path: str) -> bool:
    """Whether a field only names a version."""
    return not VERSIONS.isdisjoint(path.split("."))


def one_series(before: Facts, after: Facts) -> bool:
    """Whether the later cell asks for the same as the earlier one."""
    differing = {path for path in before.keys() & after.keys() if before[path] != after[path]}
    edited = any(path.startswith("task.") and is_version(path) for path in differing)
    return all(is_version(path) or (edited and path in ITEM_COUNTS) for path in differing)


def changed(before: Facts, after: Facts) -> Facts:
    """Path to ``old → new`` of every field that differs."""
    return {
        path: f"{before.get(path, ABSENT)} → {after.get(path, ABSENT)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }


@dataclass
class Chain:
    """Keys of one series, oldest first.

    Attributes:
        keys: of the cells.
        facts: of the newest cell.
        states: key to the fields (path to value) in which the cells of this series differ.
    """

    keys: list[str]
    facts: Facts
    all_facts: dict[str, Facts] = field(default_factory=dict)

    @property
    def states(self) -> dict[str, Facts]:
        """Key to the fields in which the cells of the series differ; empty where none does."""
        paths = {path for one in self.all_facts.values() for path in one}
        differ = {p for p in paths if len({one.get(p) for one in self.all_facts.values()}) > 1}
        return {key: {p: one.get(p, ABSENT) for p in sorted(differ)} for key, one in self.all_facts.items()}


def chains(
    spans: Sequence[tuple[str, str, str]], cell: Callable[[str], Mapping[str, object]]
) -> tuple[list[Chain], list[tuple[str, str, Facts]]]:
    """Join the keys of one label into series.

    Args:
        spans: (key, first finished, last finished) of every key.
        cell: key to its cell; asked only where there is more than one key.

    Returns:
        The series, and (old key, new key, fields that differ) wherever one ended as another began.
    """
    ordered = sorted(spans, key=lambda span: (span[1], span[0]))
    if len(ordered) == 1:
        return [Chain([ordered[0][0]], {})], []
    found: list[Chain] = []
    ends: dict[str, str] = {}
    breaks: list[tuple[str, str, Facts]] = []
    for key, first, last in ordered:
        here = facts(cell(key))
        ended = [chain for chain in found if ends[chain.keys[-1]] < first]
        fits = [chain for chain in ended if one_series(chain.facts, here)]
        if fits:
            chain = max(fits, key=lambda one: ends[one.keys[-1]])
            chain.keys.append(key)
            chain.facts = here
        else:
            chain = Chain([key], here)
            found.append(chain)
            if ended:
                newest = max(ended, key=lambda one: ends[one.keys[-1]])
                breaks.append((newest.keys[-1], key, changed(newest.facts, here)))
        chain.all_facts[key] = here
        ends[key] = last
    return found, breaks


class LabelSpan(NamedTuple):
    """One series before renames are looked for.

    Attributes:
        label: of its cells.
        oldest: key of its first cell.
        newest: key of its last cell.
        first: when its first record was finished.
        last: when its last was.
    """

    label: str
    oldest: str
    newest: str
    first: str
    last: str


SAME_PARTS = ("model.id", "method.name", "quantization.name", "task.name", "seed")


def renames(spans: Sequence[LabelSpan], cell: Callable[[str], Mapping[str, object]]) -> list[tuple[int, int]]:
    """Numbers of the series that are one under two labels, (earlier, later); see the rule above.

    Args:
        spans: the series of one sweep and machine.
        cell: key to its cell; asked only of series that ended before another began, by days.
    """
    if not spans:
        return []
    latest, earliest = max(spans, key=lambda one: one.first[:10]), min(spans, key=lambda one: one.last[:10])
    ended = [i for i, one in enumerate(spans) if _after(latest, one)]
    began = [i for i, one in enumerate(spans) if _after(one, earliest)]
    old = {i: facts(cell(spans[i].newest)) for i in ended}
    new: dict[tuple[str, ...], list[tuple[int, Facts]]] = {}
    for i in began:
        here = facts(cell(spans[i].oldest))
        new.setdefault(tuple(here.get(path, "") for path in SAME_PARTS), []).append((i, here))
    fits = [
        (i, j)
        for i, stated in old.items()
        for j, here in new.get(tuple(stated.get(path, "") for path in SAME_PARTS), ())
        if _after(spans[j], spans[i]) and spans[i].label != spans[j].label
        if stated.keys() <= here.keys() and one_series(stated, here)
    ]
    after: dict[int, list[int]] = {}
    before: dict[int, list[int]] = {}
    for i, j in fits:
        after.setdefault(i, []).append(j)
        before.setdefault(j, []).append(i)
    later = {i: _only(spans, found, newest=False) for i, found in after.items()}
    earlier = {j: _only(spans, found, newest=True) for j, found in before.items()}
    return [(i, j) for i, j in fits if later[i] == j and earlier[j] == i]


def _after(one: LabelSpan, other: LabelSpan) -> bool:
    """Whether a series began on a later day than another ended."""
    return one.first[:10] > other.last[:10]


def _only(spans: Sequence[LabelSpan], found: Sequence[int], *, newest: bool) -> int | None:
    """The nearest in time of these series; None where another of them ran at the same time."""
    ordered = sorted(found, key=lambda i: spans[i].first, reverse=newest)
    near, *others = ordered
    apart = all(_after(spans[near], spans[i]) if newest else _after(spans[i], spans[near]) for i in others)
    return near if apart else None
