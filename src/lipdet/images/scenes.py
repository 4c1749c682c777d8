"""Rendered photographs: a house number anywhere on a wall with windows, doors, plants and letters.

Notable choices:
- A scene is a square of which the picture is the middle, drawn, lit and photographed by what draws
  crops (`lipdet.images.render`); only what stands around the number is made here.
- Numbers are as high as in the official annotations of the test set, relative to the picture
  (`scripts/photograph_heights.py`: nine tenths between 18 and 93 of 120 pixels), and lie anywhere.
- Bars, panes and letters look like digits and are none. Rings are left out: they would be zeros.
- One picture in ten has no number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lipdet.images.ink import FONTS, font_path
from lipdet.images.layout import sample_layout
from lipdet.images.render import (
    Picture,
    drawn_digits,
    generator,
    mount_plate,
    paint_digits,
    photograph,
    sample_contrast,
)
from lipdet.images.surface import LETTERS, Plane, add_clutter, sample_colour, wall
from lipdet.types import Canvas

# Of all pictures.
WITHOUT_NUMBER = 0.1
# Of the numbers, those on the wall itself and on no plate.
BARE = 0.3
# Height of a digit over that of the picture: log-normal, its median and spread.
MEDIAN_HEIGHT, HEIGHT_SPREAD = 0.36, 0.45
LEAST_HEIGHT = 0.08
# Of the picture, what the longer side of a number may take.
LARGEST_SHARE = 0.95
MOST_THINGS = 8
# The random numbers of scenes are not those of crops.
SCENES = 1

Box = tuple[float, float, float, float]


def rendered_scene(stream: str, index: int, seed: int, canvas: Canvas) -> Picture:
    """Return picture `index` of a stream.

    Args:
        stream: one of `lipdet.images.render.STREAMS`.
        index: 0, 1, 2, ...
        seed: which data set; any integer from 0.
        canvas: height and width of the picture in pixels.

    Returns:
        The picture (H, W, 3) uint8 RGB, the boxes (n, 4) float32 xyxy in pixels and the digits (n,)
        int64, left to right; n may be 0.

    Raises:
        InputError: unknown stream, or a negative index or seed.
    """
    rng = generator(stream, index, seed, SCENES)
    side = max(canvas)
    corner = np.array([side - canvas.width, side - canvas.height]) // 2
    boxes, labels, slope = sample_layout(rng)
    boxes = _placed(rng, boxes, canvas) + np.tile(corner / side, 2)
    ground, paint = sample_contrast(rng)
    bare = rng.random() < BARE
    colour = ground if bare else sample_colour(rng, float(rng.uniform(20, 235)))
    scene = wall(rng, side, colour, float(rng.exponential(7 if bare else 14)))
    scene = add_clutter(rng, scene, boxes)
    digit_height = float((boxes[:, 3] - boxes[:, 1]).mean())
    scene = _furnish(rng, scene, boxes, digit_height)
    digits = drawn_digits(rng, boxes, labels, slope, side)
    if rng.random() < WITHOUT_NUMBER:
        boxes, labels = boxes[:0], labels[:0]
    else:
        if not bare:
            scene = mount_plate(rng, scene, boxes, slope, ground, paint)
        scene = paint_digits(rng, scene, digits, paint)
    picture = photograph(rng, scene, side, digit_height)
    left, top = corner.tolist()
    shown = picture[top : top + canvas.height, left : left + canvas.width]
    return shown, (boxes * side - np.tile(corner, 2)).astype(np.float32), labels


def _placed(
    rng: np.random.Generator, boxes: NDArray[np.float64], canvas: Canvas
) -> NDArray[np.float64]:
    """Return boxes (n, 4) of another unit square, in units of the longer side of the picture."""
    height, width = np.array(canvas) / max(canvas)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    wanted = height * rng.lognormal(np.log(MEDIAN_HEIGHT), HEIGHT_SPREAD)
    room = LARGEST_SHARE * np.array([width, height]) / (high - low)
    scale = min(max(wanted, LEAST_HEIGHT * height) / np.median(boxes[:, 3] - boxes[:, 1]), *room)
    start = rng.random(2) * (np.array([width, height]) - scale * (high - low))
    return np.asarray((boxes - np.tile(low, 2)) * scale + np.tile(start, 2))


def _furnish(
    rng: np.random.Generator, scene: Plane, boxes: NDArray[np.float64], height: float
) -> Plane:
    """Put things on the wall of a scene (side, side, 3), beside the number in the boxes (n, 4).

    A door or a long word may reach behind it. `height` is that of the digits: letters and bars are
    as large.
    """
    side = scene.shape[0]
    image = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
    low, high = boxes[:, :2].min(axis=0) - 0.15 * height, boxes[:, 2:].max(axis=0) + 0.15 * height
    for _ in range(int(rng.integers(MOST_THINGS + 1))):
        size = height * rng.lognormal(0.4, 0.6) * np.array([rng.uniform(0.5, 2.5), 1.0])
        start = rng.uniform(-0.3, 1.0, 2)
        end = start + size
        thing = THINGS[int(rng.integers(len(THINGS)))]
        if (end < low).any() or (start > high).any():
            left, top, right, bottom = (np.concatenate([start, end]) * side).tolist()
            thing(rng, ImageDraw.Draw(image), (left, top, right, bottom))
    return np.asarray(image, dtype=np.float32)


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(sample_colour(rng, float(rng.uniform(10, 245))).clip(0, 255).astype(int).tolist())


def _window(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: Box) -> None:
    """Draw panes between bars."""
    left, top, right, bottom = box
    frame = _colour(rng)
    thick = max(1, round((right - left) * rng.uniform(0.03, 0.12)))
    draw.rectangle(box, fill=_colour(rng), outline=frame, width=thick)
    for x in np.linspace(left, right, int(rng.integers(2, 5)))[1:-1].tolist():
        draw.line([(x, top), (x, bottom)], fill=frame, width=thick)
    for y in np.linspace(top, bottom, int(rng.integers(2, 5)))[1:-1].tolist():
        draw.line([(left, y), (right, y)], fill=frame, width=thick)


def _door(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: Box) -> None:
    """Draw panels one above the other, and a knob."""
    left, top, right, bottom = box
    bottom = top + 2.2 * (right - left)
    draw.rectangle((left, top, right, bottom), fill=_colour(rng), outline=_colour(rng), width=2)
    inset, line = 0.15 * (right - left), _colour(rng)
    edges = np.linspace(top, bottom, int(rng.integers(2, 5))).tolist()
    for above, below in itertools.pairwise(edges):
        draw.rectangle((left + inset, above + inset, right - inset, below - inset), outline=line)
    x, y, radius = right - 0.1 * (right - left), (top + bottom) / 2, 0.05 * (right - left)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng))


def _plant(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: Box) -> None:
    """Draw leaves and stalks."""
    left, top, right, bottom = box
    stalk = _colour(rng)
    for _ in range(int(rng.integers(5, 40))):
        x, y = float(rng.uniform(left, right)), float(rng.uniform(top, bottom))
        wide, tall = rng.uniform(0.03, 0.2, 2) * (bottom - top)
        draw.line([((left + right) / 2, bottom), (x, y)], fill=stalk, width=int(rng.integers(1, 3)))
        green = (int(rng.integers(20, 110)), int(rng.integers(50, 170)), int(rng.integers(10, 90)))
        draw.ellipse((x - wide, y - tall, x + wide, y + tall), fill=green)


def _letters(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: Box) -> None:
    """Draw a word, at times on a plate. A digit that carries no box would be a false annotation."""
    left, top, _, bottom = box
    font = ImageFont.truetype(
        font_path(FONTS[int(rng.integers(len(FONTS)))]),
        max(6, round(bottom - top)),
        layout_engine=ImageFont.Layout.BASIC,
    )
    word = "".join(rng.choice(list(LETTERS), int(rng.integers(1, 7))))
    if rng.random() < 0.5:
        x0, y0, x1, y1 = draw.textbbox((left, top), word, font=font)
        margin = 0.15 * (bottom - top)
        draw.rectangle((x0 - margin, y0 - margin, x1 + margin, y1 + margin), fill=_colour(rng))
    draw.text((left, top), word, fill=_colour(rng), font=font)


THINGS: tuple[Callable[[np.random.Generator, ImageDraw.ImageDraw, Box], None], ...] = (
    _window,
    _door,
    _plant,
    _letters,
    _letters,
)
