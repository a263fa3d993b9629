"""Pushing published files to the Hugging Face Hub: a data set of records, a static Space with the pages, or a model.

Nothing is sent unless asked for: a push without ``push=True`` says what it would do. The token comes from the
environment (``HF_TOKEN``) alone and is never written down.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError, did_you_mean

TARGETS = ("hf-dataset", "hf-space", "hf-model")
EXPORT = "export.json"
"""Manifest of a model that was exported; its card is its README.md."""
TOKEN = "HF_TOKEN"
LICENCE = "apache-2.0"

_CARD = """---
license: {licence}
tags: [peft, benchmark, leaderboard]
---
# {title}

{what}
"""
_SPACE = """---
title: {title}
sdk: static
app_file: {page}
license: {licence}
---
{what}
"""


@dataclass(frozen=True)
class Upload:
    """Files that are, or would be, uploaded.

    Attributes:
        files: path in the repository to size in bytes.
        sent: True if it was uploaded; ``address`` is its URL then.
        left_out: files of the folder that this program did not write; they stay.
    """

    target: str
    repo: str
    files: Mapping[str, int]
    sent: bool
    address: str = ""
    left_out: tuple[str, ...] = ()


def upload(target: str, repo: str, folder: Path, *, push: bool = False, api: object = None) -> Upload:
    """Send a folder's files to the Hub, or say what would be sent.

    Args:
        target: ``hf-dataset``, ``hf-space`` (static) or ``hf-model``.
        repo: ``OWNER/NAME``; it is made if it is not there.
        folder: what to send: records and samples, or pages. Files that this program did not write stay.
        push: send; otherwise nothing leaves this machine.
        api: a ``huggingface_hub.HfApi`` to use.

    Raises:
        UserError: an unknown target, a bad name, an empty folder, no token in the environment, or a refusal by the Hub.
    """
    if target not in TARGETS:
        raise UserError(f"cannot publish to {target!r}", fix=did_you_mean(target, TARGETS))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise UserError(f"{repo!r} is no repository", fix="Write OWNER/NAME.")
    files, left_out = exported(folder) if target == "hf-model" else publishable(folder)
    if target == "hf-model" and not files:
        raise UserError("no exported model", where=str(folder), fix="Make one: peft-matrix export CELL --to DIR")
    if not files:
        raise UserError("there is nothing to publish", where=str(folder), fix="Draw the board or the site first.")
    card = (folder / "README.md").read_bytes() if target == "hf-model" else _card(target, repo, files)
    sizes = {"README.md": len(card), **{name: path.stat().st_size for name, path in files.items()}}
    if not push:
        return Upload(target, repo, sizes, sent=False, left_out=tuple(left_out))
    token = os.environ.get(TOKEN)
    if not token:
        raise UserError("no token", where=TOKEN, fix=f"Put a token with write access into the variable {TOKEN}.")
    address = _send(target, repo, files, card, token, api)
    return Upload(target, repo, sizes, sent=True, address=address, left_out=tuple(left_out))


def _card(target: str, repo: str, files: Mapping[str, Path]) -> bytes:
    title = repo.partition("/")[2]
    if target == "hf-dataset":
        what = "Records of peft-matrix: one JSON a cell, with the Parquet of its scored items."
        return _CARD.format(licence=LICENCE, title=title, what=what).encode()
    page = next((name for name in ("index.html", "board.html") if name in files), "")
    if not page:
        raise UserError("a static Space needs a page", fix="Publish a folder that holds index.html or board.html.")
    return _SPACE.format(licence=LICENCE, title=title, page=page, what="Drawn by peft-matrix.").encode()


def _send(target: str, repo: str, files: Mapping[str, Path], card: bytes, token: str, api: Any) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = api or HfApi(token=token)
    kind = target.removeprefix("hf-")
    operations = [CommitOperationAdd("README.md", card)]
    operations += [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    try:
        api.create_repo(repo, repo_type=kind, exist_ok=True, **({"space_sdk": "static"} if kind == "space" else {}))
        done = api.create_commit(repo, operations, repo_type=kind, commit_message="peft-matrix publish")
    except (HfHubHTTPError, OSError) as error:
        text = str(error).replace(token, "***")
        raise UserError(f"the Hub refused: {text}", where=repo, fix="Check the name and the token's rights.") from None
    return str(getattr(done, "commit_url", "") or f"{kind}s/{repo}")


BOARD_FILES = ("board.html", "board.md", "board.csv", "board.json", "board.tex", "lbom.json", "feed.xml", "badge.json")
FIGURE_KINDS = ("svg", "png", "pdf")
SITE_MANIFEST = "site.json"
MAX_MANIFEST_BYTES = 64 * 2**20
_RECORD = re.compile(r"records/[\w-]{2}/[\w-]+\.[\w-]+\.[a-z]+\.[0-9a-f]{12}\.json", re.ASCII)
_SAMPLES = re.compile(r"samples/[0-9a-f]{64}\.parquet")
_KEPT_HERE = re.compile(r"(?:logs|claims|running)/[^/]+")
"""Files that a store keeps for the machine that ran it: logs, locks, the files of drivers."""


def publishable(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Path in the repository to file, and the names of files that are left out because others wrote them."""
    allowed: set[str] = set()
    everything = sorted(name for name in _regular(folder, folder) if not _KEPT_HERE.fullmatch(name))
    for name in everything:
        if _RECORD.fullmatch(name) or _SAMPLES.fullmatch(name):
            allowed.add(name)
        place, _, last = name.rpartition("/")
        prefix = f"{place}/" if place else ""
        if last == "board.json":
            figures = _names(folder / name, "figures")
            drawn = {f"{figure}.{kind}" for figure in figures for kind in FIGURE_KINDS}
            allowed |= {prefix + one for one in (*BOARD_FILES, *drawn)}
        elif last == "board.html":
            allowed.add(name)
        elif last == SITE_MANIFEST:
            allowed |= {name, *(prefix + one for one in _names(folder / name, "files"))}
    found = {name: folder / name for name in everything if name in allowed and name != "README.md"}
    return found, [name for name in everything if name not in allowed]


def exported(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Files of an exported model but its card, and the names of others in the folder."""
    listed = {*_names(folder / EXPORT, "files"), EXPORT}
    everything = sorted(_regular(folder, folder))
    if "README.md" not in everything or EXPORT not in everything:
        return {}, everything
    found = {name: folder / name for name in everything if name in listed and name != "README.md"}
    return found, [name for name in everything if name not in listed]


def _regular(folder: Path, root: Path) -> Iterator[str]:
    """Regular files below ``folder``, relative to ``root``; no link and no hidden name is followed or listed."""
    for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _regular(path, root)
        elif path.is_file():
            yield path.relative_to(root).as_posix()


def _names(manifest: Path, field: str) -> list[str]:
    """The names in a list of a JSON file; ``[]`` where there is no such list."""
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            return []
        listed = json.loads(manifest.read_text(encoding="utf-8"))[field]
        names = [one["name"] if isinstance(one, dict) else one for one in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)]
