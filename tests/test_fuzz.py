"""Mutated input at every border, with fixed seeds: each file is accepted or refused with a sentence.

An input that ends in any exception but ``UserError`` would be a traceback on a user's screen; the test prints it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from harness import spec
from harness.digests import canonical_json
from harness.errors import UserError
from harness.models import shape, sources
from harness.store import index, segments
from harness.store.packing import pack
from harness.store.samples import samples_ref
from harness.store.store import Store
from reports.apps.importers import import_results
from reports.apps.reproduction.claims import load_claims
from reports.board.board import build, load_board
from reports.data.frame import framed
from tests.harness.examples import full_record, make_samples
from tests.reports.test_importers import LM_EVAL_FILE, OPTIMUM_FILE, PEFT_FILE, STAMP, choice
from tests.reports.test_verdicts import GOOD

SEED = 15
HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    2**64 + 1,
    10**400,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x" * 5000,
    "\ud83d",
    "\x00",
    "../../x",
    "9" * 30,
    "1e999",
    [],
    [None],
    [[]],
    ["x", 1],
    {},
    {"": None},
    {"x": {"y": [1]}},
]


def deep(levels: int) -> Any:
    """Lists inside each other."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of every value below the top."""
    if len(at) > 20:
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*at, key)
        yield from places(inner, (*at, key))


def mutated(value: Any, chance: random.Random) -> Any:
    """A copy with one or two values replaced, removed, moved or added."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2))):
        if not (found := list(places(value))):
            return value
        *way, last = chance.choice(found)
        holder = value
        for key in way:
            holder = holder[key]
        kind = chance.randrange(8)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(["", "x", "name", "\ud83d", "é" * 300])] = chance.choice(HOSTILE)
        elif kind == 2:
            holder[last] = [holder[last]]
        elif kind == 3:
            holder[last] = chance.choice([deep(200), {"a": deep(50)}])
        else:
            holder[last] = copy.deepcopy(chance.choice(HOSTILE))
    return value


def broken(data: bytes, chance: random.Random) -> bytes:
    """The bytes cut off, with some of them changed, or with others put in."""
    kind = chance.randrange(3)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        at = chance.randrange(len(data))
        return data[:at] + chance.choice([b"\x00", b"\xff\xfe", b"[" * 3000, b"9" * 5000, b"\\ud800"]) + data[at:]
    out = bytearray(data)
    for _ in range(chance.randrange(1, 8)):
        out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def variant(value: Any, write: Callable[[Any], bytes], chance: random.Random) -> bytes:
    """Three times of four another value, else other bytes."""
    if chance.random() < 0.75:
        try:
            return write(mutated(value, chance))
        except (ValueError, yaml.YAMLError):  # a value that the format cannot hold
            pass
    return broken(write(value), chance)


def fuzz(count: int, name: str, attempt: Callable[[random.Random], None]) -> int:
    """Number of inputs that were refused; every other exception fails the test, with the input's number."""
    refused = 0
    faults = []
    for number in range(count):
        try:
            attempt(random.Random(f"{SEED} {name} {number}"))
        except UserError:
            refused += 1
        except Exception as error:
            import traceback

            last = traceback.extract_tb(error.__traceback__)
            here = [f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in last][-4:]
            faults.append(f"{name} {number}: {type(error).__name__}: {str(error)[:100]!a} {' '.join(here)}")
    assert not faults, f"{len(faults)} of {count} are tracebacks:\n" + "\n".join(faults)
    return refused


# --- sweeps ----------------------------------------------------------------------------------------
SWEEP: dict[str, Any] = {
    "name": "x",
    "models": ["builtin:nano", {"id": "builtin:nano", "dtype": "float32", "label": "n"}],
    "methods": ["none", {"name": "lora", "params": {"r": 4, "target_modules": ["q_proj"]}, "learning_rate": 0.001}],
    "quantization": ["none", {"name": "absmax-int8", "moment": "after_training"}],
    "tasks": ["strings-copy", {"name": "strings-copy", "label": "t", "metric": "accuracy"}],
    "seeds": [0, 1],
    "training": {"steps": 5, "batch_size": 4, "learning_rate": 0.001, "schedule": "constant"},
    "evaluation": {"batch_size": 8, "decoding": {"temperature": 0}},
    "probes": {"latency_repeats": 0},
    "limits": {"memory_gib": 4},
    "exclude": [{"method": "lora", "why": "no need"}],
    "priority": [{"method": "none", "value": 3}],
}


