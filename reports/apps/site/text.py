"""Text from records, safe for a page: one line or a block, shortened to a readable length."""

from __future__ import annotations

import json
from typing import Any

from harness.digests import digest_text, slug
from reports.board.formats.text import plain

LINE_CHARACTERS = 300
BLOCK_CHARACTERS = 4000


def line(text: object, limit: int = LINE_CHARACTERS) -> str:
    """One line of at most ``limit`` characters; a longer one says how long it was."""
    whole = str(text)
    if len(whole) <= limit:
        return plain(whole, 8 * limit)  # escapes may be longer than the character they replace
    return f"{plain(whole[:limit], 8 * limit)} … (cut; {len(whole):,} characters)"


def block(text: object, limit: int = BLOCK_CHARACTERS) -> str:
    """The end of a text of several lines, at most ``limit`` characters; a longer one says how long it was."""
    whole = str(text)
    head = "" if len(whole) <= limit else f"(the last {limit:,} of {len(whole):,} characters)\n"
    return head + "\n".join(plain(part, 8 * limit) for part in whole[-limit:].split("\n"))


def page_name(text: str) -> str:
    """A file name for ``text``: letters, digits, ``-`` and ``_``; two texts never share one."""
    name = slug(text)
    return name if name == text else f"{name}-{digest_text(text)[:8]}"


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """The leaves of nested mappings as (dotted name, text), in sorted order; labels and empty parts left out."""
    out: list[tuple[str, str]] = []
    for name in sorted(value):
        item = value[name]
        if name == "label" or item in (None, {}, [], ""):
            continue
        if isinstance(item, dict):
            out += flat(item, f"{prefix}{name}.")
        else:
            shown = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            out.append((prefix + str(name), shown))
    return out


def script(name: str, value: object) -> str:
    """A script that hands ``value`` to the page as ``window.PM.<name>``; the same bytes for the same value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # a string that JSON.parse reads is faster than an object literal of this size
    quoted = json.dumps(text)
    return f"(window.PM=window.PM||{{}})[{json.dumps(name)}]=JSON.parse({quoted});\n"
