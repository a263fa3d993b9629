"""Standard output and error of the command line: any encoding, and no control sequences from other people's text.

Labels, reasons and names come from files. A terminal obeys escape sequences in them: they set its title, write to the
clipboard or hide lines.
"""

from __future__ import annotations

import re
import sys
from typing import Any

_SEQUENCE = re.compile(
    r"\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|\[[0-?]*[ -/]*[@-~]|[@-Z\\-_]|.)?", re.DOTALL
)
_ALLOWED = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|[0-9]*[AB]|2K)")
"""Colours, and the moves of a progress display."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


def harmless(text: str, *, styled: bool = False) -> str:
    """``text`` without control characters and escape sequences.

    Args:
        styled: keep colours and the moves of a progress display, which this program writes to terminals itself.
    """
    kept = _SEQUENCE.sub(lambda m: m[0] if styled and _ALLOWED.fullmatch(m[0]) else "", text)
    return _CONTROL.sub("", kept)


class _Guarded:
    """A text stream whose writes are made harmless; everything else is the stream's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write without control sequences; returns the length of what was given."""
        self._stream.write(harmless(text, styled=self._stream.isatty()))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Let standard output and error replace characters that their encoding lacks, and drop control sequences."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        if stream is not None and not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))
