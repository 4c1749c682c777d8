"""Pieces of the page: cells that know where in the json their number stands, tables, figures.

Notable choices:
- A number enters the page only through its path in the report's json, which the page carries, so
  that nothing on it can differ from what was measured.
- Everything is escaped where it is put into markup; nothing escapes earlier.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple, NotRequired, TypedDict

from PIL import Image

from lipdet.files import png
from lipdet.report.style import Drawing, inline_svg
from lipdet.report.table import percent
from lipdet.results import EvaluationResult

Drawings = dict[str, Drawing]

MISSING = "not measured"


class Document(TypedDict):
    """The json of a page: results, and of the same detectors what else is known of each."""

    results: Sequence[EvaluationResult]
    detectors: Sequence[dict[str, Any]]
    audit: NotRequired[Any]


class Cell(NamedTuple):
    """Text, and the path of the json value it shows, if it is one."""

    text: str
    path: str = ""


class Section(NamedTuple):
    """A part of the page with its heading."""

    name: str
    heading: str
    body: str


def number(document: Any, path: str, form: Callable[[Any], str] = percent) -> Cell:
    """Return the value at `a/0/b` in a json document; "not measured" if there is none.

    Args:
        document: the report's json.
        path: keys as in a JSON Pointer (RFC 6901): `~1` stands for a slash in a key.
        form: turns the value into text.
    """
    value = document
    for key in (key.replace("~1", "/").replace("~0", "~") for key in path.split("/")):
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, TypeError):
            return Cell(MISSING)
    return Cell(form(value), path)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> str:
    """Return a table that scrolls on its own where it is wider than the page."""
    top = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = "".join(
        "<tr>" + "".join(_cell(cell, first=not i) for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(drawing: Drawing) -> str:
    """Return a drawing with its caption."""
    return (
        f'<figure><div class="scroll">{inline_svg(drawing)}</div>'
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
    )


def figures(drawings: Drawings, *names: str) -> str:
    """Return the named drawings that exist, side by side where there is room."""
    shown = "".join(figure(drawings[name]) for name in names if name in drawings)
    return shown and f'<div class="pair">{shown}</div>'


def tile(drawn: Image.Image, alternative: str, name: str, caption: str) -> str:
    """Return a picture, what can be read off it, and in bold whose it is before its caption."""
    url, whose = data_url("image/png", png(drawn)), f"<b>{escape(name)}</b>, " if name else ""
    return (
        f'<figure class="tile"><svg role="img" viewBox="0 0 {drawn.width} {drawn.height}">'
        f"<title>{escape(alternative)}</title>"
        f'<image width="{drawn.width}" height="{drawn.height}" href="{url}"/>'
        f"</svg><figcaption>{whose}{escape(caption)}</figcaption></figure>"
    )


def details(summary: str, body: str) -> str:
    """Return a body that is folded away below its summary."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def data_url(kind: str, data: bytes) -> str:
    """Return a file of this media type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def paragraph(text: str) -> str:
    """Return plain words as a paragraph."""
    return f"<p>{escape(text)}</p>"


def _cell(cell: Cell | str, first: bool) -> str:
    text, path = (cell, "") if isinstance(cell, str) else cell
    if first:
        return f'<th scope="row">{escape(text)}</th>'
    mark = f' data-path="{escape(path)}"' if path else ""
    return f"<td{mark}>{escape(text)}</td>"
