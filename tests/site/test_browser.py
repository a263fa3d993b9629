"""The site in a real browser. One walk (``walk.mjs``) visits every page; each test checks its observations."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from tests.site.making import EMOJI, HOSTILE_SWEEP, IMAGE, MEGABYTE, SCRIPT

Walk = dict[str, Any]


def numbers(texts: list[str]) -> list[float]:
    """The leading numbers of printed places; a dash and its reason give none."""
    return [float(text.split()[0].replace(",", "")) for text in texts if not text.startswith("—")]


def shown_rows(count: str) -> int:
    return int(count.split(" of ")[0].replace(",", ""))


def test_the_overview_names_every_sweep_and_leads_to_its_board(walk: Walk) -> None:
    assert walk["boards"] == ["quickstart", "gpu", HOSTILE_SWEEP]
    assert walk["board"]["count"] == "24 of 24 rows"
    assert len(walk["board"]["columns"]) == 8
    assert walk["board"]["columns"][:2] == ["method", "accuracy"]
    assert "rows tie for first" in walk["board"]["bands"][0]
    assert walk["frontMarks"] >= 22
    assert walk["errorBars"] > 0
    assert len(walk["frontNames"]) > 1
    assert walk["legendHides"]["marks"] < walk["frontMarks"]
    assert shown_rows(walk["legendHides"]["count"]) < 24
    assert len(walk["legend"]) == 7  # six methods and the others


def test_method_and_score_stay_in_place_when_scrolled(walk: Walk) -> None:
    assert walk["sticky"]["scrolled"] > 0
    method, score = walk["sticky"]["places"]
    assert abs(method) <= 2
    assert 100 < score < 300


def test_only_what_was_measured_is_asked_about(walk: Walk) -> None:
    assert walk["cpuQuestions"] == ["Training may add", "One answer may take"]
    assert walk["gpuQuestions"] == ["My GPU has", "One token may take", "Training may use"]


def test_front_page_has_one_card_a_table_with_its_answer(walk: Walk) -> None:
    quickstart, gpu, hostile = walk["cards"]
    assert "tie for first" in quickstart
    assert re.search(r"\d+\.\d % \[\d+\.\d, \d+\.\d\]", quickstart)
    assert "GiB" in quickstart
    assert "ms a step" in quickstart
    assert "last run 2026-01-02" in quickstart
    assert "not known whether it learned" in gpu
    assert SCRIPT in hostile
    assert walk["thumbnails"] > 0


def test_columns_sort_and_missing_values_have_reasons(walk: Walk) -> None:
    for texts in (walk["sorted"]["values"], walk["sortedByKey"]):
        found = numbers(texts)
        assert len(found) > 20
        assert found == sorted(found)
    assert walk["sorted"]["hash"].endswith("order=step_ms+asc")
    assert any(text.startswith("— the cell ended before") for text in walk["sorted"]["values"])
    down = walk["sortedDown"]
    assert numbers(down) == sorted(numbers(down), reverse=True)
    for texts in (walk["sorted"]["values"], down):  # missing values are last in both directions
        missing = [text.startswith("—") for text in texts]
        assert missing == sorted(missing)


def test_filters_narrow_rows_and_a_link_restores_them(walk: Walk) -> None:
    assert walk["searched"]["count"] == "3 of 24 rows"  # lora, lora-r1 and alora on nf4
    assert set(walk["searched"]["methods"]) == {"nf4"}
    assert shown_rows(walk["frontOnly"]["count"]) == walk["frontOnly"]["front"]
    assert walk["filtered"]["count"] == "8 of 24 rows"
    assert set(walk["filtered"]["quantizations"]) == {"nf4"}
    assert walk["linked"] == {"count": "8 of 24 rows", "quantizations": ["nf4"]}


def test_hidden_column_leaves_table_address_and_csv(walk: Walk) -> None:
    assert walk["added"] == 1
    assert walk["hidden"]["header"] == 0
    assert "show=" in walk["hidden"]["hash"]
    rows = list(csv.reader(io.StringIO(walk["csv"])))
    assert len(rows) == 25
    assert any("adapter size" in name for name in rows[0])
    assert not any("latency" in name for name in rows[0])
    assert "step [ms]" in rows[0]
    assert walk["download"] == "board.csv"


def test_reader_limits_change_recommendation_and_table(walk: Walk) -> None:
    assert "2 methods tie for first" in walk["free"]
    assert "\nfull\n" in walk["free"]
    assert "rank 1–2 of 2" in walk["free"]
    assert "Runner-up: lora" in walk["free"]
    assert "\nlora\n" in walk["limited"]["advice"]
    assert walk["limited"]["count"] == "2 of 4 rows"
    assert 0 < int(walk["limited"]["slider"]) < 100
    assert walk["limited"]["hash"] == "#memory=12"
    assert "No ranked row that learned meets every limit" in walk["impossible"]
    assert "4.4 GiB" in walk["impossible"]
    assert walk["slid"] == {"value": "9", "count": "1 of 4 rows"}
    assert walk["limitedByLink"] == {key: walk["limited"][key] for key in ("advice", "count")}


def test_a_score_appears_only_when_the_reader_moves_a_weight(walk: Walk) -> None:
    assert walk["weighed"]["header"] == walk["scoreBefore"] + 1  # "train samples/s" and the like hold no "score"
    assert "w=accuracy%3A3" in walk["weighed"]["hash"]
    assert "highest score under the weights you set" in walk["weighed"]["advice"]


def test_compare_shows_results_and_what_differs(walk: Walk) -> None:
    assert walk["compared"]["heads"] == ["full", "lora / int8"]
    assert walk["compared"]["groups"] == ["Results", "Settings that differ"]
    assert "method.name" in walk["compared"]["text"]
    assert walk["comparedThree"] == 3
    test = re.compile(r"^[+−]?\d+\.\d \[[+−]?\d+\.\d, [+−]?\d+\.\d\] points, p (= [\d.e−]+|< 0\.0001)$")
    assert walk["compared"]["tests"]
    assert [text for text in walk["compared"]["tests"] if not test.match(text)] == []
    assert walk["compared"]["note"].startswith(f"{len(walk['compared']['tests'])} comparison")
    assert "pairs of this table" in walk["compared"]["note"]
    assert "Bonferroni" in walk["noteOfThree"]


def test_cell_page_has_stages_answers_and_rerun_command(walk: Walk) -> None:
    cell = walk["cell"]
    assert cell["stages"] == 2
    assert cell["note"].startswith("The first 200 of 200 scored items")
    assert re.fullmatch(r"peft-matrix run quickstart --only [0-9a-f]{16} --rerun all", cell["command"])
    assert walk["wrongOnly"] == 0
    assert walk["cellOrder"][:2] == ["title", "result"]


def test_row_page_has_all_seeds(walk: Walk) -> None:
    assert walk["rowPage"]["seeds"] == 2
    assert "learning rate" in walk["rowPage"]["text"]


def test_search_leads_over_all_boards_to_a_method(walk: Walk) -> None:
    assert walk["found"] == {"count": "1 rows", "rows": ["dora / nf4"]}
    assert walk["methodPage"] == {"title": "dora", "rows": 4}


def test_failures_are_grouped_and_empty_tabs_hidden(walk: Walk) -> None:
    assert len(walk["reasons"]) == 3
    assert walk["reasonsKept"] == 1
    assert walk["tabs"] == ["Board", "Matrix", "Compare", "Tuning", "Trends", "Failures", "About"]


def test_a_board_page_is_light(walk: Walk) -> None:
    """The size is asserted; processor time is printed, since it depends on the machine."""
    print(f"\nboard page: {walk['weight']['bytes'] / 1000:.0f} kB, {walk['weight']['cpu_s']:.2f} s of the main thread")
    assert walk["weight"]["bytes"] <= 600_000


def test_every_page_fits_a_phone(walk: Walk) -> None:
    assert len(walk["widths"]) > 12
    assert {path: width for path, width in walk["widths"].items() if width > 390} == {}
    assert walk["plainWide"] == 1400, "the table scrolls, not the page"
    assert len(set(walk["rightEdges"])) == 1, "plot and table end at one edge"


def test_the_matrix_has_a_scale_and_one_alignment(walk: Walk) -> None:
    assert re.fullmatch(r"Colour, stronger is better: [\d.]+ %\s*[\d.]+ %", walk["scale"])
    assert set(walk["statusEdges"]) == {"right"}


def test_the_rerun_command_can_be_copied(walk: Walk) -> None:
    said, selected = walk["copied"]
    assert said == "Copied" or (said == "Selected" and selected.startswith("peft-matrix run"))


def test_axe_finds_no_serious_violation(walk: Walk) -> None:
    assert walk["axe"] + walk["filterAxe"] == []


def test_light_and_dark_and_the_keyboard(walk: Walk) -> None:
    assert walk["light"] != walk["dark"]
    assert walk["darkKept"] == walk["dark"]
    assert walk["stops"][0] == "Skip to the content"
    assert len(walk["tip"]) > 20


def test_hostile_text_stays_text(walk: Walk) -> None:
    pages = {name: saw for name, saw in walk["hostile"].items() if name.endswith(".html")}
    assert len(pages) == 4
    for saw in pages.values():
        assert saw["images"] == 0
        assert saw["scripts"] == 0
        assert SCRIPT in saw["text"]
        assert MEGABYTE not in saw["text"]
        assert saw["size"] < 600_000
    whole = " ".join(saw["text"] for saw in pages.values())
    assert IMAGE in whole
    assert EMOJI in whole
    assert "\u202e" not in whole  # a direction override is shown escaped
    assert "\\u202e" in whole
    assert "characters)" in whole
    assert walk["hostile"]["compare"]["images"] == 0
    assert walk["hostile"]["filter"]["count"] == "1 of 6 rows"
    assert walk["hostile"]["filter"]["images"] == walk["hostile"]["filter"]["scripts"] == 0
    assert walk["dialogs"] == 0


def test_no_cell_of_the_csv_is_a_formula(walk: Walk) -> None:
    methods = [row[0] for row in csv.reader(io.StringIO(walk["hostile"]["csv"]))]
    assert '\'=HYPERLINK("x","y")' in methods
    assert not any(text.startswith(("=", "+", "-", "@")) for text in methods)


def test_nothing_is_logged_and_no_request_leaves_the_page(walk: Walk) -> None:
    assert walk["files"] > 50
    assert walk["requests"] == []
    # messages of chromium's software renderer
    assert [text for text in walk["errors"] if "GL Driver Message" not in text] == []


def test_rows_that_learned_nothing_do_not_crowd_the_plot(walk: Walk) -> None:
    found = re.search(
        r"([\d,]+) of ([\d,]+) trained rows learned or are on the front; the others are in the table alone",
        walk["bigCaption"],
    )
    assert found is not None, walk["bigCaption"]
    shown, trained = (int(text.replace(",", "")) for text in found.groups())
    assert 0 < shown <= 300 < trained


def test_ten_thousand_rows(walk: Walk) -> None:
    """Times are printed, not asserted; that only rows in view are drawn is."""
    big = walk["big"]
    filters = ", ".join(f"{ms:.0f}" for ms in big["filter_ms"])
    print(
        f"\n10,000 rows: first paint {big['paint_ms']:.0f} ms, rows {big['rows_ready_ms']:.0f} ms, filters {filters} ms"
    )
    assert big["count"].endswith("of 10,000 rows")
    assert 0 < big["drawn"] < 300
