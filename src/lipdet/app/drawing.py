"""Panels: what a detector sees, what is proven about it, and what an attack changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from lipdet.app.exhibits import Exhibit
from lipdet.app.views import Attacked, View, regions
from lipdet.report.attacks import to_picture
from lipdet.report.marks import TEXT, Mark, draw_marks, text_font
from lipdet.types import Detections

SIDE = 370


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


def clean_panel(view: View, exhibit: Exhibit, epsilon: float) -> Panel:
    """Return the square as it is, with boxes, radii, and regions at ε."""
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
    """Return the attacked square with its boxes; about this square nothing is proven."""
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
    """Return what the attack added, magnified to the full range of colours."""
    change = attacked.image - view.image
    largest = float(change.abs().max())
    gain = max(1.0, float(f"{0.5 / largest:.0e}")) if largest > 0 else 1.0
    norm = float(change.double().norm())
    caption = f"perturbation × {gain:g}, L2 {norm:.3f}"
    return Panel(_draw(0.5 + gain * change, []), caption, f"{view.name}, {caption}")


def read(found: Detections, exhibit: Exhibit) -> str:
    """Return the names of what is found, left to right."""
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
    font = text_font(TEXT - 3)
    for row, (name, panels) in enumerate(rows):
        top = gap + row * height
        pen.text((gap, top), name, "black", text_font(TEXT))
        for column, panel in enumerate(panels):
            left = gap + column * (SIDE + gap)
            pen.text((left, top + line), panel.caption, "black", font)
            canvas.paste(panel.picture, (left, top + 2 * line))
    return canvas


def _draw(image: Tensor, marks: Sequence[Mark]) -> Image.Image:
    return draw_marks(to_picture(image), marks, SIDE)
