"""Rendered house numbers: the embedded data set, made on the spot from a seed.

Notable choices:
- A picture depends on (seed, stream, index) alone, so that N pictures are a prefix of N + 1 and
  no two streams share one.
- Boxes come first, with the statistics of SVHN's annotations; the digits are then drawn to fit
  their boxes, so that box and ink agree by construction.
- Light and camera come last: shading, blur, few pixels, noise, compression. SVHN's digits are
  small, whatever the length of their number: on the train set their height is log-normal with a
  median of 29 pixels and a spread of 0.48 (natural logarithm). A scene is reduced until its digits
  are as small, then enlarged again.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lipdet.errors import InputError
from lipdet.images.ink import (
    compose_ink,
    draw_ink,
    ink_boxes,
    natural_one_aspect,
    sample_typeface,
)
from lipdet.images.layout import sample_layout
from lipdet.images.surface import (
    Plane,
    add_clutter,
    ellipse_corners,
    half_plane,
    plate_corners,
    polygon_mask,
    sample_colour,
    scaled,
    smooth_noise,
    wall,
)

STREAMS = ("train", "test", "validation")
SCENE_SIDE = 112
LIGHT_ON_DARK = 0.45
MEDIAN_DIGIT_HEIGHT, DIGIT_HEIGHT_SPREAD = 29.0, 0.48
MIN_DIGIT_HEIGHT = 11.0

Colour = NDArray[np.float32]
Picture = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]


def rendered(stream: str, index: int, seed: int = 0, size: int = 74) -> Picture:
    """Return picture `index` of a stream.

    Args:
        stream: one of STREAMS.
        index: 0, 1, 2, ...
        seed: which data set; any integer from 0.
        size: side of the picture in pixels.

    Returns:
        The picture (size, size, 3) uint8 RGB, the boxes (n, 4) float32 xyxy in pixels and the
        digits (n,) int64, left to right.

    Raises:
        InputError: unknown stream, or a negative index or seed.
    """
    picture, boxes, labels, _ = _render(generator(stream, index, seed), size)
    return picture, boxes, labels


def rendered_ink(
    stream: str, index: int, seed: int = 0, size: int = 74
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return picture `index` of a stream (size, size, 3) uint8, and where its digits' ink is.

    The mask (size, size) uint8 is 1 where ink covers at least half of a pixel. Arguments and errors
    are those of `rendered`, and so is the picture.
    """
    picture, _, _, digits = _render(generator(stream, index, seed), size)
    covered = Image.fromarray(digits).resize((size, size), Image.Resampling.BILINEAR)
    return picture, (np.asarray(covered) >= 0.5).astype(np.uint8)


def generator(stream: str, index: int, seed: int, *kind: int) -> np.random.Generator:
    """Return the random numbers of one picture of a stream, and of one `kind` if there are several.

    Raises:
        InputError: unknown stream, or a negative index or seed.
    """
    if stream not in STREAMS:
        raise InputError(f"rendered stream {stream!r} does not exist; use one of {STREAMS}.")
    if index < 0 or seed < 0:
        raise InputError(f"rendered picture {index} of seed {seed}: use numbers from 0 upwards.")
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), index, *kind))
    return np.random.default_rng(sequence)


def _render(rng: np.random.Generator, size: int) -> tuple[*Picture, Plane]:
    boxes, labels, slope = sample_layout(rng)
    digits = drawn_digits(rng, boxes, labels, slope, SCENE_SIDE)
    ground, paint = sample_contrast(rng)
    scene = _background(rng, boxes, slope, ground, paint)
    scene = paint_digits(rng, scene, digits, paint)
    digit_height = float((boxes[:, 3] - boxes[:, 1]).mean())
    picture = photograph(rng, scene, size, digit_height)
    return picture, (boxes * size).astype(np.float32), labels, digits


def drawn_digits(
    rng: np.random.Generator,
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    slope: float,
    side: int,
) -> Plane:
    """Draw where there is ink, (side, side) in [0, 1].

    Args:
        rng: of typeface and annotation.
        boxes: (n, 4) xyxy in the unit square.
        labels: (n,) digits.
        slope: of the line through the centres of the digits.
        side: in pixels.
    """
    face = sample_typeface(rng, slope)
    ink = ink_boxes(rng, boxes, labels, natural_one_aspect(face))
    return compose_ink(draw_ink(face, labels, ink, side), side)


