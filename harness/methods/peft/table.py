"""All methods of peft: their rows by name, and the class of each.

The modules are imported under other names: a method is an attribute of this module, and one is called ``lora``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.methods.peft import adapters as _adapters
from harness.methods.peft import hooks as _hooks
from harness.methods.peft import lora as _lora
from harness.methods.peft import prompts as _prompts
from harness.methods.peft.method import PeftMethod
from harness.methods.peft.row import PeftRow


@functools.cache
def table() -> dict[str, PeftRow]:
    """All rows by name."""
    rows = (*_lora.ROWS, *_adapters.ROWS, *_prompts.ROWS)
    return {row.declaration.name: row for row in rows}


def derived(parent: str, own: Mapping[str, object], **declared: Any) -> PeftRow:
    """The row of a peft method with our own extra parameters, or other defaults, under another name."""
    row = table()[parent]
    defaults = {**row.declaration.defaults, **own}
    declared = {"parallel": frozenset[str](), **declared}  # what was seen of the parent was not seen of this one
    return replace(row, declaration=replace(row.declaration, defaults=defaults, **declared))


NOT_OFFERED = {
    "XLoraConfig": "it mixes LoRA adapters that were trained before, and peft 0.21 reloads and merges it wrongly",
}
"""Configuration classes of peft without a row, and why."""


def __getattr__(name: str) -> type[PeftMethod]:
    """The class of the row of this name (``table:lora``), for the registry."""
    row = table().get(name)
    if row is None:
        raise AttributeError(name)
    parent: type[PeftMethod] = PeftMethod
    if row.variant:
        parent = getattr(_hooks, row.variant)
    return type(name, (parent,), {"row": row, "declaration": row.declaration, "__doc__": row.declaration.summary})
