"""Errors, and how the harness reports them.

PeftMatrixError
├── UserError      the input is wrong: what, where, what to do        (exit code 2)
├── Unsupported    a true statement about a cell: it cannot run, why  (a row on the board)
├── Diverged       the loss is no longer a finite number              (outcome ``diverged``)
└── CheckFailed    one of the worker's guards failed                  (outcome ``error``, named)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED_CELLS = 1
EXIT_BAD_INPUT = 2
EXIT_NOTHING_TO_DO = 3
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
