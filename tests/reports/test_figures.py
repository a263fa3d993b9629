"""Figures: drawn where there are data, left out with the reason where there are none, the same bytes each time."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess

import numpy as np
import pytest

from harness.errors import UserError
from harness.metrics import reading
from harness.record import Span
from harness.store.store import Store
from reports.board.board import build, load_board
from reports.board.figures import draw_all, drawing, energy, memory
from reports.board.formats import to_latex
from reports.board.formats.files import write_all
from tests.reports.making import cell, filled_store, ok_record


def drawn(store: Store):
    return draw_all(build(load_board("default", []), store.records()[0], store))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Records with energy, a power trace and two learning rates, tuning trials among them."""
    store = Store(tmp_path_factory.mktemp("full"))
    for method, rate, seed in (("lora", 0.9, 0), ("lora", 0.9, 1), ("$x^2$ <b>", 0.5, 0), ("$x^2$ <b>", 0.5, 1)):
        record, data = ok_record(cell(method, seed=seed), accuracy=rate)
        span = Span(stage="evaluate", seconds=1.0, readings=(reading("energy_gross_j", 90.0, source="NVML"),))
        series = {"power_s": (0.0, 1.0, 2.0), "power_w": (50.0, 200.0, 60.0)}
        store.append(record.model_copy(update={"spans": (*record.spans, span), "series": series}), data)
    for rate in (1e-4, 1e-2):
        tried = {**cell("lora", role="trial"), "method": {**cell("lora")["method"], "learning_rate": rate}}
        trial, _ = ok_record(tried, with_samples=False)
        loss = {"validation_nll": reading("validation_nll", 1 + rate, source="validation split")}
        store.append(trial.model_copy(update={"metrics": trial.metrics | loss}))
    return store


def test_every_figure_is_drawn_where_there_are_data(full):
    found, left_out = drawn(full)
    kinds = [one.kind for one in found]
    assert kinds == [
        "trade-off",
        "rank intervals",
        "memory by stage",
        "energy per correct answer",
        "learning-rate curves",
        "power trace",
    ]
    assert [(one.kind, one.why) for one in left_out] == [
        ("method by quantization", "needs two methods and two quantizations")
    ]
    for one in found:
        assert one.files["png"].startswith(b"\x89PNG")
        assert one.files["pdf"].startswith(b"%PDF")
        svg = one.files["svg"].decode()
        assert "<script" not in svg
        assert "<b>" not in svg
    again, _ = drawn(full)
    assert [one.files for one in again] == [one.files for one in found]


def test_trials_are_no_rows_of_the_board(full):
    table = build(load_board("default", []), full.records()[0], full)
    assert sum(len(section.rows) for section in table.sections) == 2
    assert len(table.trials) == 2


def test_figure_without_data_is_omitted_with_a_reason(tmp_path):
    store = Store(tmp_path / "store")
    store.append(*ok_record(cell()))
    table = build(load_board("default", []), store.records()[0], store)
    found, left_out = draw_all(table)
    assert "power trace" in {one.kind for one in left_out}
    write_all(table, tmp_path / "board", found, left_out)
    for name in ("board.md", "board.html"):
        text = (tmp_path / "board" / name).read_text()
        assert "power trace: no record holds a power trace" in text
        assert "rank intervals: fewer than two rows are ranked" in text


def test_figure_without_data_is_removed_with_the_old_board(tmp_path, full):
    write_all(build(load_board("default", []), full.records()[0], full), tmp_path)
    assert (tmp_path / "power-trace.svg").exists()
    (tmp_path / "mine.svg").write_text("not yours")
    store = Store(tmp_path / "store")
    store.append(*ok_record(cell()))
    write_all(build(load_board("default", []), store.records()[0], store), tmp_path)
    assert not (tmp_path / "power-trace.svg").exists()
    assert (tmp_path / "mine.svg").exists()


