"""Every format: same bytes each time, true to the records, and deaf to what hostile names say."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from harness.metrics import METRICS
from harness.store.store import Store
from reports.board.board import build, load_board
from reports.board.formats.files import write_all
from reports.board.formats.text import MISSING, Scale, columns, place, plain, scale
from reports.board.formats.to_csv import neutral
from reports.board.formats.to_terminal import print_board
from reports.board.publish import publish_board
from tests.reports.making import cell, failed_record, filled_store, ok_record

ROOT = Path(__file__).parents[2]
FORMATS = ["board.csv", "board.html", "board.json", "board.md", "board.tex", "lbom.json"]
DRAWN = ("accuracy-against-memory", "memory-by-stage", "method-by-quantization", "rank-intervals")
FIGURES = [f"{name}.{kind}" for name in DRAWN for kind in ("pdf", "png", "svg")]

RENDER = """
import sys
from pathlib import Path
from harness.store.store import Store
from reports.board.board import build, load_board
from reports.board.formats.files import write_all
store = Store(sys.argv[1])
records = store.records()[0]
if sys.argv[3] == "reversed":
    records.reverse()
write_all(build(load_board("default", []), records, store), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("board")
    write_all(build(load_board("default", []), store.records()[0], store), out)
    return out


def test_all_formats_are_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FORMATS + FIGURES)


def test_two_processes_write_the_same_bytes(tmp_path):
    filled_store(tmp_path / "store")
    digests = []
    for seed, order in (("1", "forward"), ("4242", "reversed")):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", RENDER, str(tmp_path / "store"), str(out), order],
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": "UTC" if seed == "1" else "Asia/Tokyo"},
            cwd=ROOT,
            check=True,
        )
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())})
    assert len(digests[0]) == len(FORMATS + FIGURES)
    assert digests[0] == digests[1]


# --- true to the records -------------------------------------------------------------------------
def test_numbers_of_the_csv_are_those_of_the_records(store, folder):
    lines = list(csv.DictReader(io.StringIO((folder / "board.csv").read_text())))
    assert len(lines) == 24
    records = {record.id: record for record in store.records()[0]}
    for line in lines:
        ok = [records[i] for i in line["records"].split() if records[i].outcome.status == "ok"]
        for name in ("accuracy", "step_ms", "adapter_bytes"):
            shown = line[f"{name} [{METRICS[name].unit}]"]
            if ok:
                assert float(shown) == pytest.approx(sum(r.metrics[name].value for r in ok) / len(ok), rel=1e-12)
            else:
                assert shown == ""
                assert line[f"{name} why missing"] == "stage_not_reached"
                assert line["reason"]


def test_json_holds_definitions_intervals_and_record_ids(store, folder):
    content = json.loads((folder / "board.json").read_text())
    by_key = {column["key"]: column["definition"] for column in content["columns"]}
    assert by_key["train.rss_growth_bytes"]["unit"] == "B"
    assert by_key["accuracy"]["better"] == "higher"
    assert content["about"]["records"] == sorted(record.id for record in store.records()[0])
    row = content["sections"][0]["rows"][0]
    assert row["rank"] == [1, 7]
    assert row["cells"]["accuracy"]["low"] < row["cells"]["accuracy"]["value"] < row["cells"]["accuracy"]["high"]


def test_rendered_numbers_are_the_values_at_their_scale(table):
    for column in columns(table):
        for row in table.sections[0].rows:
            if column.scale is None or row.cells[column.key].text:
                continue
            shown, value = place(column, row), row.cells[column.key].value
            if value is None:
                assert shown.main == MISSING
                assert shown.why
            else:
                number = float(shown.main.replace("−", "-").replace(",", ""))
                places = len(shown.main.partition(".")[2])
                assert number == pytest.approx(value * column.scale.factor, abs=0.5001 * 10**-places)


def test_missing_value_is_a_dash_with_reason_never_zero(folder):
    page = (folder / "board.html").read_text()
    assert '<span data-tip="has no meaning for this row">—' in page
    text = (folder / "board.md").read_text()
    failed = next(line for line in text.splitlines() if "| full |" in line and "unsupported" in line)
    cells = [c.strip() for c in failed.strip("|").split("|")]
    assert all(c.startswith("—") for c in cells[4:-2]), failed
    assert re.search(r"^\d+\. the cell ended before this stage$", text, re.MULTILINE)


