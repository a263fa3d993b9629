"""The feed of changes, the badge, and pushing to the Hub."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

import peft_matrix as pm
from harness.errors import UserError
from harness.store.store import Store
from reports.apps.upload import upload
from reports.board.board import build, load_board
from reports.board.feeds import ATOM, atom, badge
from tests.reports.making import cell, failed_record, ok_record

HOSTILE = '<script>alert(1)</script> ]]> & "x" \u202e\x00 مرحبا 👩‍🔬 =1+1'


def feed_of(store: Store, **options: str) -> tuple[str, ET.Element]:
    records = store.records()[0]
    table = build(load_board("default", []), records, store)
    text = atom(table, records, **options)
    assert text == atom(table, list(reversed(records)), **options)
    return text, ET.fromstring(text)


def titles(feed: ET.Element, name: str = "title") -> list[str]:
    return [entry.findtext(f"{{{ATOM}}}{name}") or "" for entry in feed.findall(f"{{{ATOM}}}entry")]


def test_the_feed_lists_new_and_changed_rows_newest_first(tmp_path):
    store = Store(tmp_path)
    store.append(*ok_record(cell(), accuracy=0.5))
    store.append(*ok_record(cell(), accuracy=0.9, finished="2026-03-01T01:00:00+01:00", fingerprint="e" * 64))
    store.append(failed_record(cell("ia3"), "oom", reason=HOSTILE, label=HOSTILE, finished=""))
    store.append(*ok_record(cell("x", role="trial")))
    text, feed = feed_of(store, site="https://example.org/board")
    assert feed.tag == f"{{{ATOM}}}feed"
    assert feed.findtext(f"{{{ATOM}}}updated") == "2026-03-01T00:00:00+00:00"
    assert [title.split(":")[0] for title in titles(feed)] == ["Changed", "New", "New"]
    changed, _, failed = titles(feed, "summary")
    assert "accuracy" in changed
    assert "before: accuracy" in changed
    assert "The software or machine differs" in changed
    assert "<script>" not in text
    assert failed.startswith("oom at train: <script>alert(1)</script>")
    assert len({entry.findtext(f"{{{ATOM}}}id") for entry in feed.findall(f"{{{ATOM}}}entry")}) == 3
    for element in feed.iter(f"{{{ATOM}}}link"):
        assert element.get("href", "").startswith("https://example.org/board")


def test_an_empty_feed_is_a_feed(tmp_path):
    _, feed = feed_of(Store(tmp_path))
    assert titles(feed) == []


def test_the_badge_counts_and_turns_yellow(tmp_path):
    store = Store(tmp_path)
    store.append(*ok_record(cell()))
    board = load_board("default", [])
    found = json.loads(badge(build(board, store.records()[0])))
    assert (found["schemaVersion"], found["message"], found["color"]) == (1, "1 of 1 rows have results", "brightgreen")
    store.append(failed_record(cell("ia3"), "oom", reason="x"))
    assert json.loads(badge(build(board, store.records()[0])))["color"] == "yellow"
    assert json.loads(badge(build(board, [])))["message"] == "no records"


# --- the Hub -------------------------------------------------------------------------------------
class FakeHub:
    """Records calls to the Hub; replaces ``huggingface_hub.HfApi``."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def create_repo(self, repo, **options):
        self.asked.append(("create_repo", repo, options))

    def create_commit(self, repo, operations, **options):
        self.asked.append(("create_commit", repo, [one.path_in_repo for one in operations], options))
        return SimpleNamespace(commit_url="https://hub.example/commit")


@pytest.fixture
def folder(tmp_path):
    digest = "0" * 64
    written = ("board.html", f"samples/{digest}.parquet", "records/aa/aabb.ccdd.ok.0123456789ab.json")
    theirs = ("sub/a.json", "samples/notes.txt", "id_rsa", ".hidden", "quarantine/y.json", "claims/x.lock", "logs/a")
    for name in (*written, *theirs):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "board.html").write_text("s")
    (tmp_path / "out" / "linked").symlink_to(secret)
    (tmp_path / "out" / "records" / "aa" / "ffee.ccdd.ok.0123456789ab.json").symlink_to(secret / "board.html")
    return tmp_path / "out"


