"""Lists of sweeps, methods, quantizers, tasks, models, environments, and their compatibility."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from peft_matrix.results import Rows
from peft_matrix.targets import open_workspace


def sweeps() -> Rows:
    """The sweeps of the workspace and the built-in ones."""
    from runners.tools import queries

    return Rows(queries.sweeps(open_workspace()))


def methods(name: str | None = None, *, family: str | None = None, trains_on: str | None = None) -> Rows:
    """The fine-tuning methods, each with a committed record in which it learns, or why there is none.

    Args:
        name: of one method.
        family: ``adapter``, ``optimizer``, ...
        trains_on: a kind of quantized base, in full (``bnb-nf4``) or its end (``nf4``); ``fp`` for none.

    Raises:
        UserError: no method has this name, family or base.
    """
    from harness.errors import UserError, did_you_mean
    from reports.apps import evidence
    from runners.tools import queries

    known = evidence.known()
    rows = [{**row, "evidence": known[row["method"]]} for row in queries.methods()]
    for field, what, wanted in (("method", "name", name), ("family", "family", family), ("bases", "base", trains_on)):
        if wanted is not None:
            there = {form for row in rows for form in _forms(row[field])}
            rows = [row for row in rows if wanted in _forms(row[field])]
            if not rows:
                raise UserError(f"no method has the {what} {wanted!r}", fix=did_you_mean(wanted, sorted(there)))
    return Rows(rows)


def _forms(value: str | list[str]) -> set[str]:
    """Spellings that a filter accepts: a base in full, and its end (``bnb-nf4``, ``nf4``)."""
    return {value} if isinstance(value, str) else {form for base in value for form in (base, base.rpartition("-")[2])}


def objectives() -> Rows:
    """The objectives: supervised, preference and distillation losses."""
    from harness.objectives import catalog

    return Rows(catalog.rows())


def recipes() -> Rows:
    """The recipes: changes of the training rows."""
    from harness.recipes import catalog

    return Rows(catalog.rows())


def quantizers() -> Rows:
    """The quantizers, and whether each runs on this machine."""
    from runners.tools import queries

    return Rows(queries.quantizers())


def tasks(*, data_root: str | Path | None = None) -> Rows:
    """The tasks of the workspace and the built-in ones."""
    from runners.tools import queries

    return Rows(queries.tasks(open_workspace(None, data_root)))


def tasks_page() -> str:
    """The page of the built-in tasks, as Markdown."""
    from tasks.catalog import to_markdown

    return to_markdown()


def models() -> Rows:
    """The built-in models, and how to name any other."""
    from runners.tools import queries

    return Rows(queries.models())


def doctor() -> Rows:
    """Capabilities of this machine, and what to install for the rest."""
    from runners.tools import queries

    return Rows(queries.doctor(open_workspace()))


def compat(*, device: str = "*", method: str = "*", quantizer: str = "*", kind: str = "causal-lm") -> Rows:
    """Compatibility of methods, quantizers and devices: true, or the reason why not.

    Args:
        device: shell-style pattern, as are ``method`` and ``quantizer``.
        kind: of model: ``causal-lm`` or ``sequence-classification``.

    Raises:
        UserError: an unknown kind of model, or no pair matches.
    """
    from runners.tools import compat as table

    return Rows(table.as_rows(table.select(device=device, kind=kind, method=method, quantizer=quantizer)))


def compat_groups(*, device: str = "*", method: str = "*", quantizer: str = "*", kind: str = "causal-lm") -> Rows:
    """:func:`compat` in few rows: the quantizers that answer alike share one."""
    from runners.tools import compat as table

    return Rows(table.by_answer(table.select(device=device, kind=kind, method=method, quantizer=quantizer)))


def compat_page(*, device: str = "*", method: str = "*", quantizer: str = "*", kind: str = "causal-lm") -> str:
    """:func:`compat` as Markdown: one table per device."""
    from runners.tools import compat as table

    return table.to_markdown(table.select(device=device, kind=kind, method=method, quantizer=quantizer))


def environments() -> Rows:
    """The side environments of back ends whose packages conflict with ours."""
    from runners import environments as side

    return Rows(side.rows(open_workspace().cache))


def create_environment(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """Build a side environment; returns its folder.

    Raises:
        UserError: no such environment, or its packages cannot be installed.
    """
    from runners import environments as side

    return side.create(name, open_workspace().cache, say)
