"""A folder several processes may want at once: one makes it, the others wait, and a half-made one is never seen."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``; calls ``make`` with a scratch folder if it is not there yet, and renames that when it is complete."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not folder.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
            try:
                make(scratch)
                os.replace(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder
