"""From what a model's pass over the items gave (texts, logits, log-probabilities) to scored items and summaries.

Pure and without torch, so that a scripted oracle is scored by the very code that scores a model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.errors import CheckFailed
from tasks import overlap, preference_scoring
from tasks.parsers import PARSERS
from tasks.scored import SAMPLE_COLUMNS, Scored, Summary, mean_of
from tasks.task import Item, Task

__all__ = ["SAMPLE_COLUMNS", "Scored", "Summary"]


def score_generation(
    task: Task,
    items: Sequence[Item],
    generations: Sequence[str] | None,
    logp_answers: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    cut: Sequence[bool] | None = None,
    passed: Sequence[bool] | None = None,
) -> list[Scored]:
    """Score completions with the task's parser, and right answers by their log-probability.

    Args:
        task: names the parser; without ``accuracy`` among its metrics it judges nothing.
        items: the scored items; an item that was generated n times occurs n times, one after the other.
        generations: completions, in the order of ``items``; None where only likelihoods were computed.
        logp_answers: log-probability of each right answer, in nat.
        lengths: tokens of each completion (or answer).
        cut: whether each input was longer than the context.
        passed: whether each completion passed its program, where the task has one.

    Raises:
        CheckFailed: a log-probability is not finite.
        ValueError: the lists differ in length.
    """
    _same_length(items, generations=generations, logp_answers=logp_answers, lengths=lengths, cut=cut, passed=passed)
    if logp_answers is not None:
        _finite(np.asarray(logp_answers, dtype=np.float64), items)
    parse = PARSERS.get(task.definition.parser)
    judged = generations is not None and task.definition.judges_completions
    names = _sample_ids(items)
    scored = []
    for i, item in enumerate(items):
        given = "" if generations is None else generations[i]
        found = parse(given) if judged else None
        right = found is not None and found == parse(item.answer) if judged else None
        scored.append(
            Scored(
                item=names[i],
                correct=right if passed is None else passed[i],
                prediction=given,
                answer=item.answer,
                logp_answer=None if logp_answers is None else float(logp_answers[i]),
                length=0 if lengths is None else int(lengths[i]),
                cut=cut is not None and bool(cut[i]),
            )
        )
    return scored


def _sample_ids(items: Sequence[Item]) -> list[str]:
    """The items' ids; ``id#0, id#1, ...`` where an item was asked several times."""
    times = Counter(item.id for item in items)
    seen: Counter[str] = Counter()
    names = []
    for item in items:
        names.append(item.id if times[item.id] == 1 else f"{item.id}#{seen[item.id]}")
        seen[item.id] += 1
    return names


def score_texts(
    items: Sequence[Item], logps: Sequence[float], lengths: Sequence[int], cut: Sequence[bool]
) -> list[Scored]:
    """Score texts by their log-probability: nothing is asked, and nothing is right or wrong.

    Args:
        items: their ``answer`` is the text.
        logps: of each text, in nat, summed over its tokens.
        lengths: tokens of each text.
        cut: whether each text was longer than the context and was scored in windows.

    Raises:
        CheckFailed: a log-probability is not finite.
    """
    _same_length(items, logps=logps, lengths=lengths, cut=cut)
    _finite(np.asarray(logps, dtype=np.float64), items)
    return [
        Scored(item.id, None, "", item.answer, logp_answer=float(logps[i]), length=int(lengths[i]), cut=bool(cut[i]))
        for i, item in enumerate(items)
    ]


def score_classification(
    task: Task, items: Sequence[Item], logits: NDArray[np.float32], cut: Sequence[bool] | None = None
) -> list[Scored]:
    """Score a classifier.

    Args:
        task: its labels name the classes.
        items: what was asked.
        logits: scores before softmax, items x classes.
        cut: whether each input was longer than the context.

    Raises:
        CheckFailed: a logit is not finite.
        ValueError: the shape is not items x classes, or the lists differ in length.
    """
    labels = task.definition.labels
    scores = np.asarray(logits, dtype=np.float64)
    if scores.shape != (len(items), len(labels)):
        raise ValueError(f"logits of {len(items)} items and {len(labels)} classes expected, not {scores.shape}")
    _same_length(items, cut=cut)
    _finite(scores, items)
    shifted = scores - scores.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return [
        _choice(item, labels, logp[i].tolist(), cut=cut is not None and bool(cut[i])) for i, item in enumerate(items)
    ]


