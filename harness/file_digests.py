"""SHA-256 of files, read again only when a file may have changed.

A digest is remembered by the file's path, size, times of change (``mtime`` and ``ctime``), inode and device. A file can
be rewritten with its old ``mtime``; its ``ctime`` then differs. A file that changed a moment ago is never remembered,
because a second write within one tick of the file system's clock would keep all of these.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from pathlib import Path

from harness.digests import digest_file, digest_text

SETTLED_S = 2.0
"""Age from which a file's times show whether it was written again; file systems keep them to two seconds."""


class FileDigests:
    """Digests of files.

    Args:
        folder: where digests are kept between processes (``<cache>/digests``); None: in this process only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[str, tuple[list[int], str]] = {}

    def of(self, path: Path) -> str:
        """SHA-256 (hex) of the bytes of ``path``; links are followed.

        Raises:
            OSError: the file cannot be read.
        """
        name = os.path.realpath(path)
        stamp = stamp_of(path)
        known = self._known.get(name) or self._kept(name)
        if known is not None and known[0] == stamp:
            self._known[name] = known
            return known[1]
        found = digest_file(path)
        if stamp_of(path) == stamp and time.time() - max(stamp[1:3]) / 1e9 > SETTLED_S:
            self._known[name] = (stamp, found)
            self._keep(name, stamp, found)
        return found

    def _place(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{digest_text(name)[:32]}.json"

    def _kept(self, name: str) -> tuple[list[int], str] | None:
        place = self._place(name)
        if place is None:
            return None
        try:
            data = json.loads(place.read_text(encoding="utf-8"))
            return [int(n) for n in data["stamp"]], str(data["sha256"])
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: the file is read again
            return None

    def _keep(self, name: str, stamp: list[int], sha256: str) -> None:
        place = self._place(name)
        if place is None:
            return
        scratch = place.with_name(f".{uuid.uuid4().hex}.tmp")
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not correctness
            place.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps({"stamp": stamp, "sha256": sha256}), encoding="utf-8")
            os.replace(scratch, place)


def stamp_of(path: Path) -> list[int]:
    """Size, ``mtime`` and ``ctime`` in ns, inode and device of a file; links are followed.

    Raises:
        OSError: there is no such file.
    """
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
