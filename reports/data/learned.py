"""Whether a trained row learned: its answers against those of its base on the same items.

A run that ended ``ok`` is no evidence that its method works: a method with a fatal bug ends ``ok`` as well. The base is
the untrained row (method ``none``) of the same model, quantization and task, in the format that suits it best. For a
classifier whose untrained row was not scored (its fresh head knows nothing), it is the best constant answer: the most
frequent one. A language model whose untrained row was not scored gets no verdict.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.record import Record
from reports.data.effects import Evidence, Family, members_of, weighted
from reports.data.samples import ArmItems, Items, SampleSource, ScoredItems, scored_items

Tested = ScoredItems | None
"""Scored items of one run."""

Verdict = Literal["learned", "no evidence", "worse", "degenerate"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
METRIC = "accuracy"
FLOOR, CEILING = 0.02, 0.98
"""Accuracies beyond which accuracy cannot move, so that the log-probability of the answer decides."""
UNTRAINED = "none"
FRESH_HEAD = "sequence-classification"
CONSTANT = "the most frequent answer"


@dataclass(frozen=True)
class Learned:
    """A verdict with what it rests on.

    Attributes:
        verdict: ``learned``: better than its base; ``worse``: worse; ``no evidence``: the interval holds zero;
            ``degenerate``: one answer for all items, or a loss that rose, without being better than the base; or only
            the format of the answers was learned (:func:`_beyond_format`).
        effect: trained less base: accuracy as a fraction, or nats of the answer's log-probability.
        low: lower end of its 95 % interval; ``high`` likewise.
        p: two-sided.
        measure: ``accuracy`` or ``answer_nll``.
        base: what it was compared with.
        seeds: seeds of the trained row.
        why: one sentence.
    """

    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    measure: str
    base: str
    seeds: int
    why: str

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def verdicts(
    rows: Sequence[Mapping[str, Any]], records: Mapping[str, Record], evidence: Evidence, samples: SampleSource | None
) -> dict[str, Learned]:
    """Configuration to verdict, for every trained row with stored samples.

    Args:
        rows: aggregated rows of one section (one model, task and set of conditions).
        records: record id to record.
    """
    if samples is None:
        return {}
    ok = [row for row in rows if row["ok_records"]]
    trained = [row for row in ok if trains(records[row["ok_records"][0]])]
    if not trained:
        return {}
    members = members_of(ok)
    untrained = [row for row in ok if _is_base(records[row["ok_records"][0]])]
    out = {}
    for row in trained:
        family = evidence.family_of(members, METRIC, row["config"])
        if family is not None:
            base = _base_of(row, untrained, family)
            if base is not None or _has_fresh_head(records[row["ok_records"][0]]):
                out[row["config"]] = _judge(row, base, family, records, samples)
    return out


def trains(record: Record) -> bool:
    """Whether the row's weights were trained, in this cell or in those that it combines."""
    method = record.cell_view.part("method")
    return method.get("learning_rate") is not None or bool(method.get("ingredients"))


def _has_fresh_head(record: Record) -> bool:
    """Whether the untrained model knows nothing of the answers, so that a constant answer can take its place.

    A language model knows many answers before training. Against a constant answer it would always have learned.
    """
    return bool(record.cell_view.part("task").get("kind") == FRESH_HEAD)


def _is_base(record: Record) -> bool:
    return record.cell_view.name("method") == UNTRAINED and not trains(record)


def _base_of(
    row: Mapping[str, object], untrained: Sequence[Mapping[str, object]], family: Family
) -> Mapping[str, object] | None:
    """The untrained row of the same quantization, else of none, on the same items."""
    found = [one for one in untrained if one["config"] in family.scores]
    for quantization in (row["quantization"], "none"):
        for one in found:
            if one["quantization"] == quantization:
                return one
    return None


