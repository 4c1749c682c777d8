"""Rendered photographs: reproducible, disjoint streams, numbers as in photographs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from lipdet.errors import InputError
from lipdet.images.render import STREAMS, Picture
from lipdet.images.scenes import WITHOUT_NUMBER, rendered_scene
from lipdet.types import Canvas

CANVAS = Canvas(120, 240)
SAMPLES = 400


@cache
def scenes() -> list[Picture]:
    return [rendered_scene("train", index, 0, CANVAS) for index in range(SAMPLES)]


def test_streams_seeds_and_indices_never_share_a_picture() -> None:
    made = {
        rendered_scene(stream, index, seed, CANVAS)[0].tobytes()
        for stream in STREAMS
        for index in range(5)
        for seed in (0, 1)
    }
    # Oracle: counting.
    assert len(made) == len(STREAMS) * 5 * 2
    again = rendered_scene("train", 3, 0, CANVAS)
    # Oracle: the definition of a stream.
    for one, same in zip(again, scenes()[3], strict=True):
        assert (one == same).all()
    with pytest.raises(InputError, match="'dev'"):
        rendered_scene("dev", 0, 0, CANVAS)


@pytest.mark.parametrize("canvas", [CANVAS, Canvas(96, 64), Canvas(33, 70)])
def test_numbers_lie_inside_and_fill_the_types(canvas: Canvas) -> None:
    for index in range(20):
        picture, boxes, labels = rendered_scene("test", index, 0, canvas)
        # Oracle: the documented signature.
        assert picture.shape == (canvas.height, canvas.width, 3)
        assert (picture.dtype, boxes.dtype, labels.dtype) == (np.uint8, np.float32, np.int64)
        assert boxes.shape == (len(labels), 4)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= np.array([canvas.width, canvas.height] * 2)).all()


def test_some_have_no_number_and_heights_are_those_of_photographs() -> None:
    empty = np.mean([len(labels) == 0 for _, _, labels in scenes()])
    # Oracle: the constant; 0.05 is more than three standard errors of a share of 400.
    assert empty == pytest.approx(WITHOUT_NUMBER, abs=0.05)
    heights = np.concatenate([boxes[:, 3] - boxes[:, 1] for _, boxes, _ in scenes()])
    # Oracle: scripts/photograph_heights.py on the official annotations of SVHN's test pictures.
    found = np.percentile(heights, (5, 25, 50, 75, 95))
    np.testing.assert_allclose(found, [18.1, 31.2, 44.6, 57.7, 75.9], rtol=0.25)


def test_numbers_lie_anywhere() -> None:
    centres = np.array(
        [(boxes[:, :2].min(0) + boxes[:, 2:].max(0)) / 2 for _, boxes, _ in scenes() if len(boxes)]
    ) / (CANVAS.width, CANVAS.height)
    # Each ninth of the picture has some; by chance a tenth of them would be few.
    cells = np.floor(3 * centres).astype(int) @ (1, 3)
    assert (np.bincount(cells, minlength=9) > len(centres) / 40).all()


def test_digits_stand_out_from_where_they_are_not() -> None:
    def steps(of: int) -> float:
        """Mean brightness step across the strokes in boxes, taken from a later picture."""
        found = []
        for index, (picture, _, _) in enumerate(scenes()):
            across = np.abs(np.diff(picture.mean(axis=2), axis=1))
            for x0, y0, x1, y1 in scenes()[(index + of) % SAMPLES][1].round().astype(int):
                found.append(across[y0:y1, x0 : x1 - 1].mean() / (across.mean() + 1e-3))
        return float(np.median(found))

    # Oracle: the same statistic with the boxes of another picture.
    assert steps(0) > 1.5 * steps(1)
