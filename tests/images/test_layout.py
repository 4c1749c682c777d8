"""The layouts follow the statistics that were fitted to SVHN's annotations."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lipdet.images.layout import MAX_ENLARGEMENT, sample_layout, statistics

ROOT = Path(__file__).parents[2]
SAMPLES = 3000


@cache
def layouts() -> list[tuple[NDArray[np.float64], NDArray[np.int64], float]]:
    rng = np.random.default_rng(0)
    return [sample_layout(rng) for _ in range(SAMPLES)]


def test_numbers_have_as_many_digits_as_svhns() -> None:
    lengths = np.bincount([len(labels) for _, labels, _ in layouts()], minlength=7)[1:7] / SAMPLES
    # Oracle: layout.json; 0.03 is over three standard errors of a share of 3000 draws.
    np.testing.assert_allclose(lengths, statistics()["length"], atol=0.03)


def test_shapes_and_gaps_follow_the_fitted_quantiles() -> None:
    aspects: list[list[float]] = [[] for _ in range(10)]
    gaps: list[float] = []
    for boxes, labels, _ in layouts():
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        for digit, aspect in zip(labels, width / height, strict=True):
            aspects[digit].append(aspect)
        gaps.extend((boxes[1:, 0] - boxes[:-1, 2]) / height[0])
    middle = statistics()["levels"].index(0.5)
    for digit in range(10):
        # Oracle: the fitted median aspect of this digit.
        assert np.median(aspects[digit]) == pytest.approx(
            statistics()["aspect"][digit][middle], abs=0.04
        )
    # Oracle: the fitted median gap between neighbours.
    assert np.median(gaps) == pytest.approx(statistics()["gap"][middle], abs=0.02)


def test_the_square_is_at_most_its_enlargement_longer_than_the_number() -> None:
    for boxes, _, _ in layouts():
        extent = (boxes[:, 2:].max(axis=0) - boxes[:, :2].min(axis=0)).max()
        # Oracle: the crop procedure of SVHN-like data: longer side over square in [1/1.35, 1].
        assert 1 / MAX_ENLARGEMENT - 1e-9 <= extent <= 1 + 1e-9
        assert boxes.min() >= 0
        assert boxes.max() <= 1


@pytest.mark.slow
def test_the_committed_statistics_come_from_the_script() -> None:
    table = ROOT.parent / "shared" / "svhn" / "train_boxes.csv.gz"
    if not table.exists():
        pytest.skip("../shared/svhn is not here")
    script = ROOT / "scripts" / "fit_layout.py"
    made = subprocess.run(
        [sys.executable, script, table], capture_output=True, text=True, check=True
    )
    # Oracle: the official boxes of all 33,402 train pictures, through the committed script.
    assert made.stdout == (ROOT / "src/lipdet/images/layout.json").read_text(encoding="utf-8")
