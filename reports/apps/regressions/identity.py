"""Identity of a series: a changed key does not start a new series unless a requested setting changed.

A cell's key changes when a model or data set gets another revision, when a list that is a set is written in another
order, and when a later version of a tool stores a field at its default. Two keys of one label (and sweep and machine)
are one series if the later begins when the earlier has ended, and every field that both cells state has the same value:
lists of plain values count as sets, and fields that only name a version (:data:`VERSIONS`) may differ. What differs is
a change of environment inside the series. A field that both state with different values begins another series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.digests import canonical_json

VERSIONS = frozenset({"revision", "digest", "version", "data_revisions", "key_version", "protocol", "pin", "files"})
"""Names of fields that say which version of the same thing was used."""
LABELS = frozenset({"label"})
ABSENT = "absent"

Facts = dict[str, str]


def facts(cell: Mapping[str, Any]) -> Facts:
    """Every field of a cell by its path, lists of plain values sorted; labels left out."""
    return dict(_walk("", cell))


def _walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            if name not in LABELS:
                yield from _walk(f"{path}.{name}" if path else str(name), value[name])
    elif isinstance(value, list | tuple):
        plain = all(isinstance(item, str | int | float | bool) for item in value)
        texts = [canonical_json(item) for item in value]
        yield path, ", ".join(sorted(texts) if plain else texts)
    else:
        yield path, canonical_json(value)


def is_version(path: str) -> bool:
    """Whether a field only names a version."""
    return not VERSIONS.isdisjoint(path.split("."))


def one_series(before: Facts, after: Facts) -> bool:
    """Whether the later cell asks for the same as the earlier one."""
    shared = before.keys() & after.keys()
    return all(before[path] == after[path] for path in shared if not is_version(path))


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
    spans: Sequence[tuple[str, str, str]], cell: Callable[[str], Mapping[str, Any]]
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
