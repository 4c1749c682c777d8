"""The three crops: what they must contain, where they may lie, and the pixels they yield.

Resized pictures have the same bytes with every version of pillow.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lipdet.config import DIGIT_CROP
from lipdet.errors import InputError
from lipdet.images.crop import (
    Region,
    around,
    cut,
    full_region,
    into_region,
    jittered_region,
    out_of_region,
    reference_region,
)
from lipdet.images.resize import resized
from lipdet.types import Canvas

Boxes = NDArray[np.float32]
seeds = st.integers(0, 10**6)


@st.composite
def annotated(draw: st.DrawFn) -> tuple[Boxes, int, int]:
    """Boxes (1–4) of at least a pixel inside a picture, with its width and height."""
    width, height = draw(st.integers(8, 200)), draw(st.integers(8, 200))
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        left = draw(st.floats(0, width - 1, width=32))
        top = draw(st.floats(0, height - 1, width=32))
        boxes.append(
            [
                left,
                top,
                draw(st.floats(left + 0.5, width, exclude_min=True)),
                draw(st.floats(top + 0.5, height, exclude_min=True)),
            ]
        )
    return np.array(boxes, np.float32), width, height


def contains(region: Region, boxes: Boxes, slack: float = 0) -> bool:
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    return bool(
        region.left <= low[0] + slack
        and region.top <= low[1] + slack
        and region.right >= high[0] - slack
        and region.bottom >= high[1] - slack
    )


def whole_pixels(boxes: Boxes) -> tuple[int, int]:
    """Width and height of the number, on the grid of pixels."""
    low, high = np.floor(boxes[:, :2].min(axis=0)), np.ceil(boxes[:, 2:].max(axis=0))
    return int(high[0] - low[0]), int(high[1] - low[1])


@given(annotated(), seeds)
def test_reference_region(picture: tuple[Boxes, int, int], seed: int) -> None:
    boxes, width, height = picture
    region = reference_region(boxes, width, height, np.random.default_rng(seed))
    side = max(whole_pixels(boxes))
    if region is None:
        # The smallest square is larger than the picture.
        assert side > min(width, height)
        return
    assert contains(region, boxes)
    assert region.right - region.left == region.bottom - region.top
    assert min(region.left, region.top) >= 0
    assert region.right <= width
    assert region.bottom <= height
    # The reference enlarges by a whole number of pixels on each side, 15 % of it rounded.
    assert side <= region.right - region.left <= side + 2 * round(0.15 * side)
    assert region == reference_region(boxes, width, height, np.random.default_rng(seed))


def test_reference_region_grows_as_far_as_the_picture_allows() -> None:
    def grown(width: int, height: int) -> Region | None:
        box = np.array([[40, 40, 80, 80]], np.float32)
        return reference_region(box, width, height, np.random.default_rng(0))

    # By hand: the square of 40 grows by 6 on each side; with less room by 3, by 1, or not at all.
    assert grown(200, 200) == (34, 34, 86, 86)
    assert grown(85, 200) == (37, 37, 83, 83)
    assert grown(82, 200) == (39, 39, 81, 81)
    assert grown(80, 200) == (40, 40, 80, 80)


def test_reference_region_slides_along_the_free_direction_only() -> None:
    box = np.array([[10, 40, 50, 50]], np.float32)
    rng = np.random.default_rng(0)
    drawn = {reference_region(box, 60, 200, rng) for _ in range(300)}
    regions = {region for region in drawn if region is not None}
    # By hand: 40 wide, growth of 6 on each side fits (10 is free on either side); the top of
    # the square of 40 lies anywhere from 10 (its lower edge at 50) to 40.
    assert {region.left for region in regions} == {4}
    assert {region.top for region in regions} == set(range(10 - 6, 40 - 6 + 1))


@given(annotated(), seeds)
def test_jittered_region(picture: tuple[Boxes, int, int], seed: int) -> None:
    boxes, *_ = picture
    region = jittered_region(boxes, np.random.default_rng(seed))
    assert contains(region, boxes, slack=1e-6)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    longer, shorter = max(high - low), min(high - low)
    width, height = region.right - region.left, region.bottom - region.top
    # By the docstring: 1.0–1.4 times the longer side, aspect within 15 % of square.
    assert longer - 1e-6 <= max(width, height)
    assert (width * height) ** 0.5 <= 1.4 * longer * 1.15**0.25 + 1e-6
    assert shorter - 1e-6 <= min(width, height)
    assert (
        0.85 - 1e-6 <= width / height <= 1.15 + 1e-6
        or np.isclose([width, height], high - low).any()
    )
    assert region == jittered_region(boxes, np.random.default_rng(seed))


def test_full_region_by_hand() -> None:
    assert full_region(100, 40, DIGIT_CROP) == (0, -30, 100, 70)
    assert full_region(40, 100, DIGIT_CROP) == (-30, 0, 70, 100)
    assert full_region(50, 50, DIGIT_CROP) == (0, 0, 50, 50)
    # Twice as wide as high.
    assert full_region(100, 40, Canvas(80, 160)) == (0, -5, 100, 45)
    assert full_region(40, 100, Canvas(80, 160)) == (-80, 0, 120, 100)
    assert around(Region(10, 20, 30, 60), Canvas(80, 160)) == (-20, 20, 60, 60)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("region", [(0, 0, 60, 60), (10, 5, 47, 42), (30, 0, 90, 60)])
def test_cut_inside_the_picture_equals_pil(
    photograph: Image.Image, region: tuple[float, float, float, float]
) -> None:
    # Oracle: PIL's own crop and resize.
    whole = tuple(map(int, region))
    expected = photograph.crop(whole).resize((74, 74), Image.Resampling.BILINEAR)  # type: ignore[arg-type]
    # Filtering may look beyond a crop's edge, where the plain crop ends: the inside is equal.
    found = cut(photograph, Region(*region), DIGIT_CROP)
    assert found.shape == (74, 74, 3)
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - np.asarray(expected))
    assert difference[2:-2, 2:-2].max() <= 1


def test_what_would_be_repeated_without_end_is_refused() -> None:
    line = Image.new("RGB", (60_000, 4))
    with pytest.raises(InputError, match="60000×4 pixels is too long and narrow"):
        cut(line, full_region(*line.size, DIGIT_CROP), DIGIT_CROP)


def test_cut_repeats_the_edge_beyond_the_border(photograph: Image.Image) -> None:
    pixels = np.asarray(photograph)
    # By hand: at scale 1, twenty columns and ten rows beyond the upper left corner.
    found = cut(photograph, Region(-20, -10, 54, 64), DIGIT_CROP)
    np.testing.assert_array_equal(found[10:70, 20:], pixels[:, :54])
    np.testing.assert_array_equal(found[10:70, :20], np.repeat(pixels[:, :1], 20, axis=1))
    np.testing.assert_array_equal(found[:10, 20:], np.repeat(pixels[:1, :54], 10, axis=0))
    np.testing.assert_array_equal(found[70:, 20:], np.repeat(pixels[-1:, :54], 4, axis=0))
    assert (found[:10, :20] == pixels[0, 0]).all()


# 2 - (2 - 5.9e-16) is more than 5.9e-16.
@example((np.array([[0, 1, 1, 2], [0, 5.9337294e-16, 1, 1]], np.float32), 8, 8), 345437)
@given(annotated(), seeds)
def test_boxes_go_into_a_region_and_back(picture: tuple[Boxes, int, int], seed: int) -> None:
    boxes, *_ = picture
    canvas = Canvas(74, 91)
    region = jittered_region(boxes, np.random.default_rng(seed))
    inside, has_area = into_region(boxes, region, canvas)
    assert has_area.all()
    assert inside.min() >= 0
    assert (inside <= canvas.limits).all()
    np.testing.assert_allclose(out_of_region(inside, region, canvas), boxes, atol=2e-3)


def test_boxes_in_a_region_by_hand() -> None:
    boxes = np.array([[10, 20, 20, 30], [0, 0, 15, 60], [0, 0, 10, 10]], np.float32)
    inside, has_area = into_region(boxes, Region(10, 10, 30, 50), Canvas(40, 40))
    # Twice as large in x, the same in y; the second is clipped, the third is outside.
    np.testing.assert_allclose(inside[:2], [[0, 10, 20, 20], [0, 0, 10, 40]])
    assert has_area.tolist() == [True, True, False]


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
