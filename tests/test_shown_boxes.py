"""What is shown of a photograph is what is certified: boxes as far as the picture reaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from lipdet.boxes import BoxCoding, Decoder, Selection, SigmoidScores
from lipdet.certificate.verifier import Verifier
from lipdet.images.crop import Region, picture_part
from lipdet.reading import Detection, Reading, certified_reading, look
from lipdet.reading.marks import Mark, draw
from lipdet.reading.read import _shown
from lipdet.types import Canvas, Framing, RawOutput
from tests.certificate.scenes import output_constants

CANVAS, IOU = Canvas(32, 32), 0.5
PICTURE = Image.new("RGB", (100, 80))
SELECTION = Selection(0.2, 20)


class Fixed(nn.Module):
    """Returns the same outputs for every image."""

    def __init__(self, raw: RawOutput, decoder: Decoder) -> None:
        super().__init__()
        self.raw, self.decoder = raw, decoder
        self.framing, self.display = Framing(decoder.canvas), SELECTION

    def forward(self, images: Tensor) -> RawOutput:
        return self.raw


def _scene(seed: int) -> tuple[Verifier, RawOutput, Region]:
    """A box or three near the border, and a square that reaches beyond it."""
    rng = np.random.default_rng(seed)
    side = float(rng.choice([20, 32, 64]))
    left = float(rng.choice([-0.5, -0.3, 0.2])) * side
    top = float(rng.choice([-0.4, 0.1])) * side
    if rng.random() < 0.5:
        left = PICTURE.width - left - side
    region = Region(left, top, left + side, top + side)
    part = picture_part(region, *PICTURE.size, CANVAS)
    count = int(rng.integers(1, 4))
    sides = rng.uniform(5, 14, (count, 2))
    # Centres stand on a border of the picture, or up to half a side away from it.
    centers = part.reshape(2, 2)[rng.integers(0, 2, count), :] + sides * rng.uniform(
        -0.35, 0.5, (count, 2)
    )
    default = torch.from_numpy(np.concatenate([centers, sides], axis=1)).float()
    logits = torch.from_numpy(rng.uniform(0, 3, (1, count, 1))).float()
    constants = output_constants(
        torch.full((count, 1), 0.1), torch.from_numpy(rng.uniform(0, 4, (count, 4)))
    )
    decoder = Decoder(default, BoxCoding(), SigmoidScores(1.0), CANVAS)
    return (
        Verifier(constants, decoder, SELECTION),
        RawOutput(logits, torch.zeros(1, count, 4)),
        region,
    )


def _reading(verifier: Verifier, raw: RawOutput, region: Region) -> Reading:
    views = tuple(look(Fixed(raw, verifier.decoder), ("a",), PICTURE, [region], SELECTION))
    return Reading(PICTURE.size, views, _shown(views, PICTURE.size))


def _certified(verifier: Verifier, raw: RawOutput, region: Region) -> tuple[Detection, ...]:
    return certified_reading(_reading(verifier, raw, region), verifier).detections


def _attacked(verifier: Verifier, raw: RawOutput, epsilon: float, count: int) -> list[RawOutput]:
    """Offsets on a ball's vertices, along each axis, and at random; scores at either end."""
    rng = np.random.default_rng(0)
    bounds, found = verifier.bounds, []
    for index in range(count):
        step = rng.normal(size=raw.offsets.shape)
        if index % 2:
            step = np.eye(4)[rng.integers(0, 4, raw.offsets.shape[:2])] * rng.choice([-1, 1])
        step = torch.from_numpy(step / np.linalg.norm(step, axis=-1, keepdims=True))
        rise = torch.from_numpy(rng.choice([-1.0, 1.0], raw.logits.shape))
        found.append(
            RawOutput(
                (raw.logits + epsilon * rise * bounds.logits).float(),
                (raw.offsets + epsilon * step * bounds.offsets).float(),
            )
        )
    return found


@pytest.mark.slow
def test_what_is_shown_remains() -> None:
    """The box is the one that is shown, clipped to the picture."""
    promises = cut = 0
    for seed in range(40):
        verifier, raw, region = _scene(seed)
        part = torch.from_numpy(picture_part(region, *PICTURE.size, CANVAS))
        for one in _certified(verifier, raw, region):
            if not 0 < (one.radius or 0.0) < 30:
                continue
            promises += 1
            beyond = verifier.decoder.boxes(raw.offsets)[0]
            cut += bool((beyond[:, :2] < part[:2]).any() | (beyond[:, 2:] > part[2:]).any())
            box, reach = torch.tensor([one.box]), torch.tensor(one.reach)
            for outputs in _attacked(verifier, raw, 0.999 * one.radius, 100):
                seen = _reading(verifier, outputs, region).detections
                after = torch.tensor([other.box for other in seen]).reshape(-1, 4)
                inside = (after[:, :2] >= reach[:2] - 1e-3) & (after[:, 2:] <= reach[2:] + 1e-3)
                remains = (box_iou(box, after)[0] >= IOU - 1e-3) & inside.all(dim=1)
                assert remains.any(), (seed, one.radius)
    assert promises > 10
    assert cut > 5


def test_a_box_that_the_picture_does_not_show_has_no_radius() -> None:
    # By hand: the square reaches 16 pixels beyond the left border. Of a box from 6 to 17 in it, one
    # pixel is shown. One from 10 to 22 is shown from 16 on: half of it, which only remains
    # while the box stands still, and whole it does not overlap what is shown by more.
    region = Region(-16.0, 0.0, 16.0, 32.0)
    constants = output_constants(torch.zeros(1, 1), torch.full((1, 4), 1.0))
    radii = []
    for center, side in ((11.5, 11.0), (16.0, 12.0), (24.0, 10.0)):
        default = torch.tensor([[center, 16.0, side, 10.0]])
        decoder = Decoder(default, BoxCoding(), SigmoidScores(1.0), CANVAS)
        verifier = Verifier(constants, decoder, SELECTION)
        raw = RawOutput(torch.full((1, 1, 1), 3.0), torch.zeros(1, 1, 4))
        radii += [one.radius for one in _certified(verifier, raw, region)]
    assert radii[:2] == [0.0, 0.0]
    assert radii[2] > 0.5


@pytest.mark.parametrize(
    ("region", "part"),
    [
        (Region(-16, 0, 16, 32), [16, 0, 32, 32]),
        (Region(84, 64, 116, 96), [0, 0, 16, 16]),
        (Region(10, 10, 42, 42), [0, 0, 32, 32]),
        (Region(-50, -60, 150, 140), [8, 9.6, 24, 22.4]),
    ],
)
def test_the_part_of_a_square_that_shows_the_picture(region: Region, part: list[float]) -> None:
    found = picture_part(region, *PICTURE.size, CANVAS)
    assert found == pytest.approx(np.array(part))


def test_a_name_is_drawn_in_one_line() -> None:
    one, two = (
        draw(PICTURE, [Mark((10.0, 20, 40, 60), text, "#ff0000")], 2.0)
        for text in ("red car", "red\ncar ")
    )
    assert one.tobytes() == two.tobytes()


def test_a_box_that_is_turned_round_is_drawn_in_order() -> None:
    straight, turned = (
        draw(PICTURE, [Mark(box, "6", "#ff0000")], 2.0)
        for box in ((10.0, 20, 40, 60), (40.0, 60, 10, 20))
    )
    assert straight.tobytes() == turned.tobytes()
