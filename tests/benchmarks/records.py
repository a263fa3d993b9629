"""Figures of large stores: loading, boards, regressions, the site, and what several writers append at once.

The stores are synthetic: records of the demo as committed, with other keys, labels, seeds, times and scored items
(:func:`fill`). Each figure is taken in a separate process and printed with its growth over ten times as many records.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from harness.digests import canonical_json, digest_text
from harness.record import Record
from harness.store import segments
from harness.store.store import Store

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "cpu-2core"
LARGEST = int(os.environ.get("PEFT_MATRIX_BENCH_RECORDS", "100000"))
SECTION_ROWS, SEEDS, NIGHTS = 200, 2, 20
WRITERS, EACH, BATCH = 8, 250, 250
REPEATS = 3
SWEEP = "synthetic"

TIMED = """
import resource, sys, time
began = time.perf_counter()
{work}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(count, time.perf_counter() - began, time.process_time(), peak)
"""
LOAD = """
from harness.store import index
from harness.store.store import Store
from reports.data.frame import framed
count = len(framed(index.load(Store(sys.argv[1])).flat))
"""
BOARD = """
from reports.board.publish import build_board
built = build_board("default", [], results=sys.argv[1])
count = sum(len(section.rows) for section in built.table.sections)
"""
REGRESSIONS = """
from reports.apps.regressions.analyze import look
count = look(sys.argv[1]).looked_at["series"]
"""
SITE = """
from pathlib import Path
from peft_matrix.pages import build_site_of
from peft_matrix.targets import open_workspace
count = build_site_of(open_workspace(sys.argv[1]), Path(sys.argv[2]), ()).cells
"""

WRITER = """
import sys, time
import pyarrow.parquet
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
used = time.process_time()
for start in range(0, len(items), batch):
    if batch > 1:
        append_batch(store, items[start : start + batch])
    else:
        store.append(*items[start])
