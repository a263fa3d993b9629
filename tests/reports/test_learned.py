"""Whether a trained row beats its own base: four verdicts, the reference, the filter, and the table of evidence."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import UserError
from harness.methods.catalog import METHODS
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Store
from peft_matrix import api, listings
from reports.apps import evidence
from reports.apps.evidence import REASONS
from reports.board.board import Board, BoardTable, build
from reports.board.formats import to_csv
from reports.board.spec import RowFilter
from tests.reports.making import ITEMS, cell, ok_record, sample_rows

COLUMNS = [{"field": "method"}, {"field": "learned"}, {"metric": "accuracy"}]


def untrained(seed: int = 0, quantization: str = "none", accuracy: float = 0.3) -> Any:
    return ok_record(cell("none", quantization, seed), accuracy=accuracy)


def answered(
    method: str, given: str, answers: list[str], *, loss: tuple[float, ...] = (), kind: str = "sequence-classification"
) -> Any:
    """A row that answers every item alike."""
    rows = sample_rows("adapted", [given == answer for answer in answers])
    for row, answer in zip(rows, answers, strict=True):
        row |= {"prediction": given, "answer": answer}
    data = samples_to_parquet(rows)
    record, _ = ok_record(cell(method, task={"kind": kind}), retained=None, merged=False)
    accuracy = sum(given == answer for answer in answers) / len(answers)
    metrics = {**record.metrics, "accuracy": record.metrics["accuracy"].model_copy(update={"value": accuracy})}
    changed = {"samples": samples_ref(data), "metrics": metrics, "series": {"loss": loss} if loss else {}}
    return record.model_copy(update=changed), data


def built(root: Path, *made: Any, **changes: Any) -> BoardTable:
    store = Store(root)
    for one in made:
        store.append(*one)
    board = Board.model_validate({"name": "b", "title": "B", "columns": COLUMNS, **changes})
    return build(board, store.records()[0], store)


def verdicts(table: BoardTable) -> dict[str, str]:
    rows = [row for section in table.sections for row in section.rows]
    return {row.labels["method"]: row.learned.verdict if row.learned else "" for row in rows}


def test_a_base_in_its_best_format_weakens_the_evidence(tmp_path: Path) -> None:
    record, data = untrained()
    readings = {"best_format_accuracy": record.metrics["accuracy"].model_copy(update={"value": 0.6})}
    base = (record.model_copy(update={"metrics": {**record.metrics, **readings}}), data)
    table = built(tmp_path, base, ok_record(cell("good"), accuracy=0.7))
    (good,) = [row.learned for row in table.sections[0].rows if row.labels["method"] == "good"]
    assert good is not None
    assert good.base == "none / none in its best format"
    assert good.effect == pytest.approx(0.1, abs=0.02)
    assert (good.p < 0.05) == (good.low > 0)  # p of the gain that is printed, not of 0.7 against 0.3
    assert good.p > 1e-3


def test_a_row_is_judged_against_its_own_base(tmp_path: Path) -> None:
    seeds = range(2)
    trained = [
        ok_record(cell(method, seed=seed), accuracy=rate)
        for method, rate in (("good", 0.8), ("same", 0.31), ("bad", 0.05))
        for seed in seeds
    ]
    table = built(tmp_path, *(untrained(seed) for seed in seeds), *trained)
    assert verdicts(table) == {"good": "learned", "same": "no evidence", "bad": "worse", "none": ""}
    good = next(row.learned for row in table.sections[0].rows if row.labels["method"] == "good")
    assert good is not None
    assert good.base == "none / none"
    assert 0.3 < good.low < good.effect < good.high < 0.7
    assert "points" in good.why


def test_the_base_is_that_of_the_same_quantization(tmp_path: Path) -> None:
    four_bits = [untrained(quantization="nf4", accuracy=0.05), untrained(accuracy=0.6)]
    table = built(tmp_path, *four_bits, ok_record(cell("lora", "nf4"), accuracy=0.4))
    found = next(row.learned for row in table.sections[0].rows if row.labels["method"] == "lora")
    assert found is not None
    assert (found.verdict, found.base) == ("learned", "none / nf4")


def test_one_answer_for_all_items_is_degenerate(tmp_path: Path) -> None:
    answers = ["a"] * 120 + ["b"] * (ITEMS - 120)
    other = ok_record(cell("lora", task={"kind": "sequence-classification"}), retained=None, merged=False)
    table = built(tmp_path, answered("stuck", "a", answers), other)
    found = next(row.learned for row in table.sections[0].rows if row.labels["method"] == "stuck")
    assert found is not None
    assert found.verdict == "degenerate"
    assert found.base == "the most frequent answer"
    assert found.effect == 0
    assert found.why.startswith("one answer for all items")


def test_a_language_model_without_a_base_has_no_verdict(tmp_path: Path) -> None:
    """It knew many answers before it was trained; a constant answer says nothing about that."""
    answers = ["a"] * 120 + ["b"] * (ITEMS - 120)
    asked = [answered("trained", "a", answers, kind=kind) for kind in ("multiple-choice", "generation")]
    for number, one in enumerate(asked):
        assert verdicts(built(tmp_path / str(number), one)) == {"trained": ""}
    assert verdicts(built(tmp_path / "base", asked[1], untrained(accuracy=0.3))) == {"trained": "learned", "none": ""}


def test_a_board_whose_reference_did_not_learn_ranks_nothing(tmp_path: Path) -> None:
    seeds = range(3)
    made = [untrained(seed) for seed in seeds]
    for method, rate in (("full", 0.3), ("lora", 0.9), ("ia3", 0.5)):
        made += [ok_record(cell(method, seed=seed), accuracy=rate) for seed in seeds]
    (section,) = built(tmp_path / "bad", *made).sections
    assert all(row.rank is None for row in section.rows)
    assert section.caption.startswith("Unranked: full fine-tuning itself did not learn")
    well = [one for one in made if one[0].cell["method"]["label"] != "full"]
    well += [ok_record(cell("full", seed=seed), accuracy=0.8) for seed in seeds]
    (section,) = built(tmp_path / "good", *well).sections
    assert any(row.rank for row in section.rows)


@pytest.mark.parametrize(("wanted", "left"), [("learned", {"good"}), (["no *", "worse"], {"same"})])
def test_rows_are_filtered_by_their_verdict(tmp_path: Path, wanted: Any, left: set[str]) -> None:
    made = [untrained(), ok_record(cell("good"), accuracy=0.8), ok_record(cell("same"), accuracy=0.31)]
    table = built(tmp_path, *made, rows={"learned": wanted})
    assert set(verdicts(table)) == left


def said(method: str, nats: float, answers: list[str]) -> Any:
    """A row without a right answer; the log-probability of the right ones is -``nats`` on average."""
    rng = np.random.default_rng(5)
    rows = sample_rows("adapted", [False] * len(answers))
    for row, answer in zip(rows, answers, strict=True):
        row |= {"prediction": "?" + answer[1:], "answer": answer, "logp_answer": -nats + rng.normal(0, 0.3)}
    data = samples_to_parquet(rows)
    record, _ = ok_record(cell(method), retained=None, merged=False)
    metrics = {**record.metrics, "accuracy": record.metrics["accuracy"].model_copy(update={"value": 0.0})}
    return record.model_copy(update={"samples": samples_ref(data), "metrics": metrics}), data


def test_an_answer_in_the_right_format_is_no_content(tmp_path: Path) -> None:
    letters = np.random.default_rng(1).choice(list("abcdefghij"), (ITEMS, 6))
    answers = ["".join(word) for word in letters]
    blind = 6 * np.log(10)  # 13.8 nats: six letters, each one of ten
    made = [said("none", 54, answers), said("format", blind, answers), said("content", blind - 1, answers)]
    table = built(tmp_path, *made)
    assert verdicts(table) == {"none": "", "format": "degenerate", "content": "learned"}
    found = next(row.learned for row in table.sections[0].rows if row.labels["method"] == "format")
    assert found is not None
    assert found.why.startswith("only the format was learned")
    assert found.measure == "answer_nll"


def test_a_label_that_repeats_is_known_by_its_share(tmp_path: Path) -> None:
    answers = ["positive"] * 140 + ["negative"] * 60
    share = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3))
    made = [said("none", 5, answers), said("shares", share, answers), said("better", share - 0.2, answers)]
    assert verdicts(built(tmp_path, *made)) == {"none": "", "shares": "degenerate", "better": "learned"}


def test_a_csv_board_has_the_verdicts(tmp_path: Path) -> None:
    table = built(tmp_path, untrained(), ok_record(cell("good"), accuracy=0.8))
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(to_csv.render(table)))}
    good, base = rows["good"], rows["none"]
    assert good["learned"] == "learned"
    assert 0.3 < float(good["learned low95"]) < float(good["learned effect"]) < float(good["learned high95"])
    assert (good["learned measure"], good["learned above"]) == ("accuracy", "none / none")
    assert [value for name, value in base.items() if name.startswith("learned")] == [""] * 6


def test_a_verdict_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="no evidence, worse, degenerate"):
        RowFilter().of_verdicts(["lerned"])


def test_the_api_keeps_rows_by_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).parents[2] / "results" / "reference" / "cpu-2core-tuning"
    found = api.load(root).board("fair-methods", learned=["no evidence", "degenerate"])
    kept = [row for section in found.table.sections for row in section.rows]
    assert kept
    assert {row.learned.verdict for row in kept if row.learned} <= {"no evidence", "degenerate"}
    assert all(row.learned for row in kept)


# --- the table of evidence -----------------------------------------------------------------------
def judged(method: str, p: float = 1e-9, **changes: Any) -> evidence.Judged:
    plain = evidence.Judged(
        *(method, True, "encoder", "trec", "none", 0.8, 0.4, 0.3, 0.5, p, "accuracy", "none / none"),
        *(True, False, 1, ("a" * 64,)),
    )
    return plain._replace(**changes)


def test_evidence_prefers_real_tasks_over_larger_gains() -> None:
    rows = [judged("lora", real=False, model="nano", gain=0.99, low=0.98), judged("lora")]
    found = evidence.table(rows, METHODS)["lora"]
    assert (found["learned"], found["model"], found["gain"], found["interval"]) == (True, "encoder", 0.4, [0.3, 0.5])
    assert found["nano"] == 0.98
    assert set(found) >= {"learned", "model", "task", "gain", "interval", "record", "why", "tuned", "seeds"}


def test_evidence_is_corrected_for_the_number_of_rows() -> None:
    others = [judged("full", learned=False) for _ in range(99)]
    assert evidence.table([judged("lora", p=4e-4), *others], METHODS)["lora"]["learned"]
    assert not evidence.table([judged("lora", p=6e-4), *others], METHODS)["lora"]["learned"]


def test_a_classifier_has_to_beat_its_head_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kind = {"kind": "sequence-classification"}
    for method, rate in (("head", 0.4), ("lora", 0.61), ("full", 0.9)):
        store.append(*ok_record(cell(method, task=kind), accuracy=rate, retained=None, merged=False))
    faster = cell("head", task=kind)
    faster["method"] |= {"learning_rate": 0.1}  # the best head counts, whatever its rate
    store.append(*ok_record(faster, accuracy=0.6, retained=None, merged=False))
    found = {row.method: row for row in evidence.judge([tmp_path])}
    assert {name: row.learned for name, row in found.items()} == {"head": True, "lora": False, "full": True}
    assert found["full"].base == "the head alone"
    assert found["full"].gain < 0.5


def test_every_method_has_evidence_or_a_reason() -> None:
    known = evidence.known()
    assert list(known) == list(METHODS)
    assert [row["evidence"] for row in listings.methods()] == list(known.values())
    for name, entry in known.items():
        assert entry["learned"] or entry["why"], name


def test_no_reason_outlives_its_cause() -> None:
    known = evidence.known()
    assert [name for name in REASONS if name not in METHODS] == []
    outdated = [name for name in REASONS if known[name]["learned"]]
    assert outdated == [], "these have evidence now: delete their reasons"


def test_a_tuned_rate_is_shown_without_its_trials() -> None:
    """The committed store of adalora's row holds no trial; the record says how the rate was chosen."""
    known = evidence.known()
    assert (known["adalora"]["tuned"], known["eva"]["tuned"]) == (True, False)


def test_the_evidence_file_is_one_line_per_method() -> None:
    text = evidence.to_json(evidence.known())
    assert json.loads(text) == evidence.known()
    assert len(text.splitlines()) == len(list(METHODS)) + 2
