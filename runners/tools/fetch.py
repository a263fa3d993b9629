"""Collect models and data of a sweep in one folder for machines without a network, with a digest of every byte.

The folder is a workspace (``peft-matrix.yaml``), so that on the other machine ``cd FOLDER && peft-matrix run SWEEP``
is all there is to do. Cells have the same keys there as here. It holds::

    runners/sweeps/<sweep>.yaml   the sweep; models that lay at paths are named by their place in this folder
    models/<name>/                those models
    tasks/  data/                 the workspace's own tasks with their files, and the data root as far as it is used
    hub/  datasets/               caches of the Hub: models at the revisions the sweep names, data sets
    manifest.json                 SHA-256 and bytes of every file above, and where each model and task came from

A run in such a folder first checks every file against the manifest, and then turns the Hub off.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.digests import digest_file
from harness.errors import UserError
from harness.models import gguf_files, sources
from harness.spec import LoadedSweep
from harness.yamlfile import load_yaml
from runners.workspace import MANIFEST, MARKER, Workspace
from tasks.data import in_file, load_split
from tasks.task import Source, Task, load_task

VERSION = 1
HUB, DATASETS = "hub", "datasets"
_DRAFT = f".{MANIFEST}.tmp"
_NOT_PART = {MANIFEST, MARKER, _DRAFT}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack")
"""Weights that are never read: only safetensors are."""


@dataclass(frozen=True)
class Fetched:
    """Summary of a fetch: number of files, their bytes, and a line for every model and task with its source.

    Attributes:
        sweep: name of the sweep.
    """

    sweep: str
    folder: Path
    files: int
    size: int
    origins: tuple[str, ...]


def fetch(sweep: LoadedSweep, workspace: Workspace, to: Path, say: Callable[[str], None]) -> Fetched:
    """Gather the models and data of a sweep in ``to``, a new or empty folder or one that an earlier fetch made.

    Raises:
        UserError: something cannot be downloaded, a Hub model is not pinned, or the folder contains other files.
    """
    if to.exists() and any(to.iterdir()) and not any((to / name).is_file() for name in (MANIFEST, _DRAFT)):
        raise UserError("the folder contains other files", where=str(to), fix="Name a new or empty folder.")
    to.mkdir(parents=True, exist_ok=True)
    (to / _DRAFT).touch()  # what was begun and broke off can be gone on with
    (to / MANIFEST).unlink(missing_ok=True)  # and is no folder to run in
    use_caches(to)
    origins, places = [], {}
    for model in _models(sweep):
        say(f"model {model[0]} ...")
        origin, place = _model(*model, to, sweep)
        origins.append(origin)
        if place:
            places[model[0]] = place
    for name in _tasks(sweep, workspace):
        say(f"task {name} ...")
        origins.append(_task(load_task(name, list(workspace.roots)), workspace, to))
    _own_files(workspace, to)
    _write_sweep(sweep, places, to)
    (to / MARKER).write_text("version: 1\n", encoding="utf-8")
    files = {path: {"sha256": digest_file(to / path), "bytes": (to / path).stat().st_size} for path in _files(to)}
    manifest = {"version": VERSION, "sweep": sweep.spec.name, "origins": origins, "files": files}
    (to / _DRAFT).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(to / _DRAFT, to / MANIFEST)
    return Fetched(sweep.spec.name, to, len(files), sum((to / path).stat().st_size for path in files), tuple(origins))


def use_caches(folder: Path) -> None:
    """Let the Hub's libraries keep what they download in this folder. Must come before their first import."""
    os.environ["HF_HUB_CACHE"] = str(folder.resolve() / HUB)
    os.environ["HF_DATASETS_CACHE"] = str(folder.resolve() / DATASETS)


