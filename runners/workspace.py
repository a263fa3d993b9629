"""Locations: the user's workspace, the data root, the cache, the results; and the defaults that the workspace sets.

An option comes before a variable, a variable before the workspace's file, and that before what is built in.

A workspace is a folder with ``tasks/ runners/ reports/ results/`` (``peft-matrix init DIR`` lays one out). It is
found by walking up from the sweep's file, else from the current folder, and its files come before the built-in ones of
the same name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.digests import digest_text
from harness.errors import UserError, did_you_mean
from harness.store.store import Store
from harness.yamlfile import FileModel, by_name, load_model

MARKER = "peft-matrix.yaml"
MANIFEST = "manifest.json"
"""In a workspace that ``peft-matrix fetch`` made for machines without a network."""
BUILT_IN_SWEEPS = Path(__file__).parent / "sweeps"
BUILT_IN_HARDWARE = Path(__file__).parent / "hardware"


class Defaults(FileModel):
    """Defaults that a workspace sets in ``peft-matrix.yaml``, for all of its sweeps.

    An option comes before an environment variable, that before the sweep's own key, that before this file, and this
    file before what is built in. Only ``hardware`` is part of a cell; nothing else here changes a number.

    Attributes:
        version: of this file's form.
        results: folder of the records, relative to this file, or a URL; option ``--results``.
        data_root: folder of local data sets, relative to this file; option ``--data-root``.
        cache: folder of what can be made again, relative to this file.
        hardware: hardware profiles of sweeps that name none.
        executor: where ``run`` and ``nightly`` run cells; option ``--executor``.
        address: of the Ray cluster that is joined; option ``--address``.
        slurm: options of ``sbatch`` by name; ``--slurm`` adds to them.
        workers: cells at once of sweeps without ``limits.workers``; option ``--workers``.
        quiet: ``run`` prints its last two lines only; option ``--quiet``.
        trackers: libraries in which ``run`` shows cells: tensorboard, trackio, mlflow, wandb; option ``--tracker``.
    """

    version: Literal[1] = 1
    results: str | None = Field(default=None, min_length=1)
    data_root: str | None = Field(default=None, min_length=1)
    cache: str | None = Field(default=None, min_length=1)
    hardware: tuple[str, ...] | None = Field(default=None, min_length=1)
    executor: str = "local"
    address: str | None = None
    slurm: dict[str, str | int] = Field(default_factory=dict)
    workers: int | None = Field(default=None, gt=0)
    quiet: bool = False
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workspace:
    """The folders of one invocation.

    Attributes:
        roots: workspaces, the user's first; empty when none was found.
        results: store URL or folder.
        data_root: folder of local data sets that override the Hub, or None; of a fetched workspace its own.
        cache: folder of what can be made again (built models, quantized checkpoints).
        fetched: the workspace's folder if ``peft-matrix fetch`` made it: runs check its digests and stay offline.
        defaults: what the workspace's file sets.
    """

    roots: tuple[Path, ...]
    results: str
    data_root: Path | None
    cache: Path
    fetched: Path | None = None
    defaults: Defaults = field(default_factory=Defaults)

    @classmethod
    def discover(
        cls, *, start: Path | None = None, results: str | None = None, data_root: Path | None = None
    ) -> Workspace:
        """The workspace of the current folder.

        Raises:
            UserError: a data root that is not a folder, or a mistake in the workspace's file.
        """
        here = (start or Path.cwd()).resolve()
        root = workspace_above(here)
        fetched = root if root is not None and (root / MANIFEST).is_file() else None
        defaults = read_defaults(root) if root is not None else Defaults()
        data, said_by = _data_root(data_root, root, defaults)
        if data is None and fetched is not None and (fetched / "data").is_dir():
            data = fetched / "data"
        if data is not None and not data.is_dir():
            raise UserError(
                f"the data root {str(data)!r} is not a folder",
                where=said_by,
                fix="Name a folder that holds <data set>/<split>.jsonl.",
            )
        named = results or os.environ.get("PEFT_MATRIX_RESULTS")
        store = _in_full(named) if named else _in_full(defaults.results or "results", root or here)
        cache = os.environ.get("PEFT_MATRIX_CACHE") or (defaults.cache and root and root / defaults.cache)
        return cls(
            roots=(root,) if root else (),
            results=store,
            data_root=data.resolve() if data else None,
            cache=Path(os.path.abspath(cache or _default_cache())),
            fetched=fetched,
            defaults=defaults,
        )

    def default(self, key: str) -> str:
        """Place of a default, for messages."""
        return f"{self.roots[0] / MARKER if self.roots else MARKER}, key '{key}'"

    def open_store(self) -> Store:
        """The store of the records.

        Claims on cells are locks of this machine's kernel. For records at a URL they are in the cache: two runs on one
        machine never run a cell twice; runs on several machines do not see each other's claims.
        """
        store = Store(self.results)
        if store.folder is not None:
            return store
        return Store(self.results, claims_dir=self.cache / "claims" / digest_text(self.results)[:16])

    def beside(self, name: str) -> Path:
        """Folder for files made from the records: next to them; for records at a URL, ./results."""
        return (Store(self.results).folder or Path("results")) / name

    def local(self, name: str) -> Path:
        """Folder of this machine for what concerns the records and is none: next to them, or in the cache for a URL."""
        folder = Store(self.results).folder
        return folder / name if folder is not None else self.cache / name / digest_text(self.results)[:16]

    def sweeps(self) -> dict[str, Path]:
        """Sweep name to file, the user's before the built-in ones."""
        return by_name([*(r / "runners" / "sweeps" for r in self.roots), BUILT_IN_SWEEPS])

    def sweep(self, name: str) -> Path:
        """File of the sweep ``name``, which may also be a path.

        Raises:
            UserError: no such sweep.
        """
        if name.endswith((".yaml", ".yml")):
            return Path(name)
        known = self.sweeps()
        if name not in known:
            raise UserError(f"unknown sweep {name!r}", fix=f"{did_you_mean(name, known)} A path to a .yaml also works.")
        return known[name]


