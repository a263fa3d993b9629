"""The index: equal to the records, right after every change of them, and never trusted over them."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from harness.comparability import configuration, marks, place, settings_of
from harness.errors import UserError
from harness.metrics import missing, reading
from harness.record import Outcome, Span
from harness.store import index
from harness.store.index import FILE, flatten, join, load
from harness.store.indexed import flat_of, read_records
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Store
from tests.harness.examples import full_record, make_record
from tests.harness.test_store import python


def ids(loaded: index.Index) -> list[str]:
    return list(loaded.flat.rows.column("id").to_pylist())


def filled(root: str | Path, numbers: range = range(5)) -> Store:
    store = Store(root)
    for number in numbers:
        value = reading("accuracy", number / 10, source="test", n=40)
        spans = (
            Span(
                stage="train", seconds=float(number), readings=(missing("energy_gross_j", "no_device", source="NVML"),)
            ),
        )
        store.append(make_record(number, metrics={"accuracy": value}, spans=spans))
    return store


def values(flat: index.Flat, name: str) -> list[float]:
    """The values of a quantity, in the order of the records."""
    code = [i for i, kind in enumerate(flat.kinds) if kind.name == name]
    return list(flat.value[np.isin(flat.kind, code)])


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_index_equals_the_records_and_avoids_reading_them(kind: str, tmp_path: Path) -> None:
    store = filled(tmp_path if kind == "local" else f"memory://{uuid.uuid4().hex}/s")
    first, second = load(store, fewest=1), load(store)
    assert (first.read, second.read, second.unwritten) == (5, 0, "")
    records = store.records()[0]
    assert ids(first) == ids(second) == [record.id for record in records]
    assert second.flat.rows.equals(flatten(records).rows)
    assert index.PARTS.name not in second.flat.rows.column_names
    assert values(second.flat, "accuracy") == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert values(second.flat, "train.stage_s") == [0.0, 1.0, 2.0, 3.0, 4.0]
    energy = next(kind for kind in second.flat.kinds if kind.name == "train.energy_gross_j")
    assert (energy.unit, energy.why_missing) == ("J", "no_device")
    assert np.isnan(values(second.flat, "train.energy_gross_j")).all()


def test_small_stores_have_none_unless_it_is_asked_for(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert load(store).read == 5
    assert not (tmp_path / FILE).exists()
    load(store, rebuild=True)
    assert (tmp_path / FILE).exists()


def test_it_follows_every_change_of_the_records(tmp_path: Path) -> None:
    store = filled(tmp_path)
    load(store, fewest=1)
    store.append(make_record(2, attempt=2))  # sorts into the middle
    after = load(store)
    assert (after.read, ids(after)) == (1, [record.id for record in store.records()[0]])
    assert load(store).read == 0
    gone = store.entries_of(make_record(3).key)[0]
    (tmp_path / gone.path).unlink()
    assert ids(load(store)) == [record.id for record in store.records()[0]]
    assert load(store).paths == tuple(e.path for group in store.entries().values() for e in group)


def test_changed_file_is_read_again_despite_the_index(tmp_path: Path) -> None:
    store = filled(tmp_path)
    load(store, fewest=1)
    path = tmp_path / store.entries_of(make_record(3).key)[0].path
    path.write_text(path.read_text().replace("0.3", "0.9"))  # same size, newer
    after = load(store)
    assert [Path(d.path).parent.name for d in after.damaged] == ["quarantine"]
    assert values(after.flat, "accuracy") == [0.0, 0.1, 0.2, 0.4]
    assert load(store).damaged == ()


def test_rebuild_finds_changes_that_stamps_miss(tmp_path: Path) -> None:
    """The limit of the rule, as the module states it: same name, same size, same time of modification."""
    store = filled(tmp_path)
    load(store, fewest=1)
    path = tmp_path / store.entries_of(make_record(3).key)[0].path
    before = path.stat()
    path.write_text(path.read_text().replace("0.3", "0.9"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(load(store).damaged) == 0
    assert len(load(store, rebuild=True).damaged) == 1


@pytest.mark.parametrize("damage", ["cut off", "no index", "another version"])
def test_an_index_that_is_none_is_made_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    load(store, fewest=1)
    if damage == "another version":
        monkeypatch.setattr(index, "VERSION", "2")
    else:
        data = (tmp_path / FILE).read_bytes()
        (tmp_path / FILE).write_bytes(data[: len(data) // 2] if damage == "cut off" else b"hello")
    assert load(store, fewest=1).read == 5
    assert load(store).read == 0


def test_read_only_store_loads_and_says_why_it_has_no_index(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "index").write_text("in the way")
    loaded = load(store, fewest=1)
    assert len(ids(loaded)) == 5
    assert "cannot be written" in loaded.unwritten


def test_columns_join_and_select_like_their_records() -> None:
    records = [full_record(), make_record(1), make_record(2, metrics={}), make_record(3)]
    whole = flatten(records)
    for made in (join([flatten(records[:2]), flatten(records[2:])]), join([flatten(records), flatten(())])):
        assert made.rows.equals(whole.rows)
        assert [made.kinds[i] for i in made.kind] == [whole.kinds[i] for i in whole.kind]
        assert np.array_equal(made.starts, whole.starts)
    picked, wanted = whole.take(np.array([3, 0])), flatten([records[3], records[0]])
    assert [picked.kinds[i] for i in picked.kind] == [wanted.kinds[i] for i in wanted.kind]
    assert np.array_equal(picked.value, wanted.value, equal_nan=True)
    assert picked.owners().tolist() == wanted.owners().tolist()
    assert flatten(()).rows.num_rows == 0


BUSY = """
import sys
from harness.store.index import load
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Store
from tests.harness.examples import make_record
store = Store(sys.argv[1])
print("ready", flush=True)
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 15):
    store.append(make_record(number))
    found = load(store, rebuild=number % 3 == 0, fewest=1)
    assert not found.damaged and not found.unwritten, found
    assert make_record(number).id in found.flat.rows.column("id").to_pylist()
