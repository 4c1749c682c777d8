"""Draw what a rendered house number is mounted on: colours, walls, plates, and clutter near it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lipdet.images.ink import FONTS, font_path

Plane = NDArray[np.float32]

LETTERS = "ABCEFGHKLMNPRSTUVWXYabdeghknrsty"

# Directions of chroma (red, green, blue) with a spread of 1, and how often they occur.
HUES = np.array(
    [
        [-0.5, -0.1, 0.5],  # blue: enamel plates, shade under a blue sky
        [-0.35, -0.15, 0.65],
        [0.5, 0.05, -0.5],  # warm: stone, bronze, gold, brown wood
        [0.45, 0.15, -0.55],
        [0.67, -0.33, -0.33],  # red: bricks, doors
        [-0.35, 0.5, -0.15],  # green
    ]
)
HUE_WEIGHTS = np.array([0.42, 0.17, 0.19, 0.08, 0.09, 0.05])


def sample_colour(rng: np.random.Generator, brightness: float) -> NDArray[np.float32]:
    """Return a colour (3,) of mean `brightness` in 0..255: mostly dull, at times a strong paint."""
    chroma = rng.exponential(16) if rng.random() < 0.85 else rng.uniform(50, 140)
    # Dark and bright surfaces have little room for colour.
    chroma = min(chroma, 1.6 * brightness, 1.6 * (255 - brightness))
    hue = HUES[rng.choice(len(HUES), p=HUE_WEIGHTS)] + rng.normal(0, 0.08, 3)
    return np.asarray(brightness + chroma * hue, dtype=np.float32)


def smooth_noise(rng: np.random.Generator, side: int, cells: tuple[int, int]) -> Plane:
    """Draw noise (side, side) of about unit variance that varies over side / cells pixels."""
    coarse = rng.standard_normal((cells[1], cells[0]), dtype=np.float32)
    grown = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(grown, dtype=np.float32)


def polygon_mask(points: NDArray[np.float64], side: int, radius: float = 0.0) -> Plane:
    """Fill a polygon with (k, 2) corners in the unit square, optionally with rounded corners."""
    scale = 2
    canvas = Image.new("L", (scale * side, scale * side), 0)
    corners = [(float(x), float(y)) for x, y in points * scale * side]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    small = canvas.resize((side, side), Image.Resampling.BOX)
    if radius > 0:
        # A blurred polygon cut at its half height has round corners.
        blurred = small.filter(ImageFilter.GaussianBlur(radius * side))
        return ((np.asarray(blurred, dtype=np.float32) - 118) / 20).clip(0, 1)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def half_plane(rng: np.random.Generator, side: int, boxes: NDArray[np.float64]) -> Plane:
    """Return a region (side, side) beyond a straight edge that leaves the boxes (n, 4) free."""
    angle = float(rng.choice([0, 90, 180, 270])) + rng.normal(0, 6)
    normal = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    corners = np.concatenate(
        [boxes[:, [0, 1]], boxes[:, [0, 3]], boxes[:, [2, 1]], boxes[:, [2, 3]]]
    )
    farthest = float((corners @ normal).max())
    limit = float(max(0, normal[0]) + max(0, normal[1]))
    start = farthest + rng.uniform(0.0, 1.0) * max(0.02, limit - farthest)
    grid = (np.arange(side, dtype=np.float32) + 0.5) / side
    signed = normal[0] * grid[None, :] + normal[1] * grid[:, None] - start
    return np.asarray((signed * side + 0.5).clip(0, 1), dtype=np.float32)


def _bricks(rng: np.random.Generator, side: int) -> Plane:
    """Return 1 on mortar and 0 on bricks, with some variation between bricks."""
    height = max(5, int(side * rng.uniform(0.1, 0.4)))
    width = int(height * rng.uniform(2, 3.5))
    mortar = max(1, round(height * rng.uniform(0.06, 0.18)))
    y = np.arange(side)[:, None] + int(rng.integers(height))
    row = y // height
    x = np.arange(side)[None, :] + int(rng.integers(width)) + (row % 2) * (width // 2)
    column = x // width
    tone = rng.normal(0, 0.15, 97)[(row * 13 + column * 7) % 97]
    is_mortar = (y % height < mortar) | (x % width < mortar)
    return np.where(is_mortar, 1.0, tone).astype(np.float32)


def _boards(rng: np.random.Generator, side: int) -> Plane:
    """Draw wooden boards or siding: dark joints and grain along them."""
    pitch = max(6, int(side * rng.uniform(0.12, 0.7)))
    joint = max(1, round(pitch * rng.uniform(0.03, 0.1)))
    across = np.arange(side) + int(rng.integers(pitch))
    profile = np.where(across % pitch < joint, -1.0, rng.normal(0, 0.2, 97)[across // pitch])
    profile = profile + (across % pitch) / pitch * rng.normal(0, 0.3)
    grain = smooth_noise(rng, side, (int(rng.integers(2, 6)), int(rng.integers(20, 50))))
    boards = profile[:, None].astype(np.float32) + 0.25 * grain
    return boards if rng.random() < 0.6 else boards.T


def wall(rng: np.random.Generator, side: int, colour: NDArray[np.float32], depth: float) -> Plane:
    """Return a wall (side, side, 3) of a colour, its texture `depth` grey levels strong."""
    kind = rng.random()
    if kind < 0.4:
        texture = smooth_noise(rng, side, (3, 3)) * 0.5
    elif kind < 0.65:
        fine = smooth_noise(rng, side, (int(rng.integers(20, 80)),) * 2)
        texture = 0.5 * smooth_noise(rng, side, (4, 4)) + 0.6 * fine
    elif kind < 0.82:
        texture = _bricks(rng, side) * float(rng.choice([-1.2, 1.5]))
    else:
        texture = _boards(rng, side) * 1.2
    tint = np.asarray(1 + rng.normal(0, 0.12, 3), dtype=np.float32)
    return colour + (depth * texture)[:, :, None] * tint


def plate_corners(
    rng: np.random.Generator, boxes: NDArray[np.float64], slope: float
) -> NDArray[np.float64]:
    """Return corners (4, 2) of a plate around the boxes (n, 4), leaning as the number does."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    height = float(np.median(boxes[:, 3] - boxes[:, 1]))
    left, top, right, bottom = height * rng.gamma(2.0, 0.08, 4)
    rise = float(np.clip(slope, -0.6, 0.6)) * float(rng.choice([0.0, 0.6, 1.0]))
    # Undo the lean before boxing, redo it on the corners.
    middle = (low[0] + high[0]) / 2
    centre_x = (boxes[:, 0] + boxes[:, 2]) / 2
    level = boxes[:, 1::2] - rise * (centre_x - middle)[:, None]
    x = np.array([low[0] - left, high[0] + right, high[0] + right, low[0] - left])
    y = np.array([level.min() - top, level.min() - top, *[level.max() + bottom] * 2])
    lean = rng.normal(0, 0.05)
    return np.stack([x + lean * (y - y.mean()), y + rise * (x - middle)], axis=1)


def ellipse_corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points (48, 2) of an ellipse around the boxes (n, 4)."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray((low + high) / 2 + 0.68 * (high - low) * unit)


def scaled(points: NDArray[np.float64], inset: float) -> NDArray[np.float64]:
    """Return the polygon moved inwards by about `inset`, for a border line parallel to its edge."""
    centre = points.mean(axis=0)
    reach = np.abs(points - centre).max(axis=0)
    return np.asarray(centre + (points - centre) * (1 - inset / np.maximum(reach, 2 * inset)))


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
    """Return bands beside the number as (start, stop, horizontal), in the unit square."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    bands = [(0.0, low[1], True), (high[1], 1.0, True), (0.0, low[0], False), (high[0], 1.0, False)]
    return [(float(a), float(b), flat) for a, b, flat in bands if b - a > 0.06]


def _stamp(rng: np.random.Generator, scene: Plane, canvas: Image.Image) -> Plane:
    mask = np.asarray(canvas, dtype=np.float32)[:, :, None] / 255
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
