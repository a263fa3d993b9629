"""Locations: the user's workspace, the data root, the cache, the results. Flags come before variables.

A workspace is a folder with ``tasks/ runners/ reports/ results/`` (``peft-matrix init DIR`` lays one out). It is
found by walking up from the sweep's file, else from the current folder, and its files come before the built-in ones of
the same name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harness.digests import digest_text
from harness.errors import UserError, did_you_mean
from harness.store.store import Store
from harness.yamlfile import by_name

MARKER = "peft-matrix.yaml"
MANIFEST = "manifest.json"
"""In a workspace that ``peft-matrix fetch`` made for machines without a network."""
BUILT_IN_SWEEPS = Path(__file__).parent / "sweeps"
BUILT_IN_HARDWARE = Path(__file__).parent / "hardware"


@dataclass(frozen=True)
class Workspace:
    """The folders of one invocation.

    Attributes:
        roots: workspaces, the user's first; empty when none was found.
        results: store URL or folder.
        data_root: folder of local data sets that override the Hub, or None; of a fetched workspace its own.
        cache: folder of what can be made again (built models, quantized checkpoints).
        fetched: the workspace's folder if ``peft-matrix fetch`` made it: runs check its digests and stay offline.
    """

    roots: tuple[Path, ...]
    results: str
    data_root: Path | None
    cache: Path
    fetched: Path | None = None

    @classmethod
    def discover(
        cls, *, start: Path | None = None, results: str | None = None, data_root: Path | None = None
    ) -> Workspace:
        """The workspace of the current folder.

        Raises:
            UserError: a data root that is not a folder.
        """
        here = (start or Path.cwd()).resolve()
        root = workspace_above(here)
        fetched = root if root is not None and (root / MANIFEST).is_file() else None
        data = data_root or (Path(os.environ["PEFT_MATRIX_DATA"]) if os.environ.get("PEFT_MATRIX_DATA") else None)
        if data is None and fetched is not None and (fetched / "data").is_dir():
            data = fetched / "data"
        if data is not None and not data.is_dir():
            raise UserError(
                f"the data root {str(data)!r} is not a folder",
                where="--data-root or PEFT_MATRIX_DATA",
                fix="Name a folder that holds <data set>/<split>.jsonl.",
            )
        named = results or os.environ.get("PEFT_MATRIX_RESULTS")
        return cls(
            roots=(root,) if root else (),
            results=_in_full(named) if named else str((root or here) / "results"),
            data_root=data.resolve() if data else None,
            cache=Path(os.path.abspath(os.environ.get("PEFT_MATRIX_CACHE") or _default_cache())),
            fetched=fetched,
        )

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


def _in_full(results: str) -> str:
    """A results folder as an absolute path, which means the same store in every process; a URL as it is."""
    return results if "://" in results else os.path.abspath(Path(results).expanduser())


def _default_cache() -> Path:
    """``~/.cache/peft-matrix``, or what XDG_CACHE_HOME says.

    Raises:
        UserError: the account has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise UserError("this account has no home folder", fix="Name a folder for the cache: PEFT_MATRIX_CACHE=DIR.")
    return Path(base) / "peft-matrix"
