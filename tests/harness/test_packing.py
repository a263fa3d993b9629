"""Packing: nothing is lost or changed by it, whatever is loose and whatever breaks off."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from harness.errors import UserError
from harness.record import Outcome, Record
from harness.store import cleanup, index, segments
from harness.store.merge import merge
from harness.store.packing import append_batch, pack, unpack, verify
from harness.store.samples import samples_ref
from harness.store.segments import DamagedSegment
from harness.store.store import Store
from peft_matrix.cli import app
from tests.harness.examples import make_record, make_samples
from tests.harness.test_store import python

COUNT = 12


def filled(root: Path, numbers: range = range(COUNT)) -> Store:
    """Records with samples (two share them), one without, and a lost attempt."""
    store = Store(root)
    for number in numbers:
        data = make_samples(3 + number // 2)
        store.append(make_record(number, samples=samples_ref(data)), data)
    store.append(make_record(numbers.stop, outcome=Outcome(status="unsupported")))
    return store


def digests(store: Store) -> dict[str, str]:
    """Path and SHA-256 of every record and sample file, loose or packed."""
    paths = [f"{folder}/{name}" for top in ("records", "samples") for folder, name in store.files.listing(top)]
    paths = [path for path in paths if not path.endswith(".tmp")]  # left by a writer that died
    assert len(paths) == len(set(paths))
    return {path: hashlib.sha256(store.files.read(path) or b"").hexdigest() for path in sorted(paths)}


def on_disk(root: Path) -> dict[str, str]:
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".tmp" and path.relative_to(root).parts[0] in {"records", "samples"}:
            found[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def segment_of(root: Path) -> Path:
    (found,) = (root / "segments").iterdir()
    return found


def told(store: Store) -> tuple[object, ...]:
    """Everything that readers ask a store for."""
    records, damaged = store.records()
    loaded = index.load(store)
    tables = [store.samples(record).to_pylist() for record in records if record.samples is not None]
    entries = store.entries()
    assert {key: store.entries_of(key) for key in entries} == entries
    latest = [store.latest(group) for group in entries.values()]
    return [r.id for r in records], damaged, loaded.flat.rows.to_pylist(), loaded.paths, tables, entries, latest


# --- alike ---------------------------------------------------------------------------------------
def test_packed_and_mixed_stores_read_like_loose_ones(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.append(make_record(1, attempt=2, finished="2026-11-22T00:00:00+00:00"))
    before, files = told(store), digests(store)
    done = pack(store)
    assert (done.records, done.samples) == (COUNT + 2, len(files) - COUNT - 2)
    assert on_disk(tmp_path) == {}
    for reader in (store, Store(tmp_path)):
        assert digests(reader) == files
        assert told(reader) == before
    more = make_samples(40)
    store.append(make_record(50, samples=samples_ref(more)), more)
    mixed = told(Store(tmp_path))
    assert len(on_disk(tmp_path)) == 2
    pack(store)
    assert told(Store(tmp_path)) == mixed
    unpack(store)
    assert told(Store(tmp_path)) == mixed
    assert not (tmp_path / "segments").exists()


def test_unpacking_gives_every_file_back_byte_for_byte(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = on_disk(tmp_path)
    assert len(before) > COUNT
    first = pack(store).segment
    unpack(store)
    assert on_disk(tmp_path) == before
    assert pack(store).segment == first  # the name is the digest of the list


def test_packing_twice_changes_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    first = pack(store)
    stat = segment_of(tmp_path).stat()
    assert pack(store) == first
    assert segment_of(tmp_path).stat().st_ino == stat.st_ino
    assert verify(store) == (1, first.records + first.samples)


def test_an_append_of_what_is_packed_stores_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    pack(store)
    data = make_samples(3)
    store.append(make_record(0, samples=samples_ref(data)), data)
    assert on_disk(tmp_path) == {}


def test_a_reader_that_was_open_before_goes_on(tmp_path: Path) -> None:
    store, reader = filled(tmp_path), Store(tmp_path)
    entries, before = reader.entries(), told(reader)
    pack(store)
    assert all(reader.load(entry) for group in entries.values() for entry in group)
    unpack(store)
    assert told(reader) == before


def test_the_index_survives_packing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    index.load(store, fewest=1)
    pack(store)
    assert index.load(Store(tmp_path)).read == 0
    unpack(store)
    assert index.load(Store(tmp_path)).read == 0


def test_a_packed_store_at_a_url_is_read_and_not_packed(tmp_path: Path) -> None:
    before = told(filled(tmp_path))
    pack(Store(tmp_path))
    root = f"memory://{uuid.uuid4().hex}/s"
    path = segment_of(tmp_path)
    with fsspec.open(f"{root}/segments/{path.name}", "wb") as stream:
        stream.write(path.read_bytes())
    remote = Store(root)
    assert told(remote) == before
    with pytest.raises(UserError, match="only a store in a local folder"):
        pack(remote)


# --- gc, merge -----------------------------------------------------------------------------------
def test_gc_removes_packed_files(tmp_path: Path) -> None:
    store = filled(tmp_path)
    wrong = store.records()[0][0]
    store.append(make_record(0, supersedes=wrong.id, attempt=2))
    pack(store)
    kept = digests(store)
    (gone,) = cleanup.waste(store).waste
    cleanup.remove(store, cleanup.waste(store))
    del kept[gone.path]
    assert digests(Store(tmp_path)) == kept
    old = time.time() - 7200
    os.utime(segment_of(tmp_path), (old, old))
    found = cleanup.waste(store)
    assert [one.why for one in found.waste] == []  # record 1 uses the same samples


@pytest.mark.parametrize(("from_packed", "into_packed"), [(True, False), (False, True), (True, True)])
def test_stores_merge_packed_or_not(from_packed: bool, into_packed: bool, tmp_path: Path) -> None:
    source, into = filled(tmp_path / "a", range(6)), filled(tmp_path / "b", range(4, 9))
    wanted = {**digests(source), **digests(into)}
    for store, packed in ((source, from_packed), (into, into_packed)):
        if packed:
            pack(store)
    done = merge([source], into)
    assert (done.known, done.left_out) == (2, [])
    assert digests(into) == wanted


# --- broken off ----------------------------------------------------------------------------------
def killed_at(step: int, work: Callable[[Store], object], root: Path) -> bool:
    """Run ``work`` in a child that dies without any clean-up at its n-th change of the disk; whether it died."""
    child = os.fork()
    if child == 0:
        count = iter(range(10**9))

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*arguments: object, **options: object) -> object:
                if next(count) == step:
                    os._exit(9)
                return call(*arguments, **options)

            return wrapped

        for name in ("replace", "unlink", "rmdir", "fsync", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            work(Store(root))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("work", [pack, unpack])
def test_a_kill_between_any_two_steps_loses_nothing(work: Callable[[Store], object], tmp_path: Path) -> None:
    filled(tmp_path / "start", range(3))
    before, told_before = on_disk(tmp_path / "start"), told(Store(tmp_path / "start"))
    if work is unpack:
        pack(Store(tmp_path / "start"))
        filled(tmp_path / "more", range(20, 22))  # a second segment
        pack(Store(tmp_path / "more"))
        shutil.copytree(tmp_path / "more" / "segments", tmp_path / "start" / "segments", dirs_exist_ok=True)
        before, told_before = digests(Store(tmp_path / "start")), told(Store(tmp_path / "start"))
    step = 0
    while True:
        root = tmp_path / f"at-{step}"
        shutil.copytree(tmp_path / "start", root)
        died = killed_at(step, work, root)
        assert digests(Store(root)) == before, f"killed at step {step}"
        assert told(Store(root)) == told_before
        work(Store(root))
        assert digests(Store(root)) == before
        assert (on_disk(root) == {}) == (work is pack)
        if not died:
            break
        step += 1
    assert step >= 10


APPENDER = """
import sys
from harness.store.samples import samples_ref
from harness.store.store import Store
from tests.harness.examples import make_record, make_samples
store = Store(sys.argv[1])
print("ready", flush=True)
for number in range(100, 160):
    data = make_samples(number)
    store.append(make_record(number, samples=samples_ref(data)), data)
