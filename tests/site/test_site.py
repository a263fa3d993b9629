"""Output of the builder: the same bytes each time, links that resolve, true data, and nothing outside its folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.store.store import Store
from peft_matrix.cli import app
from reports.apps.site import Part, build_site, builder, cellpage
from reports.apps.site.answer import answer, cautions, row_name
from reports.apps.site.builder import MANIFEST
from reports.apps.site.text import line, page_name
from reports.board.board import build, load_board
from tests.reports.making import cell, ok_record
from tests.site.conftest import parts
from tests.site.making import HOSTILE_SWEEP

_LINK = re.compile(r'(?:href|src)="([^"#]+)(?:#[^"]*)?"')


def data_of(path: Path) -> Any:
    """The value that a data script hands to the page."""
    return json.loads(json.loads(path.read_text().partition("JSON.parse(")[2].rstrip(");\n")))


def test_equal_records_equal_bytes_and_rebuild_removes_own(site_store: Store, tmp_path: Path) -> None:
    build_site(parts(), site_store, tmp_path / "one")
    before = {p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()}
    (tmp_path / "one" / "kept.txt").write_text("mine")
    build_site(parts()[1:], site_store, tmp_path / "one")
    assert not (tmp_path / "one" / "quickstart").exists()
    assert (tmp_path / "one" / "kept.txt").read_text() == "mine"
    build_site(parts(), site_store, tmp_path / "one")
    (tmp_path / "one" / "kept.txt").unlink()
    after = {p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert after == before
    assert not list(tmp_path.glob("*.html"))  # a sweep called ../../x wrote nothing outside


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def written(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_rebuild_draws_and_writes_only_what_changed(
    site_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    describe = cellpage.describe
    monkeypatch.setattr(
        cellpage, "describe", lambda record, *a, **k: drawn.append(record.key) or describe(record, *a, **k)
    )
    store, out = Store(tmp_path / "store"), tmp_path / "one"
    shutil.copytree(site_store.root, tmp_path / "store")
    build_site(parts(), store, out)
    before, times, all_pages = bytes_of(out), written(out), len(drawn)
    assert all_pages > 60
    drawn.clear()
    build_site(parts(), store, out)
    assert drawn == []
    assert bytes_of(out) == before
    times.pop(MANIFEST)
    assert {path: at for path, at in written(out).items() if path in times} == times

    again = next(r for r in store.records()[0] if r.sweep == "quickstart" and r.outcome.status == "ok")
    store.append(again.model_copy(update={"attempt": 7, "finished": "2027-01-01T00:00:00+00:00"}))
    damaged = next(path for path in sorted(before) if "/cells/" in path and again.key not in path)
    (out / damaged).write_bytes(b"changed by hand")
    build_site(parts(), store, out)
    assert again.key in drawn
    assert len(drawn) < all_pages / 4
    build_site(parts(), store, tmp_path / "fresh")
    assert bytes_of(out) == bytes_of(tmp_path / "fresh")

    drawn.clear()
    monkeypatch.setattr(builder, "_program", lambda: "another version of this program")
    build_site(parts(), store, out)
    assert len(drawn) == all_pages


def test_every_link_leads_to_a_file_and_none_to_another_place(site: Path) -> None:
    pages = [page for page in sorted(site.rglob("*.html")) if page.parent.name != "big"]
    assert len(pages) > 60
    broken = []
    for page in pages:
        for link in _LINK.findall(page.read_text()):
            if link != "data:," and not (page.parent / link).resolve().is_file():
                broken.append((page.name, link))
    assert broken == []


def test_page_shows_ranks_front_and_numbers_of_the_board(site: Path, site_store: Store) -> None:
    records = [record for record in site_store.records()[0] if record.sweep == "quickstart"]
    table = build(load_board("default", []), records, site_store)
    data = data_of(site / "quickstart" / "data.js")
    keys = [column["key"] for column in data["columns"]]
    assert all(column["meaning"] for column in data["columns"])
    for section, shown in zip(table.sections, data["sections"], strict=True):
        for row, seen in zip(section.rows, shown["rows"], strict=True):
            assert seen["rank"] == (None if row.rank is None else list(row.rank))
            assert seen["front"] == row.front
            place = seen["values"][keys.index("accuracy")]
            if row.cells["accuracy"].value is not None:
                assert place[0] == row.cells["accuracy"].value
            else:
                assert shown["texts"][place]  # a reason in words


def test_marked_rows_are_unranked_and_say_so(site: Path) -> None:
    (section,) = data_of(site / "gpu" / "data.js")["sections"]
    rows = {section["texts"][row["method"]]: row for row in section["rows"]}
    assert rows["dora"]["rank"] is None
    assert [section["texts"][mark] for mark in rows["ia3"]["marks"]] == ["not run here"]
    assert section["limits"]["memory"]["metric"] == "cuda_reserved_peak_bytes"
    assert section["limits"]["latency"]["metric"] == "tpot_ms"
    assert section["limits"]["cost"]["metric"] is None


def test_every_failure_is_named_with_its_reason(site: Path, site_store: Store) -> None:
    text = (site / "quickstart" / "failures.html").read_text()
    failed = {r.key for r in site_store.records()[0] if r.sweep == "quickstart" and r.outcome.status != "ok"}
    assert {key for key in failed if f"cells/{key}.html" in text} == failed
    assert "CPU memory limit of 2 GiB reached" in text


def test_trials_make_curves_and_repeated_cells_make_trends(site: Path) -> None:
    assert "beyond noise" in (site / "quickstart" / "trends.html").read_text()
    assert "Trends" not in (site / "gpu" / "index.html").read_text()
    (curve,) = data_of(site / "quickstart" / "tuning.js")
    assert [point[0] for point in curve["points"]][:1] == [1e-4]
    assert {point[3] for point in curve["points"]} == {"trial"}
    trends = data_of(site / "quickstart" / "trends.js")
    assert [len(cell["runs"]) for cell in trends["cells"]] == [2]
    stacks = [run["stack"] for run in trends["cells"][0]["runs"]]
    assert stacks == ["f" * 12, "e" * 12]


def test_claims_are_shown_as_reported_wrong_file_is_refused(site_store: Store, tmp_path: Path) -> None:
    report = tmp_path / "claims.json"
    report.write_text(json.dumps([{"claim": "a", "paper": "<b>P</b>", "verdict": "not_run", "sentence": "why"}]))
    build_site(parts()[1:2], site_store, tmp_path / "site", claims=report)
    text = (tmp_path / "site" / "claims.html").read_text()
    assert "&lt;b&gt;P&lt;/b&gt;" in text
    assert "1 not run" in text
    proxy = {"setup": "nano", "verdict": "proxy_agrees", "flags": ["by-construction"]}
    kinds = [{"claim": kind, "paper": "P", "verdict": "reproduced", "kind": kind, "proxies": [proxy, "no mapping"]}
             for kind in ("arithmetic", "counted", "measured")]  # fmt: skip
    report.write_text(json.dumps(kinds))
    build_site(parts()[1:2], site_store, tmp_path / "site", claims=report)
    text = re.sub(r"<[^>]+>", " ", (tmp_path / "site" / "claims.html").read_text())
    for kind in ("arithmetic", "counted", "measured"):
        assert f"1 reproduced ({kind})" in text
    assert "3 agrees by construction (measured (proxy))" in text
    assert "3 reproduced" not in text
    assert "reproduced 3" not in text
    report.write_text("{}")
    with pytest.raises(UserError, match="not a report of claims"):
        build_site(parts()[1:2], site_store, tmp_path / "site", claims=report)


def test_a_board_of_the_site_is_asked_a_referees_questions(site_store: Store, tmp_path: Path) -> None:
    sound = build_site(parts()[:1], site_store, tmp_path / "site")
    assert sound.objections == ()
    assert "Objections" not in (tmp_path / "site" / "quickstart" / "index.html").read_text()
    board = load_board("default", [])
    axes = (board.pareto[0], board.pareto[1].model_copy(update={"metric": ("peak_rss_bytes",)}))
    part = Part("quickstart", board.model_copy(update={"pareto": axes}))
    ((name, found),) = build_site([part], site_store, tmp_path / "site").objections
    assert (name, found.smell) == ("quickstart", "unsound")
    assert "peak RSS is a Pareto axis" in (tmp_path / "site" / "quickstart" / "index.html").read_text()


def test_a_folder_with_other_files_is_left_alone(site_store: Store, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no site of ours"):
        build_site(parts()[1:2], site_store, tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / MANIFEST).write_text(json.dumps({"files": ["../thesis.tex"]}))
    build_site(parts()[1:2], site_store, tmp_path / "x")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_names_become_file_names_that_stay_apart() -> None:
    assert page_name("quickstart") == "quickstart"
    assert page_name("a/b") != page_name("a-b")
    assert "/" not in page_name(HOSTILE_SWEEP)
    assert ".." not in page_name(HOSTILE_SWEEP)
    assert line("x" * 1000, 10) == f"{'x' * 10} … (cut; 1,000 characters)"


def test_the_verb_builds_what_the_store_holds(
    site_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(
        ["site", "--results", site_store.root, "--out", str(tmp_path / "s"), "--json", "gpu"],
        standalone_mode=False,
    )
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 4
    assert said["cells"] == 8
    assert sorted(said["files"]) == said["files"]
    assert (tmp_path / "s" / "gpu" / "index.html").is_file()
    assert "https://arxiv.org/abs/2106.09685" in (tmp_path / "s" / "methods" / "lora.html").read_text()


def test_an_empty_sweep_is_a_page_that_says_so(site_store: Store, tmp_path: Path) -> None:
    built = build_site([Part("nothing", load_board("default", []))], site_store, tmp_path / "s")
    assert built.rows == 0
    assert "No records yet" in (tmp_path / "s" / "nothing" / "index.html").read_text()


def answered(tmp_path: Path, rows: dict[str, dict[str, float]], *, seeds: tuple[int, ...] = (0, 1)) -> Any:
    """The answer of a board of these methods, with its table and section."""
    store = Store(tmp_path / "answered")
    for method, numbers in rows.items():
        for seed in seeds:
            store.append(*ok_record(cell(method, seed=seed), **numbers))
    table = build(load_board("default", []), store.records()[0], store)
    return answer(table, table.sections[0]), table


def test_tied_rows_that_forget_come_last_and_say_so(tmp_path: Path) -> None:
    rows = {"none": {"accuracy": 0.05}, "full": {"accuracy": 0.9, "retained": 0.1}}
    found, table = answered(tmp_path, {**rows, "alora": {"accuracy": 0.89, "retained": 0.94}})
    assert (found.kind, found.headline) == ("tie", "2 methods tie for first")
    assert [row_name(row) for row in found.rows] == ["alora", "full"]
    assert cautions(found.rows[0], table.records) == []
    assert cautions(found.rows[1], table.records)[0].startswith("forgets: it keeps 9%")


def test_a_board_on_which_nothing_learned_recommends_nothing(tmp_path: Path) -> None:
    found, _ = answered(tmp_path, {"none": {"accuracy": 0.5}, "lora": {"accuracy": 0.5}, "ia3": {"accuracy": 0.49}})
    assert (found.kind, found.rows) == ("nothing", ())
    assert "None of the 2 trained rows" in found.reason


def test_an_unranked_board_says_its_true_reason(tmp_path: Path) -> None:
    rows = {"none": {"accuracy": 0.1}, "lora": {"accuracy": 0.9}, "dora": {"accuracy": 0.8}}
    found, _ = answered(tmp_path, rows, seeds=(0,))
    assert (found.kind, found.headline) == ("nothing", "Not ranked")
    assert found.reason == "One seed: a single run ranks a checkpoint, not a method."


def test_a_clear_winner_is_named_with_what_it_is_better_than(tmp_path: Path) -> None:
    found, _ = answered(tmp_path, {"none": {"accuracy": 0.1}, "lora": {"accuracy": 0.9}, "ia3": {"accuracy": 0.4}})
    assert (found.kind, found.headline) == ("best", "lora is best")
    assert "the other 2 ranked rows" in found.reason