def _judge(
    row: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    family: Family,
    records: Mapping[str, Record],
    samples: SampleSource,
) -> Learned:
    config, seeds = row["config"], len(row["ok_records"])
    tables = [scored_items(samples(identity)) for identity in row["ok_records"]]
    if base is not None:
        found = family.effect(config, base["config"])
        effect, low, high, p = found.effect, found.low, found.high, found.p
        name = f"none / {base['quantization']}"
        better = _best_format(base, records)
        if better is not None and better > float(base[METRIC]):
            shift = better - float(base[METRIC])  # other prompts, so the items cannot be paired: the mean is moved
            effect, low, high = effect - shift, low - shift, high - shift
            p = _p_of_interval(effect, low, high)
            name += " in its best format"
    else:
        name = CONSTANT
        effect, low, high, p = _against_constant(config, family, tables)
    measure, format_only = METRIC, False
    if _stuck(row, base) and low <= 0 <= high and base is not None:
        nats = _log_probabilities(tables, [scored_items(samples(identity)) for identity in base["ok_records"]])
        if nats is not None:
            effect, low, high, p = nats
            measure = "answer_nll"
            format_only = float(row[METRIC]) <= FLOOR and not _beyond_format(tables)
    one_answer, rose = _one_answer(tables), all(records[i].loss_rose for i in row["ok_records"])
    verdict: Verdict = "learned" if low > 0 else "worse" if high < 0 else "no evidence"
    why = f"{_shown(effect, low, high, measure)} against {name}"
    if format_only and verdict == "learned":
        verdict, why = "degenerate", f"only the format was learned: no answer is likelier for its own prompt; {why}"
    elif one_answer and verdict != "learned":
        verdict, why = "degenerate", f"one answer for all items; {why}"
    elif rose and verdict != "learned":
        verdict, why = "degenerate", f"the training loss rose; {why}"
    if max(seeds, len(base["ok_records"]) if base is not None else 1) == 1:
        why += "; one seed, so it holds for this checkpoint"
    return Learned(verdict, effect, low, high, p, measure, name, seeds, why)


def _p_of_interval(effect: float, low: float, high: float) -> float:
    """Two-sided p value of no effect, from a 95 % interval whose width is that of a normal estimate."""
    half = (high - low) / 2
    if half <= 0:
        return float(effect == 0)
    return math.erfc(abs(effect) / half * NormalDist().inv_cdf(0.975) / math.sqrt(2))


def _shown(effect: float, low: float, high: float, measure: str) -> str:
    if measure == METRIC:
        return f"{100 * effect:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{effect:+.3g} nats of the answer [{low:+.3g}, {high:+.3g}]"


