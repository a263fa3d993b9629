"""The one plug-in mechanism.

A plug-in is one module, one registry line (``"name": "package.module:attribute"``) and one test.
Nothing is imported before it is asked for, so listing names costs nothing. Packages outside this
project add plug-ins through the entry-point group ``peft_matrix.<kind>``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.digests import digest, digest_file
from harness.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to lazily imported objects of one kind.

    Args:
        kind: singular noun used in messages (``method``, ``quantizer``, ...).
        entries: name to ``"module:attribute"``.

    Attributes:
        own: names of this project's plug-ins, in the order of registration.
    """

    def __init__(self, kind: str, entries: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        self._loaded: dict[str, T] = {}
        self._scanned = False
        for name, target in (entries or {}).items():
            self.add(name, target)
        self.own = tuple(self._targets)

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

    def code(self, name: str, *, where: str = "") -> str | None:
        """Digest of the code of a plug-in from outside this project, for the identity of the cells that use it.

        It covers every Python and extension file of the plug-in's top-level package: a plug-in may use any of them.
        Nothing is imported.

        Returns:
            32 hexadecimal digits; None for a plug-in of this project, whose changes raise the protocol's version.

        Raises:
            UserError: no such plug-in, or its package cannot be found.
        """
        self._scan_entry_points()
        if name not in self._targets:
            raise UserError(f"unknown {self.kind} {name!r}", where=where, fix=did_you_mean(name, self._targets))
        if name in self.own:
            return None
        try:
            return code_digest(self._targets[name].partition(":")[0].partition(".")[0])
        except ModuleNotFoundError as error:
            raise self._broken(name, where, error) from error

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


def code_digest(package: str) -> str:
    """Digest of the Python and extension files of a top-level package or module, 32 hexadecimal digits.

    Raises:
        ModuleNotFoundError: there is none of that name.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"no package called {package!r}", name=package)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = {
        path.relative_to(folder).as_posix(): path
        for folder in folders
        for suffix in ("*.py", "*.so", "*.pyd")
        for path in sorted(folder.rglob(suffix))
    }
    if not folders and spec.origin is not None:
        files = {Path(spec.origin).name: Path(spec.origin)}
    return digest({name: digest_file(path) for name, path in sorted(files.items())})[:32]


def overlaid(
    kind: str, name: str, defaults: Mapping[str, object], params: Mapping[str, object], *, where: str = ""
) -> dict[str, object]:
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
