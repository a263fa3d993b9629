"""The Python API: build, plan and run sweeps, and read their results. The command line calls these functions.

Every function finds the workspace from the current folder as the command line does; ``results`` and ``data_root``
override its store and its folder of local data sets. A mistake in the input is a
:class:`harness.errors.UserError`, whose text says what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from peft_matrix.results import Per, Planned, Results, Rows, Run
from peft_matrix.results import Which as Which
from peft_matrix.targets import Location, make_console, open_workspace
from peft_matrix.targets import load as load_sweep_of

if TYPE_CHECKING:
    from harness.record import Record
    from harness.spec import LoadedSweep
    from harness.store.cleanup import WasteReport
    from harness.store.index import Index
    from harness.store.merge import MergeResult
    from harness.store.packing import Packed as Packed
    from harness.store.removal import Removal as Removal
    from reports.apps.importers import Import
    from reports.apps.site import Site
    from reports.apps.upload import Upload
    from reports.board.checks import Smell
    from runners.tools.fetch import Fetched

DEFAULT_STEPS = 100


# --- sweeps ----------------------------------------------------------------------------------------
def sweep(
    *,
    models: Sequence[object],
    methods: Sequence[object],
    tasks: Sequence[object],
    quantization: Sequence[object] = ("none",),
    name: str = "notebook",
    training: Mapping[str, object] | None = None,
    **settings: object,
) -> LoadedSweep:
    """A sweep from Python values: every model with every method, quantization and task.

    Args:
        models: names (``"builtin:nano"``, ``"OWNER/NAME"``, a folder) or mappings as in a sweep file.
        methods: names (``"lora"``) or mappings (``{"name": "lora", "params": {"r": 16}}``).
        tasks: names or mappings.
        quantization: names or mappings.
        name: under which the records are filed: lower-case letters, digits, dots, dashes.
        training: the training budget as in a sweep file; None: 100 steps, everything else at its default.
        settings: any other key of a sweep file: ``seeds=[0, 1, 2]``, ``tune={...}``, ``evaluation={...}``.

    Returns:
        A frozen value for :func:`plan`, :func:`run` and :func:`fetch`.

    Raises:
        UserError: an unknown key or a wrong value; names are checked when the sweep is planned.
    """
    from harness.spec import LoadedSweep, SweepSpec
    from harness.yamlfile import validate

    budget = training if training is not None else {"steps": DEFAULT_STEPS}
    content = {
        "name": name,
        "models": models,
        "methods": methods,
        "quantization": quantization,
        "tasks": tasks,
        "training": budget,
        **settings,
    }
    return LoadedSweep(validate(content, SweepSpec))


def load_sweep(name: str | Path, *, changes: Sequence[str] = ()) -> LoadedSweep:
    """The sweep of that name, of the workspace or built in, or of that YAML file.

    Args:
        changes: values to set, as ``training.steps=10``: other settings, so other cells.

    Raises:
        UserError: no such sweep, or a mistake in its file.
    """
    return load_sweep_of(name, open_workspace(sweep=name), changes)


def plan(
    sweep: str | Path | LoadedSweep,
    *,
    results: Location = None,
    data_root: str | Path | None = None,
    only: str | None = None,
    rerun: Sequence[str] = (),
    hours: float | None = None,
    workers: int | None = None,
) -> Planned:
    """Sort the cells by what a run would do to each, and why. Runs nothing.

    Args:
        sweep: a sweep, its name or its file.
        only: shell-style pattern over labels, or the beginning of a key.
        rerun: statuses, ``"stale"`` or ``"all"``: these cells would run again.
        hours: time budget.
        workers: cells at once, for the estimate; None: what the sweep says.
    """
    from harness import hardware
    from runners.running.run import make_plan

    workspace = open_workspace(results, data_root, sweep=sweep)
    loaded = load_sweep_of(sweep, workspace)
    slots = workers or loaded.spec.limits.workers or workspace.defaults.workers or 1
    machine = hardware.probe()
    made = make_plan(loaded, workspace, machine=machine, only=only, rerun=tuple(rerun), hours=hours, slots=slots)
    return Planned(made)


def run(
    sweep: str | Path | LoadedSweep,
    *,
    results: Location = None,
    data_root: str | Path | None = None,
    only: str | None = None,
    rerun: Sequence[str] = (),
    hours: float | None = None,
    workers: int | None = None,
    executor: str | None = None,
    address: str | None = None,
    slurm: Mapping[str, str] | None = None,
    quiet: bool | None = None,
    trackers: Sequence[str] | None = None,
) -> Run:
    """Run the cells of a sweep that have no result yet. Works in any thread.

    Args:
        sweep: a sweep, its name or its file.
        only: shell-style pattern over labels, or the beginning of a key.
        rerun: statuses, ``"stale"`` or ``"all"``: run these cells again.
        hours: no cell starts that is expected to end later than this many hours from now.
        workers: cells at once; None: what the sweep says, else the workspace, as for the following.
        executor: ``local``, ``ray`` or ``slurm``.
        address: of a Ray cluster; where nothing names one, it is started on this machine.
        slurm: options of ``sbatch`` by name.
        quiet: print no progress.
        trackers: ``tensorboard``, ``trackio``, ``mlflow``, ``wandb``: show the cells there while they run.

    Raises:
        KeyboardInterrupt: after running cells were stopped and recorded.
        UserError: the sweep is wrong, or the store cannot be written.
    """
    from runners.running.run import choice_of, run_sweep

    workspace = open_workspace(results, data_root, sweep=sweep)
    loaded = load_sweep_of(sweep, workspace)
    choice = choice_of(loaded, workspace, executor=executor, address=address, slurm=slurm, workers=workers)
    console = make_console(workspace.defaults.quiet if quiet is None else quiet)
    summary = run_sweep(
        loaded, workspace, console, only=only, rerun=tuple(rerun), choice=choice, hours=hours, trackers=trackers
    )
    return Run(loaded, summary, Results(workspace))


def load(
    results: Location = None, *, data_root: str | Path | None = None, sweep: str | Path | LoadedSweep | None = None
) -> Results:
    """The records of a store.

    Args:
        results: folder or URL; None: that of the workspace.
        data_root: folder of local data sets, which decide what a sweep plans now.
        sweep: file of a sweep whose workspace is meant instead of the current folder's.
    """
    return Results(open_workspace(results, data_root, sweep=sweep))


def columns(per: Per = "cell") -> dict[str, str]:
    """Columns of a frame, with unit and meaning."""
    from reports.data.tidy import columns as of

    return of(per)


def status(
    sweep: str | Path | LoadedSweep, *, results: Location = None, data_root: str | Path | None = None
) -> dict[str, Any]:
    """Counts of a sweep's cells by status, every failure with its reason, and what runs now (:func:`running`)."""
    from runners.tools.queries import status as of

    workspace = open_workspace(results, data_root, sweep=sweep)
    return of(load_sweep_of(sweep, workspace), workspace)


