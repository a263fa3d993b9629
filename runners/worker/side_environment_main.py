"""Entry point of a worker in a side environment.

Usage: ``python -m runners.worker.side_environment_main JOB_FILE CHANNEL_DESCRIPTOR``.
"""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing.connection import Connection

from runners.worker.process import entry


def _end_with_parent() -> None:
    """The scheduler holds the other end of our standard input; an orphan would run a cell a second time."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True, name="parent-watch").start()
    entry(sys.argv[1], Connection(int(sys.argv[2]), readable=False))
