"""The one plug-in mechanism.

A plug-in is one module, one registry line (``"name": "package.module:attribute"``) and one test.
Nothing is imported before it is asked for, so listing names costs nothing. Packages outside this
project add plug-ins through the entry-point group ``peft_matrix.<kind>``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar

from harness.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to lazily imported objects of one kind.

    Args:
        kind: singular noun used in messages (``method``, ``quantizer``, ...).
        entries: name to ``"module:attribute"``.
    """

    def __init__(self, kind: str, entries: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        self._loaded: dict[str, T] = {}
        self._scanned = False
        for name, target in (entries or {}).items():
            self.add(name, target)

    def add(self, name: str, target: str) -> None:
        """Register ``target`` under ``name``. A name registered twice is an error."""
        if name in self._targets:
            raise ValueError(f"{self.kind} {name!r} is registered twice: {self._targets[name]} and {target}")
        if ":" not in target:
            raise ValueError(f"{self.kind} {name!r}: the target must read 'module:attribute', not {target!r}")
        self._targets[name] = target

    def get(self, name: str, *, where: str = "") -> T:
        """The object registered under ``name``.

        Raises:
            UserError: no such name (with a did-you-mean), or its module cannot be imported.
        """
        self._scan_entry_points()
        if name not in self._targets:
            raise UserError(f"unknown {self.kind} {name!r}", where=where, fix=did_you_mean(name, self._targets))
        if name not in self._loaded:
            module, _, attribute = self._targets[name].partition(":")
            try:
                loaded: Any = getattr(importlib.import_module(module), attribute)
            except ImportError as error:
                raise UserError(
                    f"{self.kind} {name!r} needs a package that is not installed: {error}",
                    where=where,
                    fix=f"Install it: pip install {error.name or 'the missing package'}",
                ) from error
            self._loaded[name] = loaded
        return self._loaded[name]

    def names(self) -> list[str]:
        """All registered names, in the order of registration."""
        self._scan_entry_points()
        return list(self._targets)

    def __contains__(self, name: object) -> bool:
        self._scan_entry_points()
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _scan_entry_points(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for entry in metadata.entry_points(group=f"peft_matrix.{self.kind}"):
            self.add(entry.name, entry.value)
