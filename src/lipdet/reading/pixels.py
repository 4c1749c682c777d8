"""A segmented picture: its classes, and how far each pixel is from another, as pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from lipdet.reading.marks import COLOURS, text_font

# Opacity of a class or a radius over the picture.
OPACITY = 0.55
# Radii are shown on a logarithmic scale between these; what lies beyond has the colour of the end.
RADII = (0.01, 3.0)
TICKS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
COLOUR_MAP = "viridis"
# Of the colour bar and its text, in pixels.
BAR, TEXT, GAP = 18, 14, 8
# Pictures are enlarged to this at least, so that the bar's text can be read beside them.
SMALLEST = 256
# Of pixels whose class changed; no class has it.
FLIPPED = "#ff00ff"


def draw_classes(picture: Image.Image, predicted: NDArray[np.int64]) -> Image.Image:
    """Return a picture with all classes (H, W) but the first in their colours."""
    table = np.array([ImageColor.getrgb(colour) for colour in COLOURS], np.uint8)
    tint = table[(predicted - 1) % len(table)]
    return _blended(picture, tint, np.where(predicted > 0, OPACITY, 0.0))


def draw_flips(picture: Image.Image, flipped: NDArray[np.bool_]) -> Image.Image:
    """Return a picture with some pixels (H, W) in the colour of those whose class changed."""
    return _blended(picture, np.array(ImageColor.getrgb(FLIPPED)), flipped.astype(float))


def with_legend(
    picture: Image.Image, shown: Collection[int], class_names: Sequence[str]
) -> Image.Image:
    """Return a picture of classes above the colours of those that it shows; the first has none."""
    font, line = text_font(TEXT), TEXT + GAP
    named = [(label, class_names[label]) for label in sorted(shown) if label]
    width = max([picture.width, *(3 * GAP + BAR + int(font.getlength(name)) for _, name in named)])
    sheet = Image.new("RGB", (width, picture.height + line * len(named)), "white")
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for row, (label, name) in enumerate(named):
        y = picture.height + row * line + line // 2
        area = (GAP, y - TEXT // 2, GAP + BAR, y + TEXT // 2)
        pen.rectangle(area, COLOURS[(label - 1) % len(COLOURS)], "black")
        pen.text((2 * GAP + BAR, y), name, "black", font, anchor="lm")
    return sheet


def under_radii(picture: Image.Image, radius: NDArray[np.float64]) -> Image.Image:
    """Return a picture under the radius of each pixel (H, W)."""
    return _blended(picture, _colours(_place(radius)), np.full(radius.shape, OPACITY))


def enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture whose pixels can be seen one by one."""
    scale = max(1, -(-SMALLEST // min(picture.size)))
    size = picture.width * scale, picture.height * scale
    return picture.resize(size, Image.Resampling.NEAREST)


def draw_radii(picture: Image.Image, radius: NDArray[np.float64]) -> Image.Image:
    """Return a picture under the radius of each pixel (H, W), beside a bar that says its colour."""
    shown = enlarged(under_radii(picture, radius))
    font = text_font(TEXT)
    sheet = Image.new("RGB", (shown.width + 3 * GAP + BAR + 4 * TEXT, shown.height), "white")
    sheet.paste(shown, (0, 0))
    left, top, tall = shown.width + GAP, TEXT, shown.height - 2 * TEXT
    ramp = _colours(np.repeat(np.linspace(1, 0, tall)[:, None], BAR, axis=1))
    sheet.paste(Image.fromarray(ramp), (left, top))
    pen = ImageDraw.Draw(sheet)
    for tick in TICKS:
        y = top + (1 - float(_place(np.array(tick)))) * (tall - 1)
        pen.line((left + BAR, y, left + BAR + GAP // 2, y), fill="black")
        beyond = {TICKS[0]: "≤ ", TICKS[-1]: "≥ "}.get(tick, "")
        pen.text((left + BAR + GAP, y), f"{beyond}{tick:g}", "black", font, anchor="lm")
    return sheet


def _place(radius: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.log(RADII)
    return np.asarray((np.log(radius.clip(*RADII)) - low) / (high - low))


def _colours(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.asarray(colormaps[COLOUR_MAP](share, bytes=True)[..., :3])


def _blended(picture: Image.Image, tint: NDArray[Any], opacity: NDArray[np.float64]) -> Image.Image:
    pixels, weight = np.asarray(picture, np.float64), opacity[..., None]
    return Image.fromarray((pixels + weight * (tint - pixels)).round().astype(np.uint8))
