"""The packages of this project are imported from beside this one, whatever lies in the folder of a user's script."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import warnings
from pathlib import Path

PACKAGES = ("harness", "tasks", "runners", "reports")
ROOT = Path(__file__).resolve().parents[1]


def load_own_packages() -> None:
    """Import :data:`PACKAGES` from :data:`ROOT`; a file of that name in the user's folder is named in a warning.

    Raises:
        ImportError: a module of the user has been imported under one of these names; the message names its file.
    """
    for name in PACKAGES:
        ours = ROOT / name / "__init__.py"
        loaded = sys.modules.get(name)
        if loaded is None:
            theirs = importlib.machinery.PathFinder.find_spec(name, sys.path)
            _load(name, ours)
            if theirs is not None and _place(theirs.origin, theirs.submodule_search_locations) != ours.parent:
                file = theirs.origin or _place(None, theirs.submodule_search_locations)
                warnings.warn(
                    f"{file} has the name of a package of peft-matrix, so 'import {name}' gives that package: "
                    "rename the file",
                    stacklevel=3,
                )
        elif _place(getattr(loaded, "__file__", None), getattr(loaded, "__path__", None)) != ours.parent:
            file = getattr(loaded, "__file__", None) or next(iter(loaded.__path__))
            raise ImportError(
                f"{file} was imported as {name!r}, which is the name of a package of peft-matrix. Rename the file."
            )


def _load(name: str, file: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is missing. Install peft-matrix again.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _place(file: str | None, folders: object) -> Path | None:
    """Folder of a module's file; that of a package without an ``__init__.py`` is the first it is spread over."""
    if file:
        path = Path(file).resolve()
        return path.parent if path.name == "__init__.py" else path
    return next((Path(folder).resolve() for folder in folders), None) if isinstance(folders, list) else None