print(time.process_time() - used, flush=True)
"""


# --- synthetic stores ------------------------------------------------------------------------------
def templates() -> list[tuple[Record, bytes]]:
    """The finished records of the demo with seed 0 that have samples, and these samples."""
    store = Store(REFERENCE)
    found = [r for r in store.records()[0] if r.sweep == "quickstart" and r.cell["seed"] == 0 and r.samples is not None]
    return [(r, store.files.read(f"samples/{r.samples.digest}.parquet") or b"") for r in found if r.samples]


def template() -> tuple[Record, bytes]:
    """One of them."""
    return templates()[0]


def fill(root: Path, *, rows: int, seeds: int = SEEDS, nights: int = 1) -> int:
    """Write a packed store of ``rows`` configurations and return the number of its records.

    A section has 200 rows: the demo's configurations and copies of them with another label. Each cell has its own
    scored items, the same every night; its seconds differ by 2 % from night to night. The environment changes halfway.
    """
    draft = root / "segments" / "draft"
    draft.parent.mkdir(parents=True)
    files = segments.write(draft, _files(rows, seeds, nights), level=segments.BATCH_LEVEL)
    draft.rename(root / segments.name_of(files))
    return rows * seeds * nights


def _files(rows: int, seeds: int, nights: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    made = [_Template(*one) for one in templates()]
    digests: dict[tuple[int, int], str] = {}
    for row in range(rows):
        for seed in range(seeds):
            data = made[row % SECTION_ROWS % len(made)].samples(rng)
            digests[row, seed] = hashlib.sha256(data).hexdigest()
            yield f"samples/{digests[row, seed]}.parquet", data
    for night in range(nights):
        for (row, seed), digest in digests.items():
            number = row % SECTION_ROWS
            one = made[number % len(made)]
            place = Place(row // SECTION_ROWS, number // len(made), seed, night, night >= nights // 2 > 0)
            yield one.record(place, digest, rng)


class Place(NamedTuple):
    """Section, copy of the template, seed and night of a record, and whether its environment is the newer one."""

    section: int
    copy: int
    seed: int
    night: int
    newer: bool


class _Template:
    """A real record and its samples, from which others are made."""

    def __init__(self, record: Record, samples: bytes) -> None:
        self._content = record.content()
        self._table = parquet.read_table(pa.BufferReader(samples))
        self._correct = self._table.column("correct").to_numpy(zero_copy_only=False).astype(bool)

    def samples(self, rng: np.random.Generator) -> bytes:
        """The scored items with one in twenty judged otherwise."""
        correct = self._correct ^ (rng.random(len(self._correct)) < 0.05)
        at = self._table.schema.get_field_index("correct")
        table = self._table.set_column(at, self._table.schema.field(at), pa.array(correct))
        stream = pa.BufferOutputStream()
        parquet.write_table(table, stream, compression="zstd", write_statistics=False)
        return bytes(stream.getvalue())

    def record(self, place: Place, samples: str, rng: np.random.Generator) -> tuple[str, bytes]:
        """Path and bytes of the record of one night."""
        of = self._content
        model = {**of["cell"]["model"], "label": f"nano-{place.section}", "id": f"builtin:nano-{place.section}"}
        method = of["cell"]["method"]
        if place.copy:
            label, params = f"{method['label']}-{place.copy}", {**method["params"], "copy": place.copy}
            method = {**method, "label": label, "params": params}
        cell = {**of["cell"], "model": model, "method": method, "seed": place.seed}
        labels = (model["label"], method["label"], cell["quantization"]["label"], cell["task"]["label"])
        noise = rng.lognormal(0.0, 0.02, 2)
        metrics = {
            name: {**one, "value": one["value"] * noise[0]} if one["unit"] == "ms" and one["value"] else one
            for name, one in of["metrics"].items()
        }
        packages = {**of["environment"]["packages"], **({"torch": "2.99.0"} if place.newer else {})}
        day = f"2026-{1 + place.night // 28:02d}-{1 + place.night % 28:02d}T03:00:00+00:00"
        content = {
            **of,
            "sweep": SWEEP,
            "cell": cell,
            "key": digest_text(canonical_json(cell))[:16],
            "label": f"{'.'.join(labels)}.s{place.seed}",
            "metrics": metrics,
            "spans": [{**span, "seconds": span["seconds"] and span["seconds"] * noise[1]} for span in of["spans"]],
            "samples": {**of["samples"], "digest": samples},
            "environment": {**of["environment"], "packages": packages},
            "fingerprint": digest_text(of["fingerprint"] + str(place.newer)),
            "started": day,
            "finished": day,
        }
        canonical = canonical_json(content)
        identity = digest_text(canonical)
        name = f"{content['key']}.{content['fingerprint'][:8]}.{of['outcome']['status']}.{identity[:12]}.json"
        return f"records/{content['key'][:2]}/{name}", f'{{"id":"{identity}",{canonical[1:]}\n'.encode()


# --- figures ---------------------------------------------------------------------------------------
def figures() -> Iterator[tuple[str, str, str]]:
    """Name, value, note."""
    with tempfile.TemporaryDirectory() as folder:
        yield from writing(Path(folder) / "written")
        yield from reading(Path(folder) / "nights")
        yield from drawing(Path(folder) / "rows")


class Timed(NamedTuple):
    """Count, seconds, processor time with imports, and peak memory in MiB of a process."""

    count: float
    seconds: float
    processor_s: float
    peak_mib: float


def timed(work: str, *arguments: Path) -> Timed:
    """Run ``work`` in a separate process."""
    command = [sys.executable, "-c", TIMED.format(work=work), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Timed(*map(float, done.stdout.split()))


def shown(what: str, size: int, runs: Sequence[Timed], note: str, smaller: list[float]) -> tuple[str, str, str]:
    """A line, with the growth over the stores of a tenth and of a hundredth, whose seconds ``smaller`` has."""
    seconds, one = sorted(run.seconds for run in runs), runs[len(runs) // 2]
    middle = statistics.median(seconds)
    steps = zip(reversed(smaller), ("a tenth", "a hundredth"), strict=False)
    grown = "".join(f"; {middle / before:.1f} × that of {part}" for before, part in steps)
    smaller.append(middle)
    about = f"{note}{grown}; {one.processor_s:.3g} s of processor time, peak {max(r.peak_mib for r in runs):.0f} MiB"
    spread = f", {seconds[0]:.3g}–{seconds[-1]:.3g}" if len(runs) > 1 else ""
    return f"{what}: {size:,}", f"{middle:.3g} s (n={len(runs)}{spread})", about


def reading(root: Path) -> Iterator[tuple[str, str, str]]:
    """Stores of 20 nights, packed: the index built, then a cold process that loads and frames, then regressions."""
    earlier = defaultdict[str, list[float]](list)
    for size in (LARGEST // 100, LARGEST // 10, LARGEST):
        here = root / str(size)
        fill(here, rows=size // SEEDS // NIGHTS, nights=NIGHTS)
        for what, work, repeats, note in (
            ("records, index built", LOAD, 1, "every record read and checked once"),
            ("records loaded and framed", LOAD, REPEATS, "aim ≤ 3 s for 100,000"),
            ("regressions over records", REGRESSIONS, 1, "aim ≤ 20 s for 100,000"),
        ):
            yield shown(what, size, [timed(work, here) for _ in range(repeats)], note, earlier[what])


def drawing(root: Path) -> Iterator[tuple[str, str, str]]:
    """Boards of rows with two seeds and scored items each; sites of cells, drawn, and drawn again."""
    earlier = defaultdict[str, list[float]](list)
    for rows in (LARGEST // 1_000, LARGEST // 100, LARGEST // 10):
        here = root / str(rows)
        fill(here, rows=rows)
        timed(LOAD, here)
        works = [
            ("board of rows, items indexed", rows, BOARD, 1, "every sample file read once"),
            ("board of rows", rows, BOARD, REPEATS, "aim ≤ 5 s and 1 GiB for 10,000"),
        ]
        if rows <= LARGEST // 100:
            works += [
                ("site of cells", rows * SEEDS, SITE, 1, "aim ≤ 30 s for 2,000"),
                ("  drawn again", rows * SEEDS, SITE, 1, "nothing changed"),
            ]
        for what, size, work, repeats, note in works:
            yield shown(what, size, [timed(work, here, here / "site") for _ in range(repeats)], note, earlier[what])


def writing(root: Path) -> Iterator[tuple[str, str, str]]:
    """Eight processes append to one store, record by record and in batches."""
    for batch, each, note in (
        (1, EACH, "each flushed to the disk with its folder"),
        (BATCH, 4 * EACH, f"aim ≥ 1,000; flushed once per batch of {BATCH}"),
    ):
        runs = [_written(root / f"{batch}-{number}", each, batch) for number in range(REPEATS)]
        rates, cpu_ms = sorted(rate for rate, _ in runs), statistics.median(cpu for _, cpu in runs)
        value = f"{rates[REPEATS // 2]:,.0f} records/s (n={REPEATS}, {rates[0]:,.0f}–{rates[-1]:,.0f})"
        yield f"appended by {WRITERS} writers", value, f"{note}; {cpu_ms:.2g} ms of CPU each"


def _written(root: Path, each: int, batch: int) -> tuple[float, float]:
    """Records per second of all writers together, and processor time per record in ms."""
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
    began = time.perf_counter()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    used_s = sum(float(writer.communicate()[0]) for writer in writers)
    seconds = time.perf_counter() - began
    assert all(writer.returncode == 0 for writer in writers)
    count = WRITERS * each
    assert sum(map(len, Store(root).entries().values())) == count
    return count / seconds, used_s / count * 1e3
