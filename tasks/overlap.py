"""Metrics that compare completions with references.

BLEU, chrF and ROUGE by the field's own packages; exact match and token F1 of question answering.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.errors import UserError
from tasks.scored import Scored, Summary, mean_of

CORPUS = {"bleu": "BLEU", "chrf": "CHRF"}
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def summaries(scored: Sequence[Scored], metrics: Sequence[str]) -> dict[str, Summary]:
    """Those of ``metrics`` that are in here, over all items. White space around a text does not count.

    BLEU and chrF are of the corpus and have no standard error of a mean; ROUGE is a mean over the items.

    Raises:
        UserError: a package is not installed.
    """
    found = {name: Summary(_corpus(CORPUS[name], scored), len(scored), None) for name in metrics if name in CORPUS}
    found |= {name: mean_of([ANSWERS[name](s) for s in scored]) for name in metrics if name in ANSWERS}
    asked = [name for name in metrics if name in ROUGE]
    if asked:
        found |= _rouge(asked, scored)
    return found


def words(text: str) -> list[str]:
    """Lower-case words of an answer without punctuation and articles (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    plain = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return _ARTICLES.sub(" ", plain).split()


def exact_match(scored: Scored) -> float:
    """1.0 if completion and reference have the same words in the same order, else 0.0."""
    return float(words(scored.prediction) == words(scored.answer))


def token_f1(scored: Scored) -> float:
    """Harmonic mean of precision and recall over the words that completion and reference share.

    A word counts as often as it is in both. Where either has no words, 1.0 if both have none, else 0.0.
    """
    given, right = words(scored.prediction), words(scored.answer)
    if not given or not right:
        return float(given == right)
    shared = (Counter(given) & Counter(right)).total()
    return 2 * shared / (len(given) + len(right))


ANSWERS = {"exact_match": exact_match, "token_f1": token_f1}
_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def _corpus(name: str, scored: Sequence[Scored]) -> float:
    metric = getattr(_package("sacrebleu").metrics, name)()
    score = metric.corpus_score([s.prediction.strip() for s in scored], [[s.answer.strip() for s in scored]])
    return float(score.score)


def _rouge(names: Sequence[str], scored: Sequence[Scored]) -> dict[str, Summary]:
    _package("rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([ROUGE[name] for name in names], use_stemmer=True)
    rows = [scorer.score(s.answer.strip(), s.prediction.strip()) for s in scored]
    found = {}
    for name in names:
        values = np.array([row[ROUGE[name]].fmeasure for row in rows])
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
        found[name] = Summary(float(values.mean()), len(values), error)
    return found


def _package(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        fix = "pip install 'peft-matrix[lm-eval]'"
        raise UserError(f"the task's metrics need the package {name.replace('_', '-')}: {error}", fix=fix) from None
