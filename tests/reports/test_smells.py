"""The eight smells: each is planted into a rendered board, or into its records, and must be named."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.metrics import METRICS
from harness.store.store import Store
from peft_matrix.cli import app
from reports.board.board import Board, build, load_board
from reports.board.checks import CHECKS, check_folder, referee, rules
from reports.board.checks.reading import Built
from reports.board.figures import draw_all
from reports.board.publish import publish_board
from tests.reports.making import ENVIRONMENT, cell, filled_store, ok_record

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a board drawn from it."""
    root = tmp_path_factory.mktemp("smells")
    store = filled_store(root / "store")
    keys = sorted({record.key for record in store.records()[0]})
    done = publish_board("default", [], results=root / "store", keys=keys, out=root / "board", title="demo")
    assert done.smells == ()
    return root


@pytest.fixture(scope="module")
def built(clean: Path) -> Built:
    """The board as its records give it, made once: what files are held against."""
    store = Store(clean / "store")
    records = store.records()[0]
    content = json.loads((clean / "board" / "board.json").read_text())
    table = build(Board.model_validate(content["board"]), records, store, planned={r.key for r in records})
    return table, *draw_all(table)


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit(root: Path, name: str, change: Callable[[str], str]) -> None:
    path = root / "board" / name
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before, "nothing was planted"
    path.write_text(after, encoding="utf-8")