def score_choices(
    task: Task,
    items: Sequence[Item],
    choice_logps: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]] | None = None,
    cut: Sequence[Sequence[bool]] | None = None,
) -> list[Scored]:
    """Score options by log-probability: the highest is the prediction, the first of equals.

    ``correct_norm`` divides by the bytes of the option first, as the field's ``acc_norm`` does; the task's
    delimiter before the option is not counted.

    Args:
        task: its delimiter precedes every option.
        items: what was asked, with their options.
        choice_logps: log-probability of each option of each item, summed over its tokens, in nat.
        lengths: tokens of each option of each item.
        cut: whether prompt and option were longer than the context.

    Raises:
        CheckFailed: a log-probability is not finite.
        ValueError: an item has more or fewer options than scores, or the lists differ in length.
    """
    _same_length(items, choice_logps=choice_logps, lengths=lengths, cut=cut)
    scored = []
    for i, item in enumerate(items):
        logps = [float(value) for value in choice_logps[i]]
        if len(logps) != len(item.choices):
            raise ValueError(f"item {item.id} has {len(item.choices)} options and {len(logps)} scores")
        _finite(np.asarray([logps]), [item])
        options = [choice.removeprefix(task.delimiter) for choice in item.choices]
        per_byte = [logp / max(1, len(option.encode())) for option, logp in zip(options, logps, strict=True)]
        scored.append(
            _choice(
                item,
                item.choices,
                logps,
                length=0 if lengths is None else int(lengths[i][item.label]),
                cut=cut is not None and any(cut[i]),
                correct_norm=_same_option(item, item.choices, int(np.argmax(per_byte))),
            )
        )
    return scored


def _same_option(item: Item, names: Sequence[str], chosen: int) -> bool:
    """True if the chosen option is the right one, or reads the same: of equal options the first is always chosen.

    Options that differ in the text before them (a filled blank) may be followed by the same words and are not equal.
    """
    return names[chosen] == names[item.label] and item.before(chosen) == item.before(item.label)


def _choice(
    item: Item,
    names: Sequence[str],
    logps: list[float],
    *,
    length: int = 0,
    cut: bool = False,
    correct_norm: bool | None = None,
) -> Scored:
    chosen = int(np.argmax(logps))
    wrong = [logp for k, logp in enumerate(logps) if k != item.label]
    return Scored(
        item=item.id,
        correct=_same_option(item, names, chosen),
        prediction=names[chosen],
        answer=item.answer,
        logp_answer=logps[item.label],
        logp_choices=logps,
        margin=logps[item.label] - max(wrong) if wrong else None,
        length=length,
        cut=cut,
        correct_norm=correct_norm,
    )


def summarise(scored: Sequence[Scored], metrics: Sequence[str] = ()) -> dict[str, Summary]:
    """Every quantity that the scored items carry, and those of ``metrics`` that must be asked for.

    ``accuracy`` and ``answer_nll`` always (their value is None where nothing was judged or no likelihood was
    computed); ``accuracy_norm`` for options; ``macro_f1`` and ``matthews`` for classes. Asked for: overlap with the
    reference, ``pass_at_k``, ``bits_per_byte`` and ``perplexity``.

    Raises:
        UserError: a metric needs a package that is not installed.
    """
    summaries = {
        "accuracy": mean_of([float(s.correct) for s in scored if s.correct is not None]),
        "answer_nll": mean_of([-s.logp_answer for s in scored if s.logp_answer is not None]),
    }
    if any(s.correct_norm is not None for s in scored):
        summaries["accuracy_norm"] = mean_of([float(s.correct_norm) for s in scored if s.correct_norm is not None])
    elif any(s.logp_choices is not None for s in scored):
        table = confusion(scored)
        summaries["macro_f1"] = Summary(macro_f1(table), len(scored), None)
        summaries["matthews"] = Summary(matthews(table), len(scored), None)
    summaries |= overlap.summaries(scored, metrics)
    if any(name.startswith("pass_at_") for name in metrics):
        summaries |= _passes(scored, metrics)
    if "bits_per_byte" in metrics:
        summaries |= _of_texts(scored)
    return summaries | preference_scoring.summaries(scored)


