"""Resized pictures have the same bytes with every version of pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lipdet.images.resize import resized


@pytest.mark.parametrize(
    ("pixels", "size", "expected"),
    [
        # Oracle: Image.resize of pillow 13.0. That of 12.3 differs by up to 2 in each.
        ([[36, 7], [134, 222], [57, 146], [8, 149], [14, 15], [22, 10]], (4, 2),
         [[68, 87, 126, 145], [15, 29, 56, 70]]),
        ([[226, 201], [8, 159], [26, 27], [163, 122]], (3, 2), [[100, 134, 168], [79, 80, 80]]),
        ([[144, 208], [24, 24], [7, 41], [11, 85], [59, 104], [225, 110]], (3, 3),
         [[76, 93, 110], [1, 31, 60], [135, 121, 106]]),
    ],
)  # fmt: skip
def test_rows_come_first_where_the_height_shrinks_more(
    pixels: list[list[int]], size: tuple[int, int], expected: list[list[int]]
) -> None:
    image = Image.fromarray(np.array(pixels, np.uint8))
    assert np.asarray(resized(image, size, Image.Resampling.BICUBIC)).tolist() == expected


@pytest.mark.parametrize("box", [None, (3.3, 7.1, 30.5, 34.3)])
def test_squares_are_those_of_pillow(box: tuple[float, float, float, float] | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    image = Image.fromarray(noise)
    for side in (17, 74):
        # Oracle: pillow itself, whose versions agree on squares.
        expected = image.resize((side, side), Image.Resampling.BILINEAR, box)
        found = resized(image, (side, side), Image.Resampling.BILINEAR, box)
        assert np.array_equal(np.asarray(found), np.asarray(expected))