def edit_json(root: Path, change: Callable[[dict], None]) -> None:
    def changed(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    edit(root, "board.json", changed)


def without_row(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if "| dora |" not in line)


def without_reason(content: dict) -> None:
    row = next(row for row in content["sections"][0]["rows"] if row["status"] == "unsupported")
    row["cells"]["accuracy"]["why"] = ""


def swap_rows(content: dict) -> None:
    rows = content["sections"][0]["rows"]
    rows[0], rows[7] = rows[7], rows[0]


def without_unit(content: dict) -> None:
    next(c for c in content["columns"] if c["key"] == "step_ms")["definition"]["unit"] = ""


def row_twice(content: dict) -> None:
    content["sections"][0]["rows"].append(content["sections"][0]["rows"][-1])


def first_step(text: str, new: str) -> str:
    """The first step time of the first table replaced."""
    header = next(line for line in text.splitlines() if line.startswith("| | rank"))
    place = [part.strip() for part in header.split("|")].index("step (ms)")
    lines = text.splitlines()
    row = lines.index(header) + 2
    parts = lines[row].split("|")
    parts[place] = re.sub(r"[\d.]+", new, parts[place], count=1)
    lines[row] = "|".join(parts)
    return "\n".join(lines)


PLANTED = {
    "a row is gone from the Markdown": ("missing", "board.md", without_row),
    "NaN instead of a reason": ("missing", "board.csv", lambda t: re.sub(r"(,)(0\.\d{3,})(,)", r"\1nan\3", t, count=1)),
    "the page asks for a script": (
        "unresponsive",
        "board.html",
        lambda t: t.replace("<main>", '<main><script src="https://cdn.example/x.js"></script>'),
    ),
    "an anchor has no target": (
        "unresponsive",
        "board.html",
        lambda t: t.replace("<main>", '<main><a href="#nowhere">x</a>'),
    ),
    "the page is cut off": ("unresponsive", "board.html", lambda t: t[: len(t) // 2]),
    "a link has no target": ("unresponsive", "board.md", lambda t: t.replace("(memory-by-stage.svg)", "(gone.svg)")),
    "two columns of one name": (
        "confusing",
        "board.md",
        lambda t: t.replace("| adapter size (KiB) |", "| base size (MiB) |", 1),
    ),
    "a header explains nothing": (
        "confusing",
        "board.html",
        lambda t: re.sub(r'class="sort" data-tip="[^"]+"', 'class="sort" data-tip=""', t, count=1),
    ),
    "the table was edited": ("mismatched", "board.csv", lambda t: t.replace("lora", "lara", 1)),
    "a number was edited in the Markdown": ("misdisplayed", "board.md", lambda t: first_step(t, "1.0")),
    "a number was edited on the page": (
        "misdisplayed",
        "board.html",
        lambda t: re.sub(r'(data-sort="0\.\d+"[^>]*><bdi>)\d+\.\d', r"\g<1>99.9", t, count=1),
    ),
    "the wrong row is bold": ("misdisplayed", "board.md", lambda t: re.sub(r"\*\*1–(\d+)\*\*", r"1–\1", t, count=1)),
    "a row is listed twice in the CSV": ("redundant", "board.csv", lambda t: t + t.splitlines()[-1] + "\n"),
}  # fmt: skip


def first_row(content: dict) -> dict:
    return next(row for row in content["sections"][0]["rows"] if row["learned"])


def degenerate_in_front(content: dict) -> None:
    first_row(content)["learned"]["verdict"] = "degenerate"
    first_row(content)["front"] = True


def untrained_reference(content: dict) -> None:
    rows = content["sections"][0]["rows"]
    next(row for row in rows if row["labels"]["method"] == "full" and row["learned"])["learned"]["verdict"] = "worse"


def one_seed_ranked(content: dict) -> None:
    row = next(row for row in content["sections"][0]["rows"] if row["rank"])
    row["seeds"] = row["seeds"][:1]


def ranked(content: dict) -> dict:
    return next(row for row in content["sections"][0]["rows"] if row["rank"])


def beaten_on_the_front(content: dict) -> None:
    part = content["sections"][0]
    best, worst = part["rows"][0], next(row for row in part["rows"] if row["labels"]["method"] == "prompt")
    axis = next(axis for axis in part["axes"] if axis != "accuracy")
    best["cells"][axis].update(value=1e6, sd=1e4)
    worst["cells"][axis].update(value=9e8, sd=1e4)
    worst["front"] = True


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("is degenerate and on the Pareto front", degenerate_in_front),
        ("did not learn (worse) and the caption does not say so", untrained_reference),
        ("ranked although full fine-tuning did not learn", untrained_reference),
        ("has one seed and is ranked", one_seed_ranked),
        ("is marked throttled and ranked", lambda content: ranked(content)["marks"].append("throttled")),
        ("different numbers of items", lambda content: ranked(content)["cells"]["accuracy"].update(items=7)),
        ("is clearly better on every axis", beaten_on_the_front),
        ("other processes share it", lambda content: content["sections"][0]["axes"].append("train.cgroup_peak_bytes")),
        ("counts a seed more than once", lambda content: first_row(content)["seeds"].append(0)),
        ("peak RSS is a Pareto axis", lambda content: content["sections"][0]["axes"].append("train.peak_rss_bytes")),
        ("how large a difference must be", lambda content: content["sections"][0].update(caption="Ranks.")),
    ],
)
def test_what_a_referee_would_object_to_is_unsound(words, change, copy, built):
    edit_json(copy, change)
    found = [
        one.what for one in check_folder(copy / "board", Store(copy / "store"), built=built) if one.smell == "unsound"
    ]
    assert any(words in what for what in found), found


def facts(**of: object) -> dict:
    return {"environment": {**ENVIRONMENT, "facts": of}}


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("1 of its records are repeated runs", lambda r: {"cell": {**r.cell, "role": "timing", "replicate": 1}}),
        ("the edge of those tried", lambda _: facts(tuning={"lr_at_edge": True})),
        ("5 test items are also in the training data", lambda _: facts(contamination={"test_items_in_train": 5})),
        ("was not run here and is ranked", lambda _: {"environment": {**ENVIRONMENT, "imported": {"from": "x"}}}),
        ("measured under different conditions", lambda r: {"cell": {**r.cell, "protocol": 99}}),
    ],
)
def test_what_a_record_says_and_its_board_does_not_is_unsound(words, change, copy, built):
    table, *drawn = built
    row = next(row for row in table.sections[0].rows if len(row.records) == 2 and row.rank is not None)
    record = table.records[row.records[0]]
    changed = replace(table, records={**table.records, row.records[0]: record.model_copy(update=change(record))})
    found = check_folder(copy / "board", Store(copy / "store"), built=(changed, *drawn))
    assert any(words in one.what for one in found if one.smell == "unsound"), found