def running(*, results: Location = None) -> list[dict[str, object]]:
    """The drivers that run on a store now: one row each, with its cells.

    Returns:
        ``sweep``, ``state`` (``running``, ``dead`` or ``elsewhere``: on another machine), ``pid``, ``executor``,
        ``seconds``, ``told_s`` (since its last word), ``done``, ``failed`` and ``total`` cells; ``cells``: label, key,
        attempt, ``stage``, ``what``, ``at`` and ``of`` of its progress, ``seconds``, ``eta_s``, ``pid`` of the worker.
        None: not known.
    """
    from runners.running.live import drivers

    return drivers(open_workspace(results))


def record(cell: str, *, results: Location = None) -> Record:
    """The latest record whose label or key begins with ``cell``.

    Raises:
        UserError: none, or several cells match.
    """
    from runners.tools.queries import find_record

    return find_record(cell, open_workspace(results))


def other_settings(record: Record, *, results: Location = None) -> Rows:
    """Cells with the label of this record and other settings, as an edited sweep leaves them.

    Returns:
        ``key``, ``finished`` and ``differ`` (``steps 12, here 13``) of each, the newest first.
    """
    from runners.tools.queries import same_label

    return Rows(same_label(record, open_workspace(results)))


def logs(cell: str, *, results: Location = None) -> str:
    """The log of a cell: as far as it has come if the cell runs on this machine, else of its latest record.

    Secrets and places of this machine are replaced. Of a log of more than 1 MiB the beginning and the end are there.

    Args:
        cell: a cell's label, key, or the beginning of either.

    Raises:
        UserError: none, or several cells match, or no log of the cell was kept.
    """
    from runners.tools.logs import read

    return read(cell, open_workspace(results))


