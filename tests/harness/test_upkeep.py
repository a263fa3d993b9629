"""Several stores into one, and what may go: checked on the files that are left."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.record import Outcome, Record
from harness.store import removal
from harness.store.cleanup import remove, waste
from harness.store.merge import merge
from harness.store.packing import pack
from harness.store.removal import Chosen, archive, choose
from harness.store.samples import samples_ref
from harness.store.store import Store, log_path
from tests.harness.examples import make_record, make_samples
from tests.harness.test_store import CLAIMER, python


def with_samples(number: int, rows: int, **changes: object) -> tuple[Record, bytes]:
    data = make_samples(rows)
    return make_record(number, samples=samples_ref(data), **changes), data


def age(root: Path) -> None:
    """Make every sample and temporary file two hours old."""
    for path in [*(root / "samples").glob("*"), *(root / "logs").glob("*"), *root.rglob("*.tmp")]:
        os.utime(path, (time.time() - 7200,) * 2)


# --- gc ------------------------------------------------------------------------------------------
def test_only_what_nothing_needs_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, data = with_samples(1, 3)
    wrong, wrong_data = with_samples(2, 4)
    store.append(kept, data)
    store.append(wrong, wrong_data)
    store.append(make_record(2, supersedes=wrong.id, attempt=2))
    store.append(make_record(1, outcome=Outcome(status="lost"), attempt=2))  # the cell has a result
    store.append(make_record(3, outcome=Outcome(status="interrupted")))  # this one has none: it stays
    store.append(make_record(1, finished="2026-11-22T00:00:00+00:00"))  # a repeat is history
    (tmp_path / "samples" / f"{'0' * 64}.parquet").write_bytes(b"orphan")
    (tmp_path / "records" / "00" / ".1700000000.0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "damaged.json").write_bytes(b"evidence")
    young = waste(store)
    assert {one.why for one in young.waste} == {"corrected by a later record", "lost; the cell has ended since"}
    age(tmp_path)
    kept_back = waste(store)  # a record in quarantine may need the samples
    assert "no record refers to them" not in {one.why for one in kept_back.waste}
    assert "1 records in quarantine may need them" in kept_back.kept_back[0]
    (tmp_path / "quarantine" / "damaged.json").unlink()
    found = waste(store)
    assert sorted(one.why for one in found.waste) == [
        "corrected by a later record",
        "left by a writer that died",
        "lost; the cell has ended since",
        "no record refers to them",
        "no record refers to them",
    ]
    assert found.kept_back == ()
    before = {str(p) for p in tmp_path.rglob("*") if p.is_file()}
    assert before == {str(p) for p in tmp_path.rglob("*") if p.is_file()}  # looking removes nothing
    assert remove(store, found) == sum(one.size for one in found.waste) > 0
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {
        *(entry.path for group in store.entries().values() for entry in group),
        f"samples/{kept.samples.digest}.parquet",  # type: ignore[union-attr]
    }
    assert len(store.records()[0]) == 4
    assert waste(store).waste == ()


def test_a_log_goes_with_its_record_and_moves_with_it(tmp_path: Path) -> None:
    store, into = Store(tmp_path / "from"), Store(tmp_path / "into")
    kept = make_record(1)
    store.append(kept)
    for identity in (kept.id, "0" * 64):
        store.put(log_path(kept.key, identity), b"loss 0.5\n")
    assert waste(store).waste == (), "a log may be written before its record"
    age(tmp_path / "from")
    (gone,) = waste(store).waste
    assert (gone.path, gone.size) == (log_path(kept.key, "0" * 64), 9)
    merge([store], into)
    assert [path.name for path in (tmp_path / "into" / "logs").iterdir()] == [f"{kept.key}.{kept.id[:12]}.log"]


def test_samples_stay_while_a_record_cannot_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record, data = with_samples(1, 3)
    path = tmp_path / store.append(record, data).path
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":99'))
    age(tmp_path)
    found = waste(store)
    assert found.waste == ()
    assert "1 records cannot be read" in found.kept_back[0]


def test_nothing_goes_while_a_run_uses_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(make_record(1))
    holder = python(CLAIMER, str(tmp_path), "a" * 16)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    with pytest.raises(UserError, match="a run is using this store"):
        remove(store, waste(store))
    holder.communicate()
    assert remove(store, waste(store)) == 0


# --- rm and archive ------------------------------------------------------------------------------
def several(root: Path, packed: bool = False) -> tuple[Store, dict[str, Record]]:
    """Two sweeps; two records share a file of samples, one has been corrected."""
    store = Store(root)
    data, other = make_samples(3), make_samples(4)
    made = {
        "lora": make_record(1, samples=samples_ref(data)),
        "full": make_record(2, label="nano.full.none.copy.s2", samples=samples_ref(data)),
        "old": make_record(3, sweep="other", finished="2020-01-01T00:00:00", samples=samples_ref(other)),
        "lost": make_record(4, outcome=Outcome(status="lost")),
    }
    for record in made.values():
        store.append(record, {None: None, 3: data, 4: other}[record.samples.rows if record.samples else None])
        store.put(log_path(record.key, record.id), b"said")
    made["right"] = make_record(1, label="nano.lora.none.copy.again", supersedes=made["lora"].id, attempt=2)
    store.append(made["right"])
    if packed:
        pack(store)
    return store, made


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("which", "goes", "samples"),
    [
        ({"sweep": "other"}, ["old"], 1),
        ({"pattern": "*.full.*"}, ["full"], 0),  # another record needs its samples
        ({"pattern": f"{3:016x}"[:16]}, ["old"], 1),
        ({"older_than_days": 1000.0}, ["old"], 1),
        ({"status": "lost"}, ["lost"], 0),
        ({"pattern": "*again"}, ["lora", "right"], 0),  # what it corrected would count again
        ({"planned": [f"{1:016x}"], "sweep": "quickstart"}, ["full", "lost"], 0),
        ({"pattern": "nano*", "sweep": "quickstart"}, ["full", "lora", "lost", "right"], 1),
    ],
)
def test_chosen_records_go_with_what_nothing_else_needs(
    packed: bool, which: dict[str, Any], goes: list[str], samples: int, tmp_path: Path
) -> None:
    store, made = several(tmp_path / "store", packed)
    found = choose(store, Chosen(**which))
    assert sorted(one.id for one in found.records) == sorted(made[name].id for name in goes)
    assert len(found.samples) == samples
    assert len(store.records()[0]) == 5, "choosing changes nothing"
    into = Store(tmp_path / "into")
    done = archive(store, into, found) if len(goes) > 1 else removal.remove(store, found)
    assert done.done
    left = {record.id for record in store.records()[0]}
    assert left == {record.id for name, record in made.items() if name not in goes}
    stays = [record for name, record in made.items() if name not in goes]
    needed = {f"samples/{record.samples.digest}.parquet" for record in stays if record.samples is not None}
    assert {f"{folder}/{name}" for folder, name in store.files.listing("samples")} == needed
    logs = {log_path(record.key, record.id) for record in stays if record is not made["right"]}
    assert {f"{folder}/{name}" for folder, name in store.files.listing("logs")} == logs
    if len(goes) > 1:
        assert {record.id for record in into.records()[0]} == {made[name].id for name in goes}
        assert len(list((tmp_path / "into" / "logs").iterdir())) == len([name for name in goes if name != "right"])


def test_what_runs_now_stays(tmp_path: Path) -> None:
    store, made = several(tmp_path)
    found = choose(store, Chosen(pattern="nano*"), busy=["other"])
    assert [(one.id, why) for one, why in found.kept] == [(made["old"].id, "its sweep runs now")]
    assert found.samples == ()
    assert "stay while a run uses the store" in found.notes[0]
    with store.claim(made["full"].key) or pytest.fail("it is free"):
        kept = choose(Store(tmp_path), Chosen(pattern="*.full.*")).kept
    assert [why for _, why in kept] == ["its cell runs now"]
    with pytest.raises(UserError, match="no record is chosen"):
        choose(store, Chosen(sweep="unknown"))
    with pytest.raises(UserError, match="cannot lie in the store"):
        archive(store, Store(tmp_path / "records" / "old"), found)


def test_what_cannot_be_archived_stays(tmp_path: Path) -> None:
    store, made = several(tmp_path / "store")
    assert made["old"].samples is not None
    (tmp_path / "store" / "samples" / f"{made['old'].samples.digest}.parquet").unlink()
    done = archive(store, Store(tmp_path / "into"), choose(store, Chosen(pattern="nano*")))
    assert "its samples are missing" in done.left_out[0].reason
    assert [record.id for record in store.records()[0]] == [made["old"].id]
    assert store.files.exists(log_path(made["old"].key, made["old"].id))


# --- merge ---------------------------------------------------------------------------------------
def test_stores_merge_and_conflicts_are_named(tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(f"memory://{uuid.uuid4().hex}/there")
    into = Store(tmp_path / "into")
    shared, data = with_samples(1, 3)
    for store in (here, there):
        store.append(shared, data)
    here.append(make_record(2, environment={"cpu": {"model": "A"}}))
    there.append(make_record(2, environment={"cpu": {"model": "B"}}))
    here.append(make_record(3))
    there.append(make_record(3, fingerprint="f" * 16))
    here.append(make_record(4))
    there.append(make_record(4, label="other"))
    here.append(make_record(5))  # one store alone has repeats: a history, no conflict
    here.append(make_record(5, finished="2026-11-22T00:00:00+00:00"))
    done = merge([here, there], into)
    assert (done.records, done.samples, done.known, done.left_out) == (9, 1, 1, [])
    assert [(c.key[-1], c.differs, len(c.sides)) for c in done.conflicts] == [
        ("2", "machine", 2),
        ("3", "environment", 2),
        ("4", "result", 2),
    ]
    assert {side.store for c in done.conflicts for side in c.sides} == {here.root, there.root}
    wanted = {r.id for store in (here, there) for r in store.records()[0]}
    assert {r.id for r in into.records()[0]} == wanted
    assert into.samples(shared).num_rows == 3
    for entry in (e for group in here.entries().values() for e in group):
        assert (tmp_path / "into" / entry.path).read_bytes() == (tmp_path / "here" / entry.path).read_bytes()
    again = merge([here, there], into)
    assert (again.records, again.known, len(again.conflicts)) == (0, 10, 0)
    with pytest.raises(UserError, match="into itself"):
        merge([into], into)


def test_merge_skips_damaged_files_and_keeps_the_source(tmp_path: Path) -> None:
    source = Store(tmp_path / "source")
    good, bad = make_record(1), make_record(2)
    source.append(good)
    path = tmp_path / "source" / source.append(bad).path
    path.write_text(path.read_text().replace("0.5", "0.7"))
    lacking, data = with_samples(3, 3)
    source.append(lacking, data)
    next((tmp_path / "source" / "samples").iterdir()).unlink()
    done = merge([source], Store(tmp_path / "into"))
    assert sorted(d.reason.split(":")[0].split(" (")[0] for d in done.left_out) == [
        "its samples are missing",
        "the content does not match its id",
    ]
    assert Store(tmp_path / "into").records()[0] == [good]
    assert path.exists()
    assert not (tmp_path / "source" / "quarantine").exists()
