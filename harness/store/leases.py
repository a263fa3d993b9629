"""Leases on cells in a store that several machines share and no kernel lock reaches.

A lease is the file ``claims/<key>.lease`` in the store. Its holder writes it again every :data:`BEAT_S` with a larger
number. Whoever finds one that has not changed for :data:`STALE_S` by the own monotonic clock takes it over, so clocks
of machines need not agree and may jump. After writing, a process waits :data:`SETTLE_S` and reads the file again: if
two wrote at once, the later one holds it. A process that is suspended for longer than :data:`STALE_S` while it holds a
lease may lose it without knowing; then the cell is measured twice, and both records are kept.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from pathlib import Path

from harness.digests import digest_text
from harness.store.blob_storage import RemoteFiles

BEAT_S = 15.0
STALE_S = 120.0
SETTLE_S = 0.2
LOOK_S = 5.0
"""A lease that another process holds is read again after so long."""


class Leases:
    """The leases of one process on one store.

    Args:
        files: the store.
        claims: local folder of the kernel locks that runs of this machine share.
    """

    def __init__(self, files: RemoteFiles, claims: Path) -> None:
        self._files, self._claims = files, claims
        self._held: dict[str, str] = {}
        self._seen: dict[str, tuple[bytes, float, float]] = {}  # content, since when it is unchanged, last look
        self._lock = threading.Lock()
        self._beating = False

    def take(self, key: str) -> bool:
        """Take the lease of a cell whose kernel lock this process holds; False while another machine has it.

        Raises:
            OSError: the store cannot be written.
        """
        now = time.monotonic()
        seen = self._seen.get(key)
        if seen is not None and now - seen[2] < LOOK_S:
            return False
        found = self._files.read(_path(key))
        if found is not None and _field(found, "place") != self._place():  # our kernel lock says that ours is dead
            since = seen[1] if seen is not None and seen[0] == found else now
            if now - since < STALE_S:
                self._seen[key] = (found, since, now)
                return False
        self._seen.pop(key, None)
        token = uuid.uuid4().hex
        if not self._write(key, token, 0, only_new=found is None):
            return False
        time.sleep(SETTLE_S)
        if _field(self._files.read(_path(key)), "token") != token:
            return False
        with self._lock:
            self._held[key] = token
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._beat, name="leases", daemon=True).start()
        return True

    def give(self, key: str) -> None:
        """Give a lease back; one that is not held, or that was taken over, is left as it is."""
        with self._lock:
            token = self._held.pop(key, None)
            with contextlib.suppress(OSError):  # it becomes stale
                if token is not None and _field(self._files.read(_path(key)), "token") == token:
                    self._files.remove(_path(key))

    def _beat(self) -> None:
        """Write the held leases again and again, until there is none."""
        number = 0
        while True:
            time.sleep(BEAT_S)
            number += 1
            with self._lock:
                if not self._held:
                    self._beating = False
                    return
                for key, token in self._held.items():
                    with contextlib.suppress(OSError):  # the next beat may get through
                        if _field(self._files.read(_path(key)), "token") == token:
                            self._write(key, token, number)

    def _write(self, key: str, token: str, number: int, *, only_new: bool = False) -> bool:
        """Write a lease; False if it was to be new and another process was faster."""
        content = json.dumps({"token": token, "place": self._place(), "beat": number}).encode()
        path, files = f"{self._files.root}/{_path(key)}", self._files.filesystem
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            if only_new:
                with contextlib.suppress(TypeError, NotImplementedError, ValueError):  # it knows no such mode
                    files.pipe_file(path, content, mode="create")
                    return True
            files.pipe_file(path, content)
        except FileExistsError:
            return False
        return True

    def _place(self) -> str:
        """This machine and its folder of kernel locks, as a digest."""
        file = self._claims / "place"
        if not file.exists():
            with contextlib.suppress(FileExistsError), file.open("x", encoding="utf-8") as stream:
                stream.write(uuid.uuid4().hex)
        return digest_text(f"{socket.gethostname()} {file.read_text(encoding='utf-8')}")[:16]


def _path(key: str) -> str:
    return f"claims/{key}.lease"


def _field(content: bytes | None, name: str) -> object:
    """A field of a lease; None if it is missing or the file is not one."""
    try:
        found = json.loads(content or b"null")
        return found.get(name) if isinstance(found, dict) else None
    except ValueError:
        return None