def test_every_column_has_label_unit_direction_and_definition(table):
    shown = columns(table)
    assert len({column.label for column in shown}) == len(shown), "two columns of one name"
    for column in shown:
        assert column.meaning
        if column.head.definition is not None:
            assert column.head.definition.definition in column.meaning
            assert "is better" in column.meaning


@pytest.mark.parametrize(
    ("name", "values", "unit", "text"),
    [
        ("accuracy", [0.5, 0.25], "%", "50.0"),
        ("peak_rss_bytes", [3 * 2**30, 5 * 2**30], "GiB", "3.00"),
        ("adapter_bytes", [2_000, 5_000], "KiB", "1.95"),
        ("trainable_parameters", [24_576, 0], "", "24,576"),
        ("step_ms", [12.345, 13.0], "ms", "12.3"),
        ("accuracy", [], "%", None),
    ],
)
def test_scales(name, values, unit, text):
    found = scale(METRICS[name], values)
    assert found.unit == unit
    if text:
        assert found.text(values[0]) == text


def test_scale_of_signed_numbers_and_nothing():
    assert Scale("points", 100, decimals=1).text(-0.0312, signed=True) == "−3.1"
    assert Scale("points", 100, decimals=1).text(0.0312, signed=True) == "+3.1"
    assert Scale("s").text(None) == MISSING


# --- the page ------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Tags, ids and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.addresses.append(value)


def test_the_page_asks_for_nothing(folder):
    text = (folder / "board.html").read_text()
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "img", "iframe", "object", "embed", "base", "form"})
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    assert not re.search(r"fetch|XMLHttpRequest|WebSocket|import\(|eval|innerHTML", script)


def test_ids_are_unique_and_references_resolve(folder):
    page = Page((folder / "board.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    for _, attributes in page.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in page.ids


def test_the_policy_allows_the_script_that_is_there(folder):
    import base64

    text = (folder / "board.html").read_text()
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{html.unescape(digest)}'" in html.unescape(text)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_filters_and_sorts_without_complaint(folder, tmp_path):
    address = f"{(folder / 'board.html').as_uri()}#filter=nf4&front=1"
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    rows = [attributes for tag, attributes in Page(done.stdout).tags if tag == "tr" and "class" in attributes]
    shown = [row for row in rows if "hidden" not in row]
    assert len(rows) == 24
    assert shown
    assert all("front" in row["class"] for row in shown)
    assert f"{len(shown)} of 24 rows" in done.stdout


# --- hostile text --------------------------------------------------------------------------------
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=cmd|' /C calc'!A0",
    "../../etc/passwd",
    "\u202egnp.exe مرحبا שלום",
    "👩‍🔬 é 漢字",
    "a|b\n# heading `x` [y](http://evil.example) $x_1^2$ \\input{x} %",
    "\x1b[31mred\x1b]0;title\x07\x00",
    "x" * 1_000_000,
    "{{ 7 * 7 }} {% raw %}",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("hostile"))
    for number, text in enumerate(HOSTILE):
        of = cell()
        of["method"] = {**of["method"], "label": text, "name": f"m{number}"}
        record, data = ok_record(of, accuracy=0.5 + number / 100)
        store.append(record.model_copy(update={"label": "x"}), data)
        bad = {**of, "seed": 1}
        store.append(failed_record(bad, "error", stage=text, reason=text, label="x"))
    of = cell()
    of["task"] = {**of["task"], "label": HOSTILE[0]}
    of["model"] = {**of["model"], "label": HOSTILE[6]}
    store.append(*ok_record(of))
    return store


@pytest.fixture(scope="module")
def hostile_folder(hostile, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "board"
    write_all(build(load_board("default", []), hostile.records()[0], hostile), out)
    return out


def test_hostile_text_stays_in_its_folder_and_short(hostile_folder):
    names = {path.name for path in hostile_folder.rglob("*")}
    assert len(list(hostile_folder.parent.iterdir())) == 1
    assert all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names)
    for name in ("board.html", "board.md", "board.tex"):
        assert (hostile_folder / name).stat().st_size < 400_000, name
    kept = json.loads((hostile_folder / "board.json").read_text())
    labels = {row["labels"]["method"] for section in kept["sections"] for row in section["rows"]}
    assert set(HOSTILE) <= labels, "the JSON has the whole text"


def test_hostile_text_is_text_on_the_page(hostile_folder):
    text = (hostile_folder / "board.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert "\\u202egnp.exe" in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", text)
    assert "👩‍🔬" in text


def test_hostile_text_is_text_in_markdown(hostile_folder):
    text = (hostile_folder / "board.md").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "http://" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert len(bars) == 1, "a name must not open a column"
    assert not re.search(r"^# heading", text, re.MULTILINE)


def test_hostile_text_is_text_in_a_spreadsheet(hostile_folder):
    lines = list(csv.reader(io.StringIO((hostile_folder / "board.csv").read_text())))
    assert {len(line) for line in lines} == {len(lines[0])}
    number = re.compile(r"-?[\d.]+(e-?\d+)?")
    for line in lines:
        for value in line:
            assert not value.startswith(("=", "+", "@", "\t", "\r")), value[:50]
            assert not value.startswith("-") or number.fullmatch(value)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "  =1", "\n=1"])
