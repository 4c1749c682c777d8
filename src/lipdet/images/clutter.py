"""What is near a house number without belonging to it: frames, lines, letters, small print."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lipdet.images.glyphs import FONTS, font_path
from lipdet.images.surface import Plane, half_plane, sample_colour, wall

LETTERS = "ABCEFGHKLMNPRSTUVWXYabdeghknrsty"


def add_clutter(rng: np.random.Generator, scene: Plane, boxes: NDArray[np.float64]) -> Plane:
    """Add edges, lines and writing to a scene (side, side, 3), clear of the boxes (n, 4)."""
    side = scene.shape[0]
    for _ in range(int(rng.choice([0, 1, 2], p=[0.55, 0.3, 0.15]))):
        region = half_plane(rng, side, boxes)[:, :, None]
        colour = sample_colour(rng, float(rng.uniform(5, 245)))
        scene = scene + region * (wall(rng, side, colour, float(rng.exponential(8))) - scene)
    if rng.random() < 0.25:
        scene = _lines(rng, scene, boxes)
    if rng.random() < 0.2:
        scene = _writing(rng, scene, boxes)
    return scene


def _free_bands(boxes: NDArray[np.float64]) -> list[tuple[float, float, bool]]:
    """Bands beside the number as (start, stop, horizontal), in the unit square."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    bands = [(0.0, low[1], True), (high[1], 1.0, True), (0.0, low[0], False), (high[0], 1.0, False)]
    return [(float(a), float(b), flat) for a, b, flat in bands if b - a > 0.06]


def _stamp(
    rng: np.random.Generator, scene: Plane, canvas: Image.Image, opacity: float = 1.0
) -> Plane:
    mask = np.asarray(canvas, dtype=np.float32)[:, :, None] / 255 * np.float32(opacity)
    return scene + mask * (sample_colour(rng, float(rng.uniform(5, 250))) - scene)


def _lines(rng: np.random.Generator, scene: Plane, boxes: NDArray[np.float64]) -> Plane:
    """Return a rail, cable or joint through one of the free bands."""
    bands = _free_bands(boxes)
    if not bands:
        return scene
    side = scene.shape[0]
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 4))):
        start, stop, flat = bands[int(rng.integers(len(bands)))]
        a, b = side * rng.uniform(start, stop, 2)
        ends = [(0.0, a), (float(side), b)] if flat else [(a, 0.0), (b, float(side))]
        draw.line(ends, fill=255, width=int(rng.integers(1, 6)))
    return _stamp(rng, scene, canvas)


def _writing(rng: np.random.Generator, scene: Plane, boxes: NDArray[np.float64]) -> Plane:
    """Return a word of small letters above, below or beside the number, cut off by the border.

    Letters only: a whole digit that carries no box would be a false annotation.
    """
    bands = _free_bands(boxes)
    if not bands:
        return scene
    side = scene.shape[0]
    start, stop, flat = bands[int(rng.integers(len(bands)))]
    room = side * (stop - start)
    height = max(6, int(room * rng.uniform(0.5, 1.2)))
    face = ImageFont.truetype(
        font_path(FONTS[int(rng.integers(len(FONTS)))]),
        height,
        layout_engine=ImageFont.Layout.BASIC,
    )
    word = "".join(rng.choice(list(LETTERS), int(rng.integers(1, 9))))
    layer = Image.new("L", (side, side), 0)
    across = side * start + (room - 1.2 * height) * rng.random()
    # Writing beside the number may leave the picture but must not cover the number.
    along = float(rng.uniform(-0.3, 0.7)) * side
    ImageDraw.Draw(layer).text(
        (along, across) if flat else (across, along), word, fill=255, font=face
    )
    allowed = Image.new("L", (side, side), 0)
    low, high = round(side * start), round(side * stop)
    allowed.paste(255, (0, low, side, high) if flat else (low, 0, high, side))
    return _stamp(rng, scene, Image.composite(layer, Image.new("L", (side, side)), allowed))
