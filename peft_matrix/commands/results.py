"""Commands for a whole store: query, index, gc, rm, archive, export, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import EXIT_FAILED_CELLS
from peft_matrix.commands.common import AsJson, Results, console, print_json

if TYPE_CHECKING:
    from peft_matrix import api

app = typer.Typer(
    name="results",
    help="Query and maintain the record store: query, index, gc, rm, archive, pack, unpack, export, merge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def query(
    sql: Annotated[
        str,
        typer.Argument(
            help="One SELECT over the tables records, readings, results, settings, samples. "
            "Columns: SELECT * FROM results LIMIT 1"
        ),
    ],
    results: Results = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Query the records in SQL. Read-only: no other files, no network (extra: query)."""
    import sys

    from peft_matrix import api

    rows = api.query(sql, results=results)
    if as_json:
        print_json([{name: _plain(value) for name, value in row.items()} for row in rows])
    elif csv:
        from csv import writer

        writer(sys.stdout, lineterminator="\n").writerows(rows.cells_of_csv())
    else:
        from peft_matrix.console import print_cells

        print_cells(rows.columns, [["–" if v is None else str(v) for v in row.values()] for row in rows], console())


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (bool, int, float, str, list)) else str(value)


@app.command("index")
def index_(
    results: Results = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Read every record, without using the index.")] = False,
    as_json: AsJson = False,
) -> None:
    """Refresh the index now. Optional: readers refresh the index automatically."""
    from peft_matrix import api

    loaded = api.update_index(rebuild=rebuild, results=results)
    if as_json:
        damaged = [{"path": d.path, "why": d.reason} for d in loaded.damaged]
        print_json({"records": len(loaded.paths), "read": loaded.read, "damaged": damaged, "why": loaded.unwritten})
        return
    for damage in loaded.damaged:
        typer.echo(f"Left out: {damage.path}: {damage.reason}", err=True)
    typer.echo(f"{len(loaded.paths):,} records in the index, {loaded.read:,} of them read now.")
    if loaded.unwritten:
        typer.echo(f"The index was not written: {loaded.unwritten}", err=True)


@app.command()
def gc(
    results: Results = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the files. Without it, only list them.")] = False,
    as_json: AsJson = False,
) -> None:
    """List removable files: samples without a record, temporary files, superseded and abandoned attempts."""
    from peft_matrix import api

    found = api.garbage(delete=delete, results=results)
    if as_json:
        files = [one._asdict() for one in found.waste]
        print_json({"files": files, "kept_back": list(found.kept_back), "deleted": delete})
        return
    for one in found.waste:
        typer.echo(f"  {one.path} ({one.size:,} bytes): {one.why}")
    for why in found.kept_back:
        typer.echo(f"Kept back: {why}")
    size = sum(one.size for one in found.waste)
    what = f"{len(found.waste)} files, {size:,} bytes"
    typer.echo(
        f"Removed {what}." if delete else f"{what} could go. Dry run: nothing was removed; --delete removes them."
    )


Pattern = Annotated[str, typer.Argument(help="Pattern over the cells' labels ('*lora*'), or beginning of a key.")]
OfSweep = Annotated[str, typer.Option("--sweep", help="Only records of this sweep (name or YAML).")]
OfMethod = Annotated[str, typer.Option("--method", help="Pattern over the method's label.")]
OfModel = Annotated[str, typer.Option("--model", help="Pattern over the model's label.")]
OfStatus = Annotated[str, typer.Option("--status", help="Only records that ended so: error, lost, ...")]
OlderThan = Annotated[float | None, typer.Option("--older-than", min=0, help="Only records older than so many days.")]
Earlier = Annotated[
    bool, typer.Option("--earlier-settings", help="Only cells that --sweep, as its file is now, does not plan.")
]


