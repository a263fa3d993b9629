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
            UserError: no such name (with a did-you-mean), its module cannot be imported, or an installed package
            claims a name that is taken.
        """
        self._scan_entry_points()
        if name not in self._targets:
            raise UserError(f"unknown {self.kind} {name!r}", where=where, fix=did_you_mean(name, self._targets))
        if name not in self._loaded:
            self._loaded[name] = self._load(name, where)
        return self._loaded[name]

    def _load(self, name: str, where: str) -> T:
        module, _, attribute = self._targets[name].partition(":")
        try:
            loaded: Any = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or f"{module}.".startswith(f"{error.name}."):  # the plug-in itself is not there
                raise self._broken(name, where, error) from error
            raise UserError(
                f"{self.kind} {name!r} needs a package that is not installed: {error}",
                where=where,
                fix=f"Install it: pip install {error.name.partition('.')[0]}",
            ) from error
        except (ImportError, AttributeError) as error:
            raise self._broken(name, where, error) from error
        return loaded  # type: ignore[no-any-return]  # what a registry holds is its author's promise

    def _broken(self, name: str, where: str, error: Exception) -> UserError:
        return UserError(
            f"{self.kind} {name!r} cannot be loaded from {self._targets[name]}: {error}",
            where=where,
            fix="Its package does not fit this version of peft-matrix; update or uninstall it.",
        )

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
        for entry in metadata.entry_points(group=f"peft_matrix.{self.kind}"):
            if self._targets.get(entry.name) == entry.value:  # the same package found twice on the path
                continue
            try:
                self.add(entry.name, entry.value)
            except ValueError as error:
                package = entry.dist.name if entry.dist else "unknown"
                raise UserError(
                    str(error), where=f"package {package}", fix="Uninstall or rename one of them."
                ) from None
        self._scanned = True
