"""Reading files from elsewhere: regular files only, at most so many bytes, and JSON of bounded depth, size and types.

Every border of the program (sweep files, records, samples, results of other tools, claims, model folders) reads through
these functions, so that a pipe, a device, a file without end or a hostile value is one sentence and no traceback.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import UserError, requirement, shown

M = TypeVar("M", bound=BaseModel)

MOST_DEPTH = 64
"""Lists and objects inside each other. The deepest record of the reference results has 9."""
MOST_VALUES = 5_000_000
"""Values of one file, all levels together."""
INT_BITS = 63
"""Whole numbers are below 2^63 in size; the tables that they go into hold no larger ones."""
_MOST_DIGITS = 20
LFS = b"version https://git-lfs"
"""First bytes of a git-lfs pointer: a text in place of a file that was not downloaded."""
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def open_regular(path: Path, *, where: str = "") -> BinaryIO:
    """A regular file, open for reading; links are followed.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no regular file (a pipe or a device could block for ever), or a link that leads to itself.
    """
    shown = where or str(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError("a link that leads to itself", where=shown, fix="Remove it.") from error
        if error.errno == errno.ENXIO:  # a socket
            raise UserError("cannot be read: not a regular file", where=shown, fix="Remove it.") from error
        raise
    except ValueError as error:  # a NUL in the name
        raise UserError(f"not a file name ({error})", where=ascii(shown)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError("cannot be read: not a regular file", where=shown, fix="Remove it.")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, *, most: int, where: str = "") -> bytes:
    """The bytes of a regular file.

    Args:
        most: bytes that are read at most; a larger file is refused before it is in memory.

    Raises:
        OSError: it is not there or cannot be read.
        UserError: not a regular file, or too large.
    """
    shown = where or str(path)
    with open_regular(path, where=where) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = b"" if size > most else stream.read(most + 1)  # a file that grows meanwhile is not followed
    if max(size, len(data)) > most:
        raise UserError(f"the file has {max(size, len(data)):,} bytes, and at most {most:,} are read", where=shown)
    return data


def read_text(path: Path, *, most: int, where: str = "") -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError: it is not there or cannot be read.
        UserError: not a regular file, too large, a git-lfs pointer, or no UTF-8.
    """
    shown = where or str(path)
    data = read_bytes(path, most=most, where=where)
    if data.startswith(LFS):
        raise UserError("a git-lfs pointer instead of the file", where=shown, fix="Run: git lfs pull")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot be read: no UTF-8 at byte {error.start:,}", where=shown) from None


def read_json(path: Path, *, most: int, where: str = "", nan: bool = False) -> Any:
    """The JSON value in a regular file, within the bounds of :func:`parse_json`.

    Raises:
        OSError: it is not there or cannot be read.
        UserError: not a regular file, too large, no UTF-8, or as :func:`parse_json`.
    """
    return parse_json(read_text(path, most=most, where=where), where=where or str(path), nan=nan)


def parse_json(text: str, *, where: str, nan: bool = False, large: bool = False) -> Any:
    """A JSON value of bounded depth, size and types.

    Args:
        nan: NaN and infinities are taken, as Python's own JSON writes them.
        large: whole numbers beyond 64 bits are taken, up to Python's limit of digits.

    Raises:
        UserError: not JSON, nested more than :data:`MOST_DEPTH` deep, more than :data:`MOST_VALUES` values, a whole
            number beyond 64 bits, a number that is not finite, or half of a surrogate pair.
    """

    def not_finite(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON number")

    try:
        value = json.loads(text, parse_int=None if large else _whole, parse_constant=None if nan else not_finite)
        _bound(value, nan=nan)
        if _HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError("a text holds half of a character (a lone surrogate)", where=where) from None
    except RecursionError:
        raise UserError(f"not readable JSON (nested more than {MOST_DEPTH} deep)", where=where) from None
    except ValueError as error:
        raise UserError(f"not readable JSON ({error})", where=where) from None
    return value


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) <= _MOST_DIGITS + 1 else None
    if number is None or number.bit_length() > INT_BITS:
        raise ValueError(f"a whole number of {len(digits.lstrip('-')):,} digits, more than {INT_BITS} bits hold")
    return number


def _bound(value: Any, *, nan: bool) -> None:
    """Check depth and number of values, level by level, and unless ``nan`` that no number is too large for a float.

    Raises:
        ValueError: beyond a bound.
    """
    level, depth, values = [value], 0, 1
    while level := [one for one in level if type(one) in (dict, list)]:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} deep")
        level = [one for outer in level for one in (outer.values() if type(outer) is dict else outer)]
        values += len(level)
        if values > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        if not nan and not all(map(math.isfinite, [one for one in level if type(one) is float])):
            raise ValueError("a number is too large")


def check_shape(value: object, model: type[M], *, where: str) -> M:
    """``value`` as an instance of ``model``: the types that the code behind the border relies on.

    Raises:
        UserError: the first field of another type, by its path in the file.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        what = f"the field {path!r} {requirement(first)}" if path else f"the content {requirement(first)}"
        raise UserError(f"{what}. Found: {shown(first['input'], 60)}", where=where) from None