def test_sweeps(tmp_path: Path) -> None:
    from peft_matrix.api import plan

    path = tmp_path / "x.yaml"

    def attempt(chance: random.Random) -> None:
        path.write_bytes(variant(SWEEP, lambda v: yaml.safe_dump(v, allow_unicode=True).encode(), chance))
        loaded = spec.load(path)
        plan(loaded, results=tmp_path / "results")

    assert fuzz(300, "sweep", attempt) > 100


# --- stores ----------------------------------------------------------------------------------------
BOARD = load_board("default", [])


def read_everything(root: Path) -> None:
    """Load, frame and build a board, as the commands on records do."""
    store = Store(root)
    records, _ = store.records()
    framed(index.load(store).flat)
    build(BOARD, records, store)


def test_records(tmp_path: Path) -> None:
    """Three of four have the right digest, which anybody can compute who sends a store."""
    data = make_samples()
    good = full_record().model_copy(update={"samples": samples_ref(data)}).content()
    good["outcome"]["status"] = "ok"

    def attempt(chance: random.Random) -> None:
        root = tmp_path / "store"
        shutil.rmtree(root, ignore_errors=True)
        (root / "records/00").mkdir(parents=True)
        (root / "samples").mkdir()
        (root / f"samples/{samples_ref(data).digest}.parquet").write_bytes(data)
        content = mutated(good, chance)
        try:
            identity = hashlib.sha256(canonical_json(content).encode()).hexdigest()
        except ValueError:
            identity = "0" * 64
        text = as_json({"id": identity, **content})
        if chance.random() < 0.25:
            text = broken(text, chance)
        status = content.get("outcome") if isinstance(content.get("outcome"), dict) else {}
        word = status.get("status") if status.get("status") in ("ok", "error") else "ok"
        key = content.get("key") if isinstance(content.get("key"), str) else "0" * 16
        key = key if key.isalnum() and len(key) < 99 else "0" * 16
        fingerprint = str(content.get("fingerprint"))[:8]
        fingerprint = fingerprint if fingerprint.isalnum() else "none"
        (root / f"records/00/{key}.{fingerprint}.{word}.{identity[:12]}.json").write_bytes(text)
        read_everything(root)

    fuzz(300, "record", attempt)


def test_samples(tmp_path: Path) -> None:
    """Samples with the right digest and other columns, types or bytes."""
    good = parquet.read_table(pa.BufferReader(make_samples(8)))

    def table(chance: random.Random) -> bytes:
        columns = {name: good.column(name).to_pylist() for name in good.column_names}
        name = chance.choice(list(columns))
        kind = chance.randrange(4)
        if kind == 0:
            del columns[name]
        elif kind == 1:
            columns[f"{name}_"] = columns.pop(name)
        else:
            value = chance.choice([None, 1, -(2**40), 1.5, float("nan"), "x", True, [1.0], {"a": 1}])
            columns[name] = [value] * chance.choice([8, 8, 8, 7])
        out = pa.BufferOutputStream()
        try:
            parquet.write_table(pa.table(columns), out)
        except pa.ArrowException:
            return broken(make_samples(8), chance)
        return bytes(out.getvalue())

    def attempt(chance: random.Random) -> None:
        data = table(chance) if chance.random() < 0.7 else broken(make_samples(8), chance)
        root = tmp_path / "store"
        shutil.rmtree(root, ignore_errors=True)
        (root / "samples").mkdir(parents=True)
        store = Store(root)
        digest = hashlib.sha256(data).hexdigest()
        (root / f"samples/{digest}.parquet").write_bytes(data)
        record = full_record()
        for key in ("a" * 16, "b" * 16):
            ok = record.outcome.model_copy(update={"status": "ok"})
            changes = {"samples": record.samples.model_copy(update={"digest": digest, "rows": 8})}
            store.append(record.model_copy(update={"outcome": ok, "key": key, **changes}))
        read_everything(root)
        store.sample_file(digest)

    assert fuzz(150, "samples", attempt) > 75


