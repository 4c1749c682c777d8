"""Detection in whole photographs: the search covers them, finds numbers and frames them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lipdet.boxes import DISPLAY_SELECTION
from lipdet.boxes.select import one_per_place
from lipdet.certificate.radius import Remaining
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import load_detector
from lipdet.config import DIGIT_CROP, PRESETS
from lipdet.detector import SSD, build_detector
from lipdet.errors import InputError
from lipdet.images.crop import Region, around, cut, full_region
from lipdet.images.render import rendered
from lipdet.reading import Detection, certified_reading, read
from lipdet.reading.detections import radius_text, read_out
from lipdet.reading.read import remaining_alone
from lipdet.reading.search import SMALLEST_SQUARE, joined, search_squares
from lipdet.types import Canvas, Detections

SIDE = 148
DIGITS = tuple("0123456789")


def photograph(index: int, left: int, top: int) -> tuple[Image.Image, np.ndarray, list[int]]:
    """A rendered number pasted into a larger plain picture, with its boxes and labels there."""
    pixels, boxes, labels = rendered("test", index, size=SIDE)
    colour = tuple(int(value) for value in np.median(pixels.reshape(-1, 3), axis=0))
    canvas = Image.new("RGB", (480, 360), colour)
    canvas.paste(Image.fromarray(pixels), (left, top))
    return canvas, boxes + np.array([left, top] * 2), labels.tolist()


def _holds_centre(box: np.ndarray, one: Detection) -> bool:
    left, top, right, bottom = one.box
    return bool(box[0] < (left + right) / 2 < box[2] and box[1] < (top + bottom) / 2 < box[3])


def test_of_each_place_only_the_best_detection_is_read() -> None:
    place, beside = (10.0, 10.0, 30.0, 40.0), (40.0, 10.0, 60.0, 40.0)
    found = [Detection("3", 0.9, beside), Detection("7", 0.8, place), Detection("1", 0.7, place)]
    assert read_out(found) == "7 3"
    assert read_out([]) == "nothing"


@pytest.mark.slow
def test_numbers_are_found_wherever_they_are() -> None:
    detector = load_detector("naive").detector
    found_digits = digits = read_numbers = 0
    for index in range(4):
        picture, boxes, labels = photograph(index, left=20 + 40 * index, top=200 - 20 * index)
        found = read(detector, DIGITS, picture).detections
        number = read_out(found)
        read_numbers += number == " ".join(DIGITS[labels[i]] for i in boxes[:, 0].argsort())
        digits += len(labels)
        for box, label in zip(boxes, labels, strict=True):
            found_digits += any(
                one.label == DIGITS[label] and _holds_centre(box, one) for one in found
            )
    # The renderer knows the truth; some of its pictures are unreadable by design.
    assert found_digits >= 0.7 * digits
    assert read_numbers >= 2


@pytest.mark.slow
def test_a_number_on_a_long_photograph_is_found() -> None:
    picture, _, labels = photograph(0, left=20, top=20)
    long = Image.new("RGB", (4000, 300), picture.getpixel((0, 0)))
    long.paste(picture.crop((0, 0, 200, 200)), (3000, 40))
    found = read(load_detector("naive").detector, DIGITS, long).detections
    assert sorted(one.label for one in found) == sorted(DIGITS[label] for label in labels)
    assert all(3000 < one.box[0] < one.box[2] < 3200 for one in found)


def test_a_picture_without_a_number() -> None:
    detector = load_detector("naive").detector
    found = read(detector, DIGITS, Image.new("RGB", (300, 200), "gray"))
    assert found.detections == found.views == ()


def of_whole_pictures(canvas: Canvas) -> tuple[SSD, Image.Image]:
    """A network with random weights that finds something in noise, and noise of 300 × 200."""
    config = replace(PRESETS["certified-small"].detector, canvas=canvas, whole=True)
    torch.manual_seed(0)
    detector = build_detector(config).eval()
    nn.init.constant_(detector.heads[0].classification.bias, 0.1)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    return detector, Image.fromarray(noise)


def test_a_crop_of_the_whole_picture_is_framed_as_in_training() -> None:
    """It is letter-boxed, not stretched."""
    canvas = Canvas(48, 48)
    detector, picture = of_whole_pictures(canvas)
    by_crop, plain = (
        read(detector, DIGITS, picture, region) for region in (Region(0, 0, 300, 200), None)
    )
    # By hand: a square of 300 that begins 50 above; packs for training are cut from the same.
    assert by_crop.views[0].region == full_region(300, 200, canvas) == (0, -50, 300, 250)
    assert np.array_equal(by_crop.views[0].pixels, cut(picture, Region(0, -50, 300, 250), canvas))
    assert by_crop.detections == plain.detections != ()


def test_a_network_of_whole_pictures_looks_once() -> None:
    canvas = Canvas(40, 72)
    detector, picture = of_whole_pictures(canvas)
    found = certified_reading(
        read(detector, DIGITS, picture), verifier_of(detector, DISPLAY_SELECTION)
    )
    [view] = found.views
    # By hand: 300 wide is 72, so that 200 high is 48 of 40: the height decides, 360 × 200.
    assert view.region == (-30, 0, 330, 200)
    assert view.pixels.shape == (40, 72, 3)
    assert found.detections
    assert any(one.radius for one in found.detections)
    for one in found.detections:
        assert 0 <= one.box[0] < one.box[2] <= 300
        assert 0 <= one.box[1] < one.box[3] <= 200
    [inside] = read(detector, DIGITS, picture, Region(10, 20, 30, 60)).views
    assert inside.region == around(Region(10, 20, 30, 60), canvas)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (40, 40)])
def test_pictures_of_odd_sizes(size: tuple[int, int]) -> None:
    detector = load_detector("naive").detector
    for one in read(detector, DIGITS, Image.new("RGB", size)).detections:
        assert 0 <= one.box[0] <= one.box[2] <= size[0]


@pytest.mark.parametrize("size", [(300, 200), (64, 512), (33, 90)])
def test_squares_cover_the_picture_at_every_size(size: tuple[int, int]) -> None:
    squares = search_squares(*size, DIGIT_CROP)[1:]
    sides = [round(square.right - square.left, 6) for square in squares]
    for side in set(sides):
        level = [square for square, own in zip(squares, sides, strict=True) if own == side]
        assert side >= SMALLEST_SQUARE
        for x, y in ((0.5, 0.5), (size[0] - 0.5, size[1] - 0.5), (size[0] / 2, size[1] / 2)):
            assert any(s.left <= x <= s.right and s.top <= y <= s.bottom for s in level)


def test_of_overlapping_readings_the_best_remains() -> None:
    def one(label: int, score: float) -> Detections:
        return Detections(
            boxes=torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
            labels=torch.tensor([label]),
            scores=torch.tensor([score], dtype=torch.float64),
        )

    def labels(parts: list[Detections]) -> list[int]:
        return one_per_place(joined(parts), torch.arange(len(parts)))["labels"].tolist()

    assert labels([one(1, 0.6), one(7, 0.9)]) == [7]
    part = one(1, 0.5)
    part["boxes"] = torch.tensor([[2.0, 2.0, 4.0, 4.0]])
    neighbour = one(3, 0.4)
    neighbour["boxes"] = torch.tensor([[8.0, 0.0, 18.0, 10.0]])
    # A part of a digit goes; a neighbour that overlaps by a fifth stays.
    assert labels([one(7, 0.9), part, neighbour]) == [7, 3]


@pytest.mark.parametrize(("left", "radius"), [(20.0, 0.0), (200.0, 0.25)])
def test_nothing_is_promised_where_squares_meet(left: float, radius: float) -> None:
    # Two squares with one digit each, whose box may lie 5 pixels further out.
    boxes = torch.tensor([[10.0, 10.0, 40.0, 40.0], [left + 10.0, 10.0, left + 40.0, 40.0]])
    reach = boxes.double() + torch.tensor([-5.0, -5.0, 5.0, 5.0])
    kept = Remaining(torch.tensor([0.25, 0.25]), reach)
    assert remaining_alone(boxes, torch.arange(2), kept).radius.tolist() == [radius] * 2
    # In one square they are rivals whom the certificate knows.
    assert remaining_alone(boxes, torch.zeros(2), kept).radius.tolist() == [0.25] * 2


def test_region_is_checked() -> None:
    detector = load_detector("naive").detector
    image = Image.new("RGB", (50, 40))
    for region in (Region(10, 10, 10, 20), Region(0, 0, 51, 40), Region(-1, 0, 5, 5)):
        with pytest.raises(InputError, match="crop"):
            read(detector, DIGITS, image, region)


@pytest.mark.parametrize(
    ("radius", "text"),
    [(441 / 1024, "0.430"), (1 / 1024, "0.0009"), (1.0, "1.000"), (0.5, "0.500")],
)
def test_radii_are_rounded_down(radius: float, text: str) -> None:
    assert radius_text(radius) == text
