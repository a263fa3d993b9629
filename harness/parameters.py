"""Parameters of a plug-in: its defaults overlaid with what a sweep says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import UserError, did_you_mean


def overlaid(
    kind: str, name: str, defaults: Mapping[str, Any], params: Mapping[str, Any], *, where: str = ""
) -> dict[str, Any]:
    """Defaults overlaid with a sweep's parameters: plain JSON, part of a cell's identity.

    Args:
        kind: what the plug-in is, for the message (``objective``).
        name: its registered name.

    Raises:
        UserError: a parameter that the plug-in does not have.
    """
    for given in params:
        if given not in defaults:
            raise UserError(
                f"{kind} {name!r} has no parameter {given!r}",
                where=where,
                fix=did_you_mean(given, defaults) if defaults else "It takes no parameters.",
            )
    return {**defaults, **params}
