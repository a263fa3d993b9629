"""Which package made a cell worse? Given a good and a bad lock file, the package, or the packages together, are named.

Between the two locks some packages differ. Every subset of these changes is an environment: the good lock with those
packages at their bad versions. Delta debugging (Zeller & Hildebrandt 2002, IEEE TSE 28(2), algorithm ddmin) searches
for a smallest set of changes that still makes the cell bad: first halves, then quarters. What it ends with is bad, and
good
again without any one of its members; so a single change is named as the cause, and several as an interaction.

An environment is judged by running the cell in it and in the good one in turns (ABABAB), so that a drift of the
machine falls on both alike.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harness.digests import digest
from harness.errors import UserError
from harness.store.store import Store, current
from runners.environments import READY, ROOT, install
from runners.worker.import_path import safe_environment

Verdict = Literal["good", "bad", "unresolved"]
ALPHA = 0.01
RUNS = 5
"""Runs of each side. Five against five can reach p = 0.008."""


class Change(NamedTuple):
    """A package whose version differs between the locks; None where a lock does not hold it."""

    package: str
    good: str | None
    bad: str | None

    def __str__(self) -> str:
        return f"{self.package} {self.good or 'absent'} → {self.bad or 'absent'}"


class BisectRun(NamedTuple):
    """One run of the cell: its value, or None with how it failed."""

    value: float | None
    failure: str = ""


@dataclass(frozen=True)
class JudgedEnvironment:
    """One environment that was judged.

    Attributes:
        changes: packages at their bad version; all others are at their good one.
        values: of the runs in it; ``against`` those of the good environment, in turns with them.
        why: how it was judged, for people.
    """

    changes: tuple[Change, ...]
    verdict: Verdict
    values: tuple[float, ...] = ()
    against: tuple[float, ...] = ()
    p: float | None = None
    why: str = ""


@dataclass
class Bisection:
    """Result of a bisection.

    Attributes:
        kind: ``package``, or ``interaction`` of several.
        culprits: the changes; ``differing`` are all between the two locks.
        steps: every environment that was judged, in order.
    """

    kind: str
    culprits: tuple[Change, ...]
    differing: tuple[Change, ...]
    steps: list[JudgedEnvironment] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""

        def plain(changes: Sequence[Change]) -> list[dict[str, str | None]]:
            return [change._asdict() for change in changes]

        return {
            "kind": self.kind,
            "culprits": plain(self.culprits),
            "differing": plain(self.differing),
            "steps": [{**vars(step), "changes": plain(step.changes)} for step in self.steps],
        }

    def sentence(self) -> str:
        """The finding for people."""
        names = ", ".join(map(str, self.culprits))
        if self.kind == "package":
            return f"It is {names}: with this change alone the cell is bad."
        return (
            f"It is an interaction of {len(self.culprits)} packages: {names}. Without any one of them the cell is good."
        )


# --- the locks -----------------------------------------------------------------------------------
def read_lock(path: Path) -> dict[str, str]:
    """Package to version of a lock file: lines ``name==version`` as ``pip freeze`` or ``uv pip freeze`` print them.

    Raises:
        UserError: no such file, or a line that pins nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.split(" #")[0].split(" --hash")[0].strip().rstrip("\\").strip()
        if not text or text.startswith(("#", "--hash")):
            continue
        try:
            wanted = Requirement(text)
            (pin,) = wanted.specifier
        except (InvalidRequirement, ValueError) as error:
            fix = "Lines are NAME==VERSION, as 'uv pip freeze --exclude-editable' prints them."
            raise UserError(f"not a pinned package: {text!r}", where=f"{path}:{number}", fix=fix) from error
        if pin.operator != "==":
            raise UserError(
                f"not pinned to one version: {text!r}", where=f"{path}:{number}", fix="Write NAME==VERSION."
            )
        if wanted.marker is None or wanted.marker.evaluate():
            found[canonicalize_name(wanted.name)] = pin.version
    return found


def differences(good: Mapping[str, str], bad: Mapping[str, str]) -> tuple[Change, ...]:
    """The packages that differ, by name."""
    return tuple(
        Change(name, good.get(name), bad.get(name))
        for name in sorted(good.keys() | bad.keys())
        if good.get(name) != bad.get(name)
    )


def pins(good: Mapping[str, str], changes: Sequence[Change]) -> dict[str, str]:
    """The good lock with these packages at their bad versions."""
    made = {**good, **{c.package: c.bad for c in changes}}
    return {name: version for name, version in sorted(made.items()) if version is not None}