def follow_logs(cell: str, *, results: Location = None) -> Iterator[str]:
    """The log of a running cell in parts, each as it is written; ends with the cell. Otherwise as :func:`logs`."""
    from runners.tools.logs import follow

    return follow(cell, open_workspace(results))


def fetch(
    sweep: str | Path | LoadedSweep,
    to: str | Path,
    *,
    data_root: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Fetched:
    """Gather a sweep's models and data, with digests, in a folder that runs without a network.

    Raises:
        UserError: something cannot be fetched, or the folder holds something else.
    """
    from runners.tools.fetch import fetch as of

    workspace = open_workspace(None, data_root, sweep=sweep)
    return of(load_sweep_of(sweep, workspace), workspace, Path(to), say)


def verify_fetched(folder: str | Path) -> int:
    """Compare a fetched folder with its manifest; returns the number of files.

    Raises:
        UserError: a file is missing or differs.
    """
    from runners.tools.fetch import verify

    return verify(Path(folder))


def init(folder: str | Path) -> list[Path]:
    """Create a workspace with a task, a sweep and the schemas of their keys; returns the files written."""
    import json

    from peft_matrix.keys import TITLES, schema
    from runners.tools.init_workspace import lay_out

    written = lay_out(Path(folder))
    schemas = Path(folder) / "schemas"
    schemas.mkdir()
    for kind in TITLES:
        written.append(schemas / f"{kind}.json")
        written[-1].write_text(json.dumps(schema(kind), indent=1) + "\n", encoding="utf-8")
    return written


def export_cell(
    cell: str, to: str | Path, *, form: str = "adapter", gguf: str = "f16", results: Location = None
) -> list[Path]:
    """Write what a kept cell trained (``keep`` in the sweep) into a new folder, with a model card.

    Args:
        cell: beginning of its label or key.
        form: ``adapter`` (plain peft), ``merged`` (a model of transformers) or ``gguf`` (llama.cpp).
        gguf: type of the matrices of a GGUF file.

    Raises:
        UserError: nothing was kept, or its method has no such form.
    """
    from runners.running import adapters
    from runners.tools.queries import find_record

    workspace = open_workspace(results)
    return adapters.export(workspace, find_record(cell, workspace), Path(to), form=form, gguf=gguf)  # type: ignore[arg-type]  # checked there


def push(folder: str | Path, repo: str, *, send: bool = False) -> Upload:
    """Send an exported folder to a model repository of the Hugging Face Hub.

    Args:
        repo: ``OWNER/NAME``.
        send: upload; without it only say what would be sent.
    """
    from reports.apps.upload import upload

    return upload("hf-model", repo, Path(folder), push=send)


# --- boards and pages ------------------------------------------------------------------------------
def check_board(folder: str | Path, *, results: Location = None) -> list[Smell]:
    """The leaderboard smells found in a board's files, compared with the records.

    A folder with ``reproduction.md``, the report of claims, is compared with the claim files and records as they are.
    """
    from peft_matrix.claim_checks import REPORT, stale_report
    from reports.board.checks import check_folder

    workspace = open_workspace(results)
    if (Path(folder) / REPORT).is_file():
        return stale_report(Path(folder), workspace)
    return check_folder(Path(folder), workspace.open_store())


def site(
    out: str | Path,
    *sweeps: str,
    results: Location = None,
    data_root: str | Path | None = None,
    claims: str | Path | None = None,
    planned: bool = False,
) -> Site:
    """Build static pages of these sweeps, or of all that the store holds.

    Args:
        claims: a file with what ``reproduce --json`` printed, for the page of claims.
        planned: also count cells that a sweep's file plans and that have no record.
    """
    from peft_matrix.pages import build_site_of

    told = Path(claims) if claims is not None else None
    return build_site_of(open_workspace(results, data_root), Path(out), sweeps, claims=told, planned=planned)


def publish(
    repo: str, *, to: str, folder: str | Path | None = None, push: bool = False, results: Location = None
) -> Upload:
    """Send records (``to="hf-dataset"``) or pages (``"hf-space"``) to the Hugging Face Hub.

    Args:
        folder: what to send; None: the records, or for ``hf-space`` the site of all of them, which is built or brought
            up to date in ``site/`` of the results folder first.
        push: send; without it only say what would be sent.
    """
    from reports.apps.upload import upload

    store = open_workspace(results).open_store()
    if folder is None and store.folder is None:
        raise UserError(
            "only files of this machine can be sent to the Hub",
            where=store.root,
            fix="Copy the records first (peft-matrix results merge URL --into FOLDER), or name --folder.",
        )
    named = Path(folder) if folder is not None else store.folder or Path()
    if folder is None and to == "hf-space":
        named /= "site"
        site(named, results=results)
    return upload(to, repo, named, push=push)


# --- the store -------------------------------------------------------------------------------------
def import_results(kind: str, paths: Sequence[str | Path], *, results: Location = None) -> Import:
    """Turn results of another tool into records marked as imported.

    Args:
        kind: ``peft-method-comparison``, ``lm-eval`` or ``optimum-benchmark``.
        paths: result files, or folders of them.
    """
    from reports.apps.importers import import_results as of

    return of(kind, [Path(path) for path in paths], open_workspace(results).open_store())


def export(to: str | Path, *, sweep: str | None = None, results: Location = None) -> tuple[list[Path], int]:
    """Write records with their samples as ``NAME.zip``, ``NAME.parquet`` or ``NAME.csv``.

    Returns:
        The files, and the number of records.
    """
    from reports.apps.export import export as of

    return of(open_workspace(results).open_store(), Path(to), sweep=sweep)


def query(sql: str, *, results: Location = None) -> Rows:
    """One SELECT over the tables ``records``, ``readings``, ``settings`` and ``samples`` (extra: query)."""
    from reports.apps.sql import query as of

    names, rows = of(open_workspace(results).open_store(), sql)
    return Rows((dict(zip(names, row, strict=True)) for row in rows), columns=names)


def update_index(*, rebuild: bool = False, results: Location = None) -> Index:
    """Bring the index of the records up to date; readers do so by themselves.

    Args:
        rebuild: read every record again.
    """
    from harness.store import index

    return index.load(open_workspace(results).open_store(), rebuild=rebuild, fewest=1)


def garbage(*, delete: bool = False, results: Location = None) -> WasteReport:
    """Files of the store that nothing needs.

    Args:
        delete: remove them; without it nothing is changed.
    """
    from harness.store.cleanup import remove, waste

    store = open_workspace(results).open_store()
    found = waste(store)
    if delete:
        remove(store, found)
    return found


def merge(sources: Sequence[str | Path], *, into: str | Path) -> tuple[MergeResult, int]:
    """Copy several stores into one. Nothing is overwritten.

    Returns:
        What was copied, and how many decisions on regressions were.

    Raises:
        UserError: a source holds no records.
    """
    from harness.store.merge import merge as join
    from harness.store.store import Store
    from reports.apps.regressions import decisions

    stores = [Store(str(source)) for source in sources]
    for store in stores:
        if not store.entries():
            raise UserError("no records", where=store.root, fix="Name the folder or URL that --results named.")
    target = Store(str(into))
    return join(stores, target), decisions.merge(stores, target)


def pack(*, results: Location = None) -> Packed:
    """Pack records and samples into one compressed file (a segment), which every reader reads as before."""
    from harness.store.packing import pack as of

    return of(open_workspace(results).open_store())


def unpack(*, salvage: bool = False, results: Location = None) -> Packed:
    """Write every packed file back, byte for byte, and remove the segments.

    Args:
        salvage: take what is intact from damaged segments, too.
    """
    from harness.store.packing import unpack as of

    return of(open_workspace(results).open_store(), salvage=salvage)


def verify_packed(*, results: Location = None) -> tuple[int, int]:
    """Read every packed file and compare its digest.

    Returns:
        Number of segments, and of files in them.
    """
    from harness.store.packing import verify

    return verify(open_workspace(results).open_store())
