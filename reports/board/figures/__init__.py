"""Figures for papers and pages: matplotlib, the same bytes for the same board.

One module a figure, each with ``FILE``, ``NAME``, ``CAPTION`` and ``draw``, which gives the figure or the reason why
there is none. A figure without data is left out and its reason listed; nothing is drawn empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.digests import slug
from reports.board.board import BoardTable, Section
from reports.board.figures import energy, heatmap, memory, power, ranks, rates, switches, tradeoff
from reports.board.figures.drawing import for_page

__all__ = ["Drawing", "LeftOut", "draw_all", "figure_files", "figure_names", "for_page"]

Files = dict[str, bytes]
_Draw = Callable[[BoardTable, Section], "Files | str"]


@dataclass(frozen=True)
class Drawing:
    """One figure of one section.

    Attributes:
        name: file name without ending.
        section: number of the section on the board, from 0.
        kind: what is drawn, a ``NAME`` of a module of this package.
        files: ending to content, with the endings ``svg``, ``png`` and ``pdf``.
    """

    name: str
    section: int
    kind: str
    caption: str
    files: Files


@dataclass(frozen=True)
class LeftOut:
    """A figure that could not be drawn, and why."""

    section: int
    kind: str
    why: str


_FIGURES: tuple[tuple[object, _Draw], ...] = (
    (tradeoff, lambda _, section: tradeoff.draw(section)),
    *((module, module.draw) for module in (ranks, heatmap, memory, energy, rates, power)),
)


def draw_all(table: BoardTable) -> tuple[list[Drawing], list[LeftOut]]:
    """Every figure of every section, in the order of the board, and what was left out."""
    drawn: list[Drawing] = []
    left_out: list[LeftOut] = []
    compares = any(column.show == "ratio_to_plain" for column in table.board.columns)
    for number, section in enumerate(table.sections):
        for module, draw in (*_FIGURES, *(((switches, switches.draw),) if compares else ())):
            found = draw(table, section)
            if isinstance(found, str):
                left_out.append(LeftOut(number, module.NAME, found))
            else:
                base = tradeoff.base_name(section) if module is tradeoff else module.FILE
                name = base + _tail(table, number)
                drawn.append(Drawing(name, number, module.NAME, module.CAPTION, found))
    return drawn, left_out


def figure_files(table: BoardTable) -> Files:
    """File name to content of every figure."""
    return {f"{one.name}.{kind}": data for one in draw_all(table)[0] for kind, data in one.files.items()}


def figure_names(table: BoardTable) -> list[str]:
    """File name (without ending) of every section's trade-off; "" where a section has none."""
    return [
        tradeoff.base_name(section) + _tail(table, number) if tradeoff.points(section) else ""
        for number, section in enumerate(table.sections)
    ]


def _tail(table: BoardTable, number: int) -> str:
    return f".{number + 1}-{slug(table.sections[number].title)}" if len(table.sections) > 1 else ""
