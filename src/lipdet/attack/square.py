"""Square attack in L2 (Andriushchenko et al., 2020, algorithm 3): random search without gradients.

It asks the detector for values only. It is here to check the gradient attacks: an attack that sees
the gradient and does less harm than this one is too weak (theory §7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.attack.balls import L2Ball
from lipdet.attack.loop import Objective

FIRST_SHARE = 0.1  # of the image's area that the first windows cover
# Fractions of the queries after which the share is halved.
HALVINGS = (0.001, 0.005, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8)
SMALLEST_SIDE = 3
FIRST_TILES = 5

Array = NDArray[np.float32]


@torch.no_grad()
def square_attack(
    objective: Objective,
    images: Tensor,
    epsilon: float,
    queries: int,
    seeds: Sequence[tuple[int, ...]],
) -> Tensor:
    """Return the best images that random search finds.

    Args:
        objective: images (B, 3, H, W) and their places (B,) to values (B,), to be raised.
        images: (B, 3, H, W) in [0, 1].
        epsilon: L2 radius.
        queries: evaluations per image.
        seeds: of each image's random choices.

    Returns:
        (B, 3, H, W) in [0, 1], inside the balls.
    """
    ball = L2Ball(epsilon)
    places = torch.arange(len(images), device=images.device)
    rngs = [np.random.default_rng((*seed, 1)) for seed in seeds]
    shape = tuple(images.shape[1:])
    best = _moved(images, np.stack([_tiles(rng, shape) for rng in rngs]), ball)
    values = objective(best, places)
    for query in range(1, queries):
        side = _side(query / queries, *shape[1:])
        deltas = (best - images).cpu().numpy()
        tried = np.stack(
            [
                _moved_mass(delta, side, epsilon, rng)
                for delta, rng in zip(deltas, rngs, strict=True)
            ]
        )
        candidates = _moved(images, tried, ball)
        new_values = objective(candidates, places)
        better = new_values > values
        best[better], values[better] = candidates[better], new_values[better]
    return best


def _moved(images: Tensor, deltas: Array, ball: L2Ball) -> Tensor:
    """Move images by perturbations that are first stretched to the radius."""
    directions = ball.direction(torch.from_numpy(deltas).to(images))
    return ball.project(images + ball.epsilon * directions, images)


def _tiles(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return the start: a grid of bumps with random signs."""
    delta = np.zeros(shape, np.float32)
    side = max(min(shape[1:]) // FIRST_TILES, 1)
    for top in range(0, shape[1] - side + 1, side):
        for left in range(0, shape[2] - side + 1, side):
            delta[:, top : top + side, left : left + side] = _bumps(rng, shape[0], side)
    return delta


def _moved_mass(delta: Array, side: int, epsilon: float, rng: np.random.Generator) -> Array:
    """Take the perturbation out of one window and put it, reshaped, into another."""
    channels, height, width = delta.shape
    windows = [
        (slice(None), slice(top, top + side), slice(left, left + side))
        for top, left in rng.integers(0, (height - side + 1, width - side + 1), (2, 2)).tolist()
    ]
    touched = np.zeros_like(delta)
    for window in windows:
        touched[window] = delta[window]
    unused = max(epsilon**2 - float((delta**2).sum()), 0.0) / channels
    lengths = np.sqrt((touched**2).sum(axis=(1, 2), keepdims=True) + unused)
    mixed = _unit(delta[windows[0]]) + _unit(_bumps(rng, channels, side))
    moved = delta.copy()
    moved[windows[1]] = 0
    moved[windows[0]] = _unit(mixed) * lengths
    return moved


def _bumps(rng: np.random.Generator, channels: int, side: int) -> Array:
    """Draw two opposite bumps side by side on a random axis, with a random sign per channel."""
    half = side // 2
    pattern = np.concatenate([_bump(half, side), -_bump(side - half, side)])
    if rng.random() < 0.5:
        pattern = pattern.T
    signs = rng.choice(np.array([-1, 1], np.float32), (channels, 1, 1))
    return np.asarray(signs * pattern, np.float32)


def _bump(height: int, width: int) -> Array:
    """Return a bump that rises ring by ring towards the middle, faster and faster."""
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (height, width))
    rings = np.minimum(rows[:, None], columns)
    most = min(height, width) // 2
    heights = np.cumsum(1.0 / (most + 1 - np.arange(most + 1)) ** 2)
    return heights[rings].astype(np.float32)


def _unit(values: Array) -> Array:
    """Return each channel divided by its norm; zero stays zero."""
    norms = np.sqrt((values**2).sum(axis=(1, 2), keepdims=True))
    return np.asarray(values / np.where(norms > 0, norms, 1), np.float32)


def _side(done: float, height: int, width: int) -> int:
    share = FIRST_SHARE / 2 ** sum(done > point for point in HALVINGS)
    side = round(math.sqrt(share * height * width))
    return min(max(side, SMALLEST_SIDE), height, width)
