"""The ink of a house number: one mask per digit, placed in its annotated box.

Masks of single digits are from fonts that ship with matplotlib and from drawn pen strokes.

Notable choices:
- Masks are cropped to their ink, so that whoever places one knows where the ink ends.
- Fonts alone look alike; half of the numbers are drawn with a pen along skeletons, which gives
  the plain strokes of modern house numbers at any condensation and weight.
- SVHN's boxes are loose: measured on its train pictures, the ink of a digit leaves about 9 % of
  the height free above, 6 % below, 6.5 % on the left and 4.5 % on the right, each with a standard
  deviation of 5 %. The rendered ink leaves as much, so that a detector learns boxes of that size.
- A glyph is stretched to its box, except for a 1, whose box is wider than its ink.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lipdet.images.resize import resized

# Mean share of the box's height that stays free: left, top, right, bottom.
MEAN_MARGIN = np.array([0.065, 0.09, 0.045, 0.06])
MIN_MARGIN, MAX_MARGIN = 0.0, 0.18
PEN_SHARE = 0.5
GLYPH_HEIGHT = 112
HALF_INK = [0] * 128 + [255] * 128

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmtt10",
)

Point = tuple[float, float]
Skeleton = tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Typeface:
    """Writing style of all digits of one number.

    Attributes:
        font: one of FONTS, or None for pen strokes.
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
    """Return width over height of this typeface's 1 after shearing."""
    mask = _sheared(digit_mask(face, 1), face.slant, face.rise)
    return mask.width / mask.height


def crop_to_ink(mask: Image.Image) -> Image.Image:
    """Cut the empty borders off a mask; ink is what is at least half as dark as full ink."""
    box = mask.point(HALF_INK).getbbox()
    return mask.crop(box) if box else mask


def font_path(font: str) -> str:
    """Return the file of one of FONTS."""
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"))


@lru_cache(maxsize=4096)
def font_mask(font: str, digit: int, weight: int) -> Image.Image:
    """Draw a digit of a font as an "L" mask of height GLYPH_HEIGHT, thinner or bolder by `weight`.

    `weight` is the change of the stroke on either side, in pixels, -2 to 6.
    """
    face = ImageFont.truetype(font_path(font), 150, layout_engine=ImageFont.Layout.BASIC)
    mask = Image.new("L", (220, 240), 0)
    ImageDraw.Draw(mask).text(
        (50, 30), str(digit), fill=255, font=face, stroke_width=max(weight, 0)
    )
    if weight < 0:
        mask = mask.filter(ImageFilter.MinFilter(1 - 2 * weight))
    return _to_glyph_height(crop_to_ink(mask))


def _to_glyph_height(mask: Image.Image) -> Image.Image:
    width = max(1, round(mask.width * GLYPH_HEIGHT / mask.height))
    return resized(mask, (width, GLYPH_HEIGHT), Image.Resampling.BILINEAR)


def pen_mask(digit: int, variant: int, aspect: float, pen: float, round_caps: bool) -> Image.Image:
    """Return a digit drawn with a round pen as an "L" mask of height GLYPH_HEIGHT.

    Args:
        digit: 0 to 9.
        variant: which shape, for digits that are written in several ways; any integer.
        aspect: width over height of the ink.
        pen: width of the pen relative to the height.
        round_caps: whether strokes end round rather than cut off.
    """
    shapes = _skeletons()[digit]
    return _drawn(shapes[variant % len(shapes)], aspect, pen, round_caps)


@lru_cache(maxsize=4096)
def _drawn(skeleton: Skeleton, aspect: float, pen: float, round_caps: bool) -> Image.Image:
    scale = 2
    height = scale * GLYPH_HEIGHT
    line = max(2, round(pen * height))
    width = max(1.0, aspect * height)
    span = max(1.0, width - line)
    canvas = Image.new("L", (math.ceil(width) + 2 * line, height + 2 * line), 0)
    draw = ImageDraw.Draw(canvas)
    for stroke in skeleton:
        points = [(1.5 * line + x * span, 1.5 * line + y * (height - line)) for x, y in stroke]
        draw.line(points, fill=255, width=line, joint="curve")
        if round_caps:
            for x, y in (points[0], points[-1]):
                draw.ellipse((x - line / 2, y - line / 2, x + line / 2, y + line / 2), fill=255)
    return _to_glyph_height(crop_to_ink(canvas))