"""


def test_records_appended_while_packing_are_kept(tmp_path: Path) -> None:
    store = filled(tmp_path)
    writer = python(APPENDER, str(tmp_path))
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    rounds = 0
    while writer.poll() is None:
        pack(store)
        rounds += 1
    assert writer.wait() == 0
    records, damaged = Store(tmp_path).records()
    assert len(records) == COUNT + 1 + 60
    assert not damaged
    assert all(store.samples(r).num_rows == r.samples.rows for r in records if r.samples is not None)
    assert rounds > 1


# --- batches -------------------------------------------------------------------------------------
def batch(numbers: range) -> list[tuple[Record, bytes | None]]:
    made: list[tuple[Record, bytes | None]] = []
    for number in numbers:
        data = make_samples(3 + number // 2)
        made.append((make_record(number, samples=samples_ref(data)), data))
    return [*made, (make_record(numbers.stop), None)]


def test_a_batch_reads_like_records_appended_one_by_one(tmp_path: Path) -> None:
    one_by_one, batched = Store(tmp_path / "a"), Store(tmp_path / "b")
    entries = [one_by_one.append(record, samples) for record, samples in batch(range(COUNT))]
    assert append_batch(batched, batch(range(COUNT))) == entries
    assert digests(batched) == digests(one_by_one)
    assert told(Store(tmp_path / "b")) == told(one_by_one)
    assert on_disk(tmp_path / "b") == {}
    segment_of(tmp_path / "b")
    append_batch(Store(tmp_path / "b"), batch(range(COUNT)))  # again: nothing is written
    segment_of(tmp_path / "b")
    append_batch(batched, batch(range(4, 2 * COUNT)))
    assert len(batched.files.segments()) == 2
    pack(batched)
    assert len(batched.records()[0]) == 2 * COUNT + 2
    segment_of(tmp_path / "b")


def test_no_part_of_a_segment_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of one part are spread over all keys, and the parts are larger than what is kept of them."""
    monkeypatch.setattr(segments, "GROUP_BYTES", 4_000)
    monkeypatch.setattr(segments, "CACHE_BYTES", 1)
    for start in range(3):
        numbers = range(start, 4 * COUNT, 3)
        append_batch(Store(tmp_path), [(make_record(number), None) for number in numbers])
    read: list[tuple[str, int]] = []
    group = segments.Segment.group

    def noted(segment: segments.Segment, number: int) -> dict[str, bytes]:
        read.append((segment.path, number))
        return group(segment, number)

    monkeypatch.setattr(segments.Segment, "group", noted)
    records = Store(tmp_path).records()[0]
    assert len(read) == len(set(read)) > 6
    read.clear()
    loaded = index.load(Store(tmp_path), fewest=1)
    assert len(read) == len(set(read)) > 6
    assert [r.id for r in records] == loaded.flat.rows.column("id").to_pylist()
    assert list(loaded.paths) == sorted(loaded.paths)
    assert len(records) == 4 * COUNT