def _stuck(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> bool:
    """Whether both accuracies lie where they cannot move."""
    values = [float(row[METRIC]), *([float(base[METRIC])] if base is not None else [])]
    return max(values) <= FLOOR or min(values) >= CEILING


def _best_format(base: Mapping[str, Any], records: Mapping[str, Record]) -> float | None:
    """Mean accuracy of the base in its best format, where other formats were scored."""
    found = [records[i].value("best_format_accuracy") for i in base["ok_records"]]
    values = [value for value in found if value is not None]
    return float(np.mean(values)) if values and len(values) == len(found) else None


def _against_constant(config: str, family: Family, tables: Sequence[Tested]) -> tuple[float, float, float, float]:
    """The row less a row that gives every item the most frequent answer."""
    scores = family.scores[config]
    adapted = _adapted(tables[0])
    answers = dict(zip(adapted.items, adapted.answers, strict=True)) if adapted is not None else {}
    common = Counter(answers[item] for item in scores.items).most_common(1)[0][0]
    right = np.array([float(answers[item] == common) for item in scores.items])
    constant = right if scores.items.one_task else right * scores.items.weights * len(scores.items)
    arms = [weighted(family.scores[c]) for c in family.configs]
    if len(scores.seeds) == 1 or max(len(arm) for arm in arms) == 1:
        found = stats.compare(weighted(scores), constant)
        return found.effect, found.low, found.high, found.p
    names = [family.scores[c].seeds for c in family.configs]
    rows = stats.fit_rows([*arms, constant], [*names, (None,)], fixed=[*family.rows.fixed, True])
    one = rows.effect(family.configs.index(config), len(arms))
    return one.effect, one.low, one.high, one.p


def beats_constant(config: str, family: Family, samples: SampleSource) -> bool:
    """Whether a configuration is significantly better than giving every item the most frequent answer."""
    tables = [scored_items(samples(identity)) for identity in family.ids[config]]
    if any(table is None for table in tables):
        return True  # nothing is known against it
    return _against_constant(config, family, tables)[1] > 0


def _adapted(found: Tested) -> ArmItems | None:
    return found.arms.get("adapted") if found is not None else None


def _one_answer(tables: Sequence[Tested]) -> bool:
    """Whether every seed gives one and the same answer to all of its items."""
    found = [_adapted(table) for table in tables]
    return bool(found) and all(arm is not None and arm.one_prediction for arm in found)


def _log_probabilities(trained: Sequence[Tested], base: Sequence[Tested]) -> tuple[float, float, float, float] | None:
    """Mean gain of the answer's log-probability over items, with its t interval; None where it was not stored."""
    after, before = _mean_log_probability(trained), _mean_log_probability(base)
    if after is None or before is None or after[0] != before[0] or len(after[0]) < 2:
        return None
    gains = after[1] - before[1]
    found = stats.mean_interval(gains)
    return found.estimate, found.low, found.high, stats.paired_t(gains, np.zeros(len(gains))).p


def _beyond_format(tables: Sequence[Tested]) -> bool:
    """Whether the answers are likelier than for a model that knows them as a set (:func:`_blind`)."""
    trained, first = _mean_log_probability(tables), _adapted(tables[0])
    if trained is None or first is None:
        return True  # nothing is known against it
    if trained[0] != first.items:  # a seed was scored on more items
        places = {item: at for at, item in enumerate(trained[0])}
        gains = trained[1][[places[item] for item in first.items]] - _blind(first.answers)
    else:
        gains = trained[1] - _blind(first.answers)
    return stats.mean_interval(gains).low > 0


@functools.lru_cache(maxsize=64)
def _blind(answers: tuple[str, ...]) -> NDArray[np.float64]:
    """Log-probability of each answer for a model that knows the answers, not which belongs to which prompt; (items,).

    That model gives an answer its share among all answers where they repeat (at least five times on average), else the
    product of the shares of its length and of its characters at their places. Both come from the scored answers
    themselves, so it is a little better than any such model could be. With longer answers, whose characters depend on
    each other, it is weak, and every language model passes.
    """
    distinct = set(answers)
    repeated = len(answers) >= 5 * len(distinct)
    # Of an answer: its length (at "place" -1) and its characters at their places, or the whole of it.
    parts = {a: [(-1, a if repeated else str(len(a))), *([] if repeated else enumerate(a))] for a in distinct}
    counts = Counter(part for answer in answers for part in parts[answer])
    places = Counter(place for answer in answers for place, _ in parts[answer])
    by_answer = {a: float(sum(np.log(counts[part] / places[part[0]]) for part in parts[a])) for a in distinct}
    return np.array([by_answer[answer] for answer in answers])


def _mean_log_probability(tables: Sequence[Tested]) -> tuple[Items, NDArray[np.float64]] | None:
    """Items and the mean over seeds of their answer's log-probability; None where one has none."""
    arms = [_adapted(table) for table in tables]
    kept = [arm for arm in arms if arm is not None]
    if any(table is None for table in tables) or not all(np.isfinite(arm.logp).all() for arm in kept):
        return None
    if not kept or all(arm.items == kept[0].items for arm in kept):
        return (kept[0].items, np.stack([arm.logp for arm in kept]).mean(axis=0, dtype=np.float64)) if kept else None
    found: dict[tuple[str, str], list[float]] = {}
    for arm in kept:
        for item, value in zip(arm.items, arm.logp.tolist(), strict=True):
            found.setdefault(item, []).append(value)
    items = Items(sorted(found))
    return items, np.array([np.mean(found[item]) for item in items])