def pass_at_k(n: int, c: int, k: int) -> float | None:
    """Unbiased estimate that one of k samples passes, from c of n that did; None if fewer than k were drawn.

    1 - C(n-c, k) / C(n, k), Chen et al. 2021, arXiv:2107.03374, equation 1, in exact integers.
    """
    return None if n < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _passes(scored: Sequence[Scored], metrics: Sequence[str]) -> dict[str, Summary]:
    """``pass_at_k`` as the mean over items, whose samples are no independent items; accuracy is pass@1."""
    by_item: dict[str, list[bool]] = {}
    for s in scored:
        if s.correct is not None:
            by_item.setdefault(s.item.partition("#")[0], []).append(s.correct)
    found = {}
    for name in {"pass_at_1", *metrics}:
        if name.startswith("pass_at_"):
            k = int(name.removeprefix("pass_at_"))
            values = [pass_at_k(len(passed), sum(passed), k) for passed in by_item.values()]
            found[name] = mean_of([value for value in values if value is not None])
    return {**{name: found[name] for name in metrics if name in found}, "accuracy": found["pass_at_1"]}


def _of_texts(scored: Sequence[Scored]) -> dict[str, Summary]:
    """Bits per UTF-8 byte and perplexity per token, each over the whole of the texts."""
    nats = np.array([-s.logp_answer for s in scored if s.logp_answer is not None])
    of = np.array([len(s.answer.encode()) for s in scored])
    n, total = len(scored), float(of.sum())
    ratio = float(nats.sum()) / total
    # of a ratio of sums, by linearisation (Cochran 1977, Sampling Techniques, equation 6.13)
    error = math.sqrt(n / (n - 1) * float(((nats - ratio * of) ** 2).sum())) / total if n > 1 else None
    tokens = sum(s.length for s in scored)
    return {
        "bits_per_byte": Summary(ratio / math.log(2), n, None if error is None else error / math.log(2)),
        "perplexity": Summary(math.exp(float(nats.sum()) / tokens), n, None),
    }


def confusion(scored: Sequence[Scored]) -> NDArray[np.int64]:
    """Counts of right class (rows) against predicted class (columns), over the classes that occur in either."""
    classes = sorted({s.answer for s in scored} | {s.prediction for s in scored})
    position = {name: k for k, name in enumerate(classes)}
    table = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for s in scored:
        table[position[s.answer], position[s.prediction]] += 1
    return table


def macro_f1(table: NDArray[np.int64]) -> float:
    """Unweighted mean of the classes' F1 = 2 tp / (2 tp + fp + fn)."""
    return float(np.mean(2 * np.diag(table) / (table.sum(axis=0) + table.sum(axis=1))))


def matthews(table: NDArray[np.int64]) -> float | None:
    """Matthews correlation for any number of classes (Gorodkin 2004, equation 8); None if it is 0/0.

    It is 0/0 where every item, or every prediction, is of one class.
    """
    right, predicted, total = table.sum(axis=1), table.sum(axis=0), int(table.sum())
    above = int(np.trace(table)) * total - int(right @ predicted)
    below = (total**2 - int(predicted @ predicted)) * (total**2 - int(right @ right))
    return above / math.sqrt(below) if below else None


def _same_length(items: Sequence[Item], **lists: Sequence[object] | None) -> None:
    for name, values in lists.items():
        if values is not None and len(values) != len(items):
            raise ValueError(f"{len(items)} items and {len(values)} {name}")


def _finite(values: NDArray[np.float32] | NDArray[np.float64], items: Sequence[Item]) -> None:
    """Without this check, a model whose scores are NaN would be scored by an arbitrary argmax."""
    finite = np.isfinite(values).reshape(len(items), -1).all(axis=1) if len(items) else np.ones(0, dtype=bool)
    if not finite.all():
        bad = [items[int(i)].id for i in np.flatnonzero(~finite)]
        raise CheckFailed("finite-scores", f"{len(bad)} of {len(items)} items, {bad[0]} first, have scores not finite")
