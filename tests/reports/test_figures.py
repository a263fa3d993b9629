"""Figures: drawn where there are data, left out with the reason where there are none, the same bytes each time."""

from __future__ import annotations

import pytest

from harness.metrics import reading
from harness.record import Span
from harness.store.store import Store
from reports.board.board import build, load_board
from reports.board.figures import draw_all, energy, memory
from reports.board.formats.files import write_all
from tests.reports.making import cell, ok_record


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
