"""Masks of single digits: from fonts that ship with matplotlib and from drawn pen strokes.

Notable choices:
- Masks are cropped to their ink, so that whoever places one knows where the ink ends.
- Fonts alone look alike; half of the numbers are drawn with a pen along skeletons, which gives
  the plain strokes of modern house numbers at any condensation and weight.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lipdet.images.resize import resized

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


def crop_to_ink(mask: Image.Image) -> Image.Image:
    """Cut the empty borders off a mask; ink is what is at least half as dark as full ink."""
    box = mask.point(HALF_INK).getbbox()
    return mask.crop(box) if box else mask


def font_path(font: str) -> str:
    """Return the file of one of FONTS."""
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"))


@lru_cache(maxsize=4096)
def font_mask(font: str, digit: int, weight: int) -> Image.Image:
    """A digit of a font as an "L" mask of height GLYPH_HEIGHT, thinner or bolder by `weight`.

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
    """Points of an arc; angles in degrees, 0 to the right, growing clockwise on the picture."""
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
    """For each digit its shapes: pen strokes in the unit square, y downwards."""
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
