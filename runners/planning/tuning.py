"""Equal tuning: the same number of trials for every configuration, chosen on validation, before any test is read.

Trials are ordinary cells with ``role: trial``, so they resume, run in parallel and are billed like all others. This
module is a function from the store's records to the cells that are needed next: run them and call it again, until the
final cells exist. Interrupted at any moment, it goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.errors import UserError
from harness.matrix import Cell, Point, make_cell
from harness.spec import Tune

FAILED = math.inf
"""Score of a trial that diverged, ran out of memory or failed: it is never chosen, and it counts as a trial."""
SAMPLED_RANGE = 2
"""A sampler searches the rate from the centre over factor^2 to the centre times factor^2, logarithmically."""
EXTENSION = 2
"""Further rates beyond an edge of the grid at which the best one was found."""

Result = Callable[[Cell], "float | None"]
"""Validation score of a trial; None while it has no final record."""
Curve = Callable[[Cell], Sequence[float]]
"""Validation scores of a trial during training, at the steps of a pruner."""


@dataclass
class Tuned:
    """Cells that are wanted now.

    Attributes:
        tuning: final cell's key to how it was chosen; goes into its record.
        hopeless: key of an untuned cell to why tuning found nothing for it.
        waiting: configurations whose final cells wait for trials.
    """

    cells: list[Cell] = field(default_factory=list)
    tuning: dict[str, dict[str, object]] = field(default_factory=dict)
    hopeless: dict[str, str] = field(default_factory=dict)
    waiting: int = 0


@dataclass(frozen=True)
class TrialChoice:
    """A learning rate and, if a knob is tuned, additional parameters."""

    learning_rate: float
    params: tuple[tuple[str, Any], ...] = ()


class Pending(Exception):
    """A trial that has to run before tuning can go on."""


def tuned(
    cells: Sequence[Cell],
    tune: Tune,
    *,
    tunable: Callable[[Cell], bool],
    result: Result,
    curve: Curve = lambda _: (),
) -> Tuned:
    """Replace every tunable configuration by its trials, and by its final cells once they are chosen.

    Args:
        cells: of the matrix, untuned.
        tunable: whether a cell can run and trains; others are passed on as they are.
        result: looks a trial up.
        curve: looks up how a trial went.
    """
    found = Tuned()
    for members in _configurations(cells):
        if not tunable(members[0]):
            found.cells += members
            continue
        search = Search(members[0], tune, result, curve)
        try:
            best = search.best()
        except Pending:
            found.waiting += 1
        else:
            if best is None:
                why = f"tuning: none of {len(search.trials)} trials trained"
                found.cells += members
                found.hopeless.update(dict.fromkeys((cell.key for cell in members), why))
            else:
                finals = [_final(cell, best, tune) for cell in members]
                found.cells += finals
                found.tuning.update(dict.fromkeys((cell.key for cell in finals), search.told(best)))
        found.cells += search.trials
        if tune.shared_learning_rate is not None:
            found.cells += [_shared(cell, tune.shared_learning_rate) for cell in members]
    found.cells.sort(key=lambda cell: cell.common.identity.get("role") != "trial")  # stable: trials first
    return found


def _configurations(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Cells that differ in their seed alone, in the order in which they first appear."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault("\n".join(p.canonical for p in cell.points), []).append(cell)
    yield from groups.values()


class Search:
    """The trials of one configuration.

    Attributes:
        trials: every trial asked for so far, in order.
    """

    def __init__(self, cell: Cell, tune: Tune, result: Result, curve: Curve) -> None:
        self.cell = cell
        self.tune = tune
        self.result = result
        self.curve = curve
        self.trials: list[Cell] = []
        self.scores: dict[TrialChoice, float] = {}
        self.curves: dict[TrialChoice, Sequence[float]] = {}
        self.at_edge = False
        self.centre = float(cell.method.identity["learning_rate"])

    def best(self) -> TrialChoice | None:
        """The choice with the lowest score, the smaller rate among equals; None if every trial failed.

        Raises:
            Pending: trials have to run first; they are in :attr:`trials`.
        """
        if self.tune.sampler != "grid":
            sampled(self)
            return self._lowest()
        grid = rates(self.centre, self.tune.learning_rates, self.tune.factor)
        self.try_all([TrialChoice(rate) for rate in grid])
        best = self._lowest()
        if best is not None and best.learning_rate in (grid[0], grid[-1]):
            step = self.tune.factor if best.learning_rate == grid[-1] else 1 / self.tune.factor
            beyond = [_digits(best.learning_rate * step ** (i + 1)) for i in range(EXTENSION)]
            self.try_all([TrialChoice(rate) for rate in beyond])
            best = self._lowest()
            self.at_edge = best is not None and best.learning_rate == beyond[-1]
        if best is not None and self.tune.knob_trials:
            self.try_all(self._further(best.learning_rate))
            best = self._lowest()
        return best

    def _further(self, rate: float) -> list[TrialChoice]:
        """The knob's values at the best rate; without a knob, as many rates around it.

        A value that the grid was tried with already is replaced by an additional rate: the budget stays equal.
        """
        count = self.tune.knob_trials
        exponents = [(i + 1) / (count + 1) * 2 - 1 for i in range(count)]  # inside the neighbours
        around = [TrialChoice(_digits(rate * self.tune.factor ** (e or 1 / (count + 1)))) for e in exponents]
        knob = self.tune.knob.get(self.cell.method.label)
        if not knob:
            return around
        name, values = next(iter(knob.items()))
        used = self.cell.method.identity["params"].get(name)
        return [
            spare if value == used else TrialChoice(rate, ((name, value),))
            for value, spare in zip(values, around, strict=True)
        ]

    def try_all(self, choices: Sequence[TrialChoice]) -> None:
        """Ask for these trials and take their scores.

        Raises:
            Pending: some have no result yet; all of them were asked for.
        """
        open_ = False
        past = [list(curve) for curve in self.curves.values()]  # of the batches before this one: known to all of it
        for choice in choices:
            trial = _trial(self.cell, choice, self.tune, past)
            if trial.key in {t.key for t in self.trials}:
                continue
            self.trials.append(trial)
            score = self.result(trial)
            if score is None:
                open_ = True
            else:
                self.scores[choice] = score
                self.curves[choice] = self.curve(trial)
        if open_:
            raise Pending

    def _lowest(self) -> TrialChoice | None:
        finite = [c for c, score in self.scores.items() if math.isfinite(score)]
        return min(finite, key=lambda c: (self.scores[c], c.learning_rate, str(c.params)), default=None)

    def told(self, best: TrialChoice) -> dict[str, Any]:
        """The choice in the record: the whole curve."""
        return {
            "select": self.tune.select,
            "trials": [
                {
                    "key": trial.key,
                    "learning_rate": choice.learning_rate,
                    "params": dict(choice.params),
                    "score": score if math.isfinite(score) else None,
                }
                for trial, (choice, score) in zip(self.trials, self.scores.items(), strict=True)
            ],
            "chosen": {"learning_rate": best.learning_rate, "params": dict(best.params)},
            "lr_at_edge": self.at_edge,
        }


def sampled(search: Search) -> None:
    """Fill the trials and scores of a search with a sampler of Optuna: the same budget for every method, in batches.

    The study is rebuilt from the finished trials each time, in the same order and with the same seed. So it proposes
    the same trials again, and an interrupted search goes on.

    Raises:
        UserError: optuna is not installed.
        Pending: a batch has to run first.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            f"the sampler {search.tune.sampler!r} needs optuna", fix="pip install 'peft-matrix[tuning]'"
        ) from None
    tune = search.tune
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = optuna.samplers
    sampler = (
        samplers.TPESampler(seed=tune.seed) if tune.sampler == "optuna-tpe" else samplers.RandomSampler(seed=tune.seed)
    )
    study = optuna.create_study(direction="minimize", sampler=sampler)
    reach = tune.factor**SAMPLED_RANGE
    knob = tune.knob.get(search.cell.method.label, {})
    assert tune.trials is not None  # the sweep's validation holds it
    while len(study.trials) < tune.trials:
        batch = []
        for _ in range(min(tune.learning_rates, tune.trials - len(study.trials))):
            trial = study.ask()
            rate = trial.suggest_float("learning_rate", search.centre / reach, search.centre * reach, log=True)
            params = tuple((name, trial.suggest_categorical(name, list(values))) for name, values in knob.items())
            batch.append((trial, TrialChoice(float(f"{rate:.4g}"), params)))
        search.try_all([choice for _, choice in batch])
        for trial, choice in batch:
            curve, score = search.curves[choice], search.scores[choice]
            for index, value in enumerate(curve):
                trial.report(value, (index + 1) * (tune.prune_every or 1))
            if curve and not math.isfinite(score):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, min(score, 1e9))


