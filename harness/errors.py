"""Errors, and how the harness reports them.

PeftMatrixError
├── UserError      the input is wrong: what, where, what to do        (exit code 2)
├── Unsupported    a true statement about a cell: it cannot run, why  (a row on the board)
├── Diverged       the loss is no longer a finite number              (outcome ``diverged``)
└── CheckFailed    one of the worker's guards failed                  (outcome ``error``, named)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

EXIT_OK = 0
EXIT_FAILED_CELLS = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class PeftMatrixError(Exception):
    """Base of every exception this project raises on purpose."""


class UserError(PeftMatrixError):
    """The user's input is wrong. Printed as one sentence, never as a traceback.

    Args:
        what: what is wrong.
        where: file, line and key, as far as known.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text.rstrip('.')}. {self.fix}" if self.fix else text


class Unsupported(PeftMatrixError):
    """A cell that cannot run here or anywhere; the message is the reason shown on the board."""


class Diverged(PeftMatrixError):
    """The training loss is no longer finite."""


class Pruned(Diverged):
    """A trial of tuning that was stopped because others were better at the same step."""


class CheckFailed(PeftMatrixError):
    """A guard of the worker failed (gradient probe, reload check, trainable count, ...).

    Args:
        check: the guard's name, kept in the record.
        detail: what was expected and what was found.
    """

    def __init__(self, check: str, detail: str) -> None:
        self.check = check
        self.detail = detail
        super().__init__(f"{check}: {detail}")

    def __reduce__(self) -> tuple[type[CheckFailed], tuple[str, str]]:
        return (CheckFailed, (self.check, self.detail))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """One helpful sentence for a name that is not known: close matches, then all that is allowed."""
    allowed = sorted(known)
    if not allowed:
        return "This mapping takes no keys."
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}Allowed: {', '.join(allowed)}."


def shown(value: object, longest: int = 80) -> str:
    """A value of a file for a message, in the words of YAML: ``'text'``, ``true``, ``null``, ``[a, b]``, ``{a: 1}``."""
    text = repr(value) if isinstance(value, str) else _yaml(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return (
            "["
            + ", ".join(sorted(map(_yaml, value)) if isinstance(value, set | frozenset) else map(_yaml, value))
            + "]"
        )
    return repr(str(value))[1:-1]  # control characters are written out


def kind_of(value: object) -> str:
    """Kind of a value in words of YAML: ``a list``."""
    if isinstance(value, bool):
        return "true or false"
    kinds = ((str, "a text"), (int | float, "a number"), (Mapping, "keys and values"), (list | tuple, "a list"))
    if value is None:
        return "nothing"
    if hasattr(value, "isoformat"):
        return "a date"
    return next((words for kind, words in kinds if isinstance(value, kind)), "another kind of value")


NEEDED = {
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "must be a list, such as [a, b]"),
    **dict.fromkeys(("dict_type", "model_type", "mapping_type", "model_attributes_type"), "must have keys and values"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be a text",
    "finite_number": "must be a finite number",
    "missing": "is missing",
    "extra_forbidden": "is not known",
    "none_required": "must be null",
}
"""Requirement behind each error type of pydantic, in words of YAML."""
_COUNTED = {
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "has characters that are not allowed here; the pattern is {pattern}",
    "literal_error": "must be {expected}",
}


def requirement(fault: Mapping[str, Any]) -> str:
    """The requirement behind one of pydantic's errors, in words of YAML and without names of Python's types."""
    kind = str(fault["type"])
    if kind in _COUNTED:
        words = _COUNTED[kind].format(**fault["ctx"])
        return words.replace("1 entries", "1 entry").replace("1 characters", "1 character")
    return NEEDED.get(kind) or str(fault["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