# --- the search ----------------------------------------------------------------------------------
def smallest(changes: Sequence[Change], judge: Callable[[tuple[Change, ...]], Verdict]) -> tuple[Change, ...]:
    """A smallest set of ``changes`` that ``judge`` calls bad: without any one of its members it is not (ddmin).

    Args:
        changes: known to be bad all together; none of them is known to be good.
        judge: asked once for each set; an unresolved set counts as not bad.
    """
    known: dict[tuple[Change, ...], Verdict] = {}

    def bad(some: Sequence[Change]) -> bool:
        asked = tuple(some)
        if asked not in known:
            known[asked] = judge(asked)
        return known[asked] == "bad"

    left, parts = list(changes), 2
    while len(left) > 1:
        chunks = [left[len(left) * i // parts : len(left) * (i + 1) // parts] for i in range(parts)]
        rests = [[c for c in left if c not in chunk] for chunk in chunks] if parts > 2 else []
        smaller = next((chunk for chunk in chunks if bad(chunk)), None)
        if smaller is not None:
            left, parts = smaller, 2
            continue
        rest = next((some for some in rests if bad(some)), None)
        if rest is not None:
            left, parts = rest, max(parts - 1, 2)
        elif parts < len(left):
            parts = min(2 * parts, len(left))
        else:
            break
    return tuple(left)


class Laboratory(Protocol):
    """Runs a cell: builds an environment of these pins and runs the cell in it once."""

    def build(self, pinned: Mapping[str, str]) -> Path: ...  # noqa: D102
    def run(self, python: Path) -> BisectRun: ...  # noqa: D102


class Judge:
    """Judges environments by runs in turns with the good one.

    Args:
        good: pins of the good lock.
        runs: of each side, for a value; a failure that the good side does not show is judged by one run.
        floor: smallest relative change that counts (protocol 8.3).
        say: receives progress messages, a line at a time.
    """

    def __init__(
        self, laboratory: Laboratory, good: Mapping[str, str], *, runs: int, floor: float, say: Callable[[str], None]
    ) -> None:
        self.laboratory = laboratory
        self.good = good
        self.runs = runs
        self.floor = floor
        self.say = say
        self.steps: list[JudgedEnvironment] = []
        self._python = laboratory.build(pins(good, ()))
        self._whole: JudgedEnvironment | None = None
        self._failure = ""

    def whole(self, changes: tuple[Change, ...]) -> None:
        """Judge the bad environment itself: it must show the change that is searched for.

        Raises:
            UserError: the cell does not run in the good environment, or the two do not differ.
        """
        first, other = self.laboratory.run(self._python), self.laboratory.run(self._built(changes))
        if first.value is None:
            raise UserError(
                f"the cell fails in the good environment too: {first.failure}", fix="Give a lock in which it runs."
            )
        if other.value is None:
            self._failure = other.failure
            self._add(JudgedEnvironment(changes, "bad", against=(first.value,), why=f"fails: {other.failure}"))
            return
        values, against = self._in_turns(self._built(changes), ([other.value], [first.value]))
        step = self._compared(changes, values, against, None)
        if step.verdict != "bad":
            raise UserError(
                f"the two environments do not differ: {step.why}",
                fix="Give more --runs, another --metric, or check the machine instead of the packages.",
            )
        self._whole = self._add(step)

    def __call__(self, changes: tuple[Change, ...]) -> Verdict:
        """True if these changes alone make the cell as bad as all of them."""
        try:
            python = self._built(changes)
        except UserError as error:
            return self._add(JudgedEnvironment(changes, "unresolved", why=f"cannot be built: {error.what}")).verdict
        first = self.laboratory.run(python)
        if first.value is None:
            verdict: Verdict = "bad" if first.failure == self._failure else "unresolved"
            return self._add(JudgedEnvironment(changes, verdict, why=f"fails: {first.failure}")).verdict
        if self._whole is None:
            return self._add(JudgedEnvironment(changes, "good", (first.value,), why="does not fail")).verdict
        try:
            values, against = self._in_turns(python, ([first.value], []))
        except UserError as error:  # runs sometimes: neither as good nor as bad as the change that is searched for
            return self._add(JudgedEnvironment(changes, "unresolved", why=error.what)).verdict
        return self._add(self._compared(changes, values, against, self._whole)).verdict

    def _built(self, changes: tuple[Change, ...]) -> Path:
        return self.laboratory.build(pins(self.good, changes))

    def _in_turns(self, python: Path, begun: tuple[list[float], list[float]]) -> tuple[list[float], list[float]]:
        """Values of both sides, run one after the other until each has its number."""
        values, against = begun
        while len(values) < self.runs or len(against) < self.runs:
            for where, kept in ((self._python, against), (python, values)):
                if len(kept) < self.runs:
                    result = self.laboratory.run(where)
                    if result.value is None:
                        raise UserError(f"the cell runs sometimes and sometimes fails: {result.failure}")
                    kept.append(result.value)
        return values, against

    def _compared(
        self,
        changes: tuple[Change, ...],
        values: Sequence[float],
        against: Sequence[float],
        whole: JudgedEnvironment | None,
    ) -> JudgedEnvironment:
        """Bad: differs significantly from the good side and by more than the floor; and if it is known how far all
        changes together move the cell, by at least half of that in the same direction.
        """
        from harness import stats

        p = stats.mann_whitney(values, against).p
        effect, base = _median(values) - _median(against), abs(_median(against))
        least = self.floor * base
        if whole is not None:
            target = _median(whole.values) - _median(whole.against)
            least = max(least, abs(target) / 2) if effect * target > 0 else float("inf")
        stands = p < ALPHA and abs(effect) > 0 and abs(effect) >= least
        relative = f" ({effect / base:+.1%})" if base else ""
        why = (
            f"{_median(against):.4g} → {_median(values):.4g}{relative}, p {p:.2g}, {len(values)} runs of each in turns"
        )
        return JudgedEnvironment(changes, "bad" if stands else "good", tuple(values), tuple(against), float(p), why)

    def _add(self, step: JudgedEnvironment) -> JudgedEnvironment:
        self.steps.append(step)
        self.say(f"{step.verdict}: {', '.join(map(str, step.changes)) or 'nothing changed'}: {step.why}")
        return step


def _median(values: Sequence[float]) -> float:
    from statistics import median

    return median(values)


def bisect(
    good: Mapping[str, str],
    bad: Mapping[str, str],
    laboratory: Laboratory,
    *,
    runs: int = RUNS,
    floor: float = 0.0,
    say: Callable[[str], None] = lambda _line: None,
) -> Bisection:
    """Name the package, or the packages together, that make the cell bad.

    Raises:
        UserError: the locks are equal, an environment of theirs cannot be built, the cell does not run in the good one,
            or the two do not differ in the metric.
    """
    changes = differences(good, bad)
    if not changes:
        raise UserError("the two locks name the same versions", fix="Give the locks of a good and of a bad night.")
    judge = Judge(laboratory, good, runs=runs, floor=floor, say=say)
    judge.whole(changes)
    found = smallest(changes, judge)
    return Bisection("package" if len(found) == 1 else "interaction", found, changes, judge.steps)


# --- the laboratory ------------------------------------------------------------------------------
class Environments:
    """Virtual environments of exact versions below a folder, and one cell of a sweep run in them by the command line.

    Args:
        folder: where environments and records of the runs are kept; an environment is built once.
        sweep: the sweep's file; ``cell`` is the key or label of one of its cells.
        metric: name of the quantity; ``stage.name`` for one of a stage.
        arguments: additional ones for ``peft-matrix run``.
    """

    def __init__(self, folder: Path, sweep: Path, cell: str, metric: str, arguments: Sequence[str] = ()) -> None:
        self.folder = folder
        self.sweep = sweep
        self.cell = cell
        self.metric = metric
        self.arguments = tuple(arguments)

    def build(self, pinned: Mapping[str, str]) -> Path:
        """Interpreter of the environment with exactly these packages.

        Raises:
            UserError: a package could not be installed.
        """
        return build(self.folder, pinned)

    def run(self, python: Path) -> BisectRun:
        """Run the cell once and read its record."""
        store = Store(self.folder / "records" / python.parents[1].name)
        before = {entry.id for entries in store.entries().values() for entry in entries}
        command = [str(python), "-m", "peft_matrix.cli", "run", str(self.sweep), "--only", self.cell, "--rerun", "all"]
        done = subprocess.run(
            [*command, "--results", store.root, *self.arguments],
            env=safe_environment({k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, root=ROOT),
            capture_output=True,
            text=True,
            check=False,
        )
        new = [record for record in store.records()[0] if record.id[:12] not in before]
        if not new:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            return BisectRun(None, f"no record was written: {last}")
        if len({record.key for record in new}) > 1:
            raise UserError(f"{self.cell!r} names several cells", where="--cell", fix="Give the key of one.")
        return self._value_of(next(iter(current(new).values())))

    def _value_of(self, record: object) -> BisectRun:
        from harness.record import Record

        assert isinstance(record, Record)
        if record.status != "ok":
            return BisectRun(
                None, f"{record.status} in {record.outcome.stage}: {record.outcome.reason.partition(':')[0]}"
            )
        stage, _, name = self.metric.rpartition(".")
        span = next((s for s in record.spans if s.stage == stage), None)
        if span is not None and name == "stage_s":
            return BisectRun(span.seconds, "" if span.seconds is not None else "the clock failed")
        reading = span.get(name) if span is not None else record.metrics.get(self.metric)
        if reading is None or reading.value is None:
            raise UserError(
                f"the cell gives no {self.metric}" + (f": {reading.why_missing}" if reading else ""),
                where="--metric",
                fix=f"It gives, among others: {', '.join(sorted(record.metrics)[:12])}.",
            )
        return BisectRun(reading.value)


def build(folder: Path, pinned: Mapping[str, str]) -> Path:
    """Interpreter of a virtual environment with exactly these packages, built if it does not exist yet.

    Raises:
        UserError: a package could not be installed; what was begun is removed.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = folder / "environments" / f"py{version}-{digest(dict(pinned))[:12]}"
    python = target / "bin" / "python"
    if not (target / READY).is_file():
        shutil.rmtree(target, ignore_errors=True)  # what an earlier attempt left
        lock = "".join(f"{name}=={number}\n" for name, number in pinned.items())
        try:
            install(target, lock, name=target.name)
        except UserError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        (target / READY).write_text(json.dumps(dict(pinned), indent=1) + "\n", encoding="utf-8")
    return python
