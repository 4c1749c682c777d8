"""Boxes with certificates, drawn on pixels with the marks of the report.

Blue and solid is certified, orange and dashed is not, and shaded is where a certified box can be at
worst.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from lipdet.report.gallery import CERTIFIED, UNCERTIFIED

TEXT = 16
DASH = 7
SHADE = 0.2

Box = Sequence[float]


class Mark(NamedTuple):
    """One box to draw, in pixels of the picture.

    Attributes:
        box: x1, y1, x2, y2.
        text: beside it.
        region: where the box can be at worst, if that is certified.
    """

    box: Box
    text: str
    region: Box | None


@cache
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font that has ε, ≤ and ×, which Pillow's own lacks; it comes with matplotlib."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def draw_marks(picture: Image.Image, marks: Sequence[Mark], side: int) -> Image.Image:
    """A square picture enlarged to `side` pixels, with its marks; the first mark is on top."""
    scale = side / picture.width
    canvas = picture.resize((side, side), Image.Resampling.NEAREST)
    for mark in marks:
        if mark.region:
            _shade(canvas, _scaled(mark.region, scale, side))
    pen = ImageDraw.Draw(canvas)
    for mark in reversed(marks):
        box = _scaled(mark.box, scale, side)
        if mark.region:
            pen.rectangle(box, outline=CERTIFIED, width=3)
        else:
            _dashed(pen, box)
    taken: list[Box] = []
    for mark in marks:
        colour = CERTIFIED if mark.region else UNCERTIFIED
        area, place = _free_place(pen, _scaled(mark.box, scale, side), mark.text, side, taken)
        taken.append(area)
        pen.rectangle(area, "black")
        pen.text(place, mark.text, colour, text_font(TEXT))
    return canvas


def with_legend(picture: Image.Image) -> Image.Image:
    """Return a picture with what its marks mean written below it."""
    lines = (
        "certified: a detection of this class stays on it,",
        "however the input changes by up to ε (in L2)",
        "where the box of that detection can be",
        "detected, but nothing is promised",
    )
    line, swatch = TEXT + 6, 26
    canvas = Image.new("RGB", (picture.width, picture.height + line * len(lines) + 8), "white")
    canvas.paste(picture)
    pen = ImageDraw.Draw(canvas)
    for row, text in enumerate(lines):
        top = picture.height + 4 + row * line
        area = (6, top + 4, 6 + swatch, top + line - 4)
        if row == 0:
            pen.rectangle(area, outline=CERTIFIED, width=3)
        elif row == 2:
            _shade(canvas, area)
        elif row == 3:
            _dashed(pen, area)
        pen.text((swatch + 16, top + 2), text, "black", text_font(TEXT - 2))
    return canvas


def _scaled(box: Box, scale: float, side: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = (min(round(value * scale), side - 1) for value in box)
    return left, top, right, bottom


def _free_place(
    pen: ImageDraw.ImageDraw, box: Box, text: str, side: int, taken: Sequence[Box]
) -> tuple[Box, tuple[float, float]]:
    """Return where a text covers no other: above its box if it can, else below it, else inside."""
    left, top, _, bottom = box
    width = pen.textlength(text, text_font(TEXT))
    x = max(0.0, min(left, side - width))
    inside = (top + 4 + step * (TEXT + 4) for step in range(int(bottom - top) // (TEXT + 4)))
    first = max(0.0, top - TEXT - 4)
    for y in (first, min(bottom + 3, side - TEXT - 4), *inside):
        area = pen.textbbox((x, y), text, text_font(TEXT))
        if not any(_meet(area, other) for other in taken):
            return area, (x, y)
    return pen.textbbox((x, first), text, text_font(TEXT)), (x, first)


def _meet(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _shade(canvas: Image.Image, box: tuple[int, int, int, int]) -> None:
    part = canvas.crop(box)
    colour = Image.new("RGB", part.size, CERTIFIED)
    canvas.paste(Image.blend(part, colour, SHADE), box[:2])
    ImageDraw.Draw(canvas).rectangle(box, outline=CERTIFIED)


def _dashed(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    for start, end in _dashes(box):
        pen.line((*start, *end), UNCERTIFIED, 3)


def _dashes(
    box: tuple[int, int, int, int],
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    left, top, right, bottom = box
    for x in range(left, right, 2 * DASH):
        for y in (top, bottom):
            yield (x, y), (min(x + DASH, right), y)
    for y in range(top, bottom, 2 * DASH):
        for x in (left, right):
            yield (x, y), (x, min(y + DASH, bottom))