SENT = ["README.md", "board.html", "records/aa/aabb.ccdd.ok.0123456789ab.json", f"samples/{'0' * 64}.parquet"]


@pytest.mark.parametrize("target", ["hf-dataset", "hf-space"])
def test_a_dry_run_sends_nothing_and_needs_no_token(target, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a dry run opened a connection"))
    hub = FakeHub()
    done = upload(target, "me/board", folder, api=hub)
    assert (done.sent, hub.asked) == (False, [])
    assert sorted(done.files) == SENT
    assert {"id_rsa", "sub/a.json", "samples/notes.txt"} <= set(done.left_out)
    assert not any(name.startswith(("logs/", "claims/")) for name in done.left_out), "a store's own, not published"


def test_a_push_makes_the_space_and_sends_one_commit(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = FakeHub()
    done = upload("hf-space", "me/board", folder, push=True, api=hub)
    (_, repo, options), (_, _, sent, commit) = hub.asked
    assert done.sent
    assert done.address == "https://hub.example/commit"
    assert repo == "me/board"
    assert options == {"repo_type": "space", "exist_ok": True, "space_sdk": "static"}
    assert sent == SENT
    assert commit["repo_type"] == "space"
    assert not [path for path in folder.rglob("*") if path.is_file() and "hf_secret" in path.read_text()]


def test_a_refusal_is_one_sentence_without_the_token(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = FakeHub()

    def refuse(*_, **__):
        raise OSError("403 for hf_secret")

    monkeypatch.setattr(hub, "create_commit", refuse)
    with pytest.raises(UserError, match="the Hub refused") as caught:
        upload("hf-dataset", "me/board", folder, push=True, api=hub)
    assert "hf_secret" not in str(caught.value)


def test_a_space_without_a_folder_is_the_site_of_the_records(tmp_path):
    Store(tmp_path / "results").append(*ok_record(cell("lora")))
    done = pm.publish("me/site", to="hf-space", results=tmp_path / "results")
    assert not done.sent
    assert {"README.md", "index.html", "site.json"} <= set(done.files)
    assert done.left_out == ()
    assert pm.publish("me/site", to="hf-space", results=tmp_path / "results").files == done.files


def test_a_site_is_published_by_its_manifest(tmp_path):
    for name in ("index.html", "cells/a.html", "secrets.json", "../outside"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    listed = ["index.html", "cells/a.html", "../outside", "no-such-file"]
    (tmp_path / "out" / "site.json").write_text(json.dumps({"files": listed}))
    done = upload("hf-space", "me/site", tmp_path / "out")
    assert sorted(done.files) == ["README.md", "cells/a.html", "index.html", "site.json"]
    assert done.left_out == ("secrets.json",)


def test_a_board_is_published_with_its_figures(tmp_path):
    for name in ("board.html", "board.csv", "front.svg", "mine.svg"):
        (tmp_path / name).write_text(name)
    (tmp_path / "board.json").write_text(json.dumps({"figures": [{"name": "front"}]}))
    done = upload("hf-space", "me/board", tmp_path)
    assert sorted(done.files) == ["README.md", "board.csv", "board.html", "board.json", "front.svg"]
    assert done.left_out == ("mine.svg",)


def test_what_cannot_be_published_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="HF_TOKEN"):
        upload("hf-dataset", "me/board", folder, push=True, api=FakeHub())
    with pytest.raises(UserError, match="OWNER/NAME"):
        upload("hf-dataset", "../etc/passwd/x", folder)
    with pytest.raises(UserError, match="nothing to publish"):
        upload("hf-dataset", "me/board", tmp_path / "none")
    with pytest.raises(UserError, match="Did you mean 'hf-space'"):
        upload("hf-spaces", "me/board", folder)
    (folder / "board.html").unlink()
    with pytest.raises(UserError, match="needs a page"):
        upload("hf-space", "me/board", folder)
