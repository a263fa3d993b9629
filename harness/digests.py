"""Canonical JSON, digests and file names: the one way anything in this project is turned into an identity."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text on every machine.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value holds something JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return digest_text(canonical_json(value))


def digest_text(text: str) -> str:
    """SHA-256 (hex) of ``text`` as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def without_later(content: Mapping[str, object], later: Mapping[str, object]) -> dict[str, object]:
    """``content`` without later fields at the value that means what was before them, so that old keys stay valid.

    Args:
        later: name of each field that was added after records were made, to that value.
    """
    return {name: value for name, value in content.items() if name not in later or value != later[name]}


def slug(text: str) -> str:
    """``text`` fit for a file name: letters, digits, ``-`` and ``_``; everything else becomes ``-``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "x"
