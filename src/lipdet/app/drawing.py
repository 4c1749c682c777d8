"""Panels: what a detector sees, what is proven about it, and what an attack changed.

The marks are those of the report: blue and solid is certified, orange and dashed is not, and shaded
is where a certified box can be at worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lipdet.app.exhibits import Exhibit
from lipdet.app.views import Attacked, Box, View, regions
from lipdet.report.attacks import to_picture
from lipdet.report.gallery import CERTIFIED, UNCERTIFIED
from lipdet.types import Detections

SIDE = 370
TEXT = 16
DASH = 7
SHADE = 0.3


class Panel(NamedTuple):
    """A square picture with what it shows in words.

    Attributes:
        picture: SIDE × SIDE.
        caption: one line.
        alternative: for those who cannot see it.
    """

    picture: Image.Image
    caption: str
    alternative: str


class Mark(NamedTuple):
    """One box to draw, in pixels of the network's input.

    Attributes:
        box: x1, y1, x2, y2.
        text: beside it.
        region: where the box can be at worst, if that is certified.
    """

    box: Box
    text: str
    region: Box | None


def clean_panel(view: View, exhibit: Exhibit, epsilon: float) -> Panel:
    """The square as it is, with boxes, radii, and regions at ε."""
    where = regions(view, exhibit, epsilon)
    names = [exhibit.class_names[label] for label in view.found["labels"].tolist()]
    marks = [
        Mark(tuple(box), f"{name} ε≤{radius:.3f}" if radius else name, region)
        for box, name, radius, region in zip(
            view.found["boxes"].tolist(), names, view.radii, where, strict=True
        )
    ]
    count = sum(region is not None for region in where)
    caption = f"clean: {read(view.found, exhibit)}"
    radii = "".join(
        f" {name}: certified up to ε = {radius:.3f}."
        for name, radius in zip(names, view.radii, strict=True)
        if radius
    )
    alternative = f"{caption}. {count} of {len(marks)} certified at ε = {epsilon:g}.{radii}"
    return Panel(_draw(view.image, marks), caption, f"{view.name}, {alternative}")


def attacked_panel(view: View, attacked: Attacked, exhibit: Exhibit) -> Panel:
    """The attacked square with its boxes; about this square nothing is proven."""
    marks = [
        Mark(tuple(box), f"{exhibit.class_names[label]} {100 * score:.0f}%", None)
        for box, label, score in zip(
            attacked.found["boxes"].tolist(),
            attacked.found["labels"].tolist(),
            attacked.found["scores"].tolist(),
            strict=True,
        )
    ]
    caption = f"attacked, ε = {attacked.epsilon:g}: {read(attacked.found, exhibit)}"
    return Panel(_draw(attacked.image, marks), caption, f"{view.name}, {caption}")


def perturbation_panel(view: View, attacked: Attacked) -> Panel:
    """What the attack added, magnified to the full range of colours."""
    change = attacked.image - view.image
    largest = float(change.abs().max())
    gain = max(1.0, float(f"{0.5 / largest:.0e}")) if largest > 0 else 1.0
    norm = float(change.double().norm())
    caption = f"perturbation × {gain:g}, L2 {norm:.3f}"
    return Panel(_draw(0.5 + gain * change, []), caption, f"{view.name}, {caption}")


def read(found: Detections, exhibit: Exhibit) -> str:
    """The names of what is found, left to right."""
    order = found["boxes"][:, 0].argsort()
    names = [exhibit.class_names[label] for label in found["labels"][order].tolist()]
    return " ".join(names) or "nothing"


def sheet(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Image.Image:
    """Panels of several detectors: a row for each, with its name and captions.

    Args:
        rows: name and panels of each detector, at least one.
    """
    line, gap = TEXT + 8, 8
    height = SIDE + 2 * line + gap
    columns = max(len(panels) for _, panels in rows)
    canvas = Image.new("RGB", (columns * (SIDE + gap) + gap, len(rows) * height + gap), "white")
    pen = ImageDraw.Draw(canvas)
    font = _font(TEXT - 3)
    for row, (name, panels) in enumerate(rows):
        top = gap + row * height
        pen.text((gap, top), name, "black", _font(TEXT))
        for column, panel in enumerate(panels):
            left = gap + column * (SIDE + gap)
            pen.text((left, top + line), panel.caption, "black", font)
            canvas.paste(panel.picture, (left, top + 2 * line))
    return canvas


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font that has ε, ≤ and ×, which Pillow's own lacks; it comes with matplotlib."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _draw(image: Tensor, marks: Sequence[Mark]) -> Image.Image:
    """The picture enlarged, with its marks; the first mark is on top."""
    scale = SIDE / image.shape[-1]
    small = to_picture(image)
    canvas = small.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    for mark in marks:
        if mark.region:
            _shade(canvas, [round(value * scale) for value in mark.region])
    pen = ImageDraw.Draw(canvas)
    font = _font(TEXT)
    for mark in reversed(marks):
        colour = CERTIFIED if mark.region else UNCERTIFIED
        left, top, right, bottom = (min(round(value * scale), SIDE - 1) for value in mark.box)
        if mark.region:
            pen.rectangle((left, top, right, bottom), outline=colour, width=3)
        else:
            _dashed(pen, (left, top, right, bottom), colour)
        width = pen.textlength(mark.text, font)
        place = (max(0.0, min(left, SIDE - width)), max(0, top - TEXT - 4))
        pen.rectangle(pen.textbbox(place, mark.text, font), "black")
        pen.text(place, mark.text, colour, font)
    return canvas


def _shade(canvas: Image.Image, box: Sequence[int]) -> None:
    part = canvas.crop(tuple(box))  # type: ignore[arg-type]
    colour = Image.new("RGB", part.size, CERTIFIED)
    canvas.paste(Image.blend(part, colour, SHADE), (box[0], box[1]))


def _dashed(pen: ImageDraw.ImageDraw, box: Sequence[int], colour: str) -> None:
    left, top, right, bottom = box
    for x in range(left, right, 2 * DASH):
        for y in (top, bottom):
            pen.line((x, y, min(x + DASH, right), y), colour, 3)
    for y in range(top, bottom, 2 * DASH):
        for x in (left, right):
            pen.line((x, y, x, min(y + DASH, bottom)), colour, 3)
