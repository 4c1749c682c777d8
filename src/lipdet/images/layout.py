"""Where the digits of a rendered house number lie: layouts as in SVHN's annotations.

Notable choices:
- The statistics (`layout.json`, made by `scripts/fit_layout.py`) are aggregates of the official
  train boxes; the digits of one number share their condensation through a Gaussian copula.
- The square around a number follows the crop of real pictures: as long as the number's longer
  side, enlarged by up to 35 %. In half of the layouts the number lies near the middle, as the
  borders of SVHN's pictures make it (measured on the train set: its centre within 0.05 of the
  square's for half of the crops); in the others it lies anywhere.
"""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ENLARGEMENT = 1.35
CENTRED_SHARE = 0.5
CENTRED_FREEDOM = 0.3


@cache
def statistics() -> dict[str, Any]:
    """Return the contents of `layout.json`; lengths are relative to the height of the digits."""
    text = files("lipdet.images").joinpath("layout.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _correlated_levels(
    rng: np.random.Generator, count: int, correlation: float
) -> NDArray[np.float64]:
    """Draw `count` levels in (0, 1) whose normal scores have the given pairwise correlation."""
    shared = math.sqrt(correlation) * rng.standard_normal()
    own = math.sqrt(1 - correlation) * rng.standard_normal(count)
    return np.array([0.5 * (1 + math.erf(score / math.sqrt(2))) for score in shared + own])


def _quantile(levels: NDArray[np.float64] | float, values: list[float]) -> NDArray[np.float64]:
    return np.asarray(np.interp(levels, statistics()["levels"], values))


def sample_layout(
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Draw a house number and where its digits lie in a unit square.

    Returns:
        The boxes (n, 4) as xyxy in [0, 1], left to right; the digits (n,); the slope of the line
        through the centres of the digits (downwards is positive).
    """
    fitted = statistics()
    length = 1 + int(rng.choice(len(fitted["length"]), p=_normalised(fitted["length"])))
    labels = rng.choice(10, size=length, p=_normalised(fitted["digit"])).astype(np.int64)

    levels = _correlated_levels(rng, length, fitted["aspect_correlation"])
    widths = np.array(
        [float(_quantile(u, fitted["aspect"][d])) for u, d in zip(levels, labels, strict=True)]
    )
    gap_levels = _correlated_levels(rng, length, fitted["gap_correlation"])[1:]
    # A box may overlap its neighbour, but never pass it.
    gaps = np.maximum(_quantile(gap_levels, fitted["gap"]), -0.5 * widths[:-1])
    left = np.concatenate([[0.0], np.cumsum(widths[:-1] + gaps)])

    slope = float(_quantile(rng.random(), fitted["slope"]))
    centre_x = left + widths / 2
    centre_y = slope * (centre_x - centre_x[0])
    centre_y[1:-1] += _quantile(rng.random(max(length - 2, 0)), fitted["step"])
    boxes = np.stack([left, centre_y - 0.5, left + widths, centre_y + 0.5], axis=1)
    return _into_square(rng, boxes), labels, slope


def _normalised(probabilities: list[float]) -> NDArray[np.float64]:
    values = np.array(probabilities)
    return np.asarray(values / values.sum())


def _into_square(rng: np.random.Generator, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose a square around all boxes and express them in its coordinates."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    extent = high - low
    side = extent.max() * rng.uniform(1, MAX_ENLARGEMENT)
    freedom = CENTRED_FREEDOM if rng.random() < CENTRED_SHARE else 1.0
    share_before = 0.5 + freedom * rng.uniform(-0.5, 0.5, 2)
    corner = low - share_before * (side - extent)
    return np.asarray(((boxes - np.tile(corner, 2)) / side).clip(0, 1))
