"""Records of a store, and of one run, as frames and boards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from peft_matrix.targets import load, target

if TYPE_CHECKING:
    import pandas as pd

    from harness.record import Record
    from harness.spec import LoadedSweep
    from harness.store.removal import Removal
    from harness.store.store import Store
    from reports.board.publish import BuiltBoard
    from runners.planning.plan import Plan
    from runners.running.run import RunSummary
    from runners.workspace import Workspace

Per = Literal["cell", "configuration"]


class Which(TypedDict, total=False):
    """Conditions on records.

    Attributes:
        sweep: name of the sweep that ran them.
        method: pattern over the method's label, as is ``model``.
        status: how they ended.
        older_than_days: they finished longer ago than this.
        earlier_settings: ``sweep``, as its file is now, does not plan their cells.
    """

    sweep: str
    method: str
    model: str
    status: str
    older_than_days: float
    earlier_settings: bool


class Rows(list[dict[str, Any]]):
    """Plain rows; a notebook shows them as a table, :meth:`frame` gives a pandas frame.

    Args:
        rows: one dictionary each.
        columns: names of the columns; None: those of the rows.
    """

    def __init__(self, rows: Iterable[dict[str, object]] = (), columns: Sequence[str] | None = None) -> None:
        super().__init__(rows)
        self.columns = list(columns if columns is not None else dict.fromkeys(name for row in self for name in row))

    def frame(self) -> pd.DataFrame:
        """The rows as a pandas frame."""
        import pandas

        return pandas.DataFrame(list(self), columns=self.columns)

    def cells_of_csv(self) -> list[list[Any]]:
        """Header and rows for a CSV writer; text that a spreadsheet would run as a formula is quoted."""
        from reports.board.formats.to_csv import neutral

        values = ([row.get(name) for name in self.columns] for row in self)
        return [self.columns, *([neutral(v) if isinstance(v, str) else v for v in row] for row in values)]

    def _repr_html_(self) -> str:
        names = self.columns
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_text(row.get(name)))}</td>' for name in names)}</tr>" for row in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Results:
    """The records of a store.

    Args:
        workspace: names the store, and the folders of boards and sweeps of the user.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @property
    def location(self) -> str:
        """Folder or URL of the store."""
        return self.workspace.results

    @property
    def store(self) -> Store:
        """The store itself."""
        return self.workspace.open_store()

    def sweeps(self) -> list[str]:
        """Names of the sweeps that the store holds, sorted."""
        from harness.store import index

        return sorted(set(index.load(self.store).flat.rows.column("sweep").to_pylist()))

    def records(self, sweep: str | None = None) -> list[Record]:
        """The current record of every cell on every machine.

        Args:
            sweep: only records filed under this sweep; None: all.
        """
        from reports.data.frame import current

        records = self.store.records()[0]
        return [r for _, r in current(r for r in records if sweep is None or r.sweep == sweep)]

    def frame(
        self,
        sweep: str | None = None,
        *,
        raw: bool = False,
        per: Per = "cell",
        keys: Collection[str] | None = None,
        trials: bool = False,
    ) -> pd.DataFrame:
        """The results as a pandas frame; :func:`peft_matrix.columns` names every column with its unit.

        Args:
            sweep: only records filed under this sweep; None: all.
            raw: every reading of every stage, with its ``:n``, ``:sd``, ``:why`` and ``:source`` columns.
            per: a row per ``cell`` (and seed), or per ``configuration`` with the mean over its seeds.
            keys: only these cells.
            trials: tuning trials too. They were scored on the validation split only.
        """
        from harness.store import index
        from reports.data.frame import framed
        from reports.data.samples import stored_samples
        from reports.data.tidy import tidy

        flat = index.load(self.store).flat
        wide = framed(flat)
        if not wide.empty:
            chosen = wide["sweep"].eq(sweep) if sweep is not None else wide["sweep"].notna()
            if keys is not None:
                chosen &= wide["key"].isin(list(keys))
            if not trials:
                chosen &= wide["role"].eq("result")
            wide = wide[chosen].reset_index(drop=True)
        digests = dict(zip(*(flat.rows.column(name).to_pylist() for name in ("id", "samples")), strict=True))
        return wide if raw else tidy(wide, per=per, samples=stored_samples(self.store, digests.get))

    def board(
        self,
        sweep: str | LoadedSweep,
        *,
        board: str | None = None,
        planned: bool = False,
        learned: str | Sequence[str] = (),
    ) -> BuiltBoard:
        """The leaderboard of a sweep, or of ``imported:KIND``.

        Args:
            board: name of the board; None: what the sweep says.
            planned: also count cells that the sweep plans and that have no record.
            learned: keep rows with these verdicts alone, such as ``learned`` or ``["no evidence", "worse"]``.

        Raises:
            UserError: no such sweep or board, no record of it, or no such verdict.
        """
        from reports.board.publish import build_board

        found = target(sweep, self.workspace, "planned" if planned else "recorded")
        built = build_board(
            *(board or found.board, self.workspace.roots),
            results=self.location,
            keys=found.keys,
            title=found.title,
            summary=found.summary,
            learned=[learned] if isinstance(learned, str) else learned,
        )
        return replace(built, sweep=found.name)

    def other_settings(self, sweep: str | LoadedSweep, planned: Collection[str]) -> Rows:
        """Records under the sweep's name whose cells are not ``planned``: of earlier settings, or of removed cells.

        Args:
            planned: keys of the cells that the sweep plans now, as ``board(sweep, planned=True).table.planned``.

        Returns:
            ``label``, ``key``, ``finished`` and ``differ`` of each: what the planned cell of that label has otherwise.
        """
        from runners.tools.queries import other_settings

        return Rows(other_settings(load(sweep, self.workspace), self.workspace, planned))

    def remove(self, pattern: str = "", *, delete: bool = False, **which: Unpack[Which]) -> Removal:
        """Records that may go, with their logs, their kept weights and the samples that no other record needs.

        Records of a sweep that runs now, and of cells that run now, stay.

        Args:
            pattern: shell-style pattern over labels, or the beginning of a key.
            delete: remove the files; without it nothing is changed.
            which: further conditions; all of them must hold.

        Raises:
            UserError: no condition is set, or no record meets them.
        """
        from harness.store import removal

        found = self._removal(pattern, which)
        if delete:
            found = removal.remove(self.store, found)
            self._move_weights(found, None)
        return found

    def archive(self, pattern: str = "", *, to: str | Path, move: bool = False, **which: Unpack[Which]) -> Removal:
        """Records to move into another store, which every command reads: ``--results DIR``.

        Args:
            pattern: as for :meth:`remove`, as is ``which``.
            to: folder or URL of the other store; it may hold records already.
            move: copy the files, then remove them here; without it nothing is changed.

        Raises:
            UserError: as for :meth:`remove`, or the other store cannot be written.
        """
        from harness.store import removal
        from harness.store.store import Store

        found = self._removal(pattern, which)
        if move:
            into = Store(str(to))
            found = removal.archive(self.store, into, found)
            self._move_weights(found, into)
        return found

    def _removal(self, pattern: str, which: Which) -> Removal:
        from typing import get_args

        from harness.errors import UserError, did_you_mean
        from harness.record import Status
        from harness.store import removal
        from runners.running.live import drivers

        conditions: dict[str, Any] = {name: value for name, value in which.items() if value not in (None, "")}
        if (status := which.get("status", "")) and status not in get_args(Status):
            raise UserError(f"unknown status {status!r}", fix=did_you_mean(status, get_args(Status)))
        earlier = conditions.pop("earlier_settings", False)
        if sweep := which.get("sweep", ""):
            found = target(sweep, self.workspace, "planned" if earlier else "all")
            conditions["sweep"] = found.name
            conditions["planned"] = frozenset(found.keys or ()) if earlier else None
        elif earlier:
            raise UserError("earlier settings of no sweep", fix="Name the sweep: --sweep NAME --earlier-settings")
        chosen = removal.Chosen(pattern, **conditions)
        if not chosen.conditions():
            raise UserError("every record would be chosen", fix="Name a pattern ('*lora*') or another condition.")
        busy = {one["sweep"] for one in drivers(self.workspace) if one["state"] != "dead"}
        return removal.choose(self.store, chosen, busy=busy)

    def _move_weights(self, found: Removal, into: Store | None) -> None:
        """Weights that a sweep kept go with the last record of their cell."""
        import shutil

        from runners.running.adapters import place

        left = self.store.entries()
        for key in {one.key for one in found.records} - set(left):
            folder = place(self.workspace, key)
            if folder.is_dir():
                if into is not None and into.folder is not None:
                    shutil.copytree(folder, into.folder / "adapters" / key, dirs_exist_ok=True)
                shutil.rmtree(folder)

    def __repr__(self) -> str:
        return f"Results({self.location!r})"


