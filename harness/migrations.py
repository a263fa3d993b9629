"""Layouts of a record: how one written by an earlier version becomes one of today, a step at a time.

A layout is what :class:`harness.record.Record` and its parts look like on disk. Whoever changes it raises
``SCHEMA_VERSION``, adds the step from the layout before to :data:`STEPS`, and commits a golden record of the new one
(``tests/golden/record-vN.json``). Steps are never merged or rewritten: each was tested against records of its time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Content = dict[str, Any]
Step = Callable[[Content], Content]

STEPS: dict[int, Step] = {}
"""Layout to the step that makes the next one of it. Empty: there has been one layout."""


def upgrade(content: Content, *, to: int) -> Content:
    """A record's content in layout ``to``, one step at a time.

    Args:
        content: plain JSON values of a record of layout ``to`` or an earlier one; it is not changed.

    Raises:
        KeyError: a step is missing.
    """
    for number in range(content["schema_version"], to):
        content = {**STEPS[number](dict(content)), "schema_version": number + 1}
    return content