def test_formulas_are_neutralised(text):
    assert neutral(text).startswith("'")


@pytest.mark.parametrize("text", ["lora", "a=b", "", "1", "r-8"])
def test_other_text_is_left_alone(text):
    assert neutral(text) == text


def test_hostile_text_is_text_in_latex(hostile_folder):
    text = (hostile_folder / "board.tex").read_text()
    assert "\\input" not in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[%#_]", "\n".join(body))
    unescaped = re.sub(r"\\[{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")


def test_hostile_text_is_text_in_the_terminal(hostile):
    table = build(load_board("default", []), hostile.records()[0], hostile)
    out = io.StringIO()
    print_board(table, Console(file=out, width=100, force_terminal=False, color_system=None))
    assert not re.search("[\x00-\x08\x1b\u202a-\u202e]", out.getvalue())
    assert max(len(line) for line in out.getvalue().splitlines()) <= 101


def test_hostile_text_is_text_in_figures(hostile_folder):
    figures = sorted(hostile_folder.glob("*.svg"))
    assert figures
    for path in figures:
        assert b"<script" not in path.read_bytes()


def test_plain_shows_what_would_act():
    assert plain("a\x1b[31mb") == "a\\u001b[31mb"
    assert plain("a\n\tb") == "a b"
    assert plain("abcdef", 4) == "abc…"


# --- terminal and publishing ---------------------------------------------------------------------
@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_the_terminal_table_fits_its_width(table, width):
    out = io.StringIO()
    print_board(table, Console(file=out, width=width, color_system=None))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    assert any("◆" in line and "lora" in line for line in lines)
    assert any(line.startswith("oom at train") for line in lines)
    assert any("not shown at this width" in line for line in lines) == (width < 300)


def test_publish_reads_writes_and_prints(store, tmp_path):
    records = store.records()[0]
    keys = sorted({record.key for record in records})
    done = publish_board(
        "default", [], results=store.root, keys=[*keys, "not-run-yet"], out=tmp_path / "b", title="demo"
    )
    assert {path.name for path in done.files} == {*FORMATS, *FIGURES, "feed.xml", "badge.json"}
    assert done.smells == ()
    assert done.damaged == ()
    out = io.StringIO()
    done.print(Console(file=out, width=100))
    assert "demo: Fine-tuning methods" in out.getvalue()
    assert "1 planned cell has not been run yet." in out.getvalue()


def test_a_damaged_record_is_named_and_the_rest_loads(tmp_path):
    store = filled_store(tmp_path / "store")
    victim = sorted((tmp_path / "store" / "records").rglob("*.json"))[0]
    victim.write_text(victim.read_text()[:200])
    done = publish_board("default", [], results=store.root, out=tmp_path / "b")
    assert [victim.name in damage.path for damage in done.damaged] == [True]
    assert done.table.sections


def test_a_folder_that_cannot_be_written_is_named(store, tmp_path):
    from harness.errors import UserError

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_all(build(load_board("default", []), store.records()[0], store), tmp_path / "file" / "x")
