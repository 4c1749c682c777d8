"""Detections drawn on their picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lipdet.types import Detections

# Okabe and Ito's colour-blind-safe colours, without black and with two greys: one per digit.
COLOURS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2",
    "#d55e00", "#cc79a7", "#ffffff", "#bbbbbb", "#777777",
)  # fmt: skip
SMALLEST_SIDE = 296
LABEL_HEIGHT = 22


def draw_detections(
    image: Image.Image, detections: Detections, class_names: Sequence[str]
) -> Image.Image:
    """The picture, enlarged until it can be read, with boxes, class names and scores.

    Args:
        image: RGB.
        detections: boxes in pixels of `image`.
        class_names: names in the order of the labels.
    """
    scale = max(1, -(-SMALLEST_SIDE // min(image.size)))
    canvas = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(LABEL_HEIGHT - 4)
    # The best detection is drawn last, on top.
    for box, label, score in reversed(
        list(
            zip(
                detections["boxes"].tolist(),
                detections["labels"].tolist(),
                detections["scores"].tolist(),
                strict=True,
            )
        )
    ):
        left, top, right, bottom = (value * scale for value in box)
        colour = COLOURS[label % len(COLOURS)]
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, colour, 2)
        text = f"{class_names[label]} {100 * score:.0f}%"
        place = (left, max(0, top - LABEL_HEIGHT))
        pen.rectangle(pen.textbbox(place, text, font), "black")
        pen.text(place, text, colour, font)
    return canvas


def draw_certificates(
    image: Image.Image,
    detections: Detections,
    radii: Sequence[float],
    regions: Sequence[Sequence[float]],
    class_names: Sequence[str],
) -> Image.Image:
    """The picture with each box, the radius up to which it remains, and where it then lies.

    Args:
        image: RGB, what the network sees.
        detections: boxes in pixels of `image`.
        radii: of each; 0 where nothing is promised.
        regions: of each, xyxy: drawn dotted around what is promised.
        class_names: names in the order of the labels.
    """
    scale = max(1, -(-SMALLEST_SIDE // min(image.size)))
    canvas = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(LABEL_HEIGHT - 4)
    rows = zip(
        detections["boxes"].tolist(), detections["labels"].tolist(), radii, regions, strict=True
    )
    for box, label, radius, region in reversed(list(rows)):
        colour = COLOURS[label % len(COLOURS)]
        left, top, right, bottom = (value * scale for value in box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, colour, 2)
        if radius > 0:
            _dotted(pen, [value * scale for value in region], colour)
        text = f"{class_names[label]} ε {radius:.3f}" if radius > 0 else f"{class_names[label]} –"
        place = (left, max(0, top - LABEL_HEIGHT))
        pen.rectangle(pen.textbbox(place, text, font), "black")
        pen.text(place, text, colour, font)
    return canvas


def _dotted(pen: ImageDraw.ImageDraw, box: Sequence[float], colour: str) -> None:
    left, top, right, bottom = (round(value) for value in box)
    for x in range(left, right, 6):
        for y in (top, bottom - 1):
            pen.line((x, y, min(x + 2, right), y), colour, 2)
    for y in range(top, bottom, 6):
        for x in (left, right - 1):
            pen.line((x, y, x, min(y + 2, bottom)), colour, 2)


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size, row by row, with a thin gap."""
    gap = 4
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet
