"""Boards: their files, ranks, front, sections, differences."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness import stats
from harness.errors import UserError
from harness.metrics import reading
from harness.store.indexed import IndexedRecord, read_records
from harness.store.samples import samples_table, samples_to_parquet
from harness.store.store import Store
from reports.board.board import Board, BoardTable, build, find_boards, load_board
from reports.board.provenance_summary import describe
from reports.data import ranking
from reports.data.effects import Evidence
from reports.data.ranking import pareto_front, rank_rows
from tests.reports.making import ENVIRONMENT, cell, failed_record, ok_record, sample_rows


def board(**changes):
    return Board.model_validate({**load_board("default", []).model_dump(), **changes})


def stored(tmp_path, *made):
    store = Store(tmp_path / "store")
    for one in made:
        store.append(*(one if isinstance(one, tuple) else (one,)))
    return store


def built(store, which=None):
    return build(which or board(), store.records()[0], store)


# --- files ---------------------------------------------------------------------------------------
def test_every_built_in_board_loads():
    assert {"default", "classification"} <= set(find_boards([]))
    for name in find_boards([]):
        assert load_board(name, []).name == name


def test_a_workspace_comes_first(tmp_path):
    folder = tmp_path / "reports" / "boards"
    folder.mkdir(parents=True)
    (folder / "default.yaml").write_text("name: default\ntitle: Mine\ncolumns: [{metric: accuracy}]\n")
    assert load_board("default", [tmp_path]).title == "Mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("columns: [{metric: acuracy}]", "unknown metric 'acuracy'. Did you mean 'accuracy'"),
        ("columns: [{metric: accuracy, field: rank}]", "one of 'metric', 'difference', 'field'"),
        ("columns: [{metric: accuracy}, {metric: accuracy}]", "is listed twice"),
        ("columns: [{metric: accuracy}]\npareto: [{metric: accuracy}]", "needs two axes"),
        ("columns: [{difference: accuracy}]", "needs a 'baseline'"),
        ("columns: [{metric: accuracy}]\nsortby: accuracy", "unknown key 'sortby'"),
        ("columns: [{metric: accuracy}]\nsort: speed", "unknown metric 'speed'"),
        ("columns: [{metric: accuracy}]\npareto: [{metric: accuracy}, {metric: power_mean_w}]", "no better direction"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path, text, said):
    folder = tmp_path / "reports" / "boards"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"name: mine\ntitle: Mine\n{text}\n")
    with pytest.raises(UserError) as error:
        load_board("mine", [tmp_path])
    assert said in str(error.value)
    assert "mine.yaml, line" in str(error.value)


def test_unknown_board_says_what_there_is():
    with pytest.raises(UserError, match="Did you mean 'default'"):
        load_board("defualt", [])


# --- ranks ---------------------------------------------------------------------------------------
def test_ranks_are_those_of_the_paired_tests(store, table):
    (section,) = table.sections
    records = {record.id: record for record in store.records()[0]}
    arms = {}
    for row in section.rows:
        if row.rank:
            tables = [store.samples(records[i]) for i in row.records if records[i].outcome.status == "ok"]
            arms[row.config] = np.array(
                [[r["correct"] for r in t.to_pylist() if r["arm"] == "adapted"] for t in tables], dtype=float
            )
    pairs = list(itertools.combinations(sorted(arms), 2))
    order = sorted(arms)
    better = stats.fit_rows([arms[config] for config in order]).better()
    wins = dict.fromkeys(arms, 0)
    losses = dict.fromkeys(arms, 0)
    for a, b in pairs:
        for winner, loser in ((a, b), (b, a)):
            if better[order.index(winner), order.index(loser)]:
                wins[winner] += 1
                losses[loser] += 1
    expected = {config: (1 + losses[config], len(arms) - wins[config]) for config in arms}
    assert {row.config: row.rank for row in section.rows if row.rank} == expected
    assert max(first for first, _ in expected.values()) > 10, "the example must have significant differences"


def test_similar_rows_share_a_rank_without_a_single_leader(tmp_path):
    made = [ok_record(cell(name, seed=s), accuracy=0.6) for name in ("lora", "dora", "ia3") for s in (0, 1)]
    (section,) = built(stored(tmp_path, *made)).sections
    assert [row.rank for row in section.rows] == [(1, 3)] * 3


def test_rows_are_ordered_best_first_and_failures_last(table):
    (section,) = table.sections
    ok = [row.cells["accuracy"].value for row in section.rows if row.status == "ok"]
    assert ok == sorted(ok, reverse=True)
    states = [row.status == "ok" for row in section.rows]
    assert states == sorted(states, reverse=True)
    assert len(section.rows) == 24


def test_without_samples_nothing_is_ranked(store):
    table = build(board(), store.records()[0])
    rows = [row for row in table.sections[0].rows if row.status == "ok"]
    assert all(row.rank is None for row in rows)
    assert all("unranked: no stored samples that cover all its seeds" in row.notes for row in rows)


@pytest.mark.parametrize(
    ("environment", "note"), [({**ENVIRONMENT, "imported": {"from": "elsewhere"}}, "not run here")]
)
def test_imported_rows_are_shown_and_unranked(tmp_path, environment, note):
    ours = [ok_record(cell(m, seed=s), accuracy=a) for m, a in (("lora", 0.5), ("dora", 0.1)) for s in range(3)]
    theirs = ok_record(cell("magic"), accuracy=0.99, environment=environment)
    (section,) = built(stored(tmp_path, *ours, theirs)).sections
    imported = next(row for row in section.rows if row.labels["method"] == "magic")
    assert imported.rank is None
    assert not imported.front
    assert note in imported.notes
    assert {row.rank for row in section.rows if row.rank} == {(1, 1), (2, 2)}


@pytest.mark.parametrize(
    ("quantity", "value", "note"), [("throttled_fraction", 0.4, "throttled"), ("foreign_processes", 1, "shared")]
)
def test_disturbed_rows_are_shown_and_unranked(tmp_path, quantity, value, note):
    ours = [ok_record(cell(m, seed=s), accuracy=a) for m, a in (("lora", 0.5), ("dora", 0.1)) for s in range(3)]
    record, samples = ok_record(cell("fast"), accuracy=0.99)
    spans = tuple(
        s.model_copy(update={"readings": (*s.readings, reading(quantity, value, source="NVML"))}) for s in record.spans
    )
    (section,) = built(stored(tmp_path, *ours, (record.model_copy(update={"spans": spans}), samples))).sections
    disturbed = next(row for row in section.rows if row.labels["method"] == "fast")
    assert (disturbed.rank, disturbed.front) == (None, False)
    assert any(note in text for text in disturbed.notes)
    assert {row.rank for row in section.rows if row.rank} == {(1, 1), (2, 2)}


def test_rows_scored_on_other_items_are_not_paired():
    rows = [
        {
            "config": name,
            "status": "ok",
            "marks": (),
            "accuracy": 0.5,
            "ok_records": (name + "0", name + "1"),
            "seeds": (0, 1),
        }
        for name in ("a", "b", "c")
    ]

    def samples(name):
        rows = sample_rows("adapted", [True] * 10)
        moved = [{**row, "item": str(int(row["item"]) + (5 if name[0] == "c" else 0))} for row in rows]
        return samples_table(samples_to_parquet(moved), where="here")

    found = rank_rows(rows, "accuracy", Evidence(samples))
    assert set(found.ranks) == {"a", "b"}
    assert found.unranked == {"c": "scored on other items than the rest"}


def test_of_too_many_rows_the_best_are_ranked(tmp_path, monkeypatch):
    rates = {f"m{number}": 0.2 + 0.1 * number for number in range(7)}
    made = [ok_record(cell(name, seed=seed), accuracy=rate) for name, rate in rates.items() for seed in (0, 1)]
    store = stored(tmp_path, *made)
    (whole,) = built(store).sections
    assert all(row.rank for row in whole.rows)
    monkeypatch.setattr(ranking, "MOST_RANKED_ROWS", 3)
    (section,) = built(store).sections
    assert [row.labels["method"] for row in section.rows if row.rank] == ["m6", "m5", "m4"]
    assert [row.rank for row in section.rows[:3]] == [(1, 1), (2, 2), (3, 3)]
    assert section.caption.startswith("Ranks are among the 3 best of 7 rows by their mean. Ranks by accuracy: 3 pairs")
    rest = [row for row in section.rows if not row.rank]
    assert len(rest) == 4
    assert all("not among the 3 best rows" in " ".join(row.notes) for row in rest)


def test_one_seed_boards_rank_nothing_and_show_effects(tmp_path):
    made = [ok_record(cell("lora"), accuracy=0.9), ok_record(cell("full"), accuracy=0.3)]
    chosen = board(baseline={"method": "full"}, columns=[{"field": "rank"}, {"difference": "accuracy"}])
    store = stored(tmp_path, *made)
    (section,) = build(chosen, store.records()[0], store).sections
    assert [row.rank for row in section.rows] == [None, None]
    assert section.caption.startswith("Unranked: one seed")
    shown = next(r for r in section.rows if r.labels["method"] == "lora").cells["accuracy.vs_baseline"]
    assert 0.4 < shown.low < shown.value < shown.high
    assert "these two checkpoints only" in shown.interval


def test_one_seed_rows_say_so(table):
    row = next(r for r in table.sections[0].rows if (r.labels["method"], r.labels["quantization"]) == ("ia3", "nf4"))
    assert row.notes == ("one seed: a single run, not ranked", "seed 1: oom at train")


# --- sections ------------------------------------------------------------------------------------
def test_machines_and_protocols_get_separate_tables(tmp_path):
    other = copy.deepcopy(ENVIRONMENT)
    other["cpu"]["model"] = "Example CPU 4000"
    made = [ok_record(cell("lora")), ok_record(cell("lora"), environment=other), ok_record(cell("lora", protocol=2))]
    sections = built(stored(tmp_path, *made)).sections
    assert len(sections) == 3
    named = {(dict(s.conditions)["machine"], dict(s.conditions)["protocol"]) for s in sections}
    assert named == {("Example CPU 3000", "1"), ("Example CPU 4000", "1"), ("Example CPU 3000", "2")}


def test_rows_with_equal_labels_are_disambiguated(tmp_path):
    cells = [cell("lora"), cell("lora")]
    for one, rank in zip(cells, (4, 8), strict=True):
        one["method"]["params"] = {"rank": rank}
    (section,) = built(stored(tmp_path, *map(ok_record, cells))).sections
    assert sorted(row.labels["method"] for row in section.rows) == ["lora (rank=4)", "lora (rank=8)"]


def test_row_filter_and_optional_columns(store):
    chosen = board(rows={"method": ["lora*", "none"], "quantization": "nf4"})
    (section,) = build(chosen, store.records()[0], store).sections
    assert {row.labels["method"] for row in section.rows} == {"lora", "lora-r1", "none"}
    keys = [head.key for head in build(chosen, store.records()[0], store).heads]
    assert "train.rss_growth_bytes" in keys
    assert "train.energy_gross_j" not in keys, "no row has a value"
    assert "train.cuda_allocated_peak_bytes" not in keys


def test_planned_cells_without_a_record_are_counted(store):
    records = store.records()[0]
    assert build(board(), records, store, planned=[r.key for r in records] + ["new1", "new2"]).not_run == 2


# --- front ---------------------------------------------------------------------------------------
def test_front_by_hand():
    def row(config, accuracy, memory, low=None, sd=0.0):
        return {
            "config": config,
            "status": "ok",
            "marks": (),
            "accuracy": accuracy,
            "accuracy:low": accuracy - 0.01,
            "accuracy:high": accuracy + 0.01,
            "train.rss_growth_bytes": memory,
            "train.rss_growth_bytes:sd": sd,
        }

    rows = [
        row("best", 0.9, 300.0),
        row("small", 0.5, 100.0),
        row("worse on both", 0.6, 400.0),
        row("same score, more memory", 0.9, 310.0),
        row("luckier score, more memory", 0.905, 310.0),
        row("same score, memory within noise", 0.9, 301.0, sd=5.0),
    ]
    axes = ["accuracy", "train.rss_growth_bytes"]
    from reports.data.ranking import Ranking

    front = pareto_front(rows, axes, "accuracy", Ranking())
    assert front == {"best", "small", "same score, memory within noise"}
    shared = [{**r, "marks": ("shared",)} if r["config"] == "best" else r for r in rows]
    assert "best" not in pareto_front(shared, axes, "accuracy", Ranking())


@pytest.mark.parametrize("twin", [1.0, 1.3])
def test_blocks_and_identical_arms_decide_a_front_of_times(tmp_path, twin):
    store = Store(tmp_path)
    for block in range(4):
        order = {"order": {"run": "r", "block": block, "position": 0, "size": 3}}
        load = 1 + block  # more than the methods differ, so that no standard deviation over seeds finds anything
        for method, ms, role in (
            ("fast", 20.0, {}),
            ("slow", 22.0 + block % 2 / 10, {}),
            ("fast", 20.0 * twin ** (1 + block % 2 / 10), {"role": "timing", "arm": "identical"}),
        ):
            store.append(
                *ok_record(cell(method, seed=block, **role), step_ms=ms * load, environment={**ENVIRONMENT, **order})
            )
    columns = [{"field": "method"}, {"metric": "accuracy"}, {"metric": "step_ms"}]
    chosen = board(columns=columns, pareto=[{"metric": "accuracy"}, {"metric": "step_ms"}], baseline=None)
    (section,) = build(chosen, store.records()[0], store).sections
    front = {row.labels["method"] for row in section.rows if row.front}
    assert front == ({"fast"} if twin == 1 else {"fast", "slow"})
    assert "two identical arms (A/A) of the sweep differ by up to" in section.caption
    assert len(section.rows) == 2, "an identical arm is no row"


def test_a_tested_tie_removes_no_row(tmp_path):
    # three points apart on 200 items: not significant, so the lower one stays on the front if memory is alike
    made = [ok_record(cell("lora"), accuracy=0.60, rss=5e8), ok_record(cell("dora"), accuracy=0.62, rss=5e8)]
    (section,) = built(stored(tmp_path, *made)).sections
    by_method = {row.labels["method"]: row for row in section.rows}
    memory = {m: row.cells["train.rss_growth_bytes"].value for m, row in by_method.items()}
    accuracy = {m: row.cells["accuracy"].value for m, row in by_method.items()}
    dominated = [m for m in memory for o in memory if memory[o] < memory[m]]
    assert {m for m, row in by_method.items() if row.front} == set(memory) - set(dominated), accuracy


# --- differences ---------------------------------------------------------------------------------
def test_difference_to_the_baseline_is_the_paired_one(table):
    rows = {(r.labels["method"], r.labels["quantization"]): r for r in table.sections[0].rows}
    base, lora = rows["full", "none"], rows["lora", "none"]
    assert base.baseline
    shown = lora.cells["accuracy.vs_baseline"]
    assert shown.value == pytest.approx(lora.cells["accuracy"].value - base.cells["accuracy"].value)
    assert shown.low < shown.value < shown.high
    assert shown.interval.startswith("items and seeds")
    assert base.cells["accuracy.vs_baseline"].text == "baseline"


def test_without_its_baseline_a_board_says_so(tmp_path):
    (section,) = built(stored(tmp_path, ok_record(cell("lora")))).sections
    assert section.rows[0].cells["accuracy.vs_baseline"].why == "no_baseline"


def test_retention_is_shown_against_the_base_model(table):
    row = next(r for r in table.sections[0].rows if r.labels["method"] == "full" and r.status == "ok")
    retained = row.cells["retained_accuracy"]
    assert retained.delta == pytest.approx(retained.value - 0.95, abs=0.02)


def test_failures_are_listed_with_stage_and_reason(table):
    told = {(f.row.labels["method"], f.status, f.stage, f.reason, f.seeds) for f in table.failures}
    assert ("ia3", "oom", "train", "CPU memory limit of 2 GiB reached", (1,)) in told
    assert ("full", "unsupported", "", "full trains on fp bases, not on bnb-int8", (0, 1)) in told


def test_empty_table_is_omitted_and_its_cells_are_listed(tmp_path):
    elsewhere = cell(task={"label": "sst2", "name": "sst2"})
    refused = failed_record(elsewhere, "unsupported", stage="", reason="excluded by the sweep: no classifier")
    table = built(stored(tmp_path, ok_record(cell()), refused))
    assert [section.labels["task"] for section in table.sections] == [cell()["task"]["label"]]
    assert [(f.row.labels["task"], f.status, f.reason) for f in table.failures] == [
        ("sst2", "unsupported", "excluded by the sweep: no classifier")
    ]


def test_a_board_of_nothing(tmp_path):
    table = built(Store(tmp_path))
    assert table.sections == ()


def test_only_failures_still_make_a_board(tmp_path):
    table = built(stored(tmp_path, failed_record(cell(), "timeout", reason="3600 s are over")))
    assert [row.status for row in table.sections[0].rows] == ["timeout"]
    assert table.sections[0].rows[0].cells["accuracy"].value is None


def test_data_that_no_commit_holds_still_is_named_once() -> None:
    facts = {"unpinned": {"owner/rows": "nobody knows the commit"}}
    loose = [
        failed_record(cell(seed=seed), "oom", reason="x", environment={**ENVIRONMENT, "facts": facts})
        for seed in (0, 1)
    ]
    tight = failed_record(cell(), "oom", reason="x", environment=ENVIRONMENT)
    said = dict(describe([("a", loose[0]), ("b", loose[1])]).facts)
    assert said["unpinned data"] == "owner/rows: its rows may change under this name (nobody knows the commit)"
    assert "unpinned data" not in dict(describe([("c", tight)]).facts)


def test_a_board_from_the_index_is_that_of_the_files(store: Store, table: BoardTable, tmp_path: Path) -> None:
    assert store.folder is not None
    shutil.copytree(store.folder, tmp_path / "copy")
    copied = Store(tmp_path / "copy")
    records, _ = read_records(copied, fewest=1)
    assert all(isinstance(record, IndexedRecord) for record in records)
    made = build(load_board("default", []), records, copied)
    for name in ("sections", "silent", "heads", "about", "failures"):
        assert repr(getattr(made, name)) == repr(getattr(table, name)), name
    assert list(made.records) == list(table.records)
