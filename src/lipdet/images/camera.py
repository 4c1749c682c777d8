"""What light and camera do to a rendered scene: shading, blur, few pixels, noise, compression.

Notable choices:
- SVHN's digits are small, whatever the length of their number: on the train set their height is
  log-normal with a median of 29 pixels and a spread of 0.48 (natural logarithm). A scene is
  reduced until its digits are as small, then enlarged again.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lipdet.images.surface import Plane, half_plane, smooth_noise

MEDIAN_DIGIT_HEIGHT, DIGIT_HEIGHT_SPREAD = 29.0, 0.48
MIN_DIGIT_HEIGHT = 11.0


def shade(rng: np.random.Generator, scene: Plane) -> Plane:
    """Light falling unevenly on a scene (side, side, 3), at times with the edge of a shadow."""
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
    """Colour cast, saturation and gamma."""
    cast = np.asarray(1 + rng.normal(0, 0.04, 3), dtype=np.float32)
    grey = scene.mean(axis=2, keepdims=True)
    developed = (grey + np.float32(rng.uniform(0.5, 1.15)) * (scene - grey)) * cast
    gamma = np.float32(np.exp(rng.normal(0, 0.15)))
    # Colour is stored coarsely and lenses fringe: no photographed surface has one hue.
    stain = np.stack(
        [smooth_noise(rng, scene.shape[0], (8, 8)), smooth_noise(rng, scene.shape[0], (8, 8))]
    )
    stain = stain * np.float32(rng.exponential(2.5))
    developed[:, :, 0] += stain[0]
    developed[:, :, 2] += stain[1]
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
    scene = _develop(rng, shade(rng, scene))
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
        image = _compressed(image, int(rng.integers(35, 95)))
    resample = Image.Resampling.BILINEAR if rng.random() < 0.7 else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size, size), resample))


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
