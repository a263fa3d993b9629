"""Whether a trained row beats its own base: four verdicts, the reference, and the filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.store.store import Store, samples_ref, samples_to_parquet
from reports.board.board import Board, BoardTable, build
from tests.reports.making import ITEMS, cell, ok_record, sample_rows

COLUMNS = [{"field": "method"}, {"field": "learned"}, {"metric": "accuracy"}]


def untrained(seed: int = 0, quantization: str = "none", accuracy: float = 0.3) -> Any:
    return ok_record(cell("none", quantization, seed), accuracy=accuracy)


def answered(method: str, given: str, answers: list[str], *, loss: tuple[float, ...] = ()) -> Any:
    """A row that answers every item alike."""
    rows = sample_rows("adapted", [given == answer for answer in answers])
    for row, answer in zip(rows, answers, strict=True):
        row |= {"prediction": given, "answer": answer}
    data = samples_to_parquet(rows)
    record, _ = ok_record(cell(method), retained=None, merged=False)
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
    table = built(tmp_path, answered("stuck", "a", answers), ok_record(cell("lora"), retained=None, merged=False))
    found = next(row.learned for row in table.sections[0].rows if row.labels["method"] == "stuck")
    assert found is not None
    assert found.verdict == "degenerate"
    assert found.base == "the most frequent answer"
    assert found.effect == 0
    assert found.why.startswith("one answer for all items")


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