def test_memory_is_stacked_by_what_each_stage_added():
    def span(stage, peak):
        return Span(stage=stage, seconds=1, readings=(reading("peak_rss_bytes", peak, source="VmHWM"),))

    record, _ = ok_record(cell())
    record = record.model_copy(update={"spans": (span("load", 300), span("train", 500), span("evaluate", 400))})
    assert memory.raised(record, "peak_rss_bytes") == {"load": 300, "train": 200, "evaluate": 0}


def test_energy_per_correct_answer_or_why_there_is_none(full):
    record = next(r for r in full.records()[0] if r.series)
    right = round(record.metrics["accuracy"].value * 200)
    assert energy.per_correct(record) == pytest.approx(90 / right)
    assert energy.per_correct(ok_record(cell())[0]) == "no energy of the evaluation (not_measured)"


# --- papers: fonts, colours, tables ----------------------------------------------------------------
SEEN = {  # linear RGB as seen: normal, deuteranopia, protanopia (Machado et al. 2009, severity 1)
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def lab(colour, seen):
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(seen @ linear, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", SEEN)
def test_any_two_colours_differ_for_colour_blind_readers(seen):
    """CIE 1976 colour difference of at least 15."""
    found = [lab(colour, SEEN[seen]) for colour in drawing.COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(found, 2)) >= 15


@pytest.mark.filterwarnings("error:constrained_layout")
def test_a_few_rows_leave_room_for_the_legend_of_all_stages():
    record, _ = ok_record(cell("lora"))
    peaks = [reading("peak_rss_bytes", 1e8 * number, source="VmHWM") for number in range(1, 14)]
    spans = tuple(Span(stage=f"stage{n}", seconds=1.0, readings=(peak,)) for n, peak in enumerate(peaks))
    table = build(load_board("default", []), [record.model_copy(update={"spans": spans})])
    assert isinstance(memory.draw(table, table.sections[0]), dict)


def test_figures_embed_truetype_and_print_no_raw_tex(full):
    found, _ = drawn(full)
    for one in found:
        assert b"/Type3" not in one.files["pdf"], one.kind
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", one.files["pdf"])
        assert box is not None
        assert float(box[1]) == pytest.approx(72 * drawing.COLUMN), "as wide as a column: printed without scaling"
    assert drawing.PAPER["font.size"] * 0.833 >= 6, "the small letters of a legend, in points"
    curves = next(one for one in found if one.kind == "learning-rate curves").files["svg"].decode()
    assert "mathdefault" not in curves


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
@pytest.mark.parametrize(
    ("layout", "top", "long_rows"), [("onecolumn", None, 40), ("onecolumn", None, 10), ("twocolumn", 5, 40)]
)
def test_tables_for_a_paper_compile_without_overfull_box(tmp_path, monkeypatch, layout, top, long_rows):
    monkeypatch.setattr(to_latex, "LONG_ROWS", long_rows)
    store = filled_store(tmp_path / "store")
    text = to_latex.paper(build(load_board("default", []), store.records()[0], store), top=top)
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs,siunitx,longtable,array,amssymb,textcomp}"
    document = rf"\documentclass[{layout}]{{article}}{packages}\begin{{document}}" + text + r"\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in (tmp_path / "paper.log").read_text()
    assert r"\label{tab:" in text
    assert ("begin{longtable}" in text) == (long_rows == 10)


def test_a_paper_table_has_the_chosen_columns(tmp_path):
    store = filled_store(tmp_path / "store")
    table = build(load_board("default", []), store.records()[0], store)
    assert 2 < to_latex.paper_width_in(table) <= to_latex.COLUMN_IN, "the usual columns fit a column"
    many = [column.key for column in table.heads]
    assert to_latex.paper_width_in(table, many) > to_latex.PAGE_IN
    assert to_latex.paper_width_in(table, ["method", "step_ms"]) < to_latex.paper_width_in(table)
    text = to_latex.paper(table, ["method", "step_ms"], 3)
    assert text.count(r" \\") == 4  # the head and three rows
    with pytest.raises(UserError, match="no column 'acuracy'"):
        to_latex.paper(table, ["acuracy"])