@dataclass(frozen=True)
class Planned:
    """A plan; a notebook shows one row per cell.

    Attributes:
        plan: the cells, sorted by what would happen to them.
    """

    plan: Plan

    def rows(self) -> Rows:
        """One row per cell: its state, why it will not run, and what is expected of it.

        ``predicted_s`` is in seconds, ``predicted_peak_bytes`` in bytes; None where nothing is known.
        """
        return Rows(self.plan.rows())

    def frame(self) -> pd.DataFrame:
        """:meth:`rows` as a pandas frame."""
        return self.rows().frame()

    def fits(self, capacity_bytes: float) -> Rows:
        """Cells that fit devices with ``capacity_bytes`` of memory, on one or sharded over several.

        One row per cell without its seed: ``fits`` (on one device), ``devices`` (the fewest of 1 to 64 when weights and
        training state are sharded as FSDP and ZeRO stage 3 do; None if more), and the parts of the predicted peak in
        bytes. Estimated from sizes: nothing is loaded, and the device need not be here.
        """
        from runners.planning.cost_model import fits

        return Rows(fits(self.plan.predict, self.plan.cells, capacity_bytes))

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells by state."""
        return dict(Counter(row["state"] for row in self.plan.rows()))

    def _repr_html_(self) -> str:
        return self.rows()._repr_html_()

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in self.counts.items())
        return f"<plan of {self.plan.sweep.spec.name}: {counts}>"


@dataclass(frozen=True)
class Run:
    """A sweep that was run.

    Attributes:
        summary: the plan that was followed and how the cells ended.
        results: the store that holds the records.
    """

    sweep: LoadedSweep
    summary: RunSummary
    results: Results

    @property
    def outcomes(self) -> Counter[str]:
        """How many cells ended with which status in this run; cells that were done before are not counted."""
        return self.summary.outcomes

    @property
    def failed(self) -> int:
        """Cells that ended in an error, and those that the machine had no room for."""
        return self.summary.failed

    def keys(self) -> list[str]:
        """Keys of all cells of the sweep."""
        from runners.tools.queries import sweep_keys

        return sweep_keys(self.sweep, self.results.workspace)

    def records(self) -> list[Record]:
        """The current record of every cell of the sweep."""
        from reports.data.frame import current

        return [record for _, record in current(self.results.store.records(self.keys())[0])]

    def frame(self, *, raw: bool = False, per: Per = "cell", trials: bool = False) -> pd.DataFrame:
        """The results of the sweep's cells, new and earlier ones; see :meth:`Results.frame`."""
        return self.results.frame(raw=raw, per=per, keys=self.keys(), trials=trials)

    def board(self, board: str | None = None) -> BuiltBoard:
        """The leaderboard of the sweep's cells.

        Args:
            board: name of the board; None: what the sweep says.
        """
        return self.results.board(self.sweep, board=board, planned=True)

    def __repr__(self) -> str:
        ended = ", ".join(f"{n} {status}" for status, n in sorted(self.outcomes.items())) or "nothing to run"
        done = len(self.summary.plan.done) + len(self.summary.plan.stale)
        return f"<run of {self.sweep.spec.name}: {ended}; {done} done before>"

    def save_board(self, folder: str | Path) -> Path:
        """Write the board into ``folder``; returns its page."""
        self.board().save(folder, keep=True)
        return Path(folder) / "board.html"