def test_times_of_several_runs_without_their_spread_are_unsound(built, clean):
    table = built[0]
    store = Store(clean / "store")
    assert referee(table, store) == []
    bare = [c.model_copy(update={"show": "mean"}) if c.key == "step_ms" else c for c in table.board.columns]
    changed = replace(table, board=table.board.model_copy(update={"columns": tuple(bare)}))
    assert [one.where for one in referee(changed, store)] == ["column step_ms"]


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "reports" / "boards").glob("*.yaml"))])
def test_built_in_boards_show_no_time_without_its_spread(name):
    for column in load_board(name, []).columns:
        quantity = column.quantity
        if quantity is not None and not column.difference and name != "peft-method-comparison":  # one run a row
            timed = METRICS[quantity.column.rpartition(".")[2]].family in ("time", "energy")
            assert not timed or column.show in ("mean_sd", "ratio_to_plain"), column.key


def test_a_report_of_claims_that_is_out_of_date_is_named(tmp_path):
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    changed = page.replace("LoFiT (2406.01563) trains 20 to 200", "LoFiT (2406.01563) trains 30 to 200")
    assert changed != page
    (tmp_path / "reproduction.md").write_text(changed, encoding="utf-8")
    where = ["--results", str(ROOT / "results" / "reference" / "cpu-2core-claims")]
    done = CliRunner().invoke(app, ["check", str(tmp_path), *where])
    assert done.exit_code == 1
    assert "unsound: reproduction.md: the claim lofit-parameters reads otherwise" in done.output


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_planted_in_a_file_is_named(fault, copy, built):
    smell, name, change = PLANTED[fault]
    edit(copy, name, change)
    found = check_folder(copy / "board", Store(copy / "store"), built=built)
    assert smell in {one.smell for one in found}, found


@pytest.mark.parametrize(
    ("smell", "change"),
    [
        ("missing", without_reason),
        ("missing", lambda content: content["sections"][0]["rows"].pop(3)),
        ("missing", lambda content: content.update(not_run=3)),
        ("missing", lambda content: content["about"]["facts"].pop("protocol")),
        ("confusing", without_unit),
        ("misdisplayed", swap_rows),
        ("redundant", row_twice),
    ],
)
def test_a_fault_planted_in_the_data_is_named(smell, change, copy, built):
    edit_json(copy, change)
    found = check_folder(copy / "board", Store(copy / "store"), built=built)
    assert smell in {one.smell for one in found}, found


def test_what_cannot_be_reached_is_inaccessible(copy):
    (copy / "board" / "rank-intervals.pdf").unlink()
    (copy / "board" / "lbom.json").unlink()
    next((copy / "store" / "samples").glob("*.parquet")).write_bytes(b"cut off")
    victim = sorted((copy / "store" / "records").rglob("*.ok.*.json"))[0]
    victim.write_text(victim.read_text()[:100])
    found = {
        one.where: one.what
        for one in check_folder(copy / "board", Store(copy / "store"))
        if one.smell == "inaccessible"
    }
    assert found["rank-intervals.pdf"] == found["lbom.json"] == "is not there or empty"
    assert any("quarantine" in where for where in found)
    assert any("is not in the store" in what for what in found.values())


def test_later_record_makes_board_deprecated_and_mismatched(copy):
    store = Store(copy / "store")
    store.append(*ok_record(cell("lora", "none", 0), accuracy=0.5, finished="2026-02-01T00:00:00+00:00"))
    found = {one.smell for one in check_folder(copy / "board", store)}
    assert {"deprecated", "mismatched"} <= found


