"""One self-contained page with a table of results and pictures; it needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lipdet.report.table import COLUMNS, rows

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #8886; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; }
"""


class Figure(NamedTuple):
    """A picture with what it shows."""

    image: Image.Image
    caption: str


def write_page(
    path: Path, title: str, results: Sequence[dict[str, Any]], figures: Sequence[Figure]
) -> None:
    """Write the page.

    Args:
        path: the html file.
        title: heading of the page.
        results: json objects of `lipdet eval`, in the order to show.
        figures: pictures, embedded as PNG.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(results)
    )
    shown = "".join(
        f'<figure><img alt="{escape(figure.caption)}" src="{_data_url(figure.image)}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in figures
    )
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div><p>Average precision in percent, clean pictures.</p>{shown}</body></html>\n",
        encoding="utf-8",
    )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