def sample_contrast(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Draw colours (3,) of the ground and of the digits on it.

    Brightness and contrast follow SVHN's train pictures: dark grounds about 75 of 255, bright
    grounds about 150, the difference between ink and ground mostly 45 to 130 before blur.
    """
    contrast = float(np.clip(rng.lognormal(np.log(72), 0.46), 32, 215))
    if rng.random() < LIGHT_ON_DARK:
        ground = float(np.clip(rng.normal(70, 35), 8, 245 - contrast))
        digit = ground + contrast
    else:
        ground = float(np.clip(rng.normal(155, 45), 8 + contrast, 250))
        digit = ground - contrast
    return sample_colour(rng, ground), sample_colour(rng, digit)


def _blend(scene: Plane, colour: Colour | Plane, mask: Plane, opacity: float = 1.0) -> Plane:
    weight = (mask * np.float32(opacity))[:, :, None]
    return np.asarray(scene + weight * (colour - scene))


def _background(
    rng: np.random.Generator,
    boxes: NDArray[np.float64],
    slope: float,
    ground: Colour,
    paint: Colour,
) -> Plane:
    """Draw everything behind the digits: a bare wall, or a plate on a wall."""
    contrast = abs(float((ground - paint).mean()))
    if rng.random() < 0.4:
        depth = float(min(rng.exponential(7), 0.2 * contrast))
        scene = wall(rng, SCENE_SIDE, ground, depth)
        return add_clutter(rng, scene, boxes)
    near = rng.normal(float(ground.mean()), 40) if rng.random() < 0.6 else rng.uniform(15, 235)
    surroundings = sample_colour(rng, float(np.clip(near, 8, 245)))
    scene = wall(rng, SCENE_SIDE, surroundings, float(min(rng.exponential(14), 50)))
    scene = add_clutter(rng, scene, boxes)
    return mount_plate(rng, scene, boxes, slope, ground, paint)


def mount_plate(
    rng: np.random.Generator,
    scene: Plane,
    boxes: NDArray[np.float64],
    slope: float,
    ground: Colour,
    paint: Colour,
) -> Plane:
    """Put a plate of the colour `ground` behind the boxes (n, 4) of a scene (side, side, 3)."""
    side = scene.shape[0]
    is_ellipse = rng.random() < 0.08
    corners = ellipse_corners(boxes) if is_ellipse else plate_corners(rng, boxes, slope)
    radius = float(rng.uniform(0.01, 0.06)) if rng.random() < 0.4 and not is_ellipse else 0.0
    mask = polygon_mask(corners, side, radius)
    if rng.random() < 0.4:
        offset = rng.integers(-5, 6, 2)
        scene = _blend(scene, scene * np.float32(0.3), _cast(mask, offset, 2.0), 0.7)
    surface = ground + np.float32(rng.exponential(3)) * smooth_noise(rng, side, (4, 4))[..., None]
    scene = _blend(scene, surface, mask)
    if rng.random() < 0.4:
        inset, thickness = rng.uniform(0.0, 0.03), rng.uniform(0.012, 0.04)
        outer = polygon_mask(scaled(corners, inset), side, radius)
        inner = polygon_mask(scaled(corners, inset + thickness), side, radius)
        border = paint if rng.random() < 0.7 else sample_colour(rng, float(rng.uniform(10, 240)))
        scene = _blend(scene, border, (outer - inner).clip(0, 1))
    return scene


def _cast(mask: Plane, offset: NDArray[np.int64], softness: float) -> Plane:
    """Return the mask moved by (x, y) pixels and blurred: a shadow or a highlight."""
    moved = np.roll(mask, (int(offset[1]), int(offset[0])), axis=(0, 1))
    return _filtered(moved, ImageFilter.GaussianBlur(softness))


def _filtered(mask: Plane, kernel: ImageFilter.Filter) -> Plane:
    filtered = Image.fromarray((mask * 255).astype(np.uint8)).filter(kernel)
    return np.asarray(filtered, dtype=np.float32) / np.float32(255)


def paint_digits(rng: np.random.Generator, scene: Plane, digits: Plane, paint: Colour) -> Plane:
    """Lay the digits over the scene, at times raised, outlined or worn."""
    offset = rng.integers(-4, 5, 2)
    if rng.random() < 0.35:
        scene = _blend(
            scene, scene * np.float32(0.35), _cast(digits, offset, rng.uniform(0.5, 2.5))
        )
    if rng.random() < 0.1:
        outline = sample_colour(rng, float(rng.uniform(5, 250)))
        scene = _blend(scene, outline, _filtered(digits, ImageFilter.MaxFilter(5)))
    surface: Colour | Plane = paint
    if rng.random() < 0.35:
        wear = np.float32(rng.uniform(3, 18)) * smooth_noise(rng, scene.shape[0], (6, 6))
        surface = paint + wear[:, :, None]
    if rng.random() < 0.2:
        # The lit flank of a raised digit.
        lit = (digits - _cast(digits, -offset, 0.8)).clip(0, 1)
        surface = surface + (lit * np.float32(rng.choice([-70, 70])))[:, :, None]
    opacity = 1.0 if rng.random() < 0.8 else float(rng.uniform(0.7, 1.0))
    return _blend(scene, surface, digits, opacity)


def _shade(rng: np.random.Generator, scene: Plane) -> Plane:
    """Light a scene (side, side, 3) unevenly, at times with the edge of a shadow."""
    side = scene.shape[0]
    grid = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    slope = rng.normal(0, 0.18, 2).astype(np.float32)
    light: Plane = 1 + slope[0] * grid[None, :] + slope[1] * grid[:, None]
    if rng.random() < 0.3:
        light = light + 0.1 * smooth_noise(rng, side, (3, 3))
    if rng.random() < 0.1:
        anywhere = np.array([[0.4, 0.4, 0.6, 0.6]])
        light = light * (1 - rng.uniform(0.15, 0.5) * half_plane(rng, side, anywhere))
    return np.asarray(scene * light.astype(np.float32)[:, :, None])


def _develop(rng: np.random.Generator, scene: Plane) -> Plane:
    """Apply colour cast, saturation and gamma."""
    cast = np.asarray(1 + rng.normal(0, 0.04, 3), dtype=np.float32)
    grey = scene.mean(axis=2, keepdims=True)
    developed = (grey + np.float32(rng.uniform(0.5, 1.15)) * (scene - grey)) * cast
    gamma = np.float32(np.exp(rng.normal(0, 0.15)))
    # Colour is stored coarsely and lenses fringe: no photographed surface has one hue.
    stain = np.stack([smooth_noise(rng, scene.shape[0], (8, 8)) for _ in range(2)], axis=2)
    developed[:, :, ::2] += stain * np.float32(rng.exponential(2.5))
    return np.asarray(255 * (developed / 255).clip(0, 1) ** gamma)


def _motion_blur(rng: np.random.Generator, scene: Plane, length: int) -> Plane:
    """Return the mean of copies shifted along one direction."""
    angle = rng.uniform(0, np.pi)
    steps = np.linspace(-0.5, 0.5, 5) * length
    shifts = [(round(s * np.sin(angle)), round(s * np.cos(angle))) for s in steps]
    padded = np.pad(scene, ((length, length), (length, length), (0, 0)), mode="edge")
    side = scene.shape[0]
    copies = [
        padded[length + y : length + y + side, length + x : length + x + side] for y, x in shifts
    ]
    return np.asarray(sum(copies[1:], copies[0]) / np.float32(len(copies)))


def photograph(
    rng: np.random.Generator, scene: Plane, size: int, digit_height: float
) -> NDArray[np.uint8]:
    """Turn a scene (side, side, 3) in 0..255 into a picture (size, size, 3) uint8.

    `digit_height` is the height of the digits relative to the side of the scene.
    """
    side = scene.shape[0]
    pixels_high = rng.lognormal(np.log(MEDIAN_DIGIT_HEIGHT), DIGIT_HEIGHT_SPREAD)
    native = min(side, round(max(pixels_high, MIN_DIGIT_HEIGHT) / digit_height))
    scene = _develop(rng, _shade(rng, scene))
    pixel = side / native
    if rng.random() < 0.1:
        scene = _motion_blur(rng, scene, max(2, round(pixel * rng.uniform(1, 4))))
    image = Image.fromarray(scene.astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(pixel * rng.uniform(0.3, 1.2)))
    image = image.resize((native, native), Image.Resampling.BOX)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.UnsharpMask(1.2, int(rng.integers(40, 160)), 0))
    pixels = np.asarray(image, dtype=np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    if rng.random() < 0.5:
        noise = noise.mean(axis=2, keepdims=True) * np.float32(1.7)
    pixels = pixels + np.float32(min(12, rng.exponential(2.0))) * noise
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=int(rng.integers(35, 95)))
        image = Image.open(buffer).convert("RGB")
    resample = Image.Resampling.BILINEAR if rng.random() < 0.7 else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size, size), resample))
