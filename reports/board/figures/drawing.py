"""Shared by all figures: style, reproducible bytes, and embedding into a page.

Time stamps, random ids and the fonts of the machine stay out: metadata dates are removed, the SVG's ids are
salted with a constant, and DejaVu Sans, which matplotlib carries, draws the letters.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from reports.board.board import BoardRow
from reports.board.formats.text import plain

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes

INK, FAINT, ACCENT = "#1f2933", "#8a97a6", "#0b6e4f"
"""Text and frame; grid and error bars; the Pareto front. The page maps them to its own light and dark colours."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
COLOURS = ("#2828a0", "#f0a000", "#00c8a0", "#785000", "#f078c8", "#285050", "#a07850", "#c800f0", "#787878", "#000000")
"""Every two differ by CIEDE2000 >= 15, in normal vision and in simulated deuteranopia and protanopia."""
LABEL_CHARACTERS = 18
MOST_NAMES = 20
MOST_ROWS = 60
"""Lines of one figure; more cannot be read."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "peft-matrix",
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "text.parse_math": False,  # a name may hold a dollar sign
    "figure.dpi": 100,
}
PAPER = {"font.size": 7.5, "axes.linewidth": 0.5, "lines.markersize": 4}
COLUMN = 3.3
"""Width of a paper's column in inches, and of the pdf: it is printed without scaling."""
PAPER_HEIGHT = 0.75
"""Height of the pdf over that of the page's figure: lines of text shrink from 9 to 7.5 points."""
METADATA: dict[str, dict[str, object]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
}


def save(paint: Callable[[Axes], None], *, width: float = 7.2, height: float = 4.2) -> dict[str, bytes]:
    """A figure as svg and png for pages, and as pdf for a paper: as wide as a column, with letters of its size.

    Args:
        paint: draws on the axes it is given.
        width: inches; ``height`` likewise.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = {}
    sizes = (("svg", "png"), STYLE, (width, height)), (("pdf",), STYLE | PAPER, (COLUMN, height * PAPER_HEIGHT))
    for kinds, style, size in sizes:
        with mpl.rc_context(style), warnings.catch_warnings():
            # a name in a script that DejaVu lacks is drawn as boxes; the table has it in full
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            paint(figure.add_subplot())
            for kind in kinds:
                out = io.BytesIO()
                figure.savefig(out, format=kind, metadata=METADATA[kind], dpi=160)
                files[kind] = out.getvalue()
    return files


def row_name(row: BoardRow) -> str:
    """A row as an axis names it: method, and quantization where the base is quantized."""
    method, quantization = row.labels["method"], row.labels["quantization"]
    text = method if quantization == "none" else f"{method} / {quantization}"
    return plain(text, 2 * LABEL_CHARACTERS)


def name_rows(axes: Axes, names: list[str]) -> None:
    """One tick a row, the first on top; no name is taken for a formula."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.grid(visible=True, axis="x", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def rows_height(rows: int) -> float:
    """Height in inches of a figure with one line a row."""
    return 1.1 + 0.2 * max(4, rows)


_COLOUR_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", ACCENT: "var(--accent)"}


def for_page(svg: bytes, *, prefix: str) -> str:
    """The figure as an element of a page: no XML head, no background, ink in the page's colours.

    Args:
        prefix: put before every id, so that several figures share a page.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for patch in ("patch_1", "patch_2"):  # matplotlib's names of the two white backgrounds
        text = re.sub(rf'(<g id="{patch}">\s*<path [^>]*?style="fill: )#ffffff', r"\1none", text, count=1)
    for colour, variable in _COLOUR_VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}", text)
    # a size in points would not shrink on a phone; the viewBox keeps the shape
    return re.sub(r"<svg [^>]*>", lambda head: re.sub(r' (width|height)="[^"]*"', "", head[0]), text, count=1)