"""


def test_concurrent_writers_and_index_updates(tmp_path: Path) -> None:
    workers = [python(BUSY, str(tmp_path), str(start)) for start in (0, 10, 20)]  # with cells in common
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    store = Store(tmp_path)
    load(store)
    final = load(store)
    assert final.read == 0
    assert ids(final) == [record.id for record in store.records()[0]]
    assert len(ids(final)) == 35
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_dead_writer_left_beside_the_index_is_swept(tmp_path: Path) -> None:
    store = filled(tmp_path)
    load(store, fewest=1)
    left = tmp_path / "index" / f".{time.time() - 3700:.0f}.0123456789ab.tmp"
    left.write_bytes(b"half")
    Store(tmp_path).append(make_record(1))
    assert not left.exists()


def test_records_of_the_index_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    store.append(full_record().model_copy(update={"samples": None}))
    scored, failed = samples_to_parquet([]), Outcome(status="oom", log_tail="out of memory")
    store.append(make_record(7, series={"loss": (1.0, 2.0)}, outcome=failed, samples=samples_ref(scored)), scored)
    for _ in range(2):  # the index is made, then read
        made, damaged = read_records(store, fewest=1)
        files = {record.id: record for record in store.records()[0]}
        assert (set(files), damaged) == ({record.id for record in made}, [])
    with monkeypatch.context() as patched:
        patched.setattr(Store, "read", lambda *_: pytest.fail("a file was read"))
        for one in read_records(Store(tmp_path), fewest=1)[0]:
            whole = files[one.id]
            for name in ("cell", "environment", "outcome", "samples", "finished", "supersedes", "loss_rose"):
                assert getattr(one, name) == getattr(whole, name), name
            for of in (marks, place, configuration, settings_of):
                assert of(one) == of(whole), of
            for name in ("accuracy", "train.energy_gross_j", "train.stage_s", "nothing"):
                assert (one.value(name), one.items(name)) == (whole.value(name), whole.items(name)), name
    assert [one.content() for one in made] == [files[one.id].content() for one in made]
    assert [one.metrics for one in made] == [files[one.id].metrics for one in made]
    only = read_records(store, [made[0].key], fewest=1)[0]
    assert {one.key for one in only} == {made[0].key}
    flat = flat_of(made[::-1])
    assert flat.rows.drop_columns(index.PARTS.name).equals(flatten(made[::-1]).rows)
    assert set(flat_of(made[:1]).kinds) == set(flatten(made[:1]).kinds)


def test_a_changed_record_wins_over_the_index(tmp_path: Path) -> None:
    store = filled(tmp_path)
    record = read_records(store, fewest=1)[0][0]
    file = tmp_path / store.entries_of(record.key)[0].path
    file.write_text(file.read_text().replace('"unit"', '"Unit"'))
    with pytest.raises(UserError, match="does not match its id"):
        len(record.metrics)
    left, _ = read_records(Store(tmp_path), fewest=1)
    assert record.id not in {one.id for one in left}
