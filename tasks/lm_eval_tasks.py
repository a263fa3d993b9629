"""Tasks of lm-eval as a workspace has them: where a local YAML lies, and what pins a task. lm-eval is not imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from harness.canonical import digest, digest_file
from harness.errors import UserError

FOLDER = Path("tasks") / "lm-eval"
VERSION = "0.4.13"
"""The release whose scores are tested against its own command line. Another one may say something else."""


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's YAML without running the functions that its ``!function`` names."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {loader.construct_scalar(node)}")  # type: ignore[arg-type]


def local_file(name: str, workspaces: list[Path]) -> Path | None:
    """The workspace's own YAML of the task ``name``, or None where it is one of lm-eval's."""
    candidates = (root / FOLDER / f"{name}.yaml" for root in workspaces)
    return next((path for path in candidates if path.is_file()), None)


def pin(name: str, workspaces: list[Path], *, where: str = "") -> str:
    """What can change a score of the task: lm-eval's version, and for a local task its files.

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
    return f"lm-eval {installed}, {digest({p.name: digest_file(p) for p in _files(path)})[:16]}"


def _files(path: Path) -> list[Path]:
    """The YAML, what it includes, the functions beside it, and the data files it names."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(content, dict) or content.get("task") != path.stem:
        raise UserError(f"the file must name its task: 'task: {path.stem}'", where=str(path))
    named = _texts((content.get("dataset_kwargs") or {}).get("data_files"))
    included = [content["include"]] if "include" in content else []
    files = [path, *(path.parent / name for name in (*included, *named)), *sorted(path.parent.glob("*.py"))]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UserError(f"names {absent[0]}, which does not exist", where=str(path), fix="Paths are relative to it.")
    return files


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value or []
    return [text for one in inside for text in _texts(one)]
