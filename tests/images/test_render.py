"""Rendered house numbers: reproducible, disjoint streams, boxes that hold the ink.

Their layouts follow the statistics that were fitted to SVHN's annotations.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lipdet.errors import InputError
from lipdet.images.ink import HALF_INK, draw_ink, ink_boxes, natural_one_aspect, sample_typeface
from lipdet.images.layout import MAX_ENLARGEMENT, sample_layout, statistics
from lipdet.images.render import STREAMS, rendered

ROOT = Path(__file__).parents[2]
SAMPLES = 3000
DIGEST = """
import hashlib
from lipdet.images.render import rendered
digest = hashlib.sha256()
for index in range(12):
    for part in rendered("train", index, seed=3):
        digest.update(part.tobytes())
"""


def digest(stream: str, index: int, seed: int = 0) -> str:
    return hashlib.sha256(rendered(stream, index, seed)[0].tobytes()).hexdigest()


@pytest.mark.slow
def test_two_processes_render_the_same_bytes() -> None:
    command = [sys.executable, "-c", DIGEST + "print(digest.hexdigest())"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    here: dict[str, Any] = {}
    exec(DIGEST, here)
    # Oracle: the same call in another process, whose hash seed and caches differ.
    assert printed.strip() == here["digest"].hexdigest()


def test_a_picture_does_not_depend_on_the_others() -> None:
    forwards = [digest("test", k) for k in range(6)]
    backwards = [digest("test", k) for k in reversed(range(9))][::-1]
    # Oracle: the definition of a prefix.
    assert backwards[:6] == forwards


def test_streams_seeds_and_indices_never_share_a_picture() -> None:
    digests = {
        digest(stream, index, seed) for stream in STREAMS for index in range(15) for seed in (0, 1)
    }
    # Oracle: counting.
    assert len(digests) == len(STREAMS) * 15 * 2


@pytest.mark.parametrize("size", [32, 74, 128])
def test_shapes_types_and_ranges(size: int) -> None:
    for index in range(10):
        picture, boxes, labels = rendered("train", index, size=size)
        # Oracle: the documented signature.
        assert picture.shape == (size, size, 3)
        assert picture.dtype.name == "uint8"
        assert boxes.dtype.name == "float32"
        assert labels.dtype.name == "int64"
        assert boxes.shape == (len(labels), 4)
        assert len(labels) >= 1
        assert boxes.min() >= 0
        assert boxes.max() <= size
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_ink_stays_in_its_box_and_reaches_near_its_sides() -> None:
    rng = np.random.default_rng(1)
    side = 200
    spans = []
    for _ in range(200):
        boxes, labels, slope = sample_layout(rng)
        face = sample_typeface(rng, slope)
        ink = ink_boxes(rng, boxes, labels, natural_one_aspect(face))
        placed = draw_ink(face, labels, ink, side)
        for (left, top, right, bottom), digit, (mask, corner) in zip(
            boxes * side, labels, placed, strict=True
        ):
            # Oracle: the bounding box of the pixels with ink.
            x0, y0, x1, y1 = mask.point(HALF_INK).getbbox() or (0, 0, 0, 0)
            assert corner[0] + x0 >= left - 1
            assert corner[1] + y0 >= top - 1
            assert corner[0] + x1 <= right + 1
            assert corner[1] + y1 <= bottom + 1
            width, height = right - left, bottom - top
            assert (y1 - y0) >= 0.6 * height - 2
            if digit != 1:
                assert (x1 - x0) >= 0.55 * width - 3
                spans.append(((x1 - x0) / width, (y1 - y0) / height))
    # Oracle: margins measured on SVHN's train pictures, 11 % of the height across and 15 % along,
    # leave about 79 % of the width and 85 % of the height of a box half as wide as high.
    assert np.mean(spans, axis=0) == pytest.approx([0.79, 0.85], abs=0.06)


@pytest.mark.slow
def test_boxes_lie_where_the_picture_shows_digits() -> None:
    pictures = [rendered("train", index) for index in range(75)]

    def contrast(boxes_from: int) -> float:
        """Mean brightness step across the strokes in boxes, taken from a later picture."""
        steps = []
        for index, (picture, _, _) in enumerate(pictures):
            across = np.abs(np.diff(picture.mean(axis=2), axis=1))
            for x0, y0, x1, y1 in pictures[(index + boxes_from) % 75][1].round().astype(int):
                steps.append(across[y0:y1, x0:x1].mean() / (across.mean() + 1e-3))
        return float(np.median(steps))

    # Oracle: the same statistic with the boxes of another picture, which fit only by chance.
    assert contrast(0) > 1.1 * contrast(1)


def test_unknown_streams_and_negative_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="'dev'"):
        rendered("dev", 0)
    with pytest.raises(InputError, match="-1"):
        rendered("train", -1)
    with pytest.raises(InputError, match="-2"):
        rendered("train", 0, seed=-2)


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
def test_the_committed_statistics_come_from_the_script(svhn: Path) -> None:
    script = ROOT / "scripts" / "fit_layout.py"
    made = subprocess.run(
        [sys.executable, script, svhn / "train_boxes.csv.gz"],
        capture_output=True,
        text=True,
        check=True,
    )
    # Oracle: the official boxes of all 33,402 train pictures, through the committed script.
    assert made.stdout == (ROOT / "src/lipdet/images/layout.json").read_text(encoding="utf-8")
