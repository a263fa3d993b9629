from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.record import Outcome
from harness.store import leases
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Entry, Store, current, short_fingerprint
from tests.harness.examples import make_record, make_samples, sample

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "file-url", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    urls = {
        "local": str(tmp_path / "s"),
        "file-url": f"file://{tmp_path}/s",
        "memory": f"memory://{uuid.uuid4().hex}/s",
    }
    return Store(urls[request.param])


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A child process in which the tests' examples can be imported."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files(store: Store) -> list[str]:
    root = Path(store.root)
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


# --- appending and reading -----------------------------------------------------------------------
def test_what_is_appended_is_found_by_name_and_loads_again(store: Store) -> None:
    record = make_record(3)
    entry = store.append(record)
    assert entry.path == f"records/00/{record.key}.01234567.ok.{record.id[:12]}.json"
    assert entry == Entry(record.key, "01234567", "ok", record.id[:12], entry.path)
    assert store.entries() == {record.key: [entry]}
    assert store.load(entry) == record
    assert store.records() == ([record], [])
    assert entry.fingerprint == short_fingerprint(record.fingerprint)


def test_empty_store_is_empty_and_opening_creates_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    assert store.entries() == {}
    assert store.records() == ([], [])
    assert not (tmp_path / "new").exists()


def test_a_record_without_fingerprint_has_an_entry_without_one(store: Store) -> None:
    entry = store.append(make_record(fingerprint=""))
    assert ".none.ok." in entry.path
    assert store.entries()[entry.key][0].fingerprint == ""
    assert store.load(entry).fingerprint == ""


def test_the_same_content_twice_is_stored_once(store: Store) -> None:
    samples = make_samples()
    record = make_record(samples=samples_ref(samples))
    assert store.append(record, samples) == store.append(record, samples)
    assert [len(v) for v in store.entries().values()] == [1]


def test_appending_again_mends_a_damaged_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.append(make_record())
    (tmp_path / entry.path).write_text("cut o")
    store.append(make_record())
    assert store.load(entry) == make_record()


def test_entries_and_records_come_in_a_fixed_order(store: Store) -> None:
    records = [make_record(n, attempt=a) for n in (5, 300, 1) for a in (1, 2)]
    for record in random.Random(0).sample(records, len(records)):
        store.append(record)
    assert list(store.entries()) == sorted({r.key for r in records})
    loaded, _ = store.records()
    assert [r.key for r in loaded] == sorted(r.key for r in records)
    assert store.records()[0] == loaded


def test_records_of_chosen_keys(store: Store) -> None:
    records = [make_record(n) for n in range(4)]
    for record in records:
        store.append(record)
    assert store.records([records[2].key, records[2].key, "unknown"])[0] == [records[2]]


def test_listing_reads_no_file(tmp_path: Path) -> None:
    for n in range(2000):
        folder = tmp_path / "records" / f"{n % 256:02x}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n % 256:02x}{n:014x}.01234567.ok.{n:012x}.json").touch()
    (tmp_path / "records" / "README.txt").touch()
    entries = Store(tmp_path).entries()
    assert len(entries) == 2000
    assert {e.status for group in entries.values() for e in group} == {"ok"}