def go_offline(folder: Path) -> None:
    """Check a fetched folder against its manifest, then use its caches and nothing else of the Hub.

    Raises:
        UserError: a file is missing or differs from what was fetched.
    """
    verify(folder)
    use_caches(folder)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def verify(folder: Path) -> int:
    """Compare every file with the manifest; returns how many there are. Further files are no fault.

    Raises:
        UserError: a file is missing or differs; the message names the first and counts the rest.
    """
    manifest = _manifest(folder)
    wrong = []
    for path, about in manifest["files"].items():
        file = folder / path
        if not file.is_file():
            wrong.append(f"{path} is missing")
        elif file.stat().st_size != about["bytes"] or digest_file(file) != about["sha256"]:
            wrong.append(f"{path} differs from what was fetched")
    if wrong:
        more = f", and {len(wrong) - 1} more files" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}", where=str(folder), fix="Copy the folder again, or fetch it again.")
    return len(manifest["files"])


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["version"] == VERSION and isinstance(manifest["files"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a readable manifest ({error})", where=str(folder / MANIFEST)) from error
    if not known:
        raise UserError("the manifest is of another version", where=str(folder / MANIFEST), fix="Fetch it again.")
    return dict(manifest)


def _files(folder: Path) -> Iterator[str]:
    """Files listed in the manifest: every file but locks, our marker files, and outputs of runs."""
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if (
            path.is_file()
            and below.as_posix() not in _NOT_PART
            and path.suffix != ".lock"
            and below.parts[0] != "results"
        ):
            yield below.as_posix()


# --- models --------------------------------------------------------------------------------------
def _models(sweep: LoadedSweep) -> list[tuple[str, str | None]]:
    """Id and revision of every model of the sweep, once."""
    named = [*sweep.spec.models, *(row.model for row in sweep.spec.include)]
    return list(dict.fromkeys((model.id, model.revision) for model in named))


def _model(model_id: str, revision: str | None, to: Path, sweep: LoadedSweep) -> tuple[str, str]:
    """Bring one model; returns its source and, for a local folder, its new path."""
    scheme = sources.scheme_of(model_id)
    if scheme in ("builtin", "skeleton"):
        return f"{model_id}: built locally", ""
    if scheme == "gguf":
        return _gguf(model_id, revision, to, sweep)
    if scheme == "package":
        sources.package_folder(model_id, where=sweep.source)
        return f"{model_id}: inside an installed package, which the other machine needs too", ""
    if scheme == "path":
        folder = sources.local_folder(model_id, where=sweep.source)
        assert folder is not None
        place = Path("models") / sources.short_name(model_id)
        shutil.copytree(folder, to / place, dirs_exist_ok=True)
        return f"{sources.short_name(model_id)}: a folder of this machine", f"./{place.as_posix()}"
    return _from_hub(model_id, revision, sweep), ""


def _gguf(model_id: str, revision: str | None, to: Path, sweep: LoadedSweep) -> tuple[str, str]:
    """Copy or download one GGUF file into the folder."""
    if gguf_files.inside_package(model_id):
        gguf_files.local_file(model_id, where=sweep.source)
        return f"{model_id}: inside an installed package, which the other machine needs too", ""
    found = gguf_files.local_file(model_id, where=sweep.source)
    if found is None and revision is None:
        raise UserError(
            f"the model {model_id!r} names no revision", where=sweep.source, fix="Pin it: revision: COMMIT."
        )
    path = found or gguf_files.hub_file(model_id, revision)
    place = Path("models") / path.name
    (to / "models").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to / place)
    return f"{path.name}: a GGUF file", f"gguf:./{place.as_posix()}"


def _from_hub(model_id: str, revision: str | None, sweep: LoadedSweep) -> str:
    if revision is None:
        raise UserError(
            f"the model {model_id!r} names no revision, so a later run may use other weights than this download",
            where=sweep.source,
            fix="Pin it: revision: COMMIT.",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(model_id, revision=revision, ignore_patterns=list(_PICKLED))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"the model {model_id!r} cannot be downloaded from the Hub: {reason}"
        raise UserError(what, where=sweep.source) from error
    return f"{model_id}: the Hub, commit {Path(folder).name}"


# --- data ----------------------------------------------------------------------------------------
def _tasks(sweep: LoadedSweep, workspace: Workspace) -> list[str]:
    """Names of all tasks that a run reads: those of the sweep, what they keep an eye on, what built-in models learn."""
    wanted = [use.name for use in (*sweep.spec.tasks, *(row.task for row in sweep.spec.include))]
    for model_id, _ in _models(sweep):
        if sources.scheme_of(model_id) == "builtin":
            wanted += sources.recipe(model_id.partition(":")[2]).corpus
    for name in list(wanted):
        wanted += load_task(name, list(workspace.roots)).definition.retain
    wanted += [name for use in sweep.spec.tasks for name in use.score]
    evaluation = sweep.spec.evaluation
    return list(dict.fromkeys([*wanted, *evaluation.held_out, *(skill.name for skill in evaluation.retain)]))


def _task(task: Task, workspace: Workspace, to: Path) -> str:
    definition, origins = task.definition, set()
    for split, rule in definition.splits.items():
        source = rule.source or definition.source
        if source.generator:
            origins.add("built locally")
        elif in_file(task, split, data_root=workspace.data_root):
            origins.add(_copy_rows(task, rule.from_, source, workspace, to))
        else:
            load_split(task, split, data_root=workspace.data_root, max_items=None, seed=0)  # fills the cache
            hub = source.hub
            origins.add(f"the Hub, {hub.id} {hub.revision or 'without a revision'}" if hub else "the Hub")
    return f"{definition.name}: {'; '.join(sorted(origins))}"


def _copy_rows(task: Task, split: str, source: Source, workspace: Workspace, to: Path) -> str:
    files = source.files
    if split in files:  # relative to the task's file, and copied with the folder of tasks
        if Path(files[split]).is_absolute() or ".." in Path(files[split]).parts:
            raise UserError(
                "the task reads a file outside the folder of tasks", where=str(task.path), fix="Move it there."
            )
        return "a file of the workspace"
    assert workspace.data_root is not None
    place = Path(source.data_root or task.definition.name) / f"{split}.jsonl"
    (to / "data" / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(workspace.data_root / place, to / "data" / place)
    return "the data root"


def _own_files(workspace: Workspace, to: Path) -> None:
    """Tasks, hardware profiles and boards of the user's workspaces; the first workspace has the last word."""
    for root in reversed(workspace.roots):
        for name in ("tasks", "runners/hardware", "reports/boards"):
            if (root / name).is_dir():
                shutil.copytree(root / name, to / name, dirs_exist_ok=True)


def _write_sweep(sweep: LoadedSweep, places: Mapping[str, str], to: Path) -> None:
    """The sweep's file, with local model folders replaced by their path in the folder."""
    file = sweep.path
    content = load_yaml(file)[0] if file is not None else sweep.spec.model_dump(mode="json", exclude_unset=True)

    def moved(model: Any) -> Any:
        if isinstance(model, dict):
            return {**model, "id": places[model["id"]]} if model.get("id") in places else model
        return places.get(model, model)

    content["models"] = [moved(model) for model in content["models"]]
    for row in content.get("include", ()):
        row["model"] = moved(row["model"])
    folder = to / "runners" / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / f"{sweep.spec.name}.yaml").write_text(text, encoding="utf-8")