def workspace_above(folder: Path) -> Path | None:
    """The workspace that an absolute folder is or lies in; None: in none."""
    return next((p for p in (folder, *folder.parents) if (p / MARKER).is_file()), None)


def read_defaults(root: Path) -> Defaults:
    """The defaults of a workspace's file; one that holds nothing sets nothing.

    Raises:
        UserError: an unknown key or a wrong value.
    """
    path = root / MARKER
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not any(line.strip() and not line.lstrip().startswith("#") for line in lines):
        return Defaults()
    return load_model(path, Defaults)[0]


def _data_root(option: Path | None, root: Path | None, defaults: Defaults) -> tuple[Path | None, str]:
    """The folder of local data sets, and what names it."""
    if option is not None:
        return option, "--data-root"
    if named := os.environ.get("PEFT_MATRIX_DATA"):
        return Path(named), "PEFT_MATRIX_DATA"
    if root is not None and defaults.data_root is not None:
        return root / Path(defaults.data_root).expanduser(), f"{root / MARKER}, key 'data_root'"
    return None, ""


def _in_full(results: str, below: Path | None = None) -> str:
    """A results folder as an absolute path, which means the same store in every process; a URL as it is.

    Args:
        below: folder that a relative path starts from; None: the current one.
    """
    return results if "://" in results else os.path.abspath((below or Path()) / Path(results).expanduser())


def _default_cache() -> Path:
    """``~/.cache/peft-matrix``, or what XDG_CACHE_HOME says.

    Raises:
        UserError: the account has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise UserError("this account has no home folder", fix="Name a folder for the cache: PEFT_MATRIX_CACHE=DIR.")
    return Path(base) / "peft-matrix"