def _arc(
    centre: Point, radius: Point, start: float, stop: float, squareness: float = 1.0
) -> tuple[Point, ...]:
    """Return points of an arc; angles in degrees, 0 to the right, clockwise on the picture."""
    count = max(4, int(abs(stop - start) / 12))
    points = []
    for k in range(count + 1):
        angle = math.radians(start + (stop - start) * k / count)
        x = math.copysign(abs(math.cos(angle)) ** squareness, math.cos(angle))
        y = math.copysign(abs(math.sin(angle)) ** squareness, math.sin(angle))
        points.append((centre[0] + radius[0] * x, centre[1] + radius[1] * y))
    return tuple(points)


def _turned(skeleton: Skeleton) -> Skeleton:
    """Return the skeleton rotated by 180 degrees: a 6 becomes a 9."""
    return tuple(tuple((1 - x, 1 - y) for x, y in stroke) for stroke in skeleton)


@lru_cache(maxsize=1)
def _skeletons() -> tuple[tuple[Skeleton, ...], ...]:
    """Return the shapes of each digit: pen strokes in the unit square, y downwards."""
    six_round: Skeleton = (
        _arc((0.5, 0.69), (0.5, 0.31), 0, 360),
        (*_arc((0.52, 0.5), (0.52, 0.5), -42, -180), (0.0, 0.69)),
    )
    six_straight: Skeleton = (
        _arc((0.5, 0.69), (0.5, 0.31), 0, 360),
        ((0.78, 0.0), (0.35, 0.3), (0.08, 0.53), (0.0, 0.69)),
    )
    six_square: Skeleton = (
        (*_arc((0.5, 0.24), (0.5, 0.24), -20, -180, 0.6), (0.0, 0.69)),
        _arc((0.5, 0.7), (0.5, 0.3), 0, 360, 0.6),
    )
    return (
        (
            (_arc((0.5, 0.5), (0.5, 0.5), 0, 360),),
            (_arc((0.5, 0.5), (0.5, 0.5), 0, 360, 0.75),),
            (_arc((0.5, 0.5), (0.5, 0.5), 0, 360, 0.5),),
        ),
        (
            (((0.5, 0.0), (0.5, 1.0)),),
            (((0.0, 0.24), (0.9, 0.0), (0.9, 1.0)),),
            (((0.0, 0.2), (0.55, 0.17), (0.9, 0.0), (0.9, 1.0)),),
            (((0.1, 0.2), (0.55, 0.0), (0.55, 1.0)), ((0.0, 1.0), (1.0, 1.0))),
        ),
        (
            ((*_arc((0.5, 0.28), (0.5, 0.28), -168, 38), (0.0, 1.0), (1.0, 1.0)),),
            (
                (
                    *_arc((0.5, 0.26), (0.5, 0.26), -175, 20),
                    (0.75, 0.55),
                    (0.2, 0.8),
                    (0.0, 1.0),
                    (1.0, 1.0),
                ),
            ),
        ),
        (
            (
                _arc((0.48, 0.24), (0.45, 0.24), -160, 90),
                _arc((0.48, 0.73), (0.5, 0.27), -90, 162),
            ),
            (((0.05, 0.0), (0.95, 0.0), (0.42, 0.4)), _arc((0.48, 0.7), (0.5, 0.3), -95, 160)),
        ),
        (
            (((0.74, 1.0), (0.74, 0.0), (0.0, 0.72), (1.0, 0.72)),),
            (((0.15, 0.0), (0.0, 0.6), (1.0, 0.6)), ((0.72, 0.3), (0.72, 1.0))),
            (((0.7, 0.0), (0.0, 0.65), (1.0, 0.65)), ((0.7, 0.35), (0.7, 1.0))),
        ),
        (
            (((0.9, 0.0), (0.15, 0.0), (0.08, 0.45), *_arc((0.47, 0.68), (0.5, 0.32), -140, 158)),),
            (
                (
                    (0.95, 0.0),
                    (0.05, 0.0),
                    (0.03, 0.46),
                    *_arc((0.47, 0.69), (0.5, 0.31), -130, 160, 0.7),
                ),
            ),
        ),
        (six_round, six_straight, six_square),
        (
            (((0.0, 0.0), (1.0, 0.0), (0.3, 1.0)),),
            (((0.0, 0.0), (1.0, 0.0), (0.6, 0.4), (0.42, 0.7), (0.36, 1.0)),),
            (((0.0, 0.0), (1.0, 0.0), (0.3, 1.0)), ((0.25, 0.5), (0.88, 0.5))),
        ),
        (
            (
                _arc((0.5, 0.24), (0.43, 0.24), 0, 360),
                _arc((0.5, 0.74), (0.5, 0.26), 0, 360),
            ),
            (
                _arc((0.5, 0.25), (0.47, 0.25), 0, 360, 0.7),
                _arc((0.5, 0.745), (0.5, 0.255), 0, 360, 0.7),
            ),
        ),
        (_turned(six_round), _turned(six_straight), _turned(six_square)),
    )