def rates(centre: float, count: int, factor: float) -> list[float]:
    """``count`` rates around ``centre``, each ``factor`` times the one before, to four digits."""
    return [_digits(centre * factor ** (i - (count - 1) / 2)) for i in range(count)]


def _digits(rate: float) -> float:
    """Four significant digits: a rate that people can read and type, the same on every machine."""
    return float(f"{rate:.4g}")


def _method(point: Point, choice: TrialChoice) -> Point:
    params = {**point.identity["params"], **dict(choice.params)}
    identity = {**point.identity, "learning_rate": choice.learning_rate, "params": params}
    return replace(point, identity=identity)


def _with(cell: Cell, method: Point, extra: dict[str, object], *, seed: int) -> Cell:
    """The cell with another method point and further shared settings.

    A trial trains in one process: a step has the same rows on any number of ranks, so that the rate is the same.
    """
    further = [p for p in cell.further if not (p.axis == "parallel" and extra.get("role") == "trial")]
    common = replace(cell.common, identity={**cell.common.identity, **extra})
    points = (cell.model, method, cell.quantization, cell.task, cell.hardware, common, *further)
    return make_cell(points, seed)


def _trial(cell: Cell, choice: TrialChoice, tune: Tune, past: Sequence[Sequence[float]]) -> Cell:
    """A trial trains as the cell does; what would be measured after training is left out, and out of its key.

    What a pruner compares it with is part of it, since it settles when the trial ends.
    """
    shared = {
        k: v
        for k, v in cell.common.identity.items()
        if k not in ("probes", "evaluation", "held_out", "retain", "judge")
    }
    bare = replace(cell, common=replace(cell.common, identity=shared))
    kept = {"batch_size": cell.common.identity["evaluation"]["batch_size"], "retention": False, "merged": False}
    extra: dict[str, Any] = {"role": "trial", "evaluation": kept, "probes": {"latency_repeats": 0}}
    if tune.pruner != "none":
        extra["pruning"] = {"pruner": tune.pruner, "every": tune.prune_every, "past": past}
    return _with(bare, _method(cell.method, choice), extra, seed=tune.seed)


def _final(cell: Cell, choice: TrialChoice, tune: Tune) -> Cell:
    return _with(cell, _method(cell.method, choice), {"tuning": tune.identity()}, seed=cell.seed)


def _shared(cell: Cell, rate: float) -> Cell:
    return _with(cell, _method(cell.method, TrialChoice(rate)), {"role": "shared-lr"}, seed=cell.seed)