def test_an_old_task_version_is_shown_with_a_badge_and_unranked(tmp_path):
    store = Store(tmp_path / "store")
    for version in (1, 2):
        for method, rate, seed in ((m, r, s) for m, r in (("lora", 0.9), ("dora", 0.5)) for s in (0, 1)):
            task = {"version": version, "digest": str(version) * 64}
            store.append(*ok_record(cell(method, seed=seed, task=task), accuracy=rate))
    done = publish_board("default", [], results=store.root, out=tmp_path / "board")
    assert done.smells == ()
    ranks = {
        (dict(part.conditions)["task version"][0], row.rank is None)
        for part in done.table.sections
        for row in part.rows
    }
    assert ranks == {("1", True), ("2", False)}
    assert "a newer version of its task" in (tmp_path / "board" / "board.md").read_text()
    edit(tmp_path, "board.md", lambda text: text.replace("a newer version", "a version"))
    assert "deprecated" in {one.smell for one in check_folder(tmp_path / "board", store)}


def test_the_same_measurements_under_two_names_are_redundant(tmp_path):
    store = Store(tmp_path / "store")
    record, data = ok_record(cell("lora"))
    store.append(record, data)
    twin = cell("dora")
    store.append(record.model_copy(update={"cell": twin, "key": "0" * 16, "label": "twin"}), data)
    done = publish_board("default", [], results=store.root, out=tmp_path / "board")
    assert {one.smell for one in done.smells} == {"redundant"}


def test_every_smell_has_a_check():
    names = "missing unresponsive confusing inaccessible mismatched misdisplayed redundant deprecated unsound"
    assert list(CHECKS) == names.split()


def test_the_verb_lists_what_it_finds_and_fails(copy):
    command = ["check", str(copy / "board"), "--results", str(copy / "store")]
    assert CliRunner().invoke(app, command).exit_code == 0
    edit(copy, "board.csv", lambda text: text.replace("lora", "lara", 1))
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "mismatched: board.csv: differs from what the records give (first in line" in done.output


# --- bill of materials ---------------------------------------------------------------------------
def test_the_bill_of_materials_holds_what_it_must(clean):
    bill = json.loads((clean / "board" / "lbom.json").read_text())
    assert "inferred" in bill["inferred"].lower()
    assert bill["board"]["name"] == "default"
    for metric in bill["metrics"]:
        assert all(metric[name] for name in ("definition", "unit", "better", "version"))
    assert bill["protocol"][0]["items"]["test"] == 200
    assert bill["harness"][0]["commit"].startswith("0123456789")
    assert bill["harness"][0]["packages"]["torch"] == "2.13.0"
    assert bill["tasks"][0]["licence"] == "not recorded"
    assert bill["models"][0]["id"] == "builtin:nano"
    assert len(bill["records"]) == 48
    assert bill["cells"]["not_run"] == 0
    assert bill["submission"]["channels"] == ["run here"]
    assert "4 rows lack some of their seeds" not in bill["known_smells"]
    assert "1 rows lack some of their seeds" in bill["known_smells"]
    wanted = hashlib.sha256((clean / "board" / "board.csv").read_bytes()).hexdigest()
    assert bill["files"]["board.csv"]["sha256"] == wanted


@pytest.mark.parametrize(("ranks", "beaten"), [(([1, 3], [4, 8]), True), (([1, 21], [1, 17]), False)])
def test_ranks_that_overlap_beat_no_row_of_the_front(ranks, beaten):
    """Two seeds each: the rows' intervals do not touch, and the ranks do not tell the rows apart."""
    one, other = (
        {
            "marks": [],
            "learned": None,
            "rank": rank,
            "cells": {
                "accuracy": {"value": value, "low": low, "high": high},
                "train.rss_growth_bytes": {"value": size, "sd": 1e6},
            },
        }
        for rank, value, low, high, size in ((ranks[0], 1.0, 0.981, 1.0, 30e6), (ranks[1], 0.93, 0.888, 0.972, 41e6))
    )
    assert rules._beats(one, other, ["accuracy", "train.rss_growth_bytes"], "accuracy") is beaten
