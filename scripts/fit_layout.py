"""Summarise SVHN's annotations as the layout statistics that `lipdet.images.layout` samples from.

    python scripts/fit_layout.py train_boxes.csv.gz > src/lipdet/images/layout.json

The table has the columns image, image_width, image_height, label (1-10, 10 is the digit 0), left,
top, width, height: the official boxes of the train set, one per line, left to right.

Notable choices:
- Everything is relative to the height of the number's digits: SVHN's annotators gave all digits
  of a number one height (in 99.98 % of the numbers).
- Distributions are kept as quantiles and the likeness of the digits of one number as the
  correlation of normal scores, so that a Gaussian copula gives both back.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections import defaultdict
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVELS = (0.005, 0.025, *(round(0.05 * k, 2) for k in range(1, 20)), 0.975, 0.995)


def read_numbers(path: str) -> list[NDArray[np.float64]]:
    """One (n, 5) array per picture: left, top, width, height, digit."""
    numbers: dict[str, list[list[float]]] = defaultdict(list)
    with gzip.open(path, "rt") as table:
        for row in csv.DictReader(table):
            box = [float(row[key]) for key in ("left", "top", "width", "height")]
            numbers[row["image"]].append([*box, int(row["label"]) % 10])
    return [np.array(boxes) for boxes in numbers.values()]


def quantiles(values: NDArray[np.float64]) -> list[float]:
    """Quantiles at LEVELS, rounded to keep the file small."""
    return [round(float(q), 3) for q in np.quantile(values, LEVELS)]


def normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace each value by the standard normal quantile of its rank."""
    ranks = values.argsort(kind="stable").argsort(kind="stable")
    inverse = NormalDist().inv_cdf
    return np.array([inverse((rank + 0.5) / len(values)) for rank in ranks])


def pair_correlation(groups: list[NDArray[np.float64]]) -> float:
    """Correlation of neighbouring values within a group, over all groups."""
    pairs = np.array([(g[k], g[k + 1]) for g in groups for k in range(len(g) - 1)])
    return round(float(np.corrcoef(pairs.T)[0, 1]), 3)


def split_like(values: NDArray[np.float64], sizes: list[int]) -> list[NDArray[np.float64]]:
    """Cut a flat array into consecutive pieces of the given sizes."""
    return np.split(values, np.cumsum(sizes)[:-1])


def main() -> None:
    """Write the statistics of the table named on the command line to stdout."""
    numbers = read_numbers(sys.argv[1])
    boxes = np.concatenate(numbers)
    lengths = np.bincount([len(number) for number in numbers], minlength=7)[1:]
    digits = boxes[:, 4].astype(int)
    aspects = boxes[:, 2] / boxes[:, 3]

    aspect_scores = np.empty_like(aspects)
    for digit in range(10):
        aspect_scores[digits == digit] = normal_scores(aspects[digits == digit])

    rows = [n for n in numbers if len(n) > 1 and n[-1, 0] > n[0, 0] + n[0, 2] / 2]
    gaps, slopes, steps = [], [], []
    for number in rows:
        left, top, width, height = number[:, :4].T
        centre_x, centre_y = left + width / 2, top + height / 2
        gaps.append((left[1:] - left[:-1] - width[:-1]) / height[0])
        slope = (centre_y[-1] - centre_y[0]) / (centre_x[-1] - centre_x[0])
        slopes.append(slope)
        line = centre_y[0] + slope * (centre_x[1:-1] - centre_x[0])
        steps.append((centre_y[1:-1] - line) / height[0])
    gap_scores = split_like(normal_scores(np.concatenate(gaps)), [len(g) for g in gaps])

    json.dump(
        {
            "source": "official boxes of the SVHN train set, full numbers (Netzer et al., 2011)",
            "numbers": len(numbers),
            "levels": LEVELS,
            "length": [round(float(p), 5) for p in lengths / lengths.sum()],
            "digit": [round(float(p), 5) for p in np.bincount(digits) / len(digits)],
            "aspect": [quantiles(aspects[digits == digit]) for digit in range(10)],
            "aspect_correlation": pair_correlation(
                split_like(aspect_scores, [len(number) for number in numbers])
            ),
            "gap": quantiles(np.concatenate(gaps)),
            "gap_correlation": pair_correlation(gap_scores),
            "slope": quantiles(np.array(slopes)),
            "step": quantiles(np.concatenate(steps)),
        },
        sys.stdout,
        separators=(",", ":"),
    )
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
