"""Suppresses libraries' output at import."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send file descriptor 2 to nowhere for a while.

    For imports only: some libraries warn on import about kernels for hardware that is not there, from Python
    and from C, and logging handlers of theirs hold on to the descriptor rather than to ``sys.stderr``.
    Exceptions still reach the caller.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