def test_segments(tmp_path: Path) -> None:
    root = tmp_path / "store"
    data = make_samples()
    for number in range(3):
        record = full_record().model_copy(update={"key": f"{number:016x}", "samples": samples_ref(data)})
        Store(root).append(record, data)
    pack(Store(root))
    (path,) = (root / "segments").iterdir()
    good = path.read_bytes()
    rows = [("records/00/../../x", b"1"), ("samples/\x00", b""), ("records/aa/b.json", b"{"), ("", b"x")]

    def attempt(chance: random.Random) -> None:
        for old in (root / "segments").iterdir():
            old.unlink()
        if chance.random() < 0.3:
            made = segments.write(tmp_path / "made", chance.sample(rows, chance.randrange(1, 4)))
            (tmp_path / "made").rename(root / segments.name_of(made))
        else:
            path.write_bytes(broken(good, chance))
        read_everything(root)

    assert fuzz(150, "segment", attempt) > 75


# --- results of other tools ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("peft-method-comparison", "r.json", PEFT_FILE),
        ("lm-eval", f"results_{STAMP}.json", LM_EVAL_FILE),
        ("optimum-benchmark", "benchmark.json", OPTIMUM_FILE),
    ],
)
def test_importers(kind: str, name: str, content: dict[str, Any], tmp_path: Path) -> None:
    """A file that is accepted must give records that load and a board."""
    lines = [json.loads(choice(n, 0, [-1.0, -2.0 - n])) for n in range(3)]

    def attempt(chance: random.Random) -> None:
        root = tmp_path / "store"
        shutil.rmtree(root, ignore_errors=True)
        path = tmp_path / name
        logged = tmp_path / f"samples_arc_easy_{STAMP}.jsonl"
        if kind == "lm-eval" and chance.random() < 0.4:
            path.write_bytes(as_json(content))
            logged.write_bytes(b"\n".join(as_json(mutated(line, chance)) for line in lines))
        else:
            path.write_bytes(variant(content, as_json, chance))
            logged.write_bytes(b"\n".join(map(as_json, lines)))
        import_results(kind, [path], Store(root))
        records, damaged = Store(root).records()
        assert records
        assert not damaged
        read_everything(root)

    assert fuzz(250, kind, attempt) > 40


# --- claims ----------------------------------------------------------------------------------------
def test_claims(tmp_path: Path) -> None:
    from reports.apps.reproduction.measuring import compute

    content = yaml.safe_load(GOOD)
    arithmetic = dict(content["claims"][0], id="b", metric="printed")
    arithmetic["evidence"] = {"compute": {"ratio": [{"product": [4, 0.5]}, 0.25]}}
    content["claims"].append(arithmetic)

    def attempt(chance: random.Random) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(variant(content, lambda v: yaml.safe_dump(v, allow_unicode=True).encode(), chance))
        for _, claim in load_claims([path]):
            if claim.evidence is not None and claim.evidence.compute is not None:
                compute(claim.evidence.compute)

    assert fuzz(250, "claim", attempt) > 75


# --- model folders ---------------------------------------------------------------------------------
def test_model_folders(tmp_path: Path) -> None:
    import struct

    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"vocab_size": 16, "intermediate_size": 16, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    header = {"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}, "__metadata__": {"format": "pt"}}
    shards = {"metadata": {"total_size": 32}, "weight_map": {"a": "model.safetensors"}}

    def weights(value: Any) -> bytes:
        text = json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text + bytes(32)

    files: dict[str, tuple[Any, Callable[[Any], bytes]]] = {
        "config.json": (config, as_json),
        "model.safetensors": (header, weights),
        "model.safetensors.index.json": (shards, as_json),
    }

    def attempt(chance: random.Random) -> None:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, (value, write) in files.items():
            (folder / name).write_bytes(write(value))
        name = chance.choice(list(files))
        (folder / name).write_bytes(variant(*files[name], chance))
        shape.shape_of.cache_clear()
        sources.identity(str(folder), revision=None, task_digest=str)
        sources.check(str(folder), chance.choice(["causal-lm", "sequence-classification"]))
        shape.shape_of(str(folder))

    assert fuzz(350, "model", attempt) > 100
