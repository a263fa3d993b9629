"""The verbs on a whole store: the index through the frame, SQL, export and merge, as the command line runs them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import peft_matrix as pm
from harness.errors import UserError
from harness.metrics import reading
from harness.store import index
from harness.store.store import Store
from peft_matrix.cli import app
from reports.apps.export import export
from reports.apps.regressions import decisions
from reports.apps.sql import query
from reports.board.board import build, load_board
from reports.board.formats import to_csv, to_json
from reports.data.frame import aggregate, frame, framed
from tests.harness.examples import make_record
from tests.reports.making import cell, ok_record

ROOT = Path(__file__).parents[2]


def cli(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_a_frame_through_the_index_is_the_frame_of_the_records(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.root, tmp_path / "s")
    index.load(Store(tmp_path / "s"), fewest=1)
    loaded = index.load(Store(tmp_path / "s"))
    assert loaded.read == 0
    records = store.records()[0]
    pd.testing.assert_frame_equal(framed(loaded.flat), frame(records))
    pd.testing.assert_frame_equal(aggregate(framed(loaded.flat)), aggregate(frame(records)))


# --- settings as columns -------------------------------------------------------------------------
TOLD = {"learning_rate": 1e-3, "steps": 300, "batch_size": 16, "train_items": 2000, "version": "0.1.0"}


def test_settings_are_columns_of_frame_sql_and_board(tmp_path: Path) -> None:
    store = Store(tmp_path)
    size = {"total_parameters": reading("total_parameters", 500, source="test")}
    for seed in (0, 1):
        made, data = ok_record(cell("lora", seed=seed), finished=f"2026-02-0{seed + 1}T00:00:00+00:00")
        packages = {"packages": {"peft-matrix": "0.1.0"}}
        store.append(made.model_copy(update={"metrics": made.metrics | size, "environment": packages}), data)
    store.append(*ok_record(cell("none"), finished="2026-02-03T00:00:00+00:00"))
    names = [*TOLD, "model_parameters", "date"]
    last = [*TOLD.values(), 500, "2026-02-02T00:00:00+00:00"]
    frame = pm.load(tmp_path).frame()
    assert frame[frame.method == "lora"][names].iloc[1].tolist() == last
    assert frame[frame.method == "none"][["learning_rate", "steps"]].isna().all(axis=None)
    per = pm.load(tmp_path).frame(per="configuration")
    assert per[per.method == "lora"][names].iloc[0].tolist() == last
    asked = f"SELECT {', '.join(names)}, accuracy FROM results WHERE method = 'lora' AND seed = 1"
    assert query(store, asked)[1] == [(*last, 0.595)]
    table = build(load_board("default", []), store.records()[0], store)
    row = next(row for row in csv.DictReader(to_csv.render(table).splitlines()) if row["method"] == "lora")
    assert [row[name] for name in names] == [str(value) for value in last]
    told = next(
        row for row in json.loads(to_json.render(table))["sections"][0]["rows"] if row["labels"]["method"] == "lora"
    )
    assert [told["settings"][name] for name in names] == last
    shared = dict(table.sections[0].conditions)
    assert shared["budget"] == "300 steps, 16 examples a batch, learning rate 0.001, schedule cosine"
    assert (shared["train items"], shared["model parameters"]) == ("2,000", "500")
    assert shared["measured"] == "2026-02-01 to 2026-02-03"
    assert shared["peft-matrix"].startswith("0.1.0, "), "the row without a version has a commit"
    export(store, tmp_path / "all.csv")
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert {(row["method"], row["steps"], row["learning_rate"]) for row in rows} == {
        ("lora", "300", "0.001"),
        ("none", "", ""),
    }


@pytest.mark.parametrize("value", ["8", [8], True, 2**70, {"a": 1}, None])
def test_a_setting_that_is_no_number_is_missing(value: object) -> None:
    training = {"batch_size": value, "learning_rate": value, "schedule": value, "max_length": 9}
    made = make_record(cell={"method": {"name": "x"}, "training": training, "variant": {"batch_size": value}})
    told = index.flatten([made]).rows.to_pylist()[0]
    assert (told["batch_size"], told["learning_rate"], told["steps"], told["max_length"]) == (None, None, None, 9)
    assert told["schedule"] == (value if isinstance(value, str) else None)


# --- SQL -----------------------------------------------------------------------------------------


def test_questions_in_sql_are_answered_as_the_frame_would(store: Store) -> None:
    rows = frame(store.records()[0])
    wanted = rows[rows.status == "ok"].groupby("method")["step_ms"].mean()
    sql = """SELECT method, avg(value) FROM records JOIN readings USING (id)
             WHERE current AND status = 'ok' AND stage = '' AND quantity = 'step_ms' GROUP BY method ORDER BY method"""
    names, answer = query(store, sql)
    assert names[0] == "method"
    assert dict(answer) == pytest.approx(wanted.to_dict())
    lora = [r for r in store.records()[0] if r.cell["method"]["label"] == "lora"]
    asked = """SELECT id, steps, batch_size, cell->>'$.method.name' FROM settings JOIN records USING (id)
               WHERE method = 'lora'"""
    assert sorted(query(store, asked)[1]) == sorted(
        (r.id, r.cell["training"]["steps"], r.cell["training"]["batch_size"], "lora") for r in lora
    )
    missing = "SELECT DISTINCT why_missing FROM readings WHERE quantity = 'energy_gross_j' AND value IS NULL"
    assert query(store, missing)[1] == [("no_device",)]
    items = "SELECT count(*) FROM samples JOIN records USING (id) WHERE arm = 'adapted' AND method = 'lora'"
    lora = [r for r in store.records()[0] if r.samples is not None and r.cell["method"]["label"] == "lora"]
    assert query(store, items)[1] == [(200 * len(lora),)]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DELETE FROM records", "one SELECT, not DELETE"),
        ("SELECT 1; SELECT 2", "one SELECT, not SELECT, SELECT"),
        ("COPY records TO '/tmp/x.csv'", "one SELECT, not COPY"),
        ("INSTALL httpfs", "one SELECT"),
        ("", "one SELECT, not nothing"),
        ("SELECT * FROM read_text('{file}')", "disabled"),
        ("SELECT * FROM '{file}'", "does not exist|disabled"),
        ("SELECT * FROM store", "does not exist"),
        ("SELECT colour FROM records", "colour"),
    ],
)
def test_a_query_can_read_the_records_and_nothing_else(store: Store, tmp_path: Path, sql: str, said: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nxyzzy\n")
    before = {entry.path for group in store.entries().values() for entry in group}
    with pytest.raises(UserError, match=said) as caught:
        query(store, sql.replace("{file}", str(secret)))
    assert "xyzzy" not in str(caught.value)
    assert {entry.path for group in store.entries().values() for entry in group} == before


ENDLESS = "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT max(i) FROM t"
CROSS = (
    "SELECT count(*) FROM readings a, readings b, readings c, readings d WHERE a.value + b.value > c.value + d.value"
)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (ENDLESS, "stopped after 1 s"),
        (CROSS, "stopped after 1 s"),
        ("SELECT list(range) FROM range(1000000000)", "more than 200MiB of memory|stopped after 1 s"),
        ("SELECT array_agg(repeat('x', 1000000) || i) FROM range(10000) t(i)", "more than 200MiB of memory"),
        ("SELECT i FROM range(1000002) t(i)", "more than 1,000,000 rows|stopped after 1 s"),
    ],
)
def test_a_query_ends_in_its_time_and_memory(store: Store, sql: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        query(store, sql, seconds=1, memory="200MiB")


def test_the_verb_prints_for_people_and_programs(store: Store) -> None:
    sql = "SELECT status, count(*) AS cells FROM records GROUP BY status ORDER BY status"
    said = json.loads(cli("results", "query", sql, "--results", store.root, "--json"))
    assert {row["status"]: row["cells"] for row in said}["oom"] == 1
    assert cli("results", "query", sql, "--results", store.root, "--csv").splitlines()[0] == "status,cells"
    assert "oom" in cli("results", "query", sql, "--results", store.root)


# --- export and merge ----------------------------------------------------------------------------
def test_an_archive_is_a_store_again(store: Store, tmp_path: Path) -> None:
    cli("results", "export", "--to", str(tmp_path / "a.zip"), "--results", store.root)
    export(store, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    decisions.record(Store(tmp_path / "unpacked"), decisions.Decision(since="2026-01-04T00:00:00", why="moved"))
    out = cli("results", "merge", str(tmp_path / "unpacked"), "--into", f"file://{tmp_path}/into", "--json")
    done = json.loads(out)
    assert (done["records"], done["conflicts"], done["left_out"], done["decisions"]) == (48, [], [], 1)
    into = Store(tmp_path / "into")
    assert into.records() == store.records()
    for record in into.records()[0]:
        if record.samples is not None:
            assert into.samples(record).equals(store.samples(record))
    again = json.loads(cli("results", "merge", str(tmp_path / "unpacked"), "--into", str(tmp_path / "into"), "--json"))
    assert (again["records"], again["known"], again["decisions"]) == (0, 48, 0)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_tables_hold_every_record_and_every_item(kind: str, store: Store, tmp_path: Path) -> None:
    files, count = export(store, tmp_path / f"out.{kind}")
    assert [path.name for path in files] == [f"out.{kind}", f"out.samples.{kind}"]
    read = pd.read_parquet if kind == "parquet" else pd.read_csv
    rows, items = read(files[0]), read(files[1])
    wanted = frame(store.records()[0]).set_index("id")["step_ms"]
    assert count == len(rows) == 48
    found = rows.set_index("id")["step_ms"].reindex(wanted.index)
    assert found.to_numpy() == pytest.approx(wanted.to_numpy(), nan_ok=True)
    assert rows.current.all()
    samples = sum(r.samples.rows for r in store.records()[0] if r.samples is not None)
    assert len(items) == samples
    with pytest.raises(UserError, match="End the name in"):
        export(store, tmp_path / "out.xlsx")
    with pytest.raises(UserError, match="There are records of: "):
        export(store, tmp_path / "out.csv", sweep="nosuch")


# --- any URL -------------------------------------------------------------------------------------
def test_the_same_verbs_work_on_a_store_at_a_url(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"memory://{uuid.uuid4().hex}/s"
    cli("results", "merge", store.root, "--into", url)
    assert "48 records in the index" in cli("results", "index", "--results", url)
    assert "0 files" in cli("results", "gc", "--results", url)
    sweep = store.records()[0][0].sweep
    assert cli("results", "export", sweep, "--to", "x.csv", "--results", url).startswith("48 records")
    assert url in cli("regressions", "--results", url, "--accept", "*", "--why", "slower from here on")
    assert json.loads(cli("regressions", "--results", url, "--json"))["cells"] == []
    shown = json.loads(cli("show", store.records()[0][0].key, "--results", url, "--json"))
    assert shown["key"] == store.records()[0][0].key
    refused = CliRunner().invoke(app, ["publish", "a/b", "--to", "hf-dataset", "--results", url])
    assert isinstance(refused.exception, UserError)
    assert "results merge URL --into FOLDER" in str(refused.exception)
    assert not (tmp_path / "results").exists()


def test_a_file_url_is_a_folder_for_every_process(store: Store, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/s"
    command = [sys.executable, "-m", "peft_matrix.cli", "results"]
    subprocess.run([*command, "merge", store.root, "--into", url], check=True, cwd=ROOT, capture_output=True)
    ask = [*command, "query", "SELECT key FROM records", "--csv", "--results", url]
    done = subprocess.run(ask, check=True, cwd=ROOT, capture_output=True, text=True)
    assert len(list(csv.reader(done.stdout.splitlines()))) == 49
    unknown = subprocess.run([*command, "gc", "--results", "nosuch://x"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "this kind of store cannot be opened" in unknown.stderr
