"""Child processes import nothing from the current folder: a file there may be anybody's.

Python puts the current folder first on the path of ``python -c`` and ``python -m``, which is how ``multiprocessing``
starts its template and how workers of side environments start. A ``pandas.py`` or a folder ``tasks`` beside a sweep
would then be imported, and its code executed. What a user names in ``PYTHONPATH`` is kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Where this project's packages lie."""
PACKAGES = ("harness", "tasks", "runners", "reports")


def safe_environment(environ: Mapping[str, str], *, root: Path | None = None) -> dict[str, str]:
    """The environment of a child process whose import path does not begin with the current folder.

    Args:
        environ: that of this process.
        root: folder to import from first, for an interpreter that does not have this project installed; where this
            process itself imported the project from the current folder, that folder is named in any case.
    """
    named = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]  # empty: the current folder
    here = os.getcwd()
    if root is None and str(ROOT) == here and sys.path[:1] in ([""], [here]):
        root = ROOT
    if root is not None:
        named = [str(root), *(entry for entry in named if entry != str(root))]
    found = {**environ, "PYTHONSAFEPATH": "1"}
    found.pop("PYTHONPATH", None)
    return {**found, "PYTHONPATH": os.pathsep.join(named)} if named else found


@contextmanager
def child_environment(**defaults: str) -> Iterator[None]:
    """Children started inside the block import this project's packages, and nothing of the current folder.

    Afterwards this process has its own variables and import path again.

    Args:
        defaults: variables that the children get where this process has not set them.
    """
    before, path = dict(os.environ), list(sys.path)
    safe = {**defaults, **safe_environment(os.environ)}
    try:
        if hiding := [entry for entry in path if _hides_ours(entry)]:  # multiprocessing hands the path on
            sys.path[:] = [*(entry for entry in path if entry not in hiding), str(ROOT), *hiding]
        if "PYTHONPATH" not in safe:
            os.environ.pop("PYTHONPATH", None)
        os.environ.update(safe)
        yield
    finally:
        sys.path[:] = path
        for name in ("PYTHONPATH", *safe):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def _hides_ours(entry: str) -> bool:
    """Whether a folder of the import path holds a module with the name of one of this project's packages."""
    folder = Path(entry or ".")
    if folder.resolve() == ROOT:
        return False
    return any((folder / f"{name}.py").is_file() or (folder / name).is_dir() for name in PACKAGES)


def leave_current_folder(folder: Path) -> None:
    """In a worker: work in ``folder``, and import nothing from the folder that the run was started in.

    ``multiprocessing`` hands a worker the import path of its parent, which may name the current folder.
    """
    here = os.getcwd()
    named = {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    keep = named | {str(ROOT)}
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or here) in keep or (p and os.path.abspath(p) != here)]
    os.chdir(folder)