def test_a_refused_batch_leaves_nothing(tmp_path: Path) -> None:
    good = batch(range(3))
    with pytest.raises(ValueError, match="do not hash"):
        append_batch(Store(tmp_path), [*good, (good[0][0], make_samples(99))])
    assert not (tmp_path / "segments").exists()


def test_a_batch_replaces_a_damaged_loose_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.append(make_record(1))
    (tmp_path / entry.path).write_text("{}")
    append_batch(store, [(make_record(1), None)])
    assert store.records() == ([make_record(1)], [])


def test_a_record_in_the_older_text_is_not_written_again(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make_record(1)
    path = tmp_path / store.append(record).path
    old = json.dumps(json.loads(path.read_text()), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    path.write_text(old)
    store.append(record)
    append_batch(store, [(record, None)])
    assert path.read_text() == old
    assert store.records() == ([record], [])
    assert not (tmp_path / "segments").exists()


def test_batches_appended_while_another_process_packs_are_kept(tmp_path: Path) -> None:
    filled(tmp_path)
    code = (
        "import sys\nfrom harness.store.store import Store\nfrom harness.store.packing import append_batch\n"
        "from tests.harness.examples import make_record\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        "for n in range(40):\n    pair = [(make_record(100 + 2 * n + k), None) for k in (0, 1)]\n"
        "    append_batch(Store(sys.argv[1]), pair)"
    )
    writer = python(code, str(tmp_path))
    assert writer.stdout is not None
    assert writer.stdin is not None
    assert writer.stdout.readline() == "ready\n"
    writer.stdin.write("go\n")
    writer.stdin.flush()
    while writer.poll() is None:
        pack(Store(tmp_path))
    assert writer.wait() == 0, writer.stderr and writer.stderr.read()
    pack(Store(tmp_path))
    found = {record.key for record in Store(tmp_path).records()[0]}
    assert {make_record(100 + n).key for n in range(80)} <= found


def test_two_processes_do_not_pack_at_once(tmp_path: Path) -> None:
    store = filled(tmp_path)
    claim = Store(tmp_path).claim("pack")
    assert claim is not None
    with claim, pytest.raises(UserError, match="another process packs this store"):
        pack(store)


# --- damaged -------------------------------------------------------------------------------------
def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "content":
        data[200] ^= 1
        path.write_bytes(data)
    elif how == "footer":
        data[-20] ^= 255
        path.write_bytes(data)
    elif how == "renamed":
        path.rename(path.with_name(f"{'0' * 32}.parquet"))
    elif how == "samples":  # some other Parquet file under the name of a segment
        path.write_bytes(make_samples())


@pytest.mark.parametrize("how", ["cut", "empty", "content", "footer", "renamed", "samples"])
def test_a_damaged_segment_is_refused_with_a_sentence(how: str, tmp_path: Path) -> None:
    store = filled(tmp_path)
    pack(store)
    damage(segment_of(tmp_path), how)
    for read in (Store.records, verify, index.load, pack, unpack):
        with pytest.raises(DamagedSegment, match="the segment is damaged"):
            read(Store(tmp_path))
    done = CliRunner().invoke(app, ["results", "pack", "--check", "--results", str(tmp_path)])
    assert done.exit_code != 0
    assert isinstance(done.exception, (SystemExit, DamagedSegment))
    assert segment_of(tmp_path).is_file()  # nothing was touched


def test_every_flipped_byte_of_a_segment_is_noticed(tmp_path: Path) -> None:
    store = filled(tmp_path, range(4))
    pack(store)
    path = segment_of(tmp_path)
    data, good, rng = path.read_bytes(), digests(store), random.Random(5)
    noticed = 0
    for _ in range(150):
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        try:
            assert digests(Store(tmp_path)) == good  # a bit that nothing depends on, or an error
        except DamagedSegment:
            noticed += 1
    assert noticed > 100


def test_salvaging_takes_what_is_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "GROUP_BYTES", 4_000)
    store = filled(tmp_path)
    before = on_disk(tmp_path)
    pack(store)
    path = segment_of(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = unpack(Store(tmp_path), salvage=True)
    assert done.left_out
    after = on_disk(tmp_path)
    assert 0 < len(after) < len(before)
    assert after.items() <= before.items()
    assert (tmp_path / "quarantine" / path.name).is_file()
    told(Store(tmp_path)) if set(after) == set(before) else Store(tmp_path).records()


@pytest.mark.parametrize(
    "path", ["../outside.json", "records/../../x.json", "records/ab/../x", "index/records.parquet"]
)
def test_a_segment_cannot_write_outside_the_store(path: str, tmp_path: Path) -> None:
    (tmp_path / "s" / "segments").mkdir(parents=True)
    draft = tmp_path / "draft"
    rows = segments.write(draft, [(path, b"data")])
    draft.rename(tmp_path / "s" / segments.name_of(rows))
    with pytest.raises(DamagedSegment):
        unpack(Store(tmp_path / "s"))
    unpack(Store(tmp_path / "s"), salvage=True)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and p.suffix == ".json"] == []


def test_damaged_loose_files_stay_loose_and_are_named(tmp_path: Path) -> None:
    store = filled(tmp_path)
    index.load(store, fewest=1)
    victim = tmp_path / store.entries()[f"{2:016x}"][0].path
    stat = victim.stat()
    victim.write_bytes(victim.read_bytes().replace(b"lora", b"dora"))
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the index does not notice; packing does
    sample = next((tmp_path / "samples").iterdir())
    sample.write_bytes(b"junk")
    done = pack(store)
    assert {Path(one.path).name for one in done.left_out} == {victim.name, sample.name}
    assert set(on_disk(tmp_path)) == {str(p.relative_to(tmp_path)) for p in (victim, sample)}


def test_the_commands_say_what_they_did(tmp_path: Path) -> None:
    filled(tmp_path)
    run = CliRunner()
    packed = run.invoke(app, ["results", "pack", "--results", str(tmp_path)])
    assert packed.exit_code == 0
    assert f"holds {COUNT + 1} records and 6 sample files" in packed.stdout
    checked = run.invoke(app, ["results", "pack", "--check", "--results", str(tmp_path)])
    assert "1 segments, 19 files: every one matches its digest" in checked.stdout
    back = run.invoke(app, ["results", "unpack", "--results", str(tmp_path)])
    assert f"{COUNT + 1} records and 6 sample files written" in back.stdout
