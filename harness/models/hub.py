"""Commit of a model on the Hugging Face Hub. Only the commit's name is downloaded."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

TIMEOUT_S = 5.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """True if a revision names a commit and not a branch or tag, which may move."""
    return bool(_COMMIT.fullmatch(revision or ""))


def offline() -> bool:
    """True if the environment forbids requests to the Hub."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


@functools.cache
def resolve(model_id: str, revision: str | None) -> str | None:
    """The commit that ``revision`` (None: ``main``) is now; without the Hub, the one in the local cache.

    Returns:
        40 hexadecimal digits, or None where neither the Hub nor the cache knows.
    """
    if is_commit(revision):
        return revision
    return _asked(model_id, revision) or cached_commit(model_id, revision)


def _asked(model_id: str, revision: str | None) -> str | None:
    if offline():
        return None
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(model_id, revision=revision, timeout=TIMEOUT_S).sha
    except Exception:  # no network, no such model, no right to see it: errors of libraries without a common base
        return None


def cached_commit(model_id: str, revision: str | None) -> str | None:
    """The commit that the local cache of the Hub has for a branch or tag, or None."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=model_id, repo_type="model")
    try:
        found = (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError, ValueError):
        return None
    return found if is_commit(found) else None


def snapshot(model_id: str, commit: str) -> Path | None:
    """The folder of the local cache that holds a commit, or None."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=model_id, repo_type="model") / "snapshots" / commit
    return folder if folder.is_dir() else None
