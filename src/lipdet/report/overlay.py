"""Detections drawn on their picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from lipdet.report.marks import Mark, draw_marks, text_font, with_legend
from lipdet.types import Detections

# Okabe and Ito's colour-blind-safe colours, without black and with two greys: one per digit.
COLOURS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2",
    "#d55e00", "#cc79a7", "#ffffff", "#bbbbbb", "#777777",
)  # fmt: skip
SMALLEST_SIDE = 296
LABEL_HEIGHT = 22
CERTIFICATE_SIDE = 444


def draw_detections(
    image: Image.Image, detections: Detections, class_names: Sequence[str]
) -> Image.Image:
    """Return the picture, enlarged until it can be read, with boxes, class names and scores.

    Args:
        image: RGB.
        detections: boxes in pixels of `image`.
        class_names: names in the order of the labels.
    """
    scale = max(1, -(-SMALLEST_SIDE // min(image.size)))
    canvas = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    font = text_font(LABEL_HEIGHT - 4)
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
    """A square with each box, the radius up to which it remains, where it then lies, and a legend.

    Args:
        image: RGB, what the network sees.
        detections: boxes in pixels of `image`.
        radii: of each; 0 where nothing is promised.
        regions: of each, xyxy.
        class_names: names in the order of the labels.
    """
    names = [class_names[label] for label in detections["labels"].tolist()]
    marks = [
        Mark(box, f"{name} ε {radius:.3f}", region) if radius > 0 else Mark(box, name, None)
        for name, box, radius, region in zip(
            names, detections["boxes"].tolist(), radii, regions, strict=True
        )
    ]
    return with_legend(draw_marks(image, marks, CERTIFICATE_SIDE))


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return pictures of one size, row by row, with a thin gap."""
    gap = 4
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet
