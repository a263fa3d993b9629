"""Scores of preferences: from log-probabilities of pairs and of judged answers to scored items and summaries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness.errors import CheckFailed
from tasks.scored import Scored, Summary, mean_of
from tasks.task import Item


def score_pairs(
    items: Sequence[Item],
    logps: Sequence[tuple[float, float]],
    lengths: Sequence[tuple[int, int]],
    cut: Sequence[bool],
    reference: Sequence[tuple[float, float]] | None = None,
) -> list[Scored]:
    """Score pairs: right is a model that gives the chosen answer the higher log-probability. Equal ones are wrong.

    Args:
        items: each with ``answer`` and ``rejected``.
        logps: log-probabilities of both, in nat, summed over their tokens.
        lengths: tokens of both.
        cut: whether the pair was longer than the context.
        reference: the same log-probabilities under the reference model.

    Raises:
        CheckFailed: a log-probability is not finite.
    """
    scored = []
    for i, item in enumerate(items):
        chosen, rejected = logps[i]
        if not (math.isfinite(chosen) and math.isfinite(rejected)):
            raise CheckFailed("finite-scores", f"the pair {item.id} has log-probabilities {chosen} and {rejected}")
        long, short = lengths[i]
        scored.append(
            Scored(
                item=item.id,
                correct=chosen > rejected,
                prediction=item.answer if chosen > rejected else item.rejected,
                answer=item.answer,
                logp_answer=chosen,
                logp_choices=[chosen, rejected],
                margin=chosen - rejected,
                length=long,
                cut=cut[i],
                correct_norm=chosen / long > rejected / short,
                lengths=(long, short),
                reference=None if reference is None else reference[i],
            )
        )
    return scored


def score_judged(
    items: Sequence[Item],
    logps: Sequence[float],
    lengths: Sequence[int],
    cut: Sequence[bool],
    reference: Sequence[float] | None,
) -> list[Scored]:
    """Score answers judged good or bad: right is a model that raised a good one's likelihood or lowered a bad one's.

    Args:
        reference: log-probabilities before adaptation; None for the model that is the reference: nothing is judged.
    """
    scored = []
    for i, item in enumerate(items):
        if not math.isfinite(logps[i]):
            raise CheckFailed("finite-scores", f"the answer {item.id} has the log-probability {logps[i]}")
        change = None if reference is None else logps[i] - reference[i]
        scored.append(
            Scored(
                item=item.id,
                correct=None if change is None else (change > 0) == item.good and change != 0,
                prediction="" if change is None else ("good" if change > 0 else "bad"),
                answer="good" if item.good else "bad",
                logp_answer=logps[i] if item.good else None,
                margin=None if change is None else (change if item.good else -change),
                length=lengths[i],
                cut=cut[i],
                reference=None if reference is None else (reference[i],),
            )
        )
    return scored


def summaries(scored: Sequence[Scored]) -> dict[str, Summary]:
    """Metrics of pairs and judged answers beyond accuracy and answer NLL; nothing for other items."""
    pairs = [s for s in scored if s.lengths is not None]
    found: dict[str, Summary] = {}
    if pairs:
        found["length_bias"] = _length_bias(pairs)
    if rewards := [r for s in scored if (r := _reward_margin(s)) is not None]:
        found["reward_margin"] = mean_of(rewards)
        if pairs:
            found["reward_accuracy"] = mean_of([float(r > 0) for r in rewards])
    return found


def choice_nll(scored: Sequence[Scored]) -> float:
    """Mean negative log-probability of the chosen answer when only the two answers of a pair are possible, in nat.

    For judged answers, which have no alternative: the mean NLL of the good ones.
    """
    pairs = [s.margin for s in scored if s.lengths is not None and s.margin is not None]
    if pairs:
        return float(np.mean(np.logaddexp(0.0, -np.asarray(pairs))))
    return float(np.mean([-s.logp_answer for s in scored if s.logp_answer is not None]))


def _reward_margin(scored: Scored) -> float | None:
    """Log ratio of the chosen answer less that of the rejected one, in nat; beta is left out."""
    if scored.reference is None:
        return None
    if scored.lengths is None:
        return scored.margin
    assert scored.margin is not None  # a pair has one
    return scored.margin - (scored.reference[0] - scored.reference[1])


def _length_bias(pairs: Sequence[Scored]) -> Summary:
    """Share of pairs in which the longer answer is preferred, less the share in which it is the chosen one.

    Pairs of equal length say nothing and are left out; 0 is a preference for neither.
    """
    values = []
    for pair in pairs:
        assert pair.lengths is not None
        long, short = pair.lengths
        if long != short:
            chosen_is_longer = long > short
            values.append(float(pair.correct == chosen_is_longer) - float(chosen_is_longer))
    return mean_of(values)