@app.command()
def rm(
    pattern: Pattern = "",
    sweep: OfSweep = "",
    method: OfMethod = "",
    model: OfModel = "",
    status: OfStatus = "",
    older_than: OlderThan = None,
    earlier_settings: Earlier = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove. Without it, only list.")] = False,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Remove records, with their logs, kept weights, and samples that nothing else needs. A dry run unless --yes."""
    from peft_matrix import api

    which = _which(sweep, method, model, status, older_than, earlier_settings)
    found = api.load(results, sweep=sweep or None).remove(pattern, delete=yes, **which)
    _print_removal(found, "removed", "--yes removes them", as_json)


@app.command()
def archive(
    to: Annotated[str, typer.Option(help="Store to move them into: a folder or URL. '--results DIR' reads it.")],
    pattern: Pattern = "",
    sweep: OfSweep = "",
    method: OfMethod = "",
    model: OfModel = "",
    status: OfStatus = "",
    older_than: OlderThan = None,
    earlier_settings: Earlier = False,
    yes: Annotated[bool, typer.Option("--yes", help="Move. Without it, only list.")] = False,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Move records into another store, with everything that belongs to them. A dry run unless --yes."""
    from peft_matrix import api

    which = _which(sweep, method, model, status, older_than, earlier_settings)
    found = api.load(results, sweep=sweep or None).archive(pattern, to=to, move=yes, **which)
    _print_removal(found, f"moved to {to}", f"--yes moves them to {to}", as_json)


def _which(
    sweep: str, method: str, model: str, status: str, older_than: float | None, earlier_settings: bool
) -> api.Which:
    which: api.Which = {"sweep": sweep, "method": method, "model": model, "status": status}
    if older_than is not None:
        which["older_than_days"] = older_than
    return {**which, "earlier_settings": earlier_settings}


def _print_removal(found: api.Removal, done: str, how: str, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        print_json({**asdict(found), "records": [one._asdict() for one in found.records], "kept": _kept(found)})
    else:
        for one in found.records:
            why = f": {one.why}" if one.why else ""
            typer.echo(f"  {one.label}  {one.key}  {one.sweep}  {one.status}  {one.finished}{why}")
        for kept in _kept(found):
            typer.echo(f"Stays: {kept['label']} {kept['key']}: {kept['why']}", err=True)
        for text in (*found.notes, *(f"Left out: {damage.path}: {damage.reason}" for damage in found.left_out)):
            typer.echo(text, err=True)
        parts = (("records", found.records), ("sample files", found.samples), ("logs", found.logs))
        what = ", ".join(f"{len(files):,} {name}" for name, files in parts) + f": {found.size:,} bytes"
        typer.echo(f"{what} {done}." if found.done else f"{what}. Dry run: nothing was changed; {how}.")
    if found.left_out:
        raise typer.Exit(EXIT_FAILED_CELLS)


def _kept(found: api.Removal) -> list[dict[str, str]]:
    return [{"label": one.label, "key": one.key, "why": why} for one, why in found.kept]


@app.command()
def pack(
    results: Results = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; read every packed file and compare its digest.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pack records and samples into one compressed file (a segment). Every command reads it as before."""
    from peft_matrix import api

    if check:
        held, files = api.verify_packed(results=results)
        if as_json:
            print_json({"segments": held, "files": files})
        else:
            typer.echo(f"{held} segments, {files:,} files: every one matches its digest.")
        return
    done = api.pack(results=results)
    if as_json:
        print_json(_packed(done))
    elif not done.segment:
        typer.echo("There is nothing to pack.")
    else:
        typer.echo(
            f"{done.segment} holds {done.records:,} records and {done.samples:,} sample files: "
            f"{done.packed_bytes:,} bytes for {done.loose_bytes:,}."
        )
    _left_out(done, as_json)


@app.command()
def unpack(
    results: Results = None,
    salvage: Annotated[bool, typer.Option("--salvage", help="Take what is intact from damaged segments, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write every packed record and sample file back, byte for byte, and remove the segments."""
    from peft_matrix import api

    done = api.unpack(salvage=salvage, results=results)
    if as_json:
        print_json(_packed(done))
    else:
        typer.echo(f"{done.records:,} records and {done.samples:,} sample files written, {done.loose_bytes:,} bytes.")
    _left_out(done, as_json)


def _packed(done: api.Packed) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(done)


def _left_out(done: api.Packed, as_json: bool) -> None:
    for damage in () if as_json else done.left_out:
        typer.echo(f"Left out: {damage.path}: {damage.reason}", err=True)
    if done.left_out:
        raise typer.Exit(EXIT_FAILED_CELLS)


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="NAME.zip (a store), NAME.parquet or NAME.csv (tables).")],
    sweep: Annotated[str | None, typer.Argument(help="Only records of this sweep.")] = None,
    results: Results = None,
) -> None:
    """Write the records of a sweep, with their samples, as one archive or as tables."""
    from peft_matrix import api

    files, records = api.export(to, sweep=sweep, results=results)
    typer.echo(f"{records:,} records: {', '.join(str(path) for path in files)}")


@app.command()
def merge(
    sources: Annotated[list[str], typer.Argument(help="Stores: folders or URLs.")],
    into: Annotated[str, typer.Option(help="The store to merge into; it may contain records already.")],
    as_json: AsJson = False,
) -> None:
    """Copy several stores into one. Nothing is overwritten; conflicting records are both kept and listed."""
    from dataclasses import asdict

    from peft_matrix import api

    done, moved = api.merge(sources, into=into)
    if as_json:
        print_json({**asdict(done), "decisions": moved})
    else:
        typer.echo(
            f"{done.records:,} records and {done.samples:,} sample files copied to {into}, {done.known:,} were there, "
            f"{len(done.conflicts)} conflicts, {len(done.left_out)} left out, {moved} decisions."
        )
        for one in done.conflicts:
            sides = "; ".join(f"{s.store}: {s.id} {s.status} {s.finished}" for s in one.sides)
            typer.echo(
                f"Conflict, both kept: {one.label} ({one.key}) attempt {one.attempt}, other {one.differs}: {sides}"
            )
        for damage in done.left_out:
            typer.echo(f"Left out: {damage.path}: {damage.reason}")
    if done.left_out:
        raise typer.Exit(EXIT_FAILED_CELLS)
