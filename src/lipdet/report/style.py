"""The one style of all figures: colours, sizes, and how a figure becomes a file or part of a page.

Notable choices:
- Okabe and Ito's colours, told apart with every colour vision; markers and lines differ too.
- Figures are as wide as a column of a paper, so that their text can be read on a phone as well.
- In a page, ink takes the colour of the text around it: one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipdet.files import write_complete

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"
COLUMN = 4.4
FORMATS = ("svg", "png")

_SETTINGS = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "lipdet",
    # Names of detectors and classes are data: a dollar sign in one starts no formula.
    "text.parse_math": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
}


class Drawing(NamedTuple):
    """A figure with what it is called and what it shows.

    Attributes:
        name: stem of its files.
        figure: in the style of this module.
        caption: one or two sentences.
        alternative: what can be read off it, for those who cannot see it.
    """

    name: str
    figure: Figure
    caption: str
    alternative: str


LONGEST_NAME = 40

# Decorates every function that draws.
styled = matplotlib.rc_context(_SETTINGS)  # type: ignore[arg-type]


def new_figure(height: float = 3.0, width: float = COLUMN) -> tuple[Figure, Axes]:
    """Make a figure of `width` by `height` inches with one pair of axes; call it in `styled`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def in_legend(name: str) -> str:
    """Return a name as a legend has room for it; of a long path the end tells most."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def colour(index: int) -> str:
    """Return the colour of the detector in this place; the seventh repeats for all after it."""
    return COLOURS[min(index, len(COLOURS) - 1)]


def marker(index: int) -> str:
    """Return the marker of the detector in this place."""
    return MARKERS[min(index, len(MARKERS) - 1)]


def save_drawing(drawing: Drawing, folder: Path) -> list[Path]:
    """Write a drawing as SVG and PNG into a folder that exists; return the files."""
    files = [folder / f"{drawing.name}.{ending}" for ending in FORMATS]
    for file in files:
        write_complete(file, _rendered(drawing.figure, file.suffix[1:]))
    return files


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure to a file, whose ending chooses the format."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file.suffix[1:] or None)
    write_complete(file, buffer.getvalue())


def inline_svg(drawing: Drawing) -> str:
    """Return the drawing as an `<svg>` element for a page, with its alternative text."""
    text = _rendered(drawing.figure, "svg", transparent=True).decode()
    # Addresses of vocabularies, and a style that would hold for the whole page.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    # Identities must differ between the figures of a page.
    text = re.sub(r'\bid="', f'id="{drawing.name}-', text)
    text = re.sub(r'href="#', f'href="#{drawing.name}-', text)
    text = text.replace("url(#", f"url(#{drawing.name}-").replace(INK, "currentColor")
    width, height = (points * 72 for points in drawing.figure.get_size_inches())
    body = text[text.index(">", text.index("<svg")) + 1 :]
    return (
        f'<svg role="img" viewBox="0 0 {width:g} {height:g}" style="--width:{width:g}pt">'
        f"<title>{escape(drawing.alternative)}</title>{body}"
    )


@styled
def _rendered(figure: Figure, ending: str, transparent: bool = False) -> bytes:
    buffer = io.BytesIO()
    # No date: the same figure gives the same file.
    dateless = {"Date": None} if ending == "svg" else {}
    figure.savefig(buffer, format=ending, transparent=transparent, metadata=dateless)
    return buffer.getvalue()
