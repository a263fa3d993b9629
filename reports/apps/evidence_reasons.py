"""Why methods without evidence have none, as found by looking: each entry says when, and what was tried.

A reason for a method that has evidence by now fails a test. A method that has neither is listed as unexplained.
"""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """A reason that was found.

    Attributes:
        found: date, YYYY-MM-DD.
        why: one sentence for the page; with figures where something was run.
    """

    found: str
    why: str


REASONS: dict[str, Reason] = {}
