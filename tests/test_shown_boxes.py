"""What is shown of a photograph is what is certified: boxes as far as the picture reaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from lipdet.boxes import BoxCoding, Decoder, Selection, SigmoidScores, select_detections
from lipdet.certificate.verifier import Verifier
from lipdet.config import DetectorConfig
from lipdet.detect import (
    Found,
    _in_photograph,
    _merge,
    certify_regions,
    one_per_place,
    radii_in_photograph,
)
from lipdet.images.crop import Region, picture_part
from lipdet.types import RawOutput
from tests.certificate.scenes import output_constants

SIZE, IOU = 32, 0.5
PICTURE = Image.new("RGB", (100, 80))
SELECTION = Selection(0.2, 20)


class Fixed(nn.Module):
    """Returns the same outputs for every image."""

    def __init__(self, raw: RawOutput) -> None:
        super().__init__()
        self.config = DetectorConfig(class_names=("a",), image_size=SIZE)
        self.default_boxes, self.raw = torch.zeros(1, 4), raw

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
    part = picture_part(region, *PICTURE.size, SIZE)
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
    decoder = Decoder(default, BoxCoding(), SigmoidScores(1.0), SIZE)
    return (
        Verifier(constants, decoder, SELECTION),
        RawOutput(logits, torch.zeros(1, count, 4)),
        region,
    )


def _shown(verifier: Verifier, raw: RawOutput, region: Region) -> Found:
    squares = [
        _in_photograph(one_per_place(one), region, PICTURE, SIZE)
        for one in select_detections(raw, verifier.decoder, SELECTION)
    ]
    return Found(_merge(squares[:1]), (region,))


def _radii(verifier: Verifier, raw: RawOutput, region: Region, found: Found) -> list[float]:
    detector = Fixed(raw)
    certified = certify_regions(detector, verifier, PICTURE, [region], IOU, one_reading=True)  # type: ignore[arg-type]
    return radii_in_photograph(found, certified, PICTURE, SIZE)


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
    promises = cut = 0
    for seed in range(40):
        verifier, raw, region = _scene(seed)
        found = _shown(verifier, raw, region)
        part = torch.from_numpy(picture_part(region, *PICTURE.size, SIZE))
        for row, radius in enumerate(_radii(verifier, raw, region, found)):
            if not 0 < radius < 30:
                continue
            promises += 1
            box = found.detections["boxes"][row]
            beyond = verifier.decoder.boxes(raw.offsets)[0]
            cut += bool((beyond[:, :2] < part[:2]).any() | (beyond[:, 2:] > part[2:]).any())
            for outputs in _attacked(verifier, raw, 0.999 * radius, 100):
                after = _shown(verifier, outputs, region).detections["boxes"]
                assert (box_iou(box[None], after) >= IOU - 1e-3).any(), (seed, radius)
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
        decoder = Decoder(default, BoxCoding(), SigmoidScores(1.0), SIZE)
        verifier = Verifier(constants, decoder, SELECTION)
        raw = RawOutput(torch.full((1, 1, 1), 3.0), torch.zeros(1, 1, 4))
        radii += _radii(verifier, raw, region, _shown(verifier, raw, region))
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
    found = picture_part(region, *PICTURE.size, SIZE)
    assert found == pytest.approx(np.array(part))
