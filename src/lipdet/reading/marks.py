"""Detections drawn on pixels: one set of marks for all pictures.

Where certificates were asked for, blue and solid is certified, orange and dashed is not, and shaded
is where a certified box can be at worst. Elsewhere each class has its colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lipdet.images.ink import font_path
from lipdet.images.tensors import to_uint8
from lipdet.reading.detections import Box, Detection, radius_text
from lipdet.types import Canvas

# Okabe and Ito's colour-blind-safe colours, without black and with two greys: one per digit.
COLOURS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2",
    "#d55e00", "#cc79a7", "#ffffff", "#bbbbbb", "#777777",
)  # fmt: skip
CERTIFIED, UNCERTIFIED = "#56b4e9", "#e69f00"
SHADE = 0.2
# Height of texts in pixels; lines and dashes go with it.
TEXT = 16
SMALLEST_SIDE = 296
CERTIFICATE_SIDE = 444
LEGEND = (
    "certified: a detection of this class stays on it,",
    "however the input changes by up to its ε (in L2)",
    "where the box of that detection can be",
    "detected, but nothing is promised",
)
# Line of the legend to the colour of its swatch.
SWATCHES = {0: CERTIFIED, 3: UNCERTIFIED}
SHADED = 2

Pixels = tuple[int, int, int, int]


class Mark(NamedTuple):
    """One box to draw, in pixels of the picture.

    Attributes:
        box: x1, y1, x2, y2.
        text: beside it.
        colour: of both.
        reach: where the box can be at worst, if that is certified.
        dashed: whether the border is.
    """

    box: Box
    text: str
    colour: str
    reach: Box | None = None
    dashed: bool = False


def certificate_marks(found: Sequence[Detection]) -> list[Mark]:
    """Return boxes with radii, and with their reach where they are certified.

    Where no radius was asked for, with scores.
    """
    marks = []
    for one in found:
        text = f"{one.label} ε≤{radius_text(one.radius)}" if one.radius else one.label
        if one.radius is None:
            text = _with_score(one)
        sure = one.reach is not None
        colour = CERTIFIED if sure else UNCERTIFIED
        marks.append(Mark(one.box, text, colour, one.reach, dashed=not sure))
    return marks


def draw(
    picture: Image.Image, marks: Sequence[Mark], scale: float, text: int = TEXT
) -> Image.Image:
    """Return a picture, enlarged, with its marks; the first mark is on top.

    Args:
        picture: RGB.
        marks: in pixels of it.
        scale: by which it is enlarged.
        text: height of texts in pixels of the result.
    """
    size = round(picture.width * scale), round(picture.height * scale)
    canvas = picture.resize(size, Image.Resampling.NEAREST)
    for mark in marks:
        if mark.reach:
            _shade(canvas, _scaled(mark.reach, scale, size), mark.colour)
    pen = ImageDraw.Draw(canvas)
    for mark in reversed(marks):
        _outline(pen, _scaled(mark.box, scale, size), mark.colour, mark.dashed, text)
    taken: list[Box] = []
    for mark in marks:
        box = _scaled(mark.box, scale, size)
        words = " ".join(mark.text.split())  # Only a single line can be measured.
        area, place = _free_place(pen, box, words, size, taken, text_font(text))
        taken.append(area)
        pen.rectangle(area, "black")
        pen.text(place, words, mark.colour, text_font(text))
    return canvas


def draw_classes(
    picture: Image.Image, found: Sequence[Detection], class_names: Sequence[str]
) -> Image.Image:
    """Return a picture, enlarged until it can be read, with classes and scores."""
    colours = {name: COLOURS[label % len(COLOURS)] for label, name in enumerate(class_names)}
    marks = [Mark(one.box, _with_score(one), colours[one.label]) for one in found]
    return draw(picture, marks, max(1, -(-SMALLEST_SIDE // min(picture.size))))


def draw_certificates(picture: Image.Image, found: Sequence[Detection]) -> Image.Image:
    """Return what a network sees with what is certified of it, and a legend."""
    drawn = draw(picture, certificate_marks(found), CERTIFICATE_SIDE / min(picture.size))
    line, swatch = TEXT + 6, 26
    size = Canvas(picture.height, picture.width)
    legend = (*LEGEND, f"ε = 0.1 is {size.in_grey_levels(0.1)} (root mean square)")
    font = text_font(TEXT - 2)
    width = max(drawn.width, swatch + 22 + round(max(map(font.getlength, legend))))
    canvas = Image.new("RGB", (width, drawn.height + line * len(legend) + 8), "white")
    canvas.paste(drawn)
    pen = ImageDraw.Draw(canvas)
    for row, text in enumerate(legend):
        top = drawn.height + 4 + row * line
        area = (6, top + 4, 6 + swatch, top + line - 4)
        if row == SHADED:
            _shade(canvas, area, CERTIFIED)
        elif row in SWATCHES:
            _outline(pen, area, SWATCHES[row], SWATCHES[row] == UNCERTIFIED, TEXT)
        pen.text((swatch + 16, top + 2), text, "black", font)
    return canvas


@cache
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font that has ε, ≤ and ×, which Pillow's own lacks; it comes with matplotlib."""
    return ImageFont.truetype(font_path("DejaVuSans"), size)


