"""Texts that the task never saw, in bits per byte before adaptation and after it, through the real command line."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from tests.runners.conftest import Bench

TEXTS = ["the cat sat on the mat", "a quick brown fox", "held out from everything"]
TASK = """
name: prose
version: 1
summary: Three lines.
kind: language-modelling
licence: none
source: {files: {train: prose.jsonl, test: prose.jsonl}}
splits:
  train: {from: train}
  test: {from: test}
answer: "{text}"
"""


def with_texts(bench: Bench) -> None:
    folder = bench.root / "tasks"
    folder.mkdir()
    (folder / "prose.yaml").write_text(TASK)
    (folder / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))


@pytest.mark.slow
def test_the_same_texts_are_scored_before_and_after(bench: Bench) -> None:
    with_texts(bench)
    path = bench.write(
        methods=["none", {"name": "full", "learning_rate": 1e-2}],
        training={"steps": 10, "batch_size": 4, "learning_rate": 1e-2, "max_length": 32},
        evaluation={"batch_size": 8, "held_out": ["prose"]},
    )
    done = bench("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    records = {r["cell"]["method"]["name"]: r for r in bench.records()}
    for record in records.values():
        samples = pq.read_table(
            bench.root / "results" / "samples" / f"{record['samples']['digest']}.parquet"
        ).to_pylist()
        for arm, name in (("base", "base_held_out_bits_per_byte"), ("retained", "held_out_bits_per_byte")):
            rows = [row for row in samples if row["arm"] == arm and row["task"] == "prose"]
            assert sorted(row["answer"] for row in rows) == sorted(TEXTS)
            nats = -sum(row["logp_answer"] for row in rows)
            of = sum(len(text.encode()) for text in TEXTS)
            assert record["metrics"][name]["value"] == pytest.approx(nats / of / 0.6931471805599453)
            assert record["metrics"][name]["n"] == 3

    def change(method: str) -> float:
        found = records[method]["metrics"]
        return float(found["held_out_bits_per_byte"]["value"] - found["base_held_out_bits_per_byte"]["value"])

    assert change("none") == pytest.approx(0, abs=1e-6)
    assert abs(change("full")) > 1e-3
    assert records["none"]["cell"]["held_out"].keys() == {"prose"}


@pytest.mark.slow
def test_a_task_of_texts_is_a_task_like_any_other(bench: Bench) -> None:
    """Nothing is right or wrong there: its items are kept without a verdict, and the cell is no error."""
    with_texts(bench)
    path = bench.write(methods=["none"], tasks=["prose"], evaluation={"batch_size": 8, "retention": False})
    done = bench("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = bench.records()
    assert record["metrics"]["bits_per_byte"]["value"] > 0
    assert record["metrics"]["accuracy"]["value"] is None
    board = bench("board", str(path))
    assert board.returncode == 0, board.stderr


def test_default_keeps_old_keys_and_questions_are_no_texts(bench: Bench) -> None:
    with_texts(bench)

    def keys(**evaluation: object) -> set[str]:
        plan = json.loads(bench("plan", str(bench.write(evaluation={"batch_size": 8, **evaluation})), "--json").stdout)
        return {cell["key"] for cell in plan["run"]}

    assert keys() == keys(held_out=[])
    assert not keys() & keys(held_out=["prose"])
    wrong = bench("plan", str(bench.write(evaluation={"held_out": ["strings-copy"]})))
    assert wrong.returncode == 2
    assert "held_out: the task 'strings-copy' is generation" in wrong.stderr
