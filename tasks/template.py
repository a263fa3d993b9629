"""Templates over the fields of a row: ``"{question} {choices[text][0]}"``; ``{{`` and ``}}`` are literal braces.

Only looking up by name and by position is possible: no attributes, no format codes, no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from harness.errors import kind_of

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PATH = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")


class FieldError(ValueError):
    """A template is malformed, or a row does not have what it asks for."""


def check(template: str) -> None:
    """Raise ``FieldError`` if ``template`` is malformed."""
    _parse(template)


def render(template: str, row: Mapping[str, object]) -> str:
    """``template`` filled from ``row``.

    Text goes in as it is, a list of texts one a line, everything else as JSON (``true``, ``12``).

    Raises:
        FieldError: a field is not there, or is null.
    """
    return "".join(piece if path is None else _text(path, lookup(path, row)) for piece, path in _parse(template))


def lookup(path: str, row: Mapping[str, object]) -> Any:
    """The value at ``path`` (``field``, ``field[key]``, ``field[0]``) of ``row``.

    Raises:
        FieldError: there is nothing at ``path``; the message lists the columns found.
    """
    name, *keys = _split(path)
    if name not in row:
        raise FieldError(f"there is no column {name!r}; columns found: {', '.join(row) or 'none'}")
    value: Any = row[name]
    for key in keys:
        try:
            value = value[int(key) if isinstance(value, list | tuple) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise FieldError(f"column {name!r} holds nothing at {path!r}") from None
    return value


def _text(path: str, value: object) -> str:
    if value is None:
        raise FieldError(f"{path!r} is null")
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return "\n".join(value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        raise FieldError(f"{path!r} holds {kind_of(value)}, which has no text") from None


@lru_cache(maxsize=4096)
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """Pieces of literal text (path None) and of fields (the path)."""
    pieces: list[tuple[str, str | None]] = []
    at = 0
    for match in _PIECE.finditer(template):
        pieces.append((template[at : match.start()], None))
        at = match.end()
        if match[0] in ("{{", "}}"):
            pieces.append((match[0][0], None))
        elif match[1] is None:
            raise FieldError(f"a single {match[0]!r} in the template {template!r}; write {match[0] * 2!r} for the sign")
        else:
            _split(match[1])
            pieces.append(("", match[1]))
    return (*pieces, (template[at:], None))


@lru_cache(maxsize=4096)
def _split(path: str) -> tuple[str, ...]:
    match = _PATH.fullmatch(path)
    if match is None:
        raise FieldError(f"{path!r} is not a field; write {{name}}, {{name[key]}} or {{name[0]}}")
    return (match[1], *re.findall(r"\[([^\[\]]+)\]", match[2]))