def test_a_key_that_cannot_be_a_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file name"):
        Store(tmp_path).append(make_record(key="../../etc/passwd"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["nonsense://x", "s3://bucket/x"])
def test_a_store_that_cannot_be_opened_is_one_sentence(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # also where it happens to be installed
    with pytest.raises(UserError, match="cannot be opened"):
        Store(url)


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="a file is in the place of the results folder"):
        Store(tmp_path / "x")


# --- choosing the current record -----------------------------------------------------------------
def test_the_record_that_finished_last_is_current(store: Store) -> None:
    old, new = make_record(finished="2026-01-01T00:00:00"), make_record(finished="2026-01-02T00:00:00")
    entries = [store.append(new), store.append(old)]
    assert store.latest(entries) == entries[0]
    assert current([old, new]) == current([new, old]) == {new.key: new}


def test_correction_wins_over_superseded_even_if_earlier(store: Store) -> None:
    wrong = make_record(finished="2026-01-02T00:00:00")
    right = make_record(finished="2026-01-01T00:00:00", supersedes=wrong.id, metrics={})
    entries = [store.append(wrong), store.append(right)]
    assert store.latest(entries) == entries[1]
    later = make_record(finished="2026-01-03T00:00:00")
    assert current([wrong, right, later])[wrong.key] == later


@pytest.mark.parametrize("status", ["interrupted", "lost"])
def test_an_attempt_without_result_does_not_hide_a_result(status: str) -> None:
    result = make_record(finished="2026-01-01T00:00:00")
    attempt = make_record(finished="2026-01-02T00:00:00", outcome=Outcome(status=status))  # type: ignore[arg-type]
    assert current([result, attempt])[result.key] == result
    assert current([attempt])[result.key] == attempt


def test_two_records_that_supersede_each_other_still_give_one() -> None:
    one = make_record(attempt=1)
    two = make_record(attempt=2, supersedes=one.id)
    assert current([one, two]) == {one.key: two}


def test_latest_of_nothing_is_none_and_of_one_reads_no_file(tmp_path: Path) -> None:
    entry = Entry("k" * 16, "", "ok", "0" * 12, "records/kk/absent.json")
    assert Store(tmp_path).latest([]) is None
    assert Store(tmp_path).latest([entry]) == entry


# --- damage --------------------------------------------------------------------------------------
def damaged_versions(text: str) -> dict[str, bytes]:
    raw = text.encode()
    return {
        "cut off": raw[: len(raw) // 2],
        "empty": b"",
        "a changed number": raw.replace(b"0.5", b"0.9"),
        "not Unicode": b"\xff\xfe" + raw,
        "not a record": b'{"id": "x"}',
        "a list": b"[]",
        "NaN": raw.replace(b"0.5", b"NaN"),
        "half a surrogate": raw.replace(b"quickstart", b"\\ud800"),
        "nested without end": b"[" * 100_000,
        "another record": make_record(99).to_json().encode(),
    }


@pytest.mark.parametrize("kind", list(damaged_versions("")))
def test_a_damaged_record_is_quarantined_and_the_rest_loads(kind: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    good, bad = store.append(make_record(1)), store.append(make_record(2))
    (tmp_path / bad.path).write_bytes(damaged_versions(make_record(2).to_json())[kind])
    records, damage = store.records()
    assert records == [make_record(1)]
    name = Path(bad.path).name
    assert [d.path for d in damage] == [str(tmp_path / "quarantine" / name)]
    assert damage[0].reason
    why = (tmp_path / "quarantine" / f"{name}.why.txt").read_text()
    assert damage[0].reason in why
    assert bad.path in why
    assert store.entries() == {good.key: [good]}
    assert store.records() == ([make_record(1)], [])


def test_loading_a_damaged_record_says_what_where_and_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.append(make_record())
    (tmp_path / entry.path).write_text("{")
    with pytest.raises(UserError) as caught:
        store.load(entry)
    assert "not a readable record" in caught.value.what
    assert "quarantine" in caught.value.where
    with pytest.raises(UserError, match="no longer there"):
        store.load(entry)


def test_a_file_renamed_to_another_status_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.append(make_record())
    (tmp_path / entry.path).rename(tmp_path / entry.path.replace(".ok.", ".oom."))
    records, damage = store.records()
    assert records == []
    assert "file name" in damage[0].reason


def test_damaged_record_on_remote_fs_is_quarantined() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    entry = store.append(make_record())
    import fsspec

    with fsspec.open(f"{store.root}/{entry.path}", "wb") as stream:
        stream.write(b"{")
    records, damage = store.records()
    assert records == []
    assert damage[0].path.startswith(f"{store.root}/quarantine/")
    assert store.entries() == {}


def test_a_record_of_a_newer_version_is_reported_and_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.append(make_record())
    path = tmp_path / entry.path
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":2'))
    records, damage = store.records()
    assert records == []
    assert damage[0].path == str(path)
    assert "Update peft-matrix" in damage[0].reason
    assert path.exists()


def test_damage_among_several_attempts_does_not_hide_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entries = [store.append(make_record(attempt=a)) for a in (1, 2)]
    (tmp_path / entries[1].path).write_text("")
    assert store.latest(entries) == entries[0]


# --- samples -------------------------------------------------------------------------------------
def test_samples_come_back_as_they_were(store: Store) -> None:
    rows = [sample(0), sample(1, correct=None, logp_answer=None, logp_choices=None, margin=None, prediction="ü\n")]
    data = samples_to_parquet(rows)
    record = make_record(samples=samples_ref(data))
    store.append(record, data)
    assert store.samples(record).to_pylist() == rows
    assert record.samples is not None
    assert record.samples.rows == 2


def test_equal_samples_give_equal_bytes_and_are_stored_once(store: Store) -> None:
    data = make_samples()
    assert data == make_samples()
    assert data != make_samples(4)
    for number in range(3):
        store.append(make_record(number, samples=samples_ref(data)), data)
    store.append(make_record(4, samples=samples_ref(data)))  # already stored: need not be given again


@pytest.mark.parametrize("rows", [[{**sample(), "extra": 1}], [sample(prediction=None)], [{"arm": "adapted"}]])
def test_samples_with_other_columns_are_refused(rows: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="sample 0"):
        samples_to_parquet(rows)


def test_no_samples_at_all_are_an_empty_table() -> None:
    assert samples_ref(samples_to_parquet([])).rows == 0


def test_samples_that_do_not_belong_to_the_record_are_refused(store: Store) -> None:
    data = make_samples()
    with pytest.raises(ValueError, match="do not hash"):
        store.append(make_record(samples=samples_ref(make_samples(5))), data)
    with pytest.raises(ValueError, match="neither given nor stored"):
        store.append(make_record(samples=samples_ref(data)))
    with pytest.raises(ValueError, match="refers to none"):
        store.append(make_record(), data)
    assert store.entries() == {}


def test_damaged_or_missing_samples_are_one_sentence(tmp_path: Path) -> None:
    store, data = Store(tmp_path), make_samples()
    record = make_record(samples=samples_ref(data))
    store.append(record, data)
    path = next((tmp_path / "samples").iterdir())
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match="does not match its digest"):
        store.samples(record)
    assert (tmp_path / "quarantine" / path.name).exists()
    with pytest.raises(UserError, match="the samples are missing"):
        store.samples(record)
    with pytest.raises(UserError, match="no samples were stored"):
        store.samples(make_record())


# --- a disk that refuses -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "cannot be written"),
    ],
)
def test_a_refusing_disk_is_one_sentence_and_leaves_nothing(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    first = store.append(make_record(1))
    real = os.fsync

    def refuse(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_file():
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=said) as caught:
        store.append(make_record(2))
    monkeypatch.undo()
    assert str(tmp_path) in caught.value.where
    assert caught.value.fix
    assert files(store) == [first.path]
    store.append(make_record(2))
    assert len(store.entries()) == 2


FULL_DISK = """
import sys
from pathlib import Path
from harness.errors import UserError
from harness.store.store import Store
from tests.harness.examples import make_record
store, kept = Store(sys.argv[1]), 0
try:
    for kept in range(10_000):
        store.append(make_record(kept, sweep="x" * 5000))
except UserError as error:
    print(error)
records, damage = store.records()
assert len(records) == kept and not damage, (len(records), kept, damage)
assert not [p for p in Path(sys.argv[1]).rglob("*.tmp")]
"""


def test_a_really_full_disk_keeps_every_record_that_was_appended(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = shutil.which("unshare")
    mount = 'mount -t tmpfs -o size=256k none "$1"'
    own_mount = [unshare or "unshare", "-Urm", "sh", "-c"]
    if unshare is None or subprocess.run([*own_mount, mount, "sh", disk], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a test mount a small disk")
    done = subprocess.run(
        [*own_mount, f'{mount} && exec "$2" -c "$3" "$1"', "sh", disk, sys.executable, FULL_DISK],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the disk is full" in done.stdout
    assert "bytes were wanted" in done.stdout
    assert "are free" in done.stdout
    assert str(disk) in done.stdout


def test_samples_are_there_before_the_record_that_refers_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = Store(tmp_path), make_samples()
    order: list[str] = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).parts[len(tmp_path.parts)]), real(a, b)))
    store.append(make_record(samples=samples_ref(data)), data)
    assert order == ["samples", "records"]