def to_picture(image: Tensor) -> Image.Image:
    """Return an image (3, H, W) in [0, 1], clipped to that, as an 8-bit RGB picture."""
    return Image.fromarray(to_uint8(image))


def magnified(change: Tensor) -> tuple[Image.Image, float]:
    """Return a change (3, H, W) of an image, magnified about grey, and by how much."""
    largest = float(change.abs().max())
    # Down to one digit, for the caption.
    gain = max(1.0, float(f"{0.5 / largest:.0e}")) if largest > 0 else 1.0
    return to_picture(0.5 + gain * change), gain


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """Return a picture with a line of text above it."""
    line = TEXT + 8
    canvas = Image.new("RGB", (picture.width, picture.height + line), "white")
    canvas.paste(picture, (0, line))
    ImageDraw.Draw(canvas).text((2, 2), text, "black", text_font(TEXT - 3))
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return pictures of one size, row by row, with a thin gap."""
    gap = 4
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet


def _with_score(one: Detection) -> str:
    return f"{one.label} {100 * one.score:.0f}%"


def _scaled(box: Box, scale: float, size: tuple[int, int]) -> Pixels:
    ends = zip(box, (*size, *size), strict=True)
    x1, y1, x2, y2 = (min(round(value * scale), side - 1) for value, side in ends)
    # A detector of the user's own may turn a box round.
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _free_place(
    pen: ImageDraw.ImageDraw,
    box: Pixels,
    text: str,
    size: tuple[int, int],
    taken: Sequence[Box],
    font: ImageFont.FreeTypeFont,
) -> tuple[Box, tuple[float, float]]:
    """Return where a text covers no other: above its box if it can, else below it, else inside."""
    left, top, _, bottom = box
    line = int(font.size) + 4
    x = max(0.0, min(left, size[0] - pen.textlength(text, font)))
    inside = (top + 4 + step * line for step in range((bottom - top) // line))
    first = max(0.0, top - line)
    for y in (first, min(bottom + 3, size[1] - line), *inside):
        area = pen.textbbox((x, y), text, font)
        if not any(_meet(area, other) for other in taken):
            return area, (x, y)
    return pen.textbbox((x, first), text, font), (x, first)


def _meet(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _shade(canvas: Image.Image, box: Pixels, colour: str) -> None:
    part = canvas.crop(box)
    canvas.paste(Image.blend(part, Image.new("RGB", part.size, colour), SHADE), box[:2])
    ImageDraw.Draw(canvas).rectangle(box, outline=colour)


def _outline(pen: ImageDraw.ImageDraw, box: Pixels, colour: str, dashed: bool, text: int) -> None:
    width, dash = 3 * text // TEXT, 7 * text // TEXT
    left, top, right, bottom = box
    if not dashed:
        pen.rectangle(box, outline=colour, width=width)
        return
    for x in range(left, right, 2 * dash):
        for y in (top, bottom):
            pen.line((x, y, min(x + dash, right), y), colour, width)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right):
            pen.line((x, y, x, min(y + dash, bottom)), colour, width)
