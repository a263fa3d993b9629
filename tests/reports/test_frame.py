"""Records to frames: what is averaged with what, and what never is."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import stats
from harness.errors import UserError
from harness.metrics import missing, reading
from harness.record import Span
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Store
from reports.board.board import BoardTable, build, load_board
from reports.data.derived import calibration_error, cut_items, negative_flips
from reports.data.effects import Evidence
from reports.data.frame import aggregate, current, frame, marks
from reports.data.samples import gather, indexed_samples, scored_items
from tests.reports.making import ENVIRONMENT, cell, failed_record, ok_record, sample_rows


def test_one_row_per_cell_and_seed_and_failures_are_rows(store):
    records, damaged = store.records()
    rows = frame(records)
    assert not damaged
    assert len(rows) == len(records) == 48
    oom = rows[rows.status == "oom"]
    assert oom[["method", "quantization", "seed", "stage"]].to_numpy().tolist() == [["ia3", "nf4", 1, "train"]]
    assert (rows[rows.status == "unsupported"].reason.str.contains("trains on fp bases")).all()
    # a missing reading is NaN with its typed reason, never 0
    ok = rows[rows.status == "ok"]
    assert ok["train.energy_gross_j"].isna().all()
    assert set(ok["train.energy_gross_j:why"]) == {"no_device"}


def test_order_of_records_does_not_matter(store):
    records = store.records()[0]
    shuffled = records[:]
    random.Random(5).shuffle(shuffled)
    assert frame(records).equals(frame(shuffled))


def test_mean_and_spread_are_over_seeds():
    records = [ok_record(cell(seed=seed), step_ms=value)[0] for seed, value in ((0, 10.0), (1, 14.0), (2, 12.0))]
    values = [record.metrics["step_ms"].value for record in records]
    row = aggregate(frame(records)).iloc[0]
    assert row["seeds"] == (0, 1, 2)
    assert row["step_ms"] == pytest.approx(sum(values) / 3)
    assert row["step_ms:sd"] == pytest.approx(math.sqrt(sum((v - sum(values) / 3) ** 2 for v in values) / 2))


def test_interval_comes_from_samples_or_is_marked_as_wilson(store):
    records = {record.id: record for record in store.records()[0]}
    rows = frame(records.values())
    with_samples = aggregate(rows, lambda i: store.samples(records[i])).set_index(["method", "quantization"])
    without = aggregate(rows).set_index(["method", "quantization"])
    method = "items and seeds, seed variance estimated over 22 rows"
    assert with_samples.loc[("lora", "none"), "accuracy:interval"] == method
    assert without.loc[("lora", "none"), "accuracy:interval"] == "Wilson, no samples available"
    assert without.loc[("lora", "none"), "accuracy:items"] == 200
    # one seed among rows with two: the variance over seeds is that of the others
    assert with_samples.loc[("ia3", "nf4"), "accuracy:interval"] == method
    assert with_samples.loc[("ia3", "nf4"), "accuracy:n"] == 1


def test_interval_of_a_perfect_score_keeps_its_width(tmp_path):
    from harness.store.store import Store

    store = Store(tmp_path)
    records = {}
    for seed in (0, 1):
        record, data = ok_record(cell(seed=seed), accuracy=5.0)
        store.append(record, data)
        records[record.id] = record
    row = aggregate(frame(records.values()), lambda i: store.samples(records[i])).iloc[0]
    assert row["accuracy"] == row["accuracy:high"] == 1.0
    assert row["accuracy:low"] == pytest.approx(stats.wilson(200, 200).low)


def test_retention_is_the_mean_over_tasks_not_over_items(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    from harness.store.samples import samples_to_parquet
    from tests.reports.making import sample_rows

    rows = sample_rows("retained", [True] * 90, "copy") + sample_rows("retained", [False] * 10, "upper")
    table = parquet.read_table(pa.BufferReader(samples_to_parquet(rows)))
    scores = gather([(0, table), (1, table)], "retained")
    assert scores.right.mean() == 0.9
    (family,) = Evidence(lambda _: table).families({"a": [(0, "x"), (1, "y")]}, "retained_accuracy")
    assert family.interval("a").estimate == pytest.approx(0.5)


def test_old_records_have_the_growth_over_attach():
    record = ok_record(cell(), rss=5e8)[0]
    (load, train) = record.spans
    old = tuple(r for r in train.readings if r.quantity != "rss_growth_bytes")
    attach = Span(stage="attach", seconds=0.1, readings=(reading("peak_rss_bytes", 4.5e8, source="VmHWM"),))
    spans = (load, attach, train.model_copy(update={"readings": old}))
    rows = frame([record.model_copy(update={"spans": spans}), ok_record(cell(seed=1), rss=5e8)[0]])
    of = rows.set_index("seed")
    peak = train.get("peak_rss_bytes").value
    assert of.loc[0, "train.rss_growth_bytes"] == peak - 4.5e8
    assert of.loc[0, "train.rss_growth_bytes:source"] == "VmHWM less that of attach"
    assert of.loc[1, "train.rss_growth_bytes:source"] == "VmHWM less VmRSS", "a measured one stays"


def test_partially_failed_seeds_are_named_and_not_averaged():
    records = [ok_record(cell(seed=0))[0], failed_record(cell(seed=1), "diverged", reason="loss is NaN at step 7")]
    row = aggregate(frame(records)).iloc[0]
    assert row["status"] == "ok"
    assert row["seeds"] == (0,)
    assert row["failed"] == ((1, "diverged", "train", "loss is NaN at step 7"),)


def test_values_of_a_failed_cell_are_not_shown():
    record = ok_record(cell(), accuracy=0.9)[0]
    wrong = record.model_copy(update={"outcome": failed_record(cell(), "error", reason="reload differs").outcome})
    row = aggregate(frame([wrong])).iloc[0]
    assert math.isnan(row["accuracy"])
    assert row["accuracy:why"] == "stage_not_reached"


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        ({"protocol": 2}, True),
        ({"training": {"steps": 600}}, True),
        ({"task": {"digest": "e" * 64}}, True),
        ({"threads": 2}, True),
        ({"probes": {"latency_repeats": 50}}, False),
    ],
)
def test_what_separates_groups(change, apart):
    rows = aggregate(frame([ok_record(cell())[0], ok_record(cell(**change))[0]]))
    assert len(rows) == 2
    assert (rows.group.nunique() == 2) == apart


def test_other_processor_is_another_group_other_host_is_not():
    other = copy.deepcopy(ENVIRONMENT)
    other["cpu"]["model"] = "Example CPU 4000"
    host = {**ENVIRONMENT, "host": "bbbbbbbbbbbb"}
    here, there = ok_record(cell())[0], ok_record(cell(), environment=other)[0]
    rows = aggregate(frame([here, there, ok_record(cell(seed=1), environment=host)[0]]))
    assert sorted(rows.seeds) == [(0,), (0, 1)]
    assert rows.group.nunique() == 2


def test_gpus_separate_groups_only_for_cells_that_use_them():
    gpu = {"name": "Example GPU", "power_limit_w": 300.0}
    with_gpu = {**ENVIRONMENT, "gpus": [gpu]}
    capped = {**ENVIRONMENT, "gpus": [{**gpu, "power_limit_w": 200.0}]}
    cuda = {"hardware": {"label": "any", "device": "cuda"}}
    cells = [cell(), cell(seed=1), cell(**cuda), cell(seed=1, **cuda)]
    environments = [ENVIRONMENT, with_gpu, with_gpu, capped]
    records = [ok_record(c, environment=e)[0] for c, e in zip(cells, environments, strict=True)]
    rows = aggregate(frame(records))
    assert sorted(rows.seeds) == [(0,), (0, 1), (1,)]


def test_a_cell_that_never_ran_joins_the_machine_of_its_like():
    unsupported = failed_record(cell("full", "nf4"), "unsupported", stage="", reason="no")
    rows = frame([ok_record(cell())[0], unsupported])
    assert rows.group.nunique() == 1


def test_corrections_and_repeats_leave_one_record_a_cell():
    old = ok_record(cell(), accuracy=0.2)[0]
    fixed = ok_record(cell(), accuracy=0.7, supersedes=old.id)[0]
    lost = failed_record(cell(), "lost", reason="worker vanished", finished="2026-01-03T00:00:00+00:00")
    assert [identity for identity, _ in current([old, lost, fixed])] == [fixed.id]


def test_an_earlier_oom_gives_way_to_a_later_success():
    oom = failed_record(cell(), "oom", reason="too big")
    ok = ok_record(cell(), finished="2026-01-02T00:00:00+00:00")[0]
    assert [record.outcome.status for _, record in current([ok, oom])] == ["ok"]


def test_marks_come_from_what_the_meters_saw():
    record = ok_record(cell())[0]

    def with_reading(extra):
        return record.model_copy(update={"spans": (*record.spans, Span(stage="probe", seconds=1, readings=(extra,)))})

    assert marks(record) == ()
    assert marks(with_reading(missing("energy_gross_j", "shared", source="NVML"))) == ("shared",)
    assert marks(with_reading(reading("throttled_fraction", 0.2, source="NVML"))) == ("throttled",)
    assert marks(with_reading(reading("throttled_fraction", 0.0, source="NVML"))) == ()
    assert marks(with_reading(reading("foreign_processes", 1, source="NVML"))) == ("shared",)
    assert marks(ok_record(cell(), environment={**ENVIRONMENT, "imported": {"from": "x"}})[0]) == ("imported",)


def test_no_records_give_empty_frames():
    assert frame([]).empty
    assert aggregate(frame([])).empty


def table_of(rows: list[dict[str, Any]], tmp_path: Path) -> Any:
    store = Store(tmp_path)
    data = samples_to_parquet(rows)
    record, _ = ok_record(cell(), with_samples=False)
    record = record.model_copy(update={"samples": samples_ref(data)})
    store.append(record, data)
    return store.samples(record)


def test_the_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([1.0, 0.0, 1.0, 1.0])
    # two bins in use: |0.5 - 0.95| and |1.0 - 0.55|, two items of four each
    assert stats.calibration_error(confidence, right).error == pytest.approx(0.45)
    assert stats.calibration_error(np.array([1.0, 1.0]), np.array([1.0, 1.0])).error == 0.0


def test_calibration_needs_the_probability_of_every_option(tmp_path: Path) -> None:
    plain = sample_rows("adapted", [True, False])
    assert calibration_error(table_of(plain, tmp_path / "a")) is None
    sure = [{**row, "logp_choices": [float(np.log(0.9)), float(np.log(0.1))]} for row in plain]
    assert calibration_error(table_of(sure, tmp_path / "b")) == pytest.approx(0.4)
    # log-probabilities of whole options need not sum to one: only their shares count
    scaled = [{**row, "logp_choices": [logp - 7.0 for logp in row["logp_choices"]]} for row in sure]
    assert calibration_error(table_of(scaled, tmp_path / "c")) == pytest.approx(0.4)


def test_items_and_answers_are_kept_once_for_all_records(tmp_path: Path) -> None:
    rows = sample_rows("adapted", [True, False, True])
    other = [{**row, "correct": not row["correct"], "prediction": "x"} for row in rows]
    first, second = (scored_items(table_of(r, tmp_path / n)).arms["adapted"] for r, n in ((rows, "a"), (other, "b")))
    assert first.items is second.items
    assert first.answers is second.answers
    assert (first.correct.tolist(), second.correct.tolist()) == ([1, 0, 1], [0, 1, 0])
    assert (first.one_prediction, second.one_prediction) == (False, True)
    reversed_rows = scored_items(table_of(rows[::-1], tmp_path / "c")).arms["adapted"]
    assert (reversed_rows.items, reversed_rows.correct.tolist()) == (first.items, [1, 0, 1])


def test_items_that_were_not_judged_are_left_out(tmp_path: Path) -> None:
    rows = sample_rows("adapted", [True, False, True])
    rows[0]["correct"] = None
    arm = scored_items(table_of(rows, tmp_path)).arms["adapted"]
    assert (len(arm.items), len(arm.judged), arm.correct.tolist()) == (3, 2, [0, 1])
    assert gather([(0, table_of(rows, tmp_path / "again"))], "adapted").items == arm.items[1:]


def test_flips_are_counted_against_the_same_items_of_the_base(tmp_path: Path) -> None:
    base, after = [True, True, True, False], [True, False, False, True]
    rows = [*sample_rows("base", base), *sample_rows("retained", after)]
    assert negative_flips(table_of(rows, tmp_path / "a")) == 0.5  # though the mean fell by a quarter only
    assert negative_flips(table_of(sample_rows("adapted", base), tmp_path / "b")) is None


def test_inputs_that_were_cut_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "cut": number < 3} for number, row in enumerate(sample_rows("adapted", [True] * 5))]
    assert cut_items(table_of(rows, tmp_path)) == 3.0


def board_with_shared_rate(tmp_path: Path, shared: dict[str, float]) -> BoardTable:
    store = Store(tmp_path)
    for method, tuned in {"full": 0.9, "lora": 0.7, "ia3": 0.5}.items():
        part = cell(method)["method"]
        facts = {"tuning": {"lr_at_edge": method == "ia3"}, "contamination": {"test_items_in_train": 2, "items": []}}
        for seed in (0, 1):
            final = {**cell(method, seed=seed), "role": "result", "tuning": {"learning_rates": 5}}
            record, data = ok_record(final, accuracy=tuned)
            environment = {**record.environment, "facts": facts}
            store.append(record.model_copy(update={"environment": environment}), data)
            at_shared = {**cell(method, seed=seed), "role": "shared-lr", "method": {**part, "learning_rate": 5e-2}}
            record, data = ok_record(at_shared, accuracy=shared[method])
            store.append(record, data)
    return build(load_board("default", []), store.records()[0], store)


def test_a_board_shows_what_tuning_was_worth(tmp_path: Path) -> None:
    section = board_with_shared_rate(tmp_path, {"full": 0.2, "lora": 0.4, "ia3": 0.6}).sections[0]
    assert len(section.rows) == 3  # runs at the shared rate are no rows
    shown = {row.labels["method"]: row.cells["shared_rate_accuracy"] for row in section.rows}
    assert shown["full"].value == pytest.approx(0.2, abs=0.08)
    assert shown["full"].seeds == 2
    assert "learning rate 0.05" in section.caption
    assert "is -1.00; ia3 leads there" in section.caption
    same = board_with_shared_rate(tmp_path / "same", {"full": 0.6, "lora": 0.4, "ia3": 0.2}).sections[0]
    assert "is 1.00; full leads there" in same.caption


def test_a_board_names_leaks_and_rates_at_the_edge(tmp_path: Path) -> None:
    section = board_with_shared_rate(tmp_path, {"full": 0.6, "lora": 0.4, "ia3": 0.2}).sections[0]
    assert ("test items also in train", "2") in section.conditions
    notes = {row.labels["method"]: row.notes for row in section.rows}
    assert [method for method, told in notes.items() if any("edge of the rates" in note for note in told)] == ["ia3"]


def test_samples_come_from_one_file_that_follows_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = sample_rows("adapted", [True, False, True]) + sample_rows("base", [False, True, True])
    rows[0]["correct"], rows[1]["logp_answer"] = None, None
    made = []
    for number in range(4):
        scored = [{**row, "prediction": f"{number}"} for row in (rows if number < 3 else rows[:3])]
        data = samples_to_parquet(scored)
        record, _ = ok_record(cell(seed=number), with_samples=False)
        made.append(record.model_copy(update={"samples": samples_ref(data)}))
        store.append(made[-1], data)

    def read(fewest: int, several: list[Any]) -> list[str]:
        source = indexed_samples(Store(tmp_path), several, fewest=fewest)
        return [repr(source(record.id)) for record in several]

    each = read(1_000, made)
    assert [read(1, made[:2]), read(1, made), read(1, made)] == [each[:2], each, each]
    file = tmp_path / "samples" / f"{made[0].samples.digest}.parquet"
    file.write_bytes(b"another")
    with pytest.raises(UserError, match="does not match its digest"):
        read(1, made)
    (tmp_path / "index" / "samples.parquet").write_bytes(b"cut off")
    assert read(1, made[1:]) == each[1:]
