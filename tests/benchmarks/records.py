"""Figures of the store: 100,000 records through the index, and what several writers append at once."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.digests import canonical_json
from harness.record import Record
from harness.store.store import Store

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "cpu-2core"
RECORDS = int(os.environ.get("PEFT_MATRIX_BENCH_RECORDS", "100000"))
WRITERS, EACH, BATCH = 8, 250, 250
SEED = 987_654_321

LOADED = """
import resource, sys, time
from harness.store import index
from harness.store.store import Store
from reports.data.frame import framed
began = time.perf_counter()
loaded = index.load(Store(sys.argv[1]))
rows = framed(loaded.flat)
print(len(rows), rows.shape[1], loaded.read, time.perf_counter() - began, time.process_time(),
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

WRITER = """
import sys
from harness.store.packing import append_batch
from harness.store.store import Store
from tests.benchmarks.records import template
record, samples = template()
store, batch = Store(sys.argv[1]), int(sys.argv[4])
items = [
    (record.model_copy(update={"key": f"{int(sys.argv[2]):08x}{number:08x}"}), samples)
    for number in range(int(sys.argv[3]))
]
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, len(items), batch):
    if batch > 1:
        append_batch(store, items[start : start + batch])
    else:
        store.append(*items[start])
"""


def template() -> tuple[Record, bytes]:
    """A record of the demo, as committed, and its samples."""
    store = Store(REFERENCE)
    record = next(r for r in store.records()[0] if r.sweep == "quickstart" and r.samples is not None)
    samples = store.files.read(f"samples/{record.samples.digest}.parquet") if record.samples else None
    assert samples is not None
    return record, samples


def fill(root: Path, count: int) -> int:
    """Write ``count`` records of the demo's size that differ in seed and key; returns the bytes of one.

    The digest is that of the content, so that they are records in good order; they are put into place without being
    flushed to the disk one by one, because that is not what is measured here.
    """
    content: dict[str, Any] = template()[0].model_copy(update={"key": "KEYKEYKEYKEYKEYK", "samples": None}).content()
    content["cell"]["seed"] = SEED
    canonical = canonical_json(content)
    pretty = json.dumps({"id": "IDENTITY", **content}, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    for number in range(256):
        (root / "records" / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        key = hashlib.sha256(str(number).encode()).hexdigest()[:16]

        def mine(text: str, key: str = key, number: int = number) -> str:
            return text.replace("KEYKEYKEYKEYKEYK", key).replace(str(SEED), str(number))

        identity = hashlib.sha256(mine(canonical).encode()).hexdigest()
        name = f"{key}.{content['fingerprint'][:8]}.{content['outcome']['status']}.{identity[:12]}.json"
        (root / "records" / key[:2] / name).write_text(mine(pretty).replace("IDENTITY", identity), encoding="utf-8")
    return len(pretty)


def figures() -> Iterator[tuple[str, str, str]]:
    """Name, value, note."""
    with tempfile.TemporaryDirectory() as folder:
        yield from writing(Path(folder) / "written")
        yield from loading(Path(folder) / "many")


def loading(root: Path) -> Iterator[tuple[str, str, str]]:
    """The first load builds the index; the later ones use it."""
    size = fill(root, RECORDS)
    runs = [_loaded(root) for _ in range(4)]
    first, later = runs[0], runs[1:]
    what = f"{RECORDS:,} records of {size / 1024:.0f} KiB"
    yield f"{what}, index built", f"{first[3]:.3g} s (n=1)", "every file read and checked once"
    assert [run[2] for run in later] == [0, 0, 0]
    wall, cpu = sorted(run[3] for run in later), sorted(run[4] for run in later)
    note = f"aim ≤ 5 s; {cpu[1]:.3g} s of processor time with imports, peak {later[0][5]:.0f} MiB"
    yield "  loaded and framed", f"{wall[1]:.3g} s (n=3, {wall[0]:.3g}–{wall[2]:.3g})", note
    yield "  the frame", f"{first[0]:,.0f} × {first[1]:.0f}", "rows × columns"


def _loaded(root: Path) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(root)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [float(word) for word in done.stdout.split()]


def writing(root: Path) -> Iterator[tuple[str, str, str]]:
    """Eight processes append to one store, record by record and in batches."""
    for batch, each, note in (
        (1, EACH, "each flushed to the disk with its folder"),
        (BATCH, 4 * EACH, f"aim ≥ 1,000; flushed once per batch of {BATCH}"),
    ):
        rate, cpu_ms = _written(root / str(batch), each, batch)
        yield f"appended by {WRITERS} writers", f"{rate:,.0f} records/s (n=1)", f"{note}; {cpu_ms:.2g} ms of CPU each"


def _written(root: Path, each: int, batch: int) -> tuple[float, float]:
    """Records per second of all writers together, and processor time per record in ms (imports included)."""
    command = [sys.executable, "-c", WRITER, str(root)]
    writers = [
        subprocess.Popen(
            [*command, str(number), str(each), str(batch)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    began, used = time.perf_counter(), _children_s()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
    seconds = time.perf_counter() - began
    assert all(writer.returncode == 0 for writer in writers)
    count = WRITERS * each
    assert sum(map(len, Store(root).entries().values())) == count
    return count / seconds, (_children_s() - used) / count * 1e3


def _children_s() -> float:
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime
