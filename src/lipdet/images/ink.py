"""The ink of a house number: one mask per digit, placed in its annotated box.

Notable choices:
- SVHN's boxes are loose: measured on its train pictures, the ink of a digit leaves about 9 % of
  the height free above, 6 % below, 6.5 % on the left and 4.5 % on the right, each with a standard
  deviation of 5 %. The rendered ink leaves as much, so that a detector learns boxes of that size.
- A glyph is stretched to its box, except for a 1, whose box is wider than its ink.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipdet.images.glyphs import FONTS, crop_to_ink, font_mask, pen_mask
from lipdet.images.resize import resized

# Mean share of the box's height that stays free: left, top, right, bottom.
MEAN_MARGIN = np.array([0.065, 0.09, 0.045, 0.06])
MIN_MARGIN, MAX_MARGIN = 0.0, 0.18
PEN_SHARE = 0.5


@dataclass(frozen=True)
class Typeface:
    """How all digits of one number are written.

    Attributes:
        font: a name of `glyphs.FONTS`, or None for pen strokes.
        weight: change of the font's strokes (`font_mask`).
        variant, aspect, pen, round_caps: of `pen_mask`.
        slant: horizontal shear; positive leans to the right.
        rise: vertical shear, as when a number is seen from the side.
    """

    font: str | None
    weight: int
    variant: int
    aspect: float
    pen: float
    round_caps: bool
    slant: float
    rise: float


def sample_typeface(rng: np.random.Generator, slope: float) -> Typeface:
    """Draw a typeface for a number whose digits' centres lie on a line of the given slope."""
    slanted, follows = rng.random(2) < (0.35, 0.75)
    return Typeface(
        font=None if rng.random() < PEN_SHARE else FONTS[int(rng.integers(len(FONTS)))],
        weight=int(rng.choice([-2, 0, 1, 2, 3, 4, 6])),
        variant=int(rng.integers(12)),
        aspect=float(rng.choice([0.3, 0.4, 0.5, 0.65])),
        pen=float(rng.choice([0.09, 0.12, 0.15, 0.18, 0.22])),
        round_caps=bool(rng.random() < 0.4),
        slant=float(rng.normal(0, 0.2)) if slanted else float(rng.normal(0, 0.03)),
        rise=float(np.clip(slope * rng.uniform(0.5, 1.0), -0.5, 0.5)) if follows else 0.0,
    )


def digit_mask(face: Typeface, digit: int) -> Image.Image:
    """Return the upright mask of a digit, cropped to its ink."""
    if face.font is not None:
        return font_mask(face.font, digit, face.weight)
    return pen_mask(digit, face.variant, face.aspect, face.pen, face.round_caps)


def _sheared(mask: Image.Image, slant: float, rise: float) -> Image.Image:
    """Shear a mask by (x, y) -> (x - slant y, y + rise x) and crop it to its ink again."""
    if abs(slant) < 0.01 and abs(rise) < 0.01:
        return mask
    width, height = mask.size
    new_width = round(width + abs(slant) * height) + 4
    new_height = round(height + abs(rise) * width) + 4
    determinant = 1 + slant * rise
    a, b, d, e = 1 / determinant, slant / determinant, -rise / determinant, 1 / determinant
    c = width / 2 - a * new_width / 2 - b * new_height / 2
    f = height / 2 - d * new_width / 2 - e * new_height / 2
    sheared = mask.transform(
        (new_width, new_height),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
    )
    return crop_to_ink(sheared)


def ink_boxes(
    rng: np.random.Generator,
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    one_aspect: float,
) -> NDArray[np.float64]:
    """Return where the ink of each digit lies in its annotated box.

    Args:
        rng: the source of the annotation noise.
        boxes: (n, 4) xyxy annotated boxes, in any unit.
        labels: (n,) digits.
        one_aspect: width over height of the ink of a 1.

    Returns:
        (n, 4) xyxy boxes inside `boxes`.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shared = rng.normal(0, 0.04, 4)
    own = rng.normal(0, 0.025, (len(boxes), 4))
    margins = (MEAN_MARGIN + shared + own).clip(MIN_MARGIN, MAX_MARGIN) * height[:, None]
    # A narrow box still holds a legible glyph: the sides take at most 40 % of it.
    sides = margins[:, 0] + margins[:, 2]
    margins[:, 0::2] *= np.minimum(1, 0.4 * width / np.maximum(sides, 1e-9))[:, None]
    ink = boxes + margins * (1, 1, -1, -1)
    wanted = np.maximum(one_aspect * (ink[:, 3] - ink[:, 1]), 0.3 * width)
    spare = np.maximum(0, ink[:, 2] - ink[:, 0] - wanted) * (labels == 1)
    on_left = rng.uniform(0.3, 0.7, len(boxes)) * spare
    ink[:, 0] += on_left
    ink[:, 2] -= spare - on_left
    # Boxes overlap more often than the digits in them.
    overlap = (ink[:-1, 2] - ink[1:, 0]).clip(0, 0.25 * np.minimum(width[:-1], width[1:]))
    ink[:-1, 2] -= overlap / 2
    ink[1:, 0] += overlap / 2
    return ink


def draw_ink(
    face: Typeface, labels: NDArray[np.int64], ink: NDArray[np.float64], side: int
) -> list[tuple[Image.Image, tuple[int, int]]]:
    """Return each digit's mask stretched to its ink box, with the pixel where its corner belongs.

    Args:
        face: how the digits are written.
        labels: (n,) digits.
        ink: (n, 4) xyxy ink boxes in the unit square.
        side: side of the square in pixels.
    """
    placed = []
    for digit, (left, top, right, bottom) in zip(labels, ink * side, strict=True):
        mask = _sheared(digit_mask(face, int(digit)), face.slant, face.rise)
        x0, y0 = round(left), round(top)
        size = (max(2, round(right) - x0), max(2, round(bottom) - y0))
        placed.append((resized(mask, size, Image.Resampling.BILINEAR), (x0, y0)))
    return placed


def compose_ink(
    placed: list[tuple[Image.Image, tuple[int, int]]], side: int
) -> NDArray[np.float32]:
    """Return all digits in one mask (side, side) in [0, 1]; overlapping ink does not add up."""
    canvas = Image.new("L", (side, side), 0)
    for mask, corner in placed:
        canvas.paste(255, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)


def natural_one_aspect(face: Typeface) -> float:
    """Width over height of this typeface's 1 after shearing."""
    mask = _sheared(digit_mask(face, 1), face.slant, face.rise)
    return mask.width / mask.height