# --- many writers, and writers that die ----------------------------------------------------------
WRITER = """
import sys
from harness.store.samples import samples_ref
from harness.store.store import Store
from tests.harness.examples import make_record, make_samples
store, start, stop = Store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = make_samples()
print("ready", flush=True)
for number in range(start, stop):
    entry = store.append(make_record(number, samples=samples_ref(data)), data)
    print(entry.path, flush=True)
"""


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    writers = [python(WRITER, str(tmp_path), str(start), str(start + 60)) for start in (0, 30)]  # 30 cells in common
    outputs = [writer.communicate(timeout=120) for writer in writers]
    assert [w.returncode for w in writers] == [0, 0], outputs
    records, damage = Store(tmp_path).records()
    assert [int(r.key, 16) for r in records] == list(range(90))
    assert damage == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_kill_9_loses_and_damages_no_appended_record(tmp_path: Path) -> None:
    chance = random.Random(1)
    appended: list[str] = []
    for round_ in range(6):
        writer = python(WRITER, str(tmp_path), str(round_ * 100_000), str((round_ + 1) * 100_000))
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.3))
        writer.send_signal(signal.SIGKILL)
        out, _ = writer.communicate()
        appended += [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
    assert appended
    store = Store(tmp_path)
    records, damage = store.records()
    assert damage == []
    found = {entry.path for group in store.entries().values() for entry in group}
    assert {line.strip() for line in appended} <= found
    assert len(records) <= len(appended) + 6  # at most the one record of each round that was not yet reported
    for record in {record.samples: record for record in records}.values():
        store.samples(record)
    store.append(make_record(7))  # the next writer goes on


@pytest.mark.parametrize("folder", ["records/00", "samples"])
def test_next_writer_removes_old_leftovers_only(store: Store, folder: str) -> None:
    store.append(make_record(1))
    old = f"{folder}/.{time.time() - 3700:.0f}.0123456789ab.tmp"
    young = f"{folder}/.{time.time() - 60:.0f}.0123456789ab.tmp"
    for name in (old, young):
        store.files.write(name, b"half a rec", temporary=f"{folder}/.0.{uuid.uuid4().hex}.tmp")
    assert store.records() == ([make_record(1)], [])
    Store(store.root).append(make_record(1))
    assert not store.files.exists(old)
    assert store.files.exists(young)


CLAIMER = """
import sys
from harness.store.store import Store
claim = Store(sys.argv[1]).claim(sys.argv[2])
print("mine" if claim else "taken", flush=True)
sys.stdin.read()  # until the parent closes it
"""


def test_a_cell_is_claimed_once_and_again_after_release(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    claim = one.claim("a" * 16)
    assert claim is not None
    with claim:
        assert two.claim("a" * 16) is None
        assert one.claim("a" * 16) is None
        other = two.claim("b" * 16)
        assert other is not None
        other.release()
        other.release()
    again = two.claim("a" * 16)
    assert again is not None
    again.release()


def test_a_claim_ends_with_its_process_even_under_kill_9(tmp_path: Path) -> None:
    holder = python(CLAIMER, str(tmp_path), "a" * 16)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    assert Store(tmp_path).claim("a" * 16) is None
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    claim = Store(tmp_path).claim("a" * 16)
    assert claim is not None
    claim.release()


def test_of_several_processes_one_gets_the_cell(tmp_path: Path) -> None:
    claimers = [python(CLAIMER, str(tmp_path), "a" * 16) for _ in range(3)]
    answers = [claimer.stdout.readline() for claimer in claimers if claimer.stdout]
    for claimer in claimers:
        claimer.communicate(timeout=60)
    assert sorted(answers) == ["mine\n", "taken\n", "taken\n"]


def test_claims_on_a_remote_store_need_a_local_folder(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    with pytest.raises(UserError, match="local folder for locks"):
        Store(url).claim("a" * 16)
    claim = Store(url, claims_dir=tmp_path).claim("a" * 16)
    assert claim is not None
    assert Store(url, claims_dir=tmp_path).claim("a" * 16) is None
    claim.release()


def test_machines_that_share_a_url_see_each_others_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders of kernel locks are two machines."""
    url, key = f"memory://{uuid.uuid4().hex}", "a" * 16
    monkeypatch.setattr(leases, "LOOK_S", 0.0)
    here, there = (Store(url, claims_dir=tmp_path / name) for name in ("here", "there"))
    claim = here.claim(key)
    assert claim is not None
    assert there.claim(key) is None
    claim.release()
    again = there.claim(key)
    assert again is not None
    assert here.claim(key) is None
    again.release()


def test_only_a_lease_without_beats_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, dead, alive = f"memory://{uuid.uuid4().hex}", "a" * 16, "b" * 16
    for name, seconds in (("LOOK_S", 0.0), ("SETTLE_S", 0.0), ("BEAT_S", 0.05), ("STALE_S", 0.6)):
        monkeypatch.setattr(leases, name, seconds)
    here, there = (Store(url, claims_dir=tmp_path / name) for name in ("here", "there"))
    old, other = here.claim(dead), here.claim(alive)
    assert old is not None
    assert other is not None
    assert here._leases is not None
    here._leases._held.pop(dead)  # as after the end of its process
    end, taken = time.monotonic() + 1.2, None
    while time.monotonic() < end:
        taken = taken or there.claim(dead)
        assert there.claim(alive) is None
        time.sleep(0.02)
    assert taken is not None
    old.release()
    assert there.files.loose.exists(f"claims/{dead}.lease"), "the new holder's lease stays"
    other.release()
    taken.release()


def test_a_dead_process_of_this_machine_leaves_no_lease(tmp_path: Path) -> None:
    """The kernel lock is free, so no process of this machine holds the lease that names it."""
    url, key = f"memory://{uuid.uuid4().hex}", "a" * 16
    first = Store(url, claims_dir=tmp_path)
    claim = first.claim(key)
    assert claim is not None
    claim._lock.release()  # what the kernel does when a process ends
    second = Store(url, claims_dir=tmp_path).claim(key)
    assert second is not None
    second.release()


def test_a_claim_is_only_on_something_that_can_be_a_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a cell key"):
        Store(tmp_path).claim("../x")
