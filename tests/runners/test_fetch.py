"""A sweep's models and data are fetched, and the sweep runs without a network: real files, a real HTTP server, real
cells.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.errors import UserError
from runners.tools.fetch import verify
from tests.runners.conftest import Bench

COMMIT = "0123456789abcdef0123456789abcdef01234567"

TASK = """
name: mine
version: 1
summary: "Rows of one's own."
kind: generation
licence: CC0
source: {data_root: mine}
splits:
  train: {from: train}
  validation: {from: train, hold_out: 8}
  test: {from: test}
prompt: "{text}"
delimiter: " "
answer: "{word}"
max_new_tokens: 4
metrics: [accuracy]
"""


@pytest.fixture
def connected(bench: Bench) -> Bench:
    """A workspace with its own task, a data root, and a model at an absolute path."""
    (bench.root / "tasks").mkdir()
    (bench.root / "tasks" / "mine.yaml").write_text(TASK)
    (bench.root / "root" / "mine").mkdir(parents=True)
    for split, n in (("train", 40), ("test", 8)):
        rows = [json.dumps({"text": f"abc{i % 7}", "word": "ab"}) for i in range(n)]
        (bench.root / "root" / "mine" / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    bench.sweep = {**bench.sweep, "methods": ["none"], "tasks": ["mine"]}
    bench.environ["PEFT_MATRIX_DATA"] = str(bench.root / "root")
    return bench


def keys(bench: Bench, *arguments: str) -> set[str]:
    done = bench("plan", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return {cell["key"] for cell in json.loads(done.stdout)["run"]}


def test_what_was_fetched_runs_without_what_it_came_from(connected: Bench, tmp_path: Path) -> None:
    path, folder = str(connected.write()), connected.root / "carried"
    planned = keys(connected, path)
    done = connected("fetch", path, "--to", str(folder))
    assert done.returncode == 0, done.stderr
    assert "mine: the data root" in done.stdout
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, about in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == about["sha256"]
    assert {"data/mine/train.jsonl", "tasks/mine.yaml", "runners/sweeps/quick.yaml"} <= set(manifest["files"])
    assert any(name.endswith(".safetensors") for name in manifest["files"])

    # the other machine: another path, neither the data root nor the model's folder, a separate cache
    away = Bench(tmp_path / "away" / "x", {}, {"PEFT_MATRIX_CACHE": str(tmp_path / "other-cache")})
    shutil.copytree(folder, away.root)
    shutil.rmtree(folder)
    (connected.root / "root").rename(connected.root / "gone")
    environ = {k: v for k, v in away.environment.items() if k not in ("HF_HUB_OFFLINE", "PEFT_MATRIX_DATA")}
    run = [*away.command("run", "quick")]
    first = subprocess.run(run, cwd=away.root, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert {record["key"] for record in away.records()} == planned
    assert set(away.outcomes().values()) == {"ok"}

    rows = away.root / "data" / "mine" / "test.jsonl"
    rows.write_text(rows.read_text().replace('"ab"', '"ba"'))
    (away.root / "tasks" / "mine.yaml").unlink()
    again = subprocess.run(run, cwd=away.root, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 2
    assert "data/mine/test.jsonl differs from what was fetched, and 1 more files" in again.stderr


def test_a_folder_with_other_things_in_it_is_refused(connected: Bench) -> None:
    (connected.root / "full").mkdir()
    (connected.root / "full" / "thesis.tex").write_text("x")
    done = connected("fetch", str(connected.write()), "--to", str(connected.root / "full"))
    assert done.returncode == 2
    assert "contains other files" in done.stderr
    with pytest.raises(UserError, match="not a readable manifest"):
        verify(connected.root)


# --- the Hub -------------------------------------------------------------------------------------
class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP interface as a snapshot of one model needs, serving real files."""

    folder: Path
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/owner/tiny/tree/"):
            files = sorted(p for p in self.folder.iterdir() if p.is_file())
            tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40} for p in files]
            self._send(json.dumps(tree).encode(), "application/json", body)
        elif path.startswith("/api/models/owner/tiny"):
            names = [{"rfilename": p.name} for p in sorted(self.folder.iterdir())]
            about = {"id": "owner/tiny", "sha": COMMIT, "siblings": names, "private": False, "gated": False, "tags": []}
            self._send(json.dumps(about).encode(), "application/json", body)
        elif path.startswith(f"/owner/tiny/resolve/{COMMIT}/") and (self.folder / path.rpartition("/")[2]).is_file():
            self._send((self.folder / path.rpartition("/")[2]).read_bytes(), "application/octet-stream", body)
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, kind: str, body: bool) -> None:
        self.send_response(200)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a server that serves the tiny model as ``owner/tiny``, and what it was asked."""
    folder = tmp_path / "served"
    shutil.copytree(tiny_model, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody should want")
    handler = type("Served", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


def test_hub_model_is_fetched_at_its_commit_and_runs_offline(bench: Bench, hub: tuple[str, list[str]]) -> None:
    address, asked = hub
    online = replace(bench, environ={"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"})
    model = {"id": "owner/tiny", "revision": COMMIT}
    tasks = [{"name": "strings-copy", "train_items": 8, "validation_items": 4, "test_items": 4}]
    unpinned = online("fetch", str(bench.write(models=["owner/tiny"], methods=["none"], tasks=tasks)), "--to", "x")
    assert unpinned.returncode == 2
    assert "names no revision" in unpinned.stderr
    absent = {"id": "owner/absent", "revision": COMMIT}
    missing = online("fetch", str(bench.write(models=[absent], methods=["none"], tasks=tasks)), "--to", "x")
    assert missing.returncode == 2
    assert "cannot be downloaded from the Hub" in missing.stderr

    folder = bench.root / "carried"
    done = online("fetch", str(bench.write(models=[model], methods=["none"], tasks=tasks)), "--to", str(folder))
    assert done.returncode == 0, done.stderr
    assert f"owner/tiny: the Hub, commit {COMMIT}" in done.stdout
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert any(name.endswith(f"snapshots/{COMMIT}/model.safetensors") for name in files)
    assert not any("pytorch_model" in name for name in (*files, *asked))

    asked.clear()
    away = Bench(folder, {}, {"HF_ENDPOINT": address, "PEFT_MATRIX_CACHE": str(bench.root / "cache")})
    environ = {k: v for k, v in away.environment.items() if k != "HF_HUB_OFFLINE"}
    run = subprocess.run(
        [sys.executable, "-m", "peft_matrix.cli", "run", "quick"],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert set(away.outcomes().values()) == {"ok"}
    assert asked == []  # the server is there; no request reached it
    assert "HF_HUB_OFFLINE" not in environ
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_unpinned_model_runs_at_the_recorded_commit(bench: Bench, hub: tuple[str, list[str]]) -> None:
    address, _ = hub
    online = replace(bench, environ={"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"})
    online.environ["HF_HUB_CACHE"] = str(bench.root / "hub")
    path = bench.write(models=["owner/tiny"], methods=["none"])
    planned = online("plan", str(path))
    assert f"may change under this name: it has no 'revision'; now it is revision: {COMMIT}" in planned.stdout
    done = online("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = online.records()
    facts = record["environment"]["facts"]
    assert record["cell"]["model"]["revision"] == facts["model_commit"] == COMMIT
    assert len(facts["weights_sha256"]) == 64
