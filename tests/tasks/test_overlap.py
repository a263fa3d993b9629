"""Text metrics against the packages' own entry points and values worked out by hand."""

from __future__ import annotations

import math

import pytest

from tasks import overlap
from tasks.scored import Scored
from tasks.scoring import score_texts, summarise
from tasks.task import Item, load_task

sacrebleu = pytest.importorskip("sacrebleu")

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    (" a dog barks at night ", "the dog barked all night long"),
    ("", "something was said"),
]
SCORED = [Scored(f"t/{i}", None, given, f" {right}") for i, (given, right) in enumerate(PAIRS)]


def test_bleu_and_chrf_are_those_of_the_corpus() -> None:
    found = summarise(SCORED, ["bleu", "chrf"])
    given, right = [g.strip() for g, _ in PAIRS], [[r for _, r in PAIRS]]
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(given, right).score)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(given, right).score)
    assert found["bleu"].standard_error is None
    assert summarise(SCORED[:1], ["bleu"])["bleu"].value == pytest.approx(100)


def test_rouge_by_hand() -> None:
    found = summarise(SCORED, ["rouge_1", "rouge_2", "rouge_l"])
    # second pair: of 5 and 6 words "dog", "bark" (stem) and "night" are shared, and one pair of words of 4 and 5
    assert found["rouge_1"].value == pytest.approx((1 + 2 * 0.6 * 0.5 / 1.1 + 0) / 3)
    assert found["rouge_2"].value == pytest.approx((1 + 2 * 0.25 * 0.2 / 0.45 + 0) / 3)
    assert found["rouge_l"].value == found["rouge_1"].value
    assert found["rouge_1"].n == 3
    assert found["rouge_1"].standard_error is not None


def test_only_what_a_task_asks_for_is_computed() -> None:
    assert set(summarise(SCORED)) == {"accuracy", "answer_nll"}
    assert {"rouge_1", "rouge_2", "rouge_l"} <= set(summarise(SCORED, load_task("xsum", []).definition.metrics))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(Exception, match=r"need the package sacrebleu.*peft-matrix\[lm-eval\]"):
        overlap.summaries(SCORED, ["bleu"])


def test_bits_per_byte_and_its_error() -> None:
    """Two texts of 4 and 12 bytes; the error by linearisation, worked out by hand."""
    items = [Item("t/0", "", "abcd"), Item("t/1", "", "éé" + "x" * 8)]
    scored = score_texts(items, [-4.0, -8.0], lengths=[2, 6], cut=[False, False])
    found = summarise(scored, ["bits_per_byte", "perplexity"])
    assert found["bits_per_byte"].value == pytest.approx(12 / 16 / math.log(2))
    residuals = [4 - 0.75 * 4, 8 - 0.75 * 12]
    error = math.sqrt(2 / 1 * sum(r * r for r in residuals)) / 16 / math.log(2)
    assert found["bits_per_byte"].standard_error == pytest.approx(error)
    assert found["perplexity"].value == pytest.approx(math.exp(12 / 8))
    assert found["accuracy"].value is None


@pytest.mark.parametrize(
    ("given", "right", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("in the year 1889", "1889", 0.0, 0.5),
        ("red red blue", "red blue blue", 0.0, 2 / 3),  # a word counts as often as in both
        ("blue red", "red blue", 0.0, 1.0),
        ("", "1889", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),  # no word is left of either
        ("theatre", "atre", 0.0, 0.0),  # an article inside a word stays
    ],
)
def test_answers_are_compared_by_their_words(given: str, right: str, exact: float, f1: float) -> None:
    scored = [Scored("i", None, given, right)]
    found = summarise(scored, ["exact_match", "token_f1"])
    assert found["exact_match"].value == exact
    assert found["token_f1"].value == pytest.approx(f1)
    assert "token_f1" not in summarise(scored)
