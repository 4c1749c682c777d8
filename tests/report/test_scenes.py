"""Radii and worst-case regions of shown detections hold when the picture is really changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from lipdet.attack import AttackSettings, detect
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.images.pack import Pack
from lipdet.report.scenes import certified_detections, scenes

EPSILON = 0.05
PICTURES = 4


class Strange(nn.Module):
    """A layer that has no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean()


@pytest.fixture(scope="module")
def detector() -> SSD:
    return load_detector("certified-small").detector.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images(house_numbers: Pack) -> Tensor:
    return house_numbers.pixels(range(PICTURES))


def steepest(detector: SSD, image: Tensor, anchor: int, direction: Tensor) -> Tensor:
    """The image moved by EPSILON along the gradient of an anchor's offsets, in [0, 1]."""
    x = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad((detector(x).offsets[0, anchor] * direction).sum(), x)
    return (x + EPSILON * gradient / gradient.norm()).clamp(0, 1).detach()


@pytest.mark.slow
def test_regions_and_radii_hold(detector: SSD, images: Tensor, house_numbers: Pack) -> None:
    found = certified_detections(
        detector, house_numbers.images[:PICTURES], EPSILON, house_numbers.class_names
    )
    generator = torch.Generator().manual_seed(0)
    certified = 0
    for image, shown in zip(images, found, strict=True):
        clean = detector.decoder.boxes(detector(image[None]).offsets)[0]
        for one in shown:
            assert one.radius is not None
            assert (one.reach is not None) == (one.radius >= EPSILON)
            if one.reach is None:
                continue
            left, top, right, bottom = one.reach
            [anchor, *_] = (clean - torch.tensor(one.box)).abs().amax(dim=1).argsort().tolist()
            for _ in range(3):
                moved = steepest(detector, image, anchor, torch.randn(4, generator=generator))
                # The oracle is the detector itself on the changed picture.
                [seen] = detect(detector, moved, DISPLAY_SELECTION)
                boxes, overlap = seen["boxes"], box_iou(torch.tensor([one.box]), seen["boxes"])[0]
                inside = (boxes[:, :2] >= torch.tensor([left, top]) - 1e-3).all(dim=1)
                inside &= (boxes[:, 2:] <= torch.tensor([right, bottom]) + 1e-3).all(dim=1)
                label = house_numbers.class_names.index(one.label)
                assert ((seen["labels"] == label) & (overlap >= 0.5) & inside).any()
                certified += 1
    assert certified, "nothing is certified, so nothing is tested"


@pytest.mark.slow
def test_without_a_bound_nothing_is_promised(detector: SSD, house_numbers: Pack) -> None:
    normalize = detector.normalize
    detector.normalize = nn.Sequential(Strange())
    try:
        found = certified_detections(
            detector, house_numbers.images[:1], EPSILON, house_numbers.class_names
        )
    finally:
        detector.normalize = normalize
    assert [(one.radius, one.reach) for one in found[0]] == [(None, None)] * len(found[0])


@pytest.mark.slow
def test_scenes_are_of_the_pictures_asked_for(detector: SSD, house_numbers: Pack) -> None:
    # Larger than EPSILON, which is lost in the rounding of the shown picture to 8 bits.
    epsilon = 1.0
    attack = AttackSettings(epsilon, steps=1)
    [one, other] = scenes("small", detector, house_numbers, [5, 2], [attack])
    assert (one.picture, other.picture) == (5, 2)
    assert (one.clean == house_numbers.images[5]).all()
    target = house_numbers.target(5)
    order = target["boxes"][:, 0].argsort()
    assert one.truth == tuple(str(int(label)) for label in target["labels"][order])
    # Within ε, and half a level for the rounding of each of the 3·74·74 values.
    change = (one.attacked.astype(float) - one.clean.astype(float)) / 255
    assert 0 < (change**2).sum() ** 0.5 <= epsilon + (0.5 / 255) * (3 * 74 * 74) ** 0.5
