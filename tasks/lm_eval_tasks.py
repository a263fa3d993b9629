"""Tasks of lm-eval in a workspace: the path of a local YAML, and what pins a task. lm-eval is not imported."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from harness.digests import digest, digest_file
from harness.errors import UserError

FOLDER = Path("tasks") / "lm-eval"
VERSION = "0.4.13"
"""The release whose scores are tested against its own command line. Another one may say something else."""


class _TaskLoader(yaml.SafeLoader):
    """Reads lm-eval's YAML without running the functions that its ``!function`` names."""


_TaskLoader.add_constructor("!function", lambda loader, node: f"!function {loader.construct_scalar(node)}")  # type: ignore[arg-type]


def local_file(name: str, workspaces: list[Path]) -> Path | None:
    """The workspace's own YAML of the task ``name``, or None where it is one of lm-eval's."""
    candidates = (root / FOLDER / f"{name}.yaml" for root in workspaces)
    return next((path for path in candidates if path.is_file()), None)


def pin(name: str, workspaces: list[Path], *, where: str = "") -> str:
    """The parts that can change a score of the task: lm-eval's version, and for a local task its files.

    Raises:
        UserError: lm-eval is not installed, or is not the release that is tested; a local file is missing or damaged.
    """
    try:
        installed = version("lm-eval")
    except PackageNotFoundError:
        fix = "pip install 'peft-matrix[lm-eval]'"
        raise UserError(f"the task {name!r} needs lm-eval, which is not installed", where=where, fix=fix) from None
    if installed != VERSION:
        fix = f"pip install lm-eval=={VERSION}"
        raise UserError(f"lm-eval {installed} is installed; {VERSION} is the one tested here", where=where, fix=fix)
    path = local_file(name, workspaces)
    if path is None:
        return f"lm-eval {installed}"
    return f"lm-eval {installed}, {digest({_shown(p, path): digest_file(p) for p in _files(path)})[:16]}"


def _files(path: Path) -> list[Path]:
    """The YAML, its includes and their includes, other tasks of a group, the code in their folders, and their data.

    Data are the files that ``dataset_kwargs.data_files`` names, and everything in a ``dataset_path`` or ``data_dir``
    that is a folder or file of this machine.

    Raises:
        UserError: a file is missing or damaged, or does not name its task.
    """
    content = _read(path)
    if content.get("task") != path.stem and content.get("group") != path.stem:
        raise UserError(f"the file must name its task: 'task: {path.stem}'", where=str(path))
    found: dict[Path, None] = {}
    pending = [path]
    while pending:
        file = pending.pop()
        if file in found:
            continue
        if not file.is_file():
            raise UserError(f"names {file}, which does not exist", where=str(path), fix="Paths are relative to it.")
        found[file] = None
        if file.suffix in (".yaml", ".yml"):
            pending += _named_in(file)
    return list(found)


def _named_in(path: Path) -> list[Path]:
    """The files that one YAML names or uses."""
    content, beside = _read(path), path.parent
    kwargs = content.get("dataset_kwargs") or {}
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    members = content["task"] if isinstance(content.get("task"), list) else []
    local = [beside / f"{name}.yaml" for name in _texts(members)]
    found = [*(beside / name for name in _texts(content.get("include"))), *(f for f in local if f.is_file())]
    found += [beside / name for name in _texts(kwargs.get("data_files"))]
    for name in (content.get("dataset_path"), kwargs.get("data_dir")):
        place = beside / str(name) if name else None
        if place is not None and place.is_file():
            found.append(place)
        elif place is not None and place.is_dir():
            found += sorted(p for p in place.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [*found, *sorted(beside.glob("*.py"))]


def _shown(file: Path, task: Path) -> str:
    """A file's name relative to its task, without a place of this machine."""
    return Path(os.path.relpath(file, task.parent)).as_posix()


def _read(path: Path) -> dict[str, object]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)  # a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(content, dict):
        raise UserError("the file must hold keys and values", where=str(path))
    return content


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value or []
    return [text for one in inside for text in _texts(one)]
