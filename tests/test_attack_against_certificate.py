"""The attack tries to break what the certificate promises, on a trained detector.

The oracle is the attack: it knows the detector's gradients and nothing of the certificate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lipdet.attack import AttackSettings, attack_and_detect
from lipdet.boxes import AP_SELECTION, select_detections
from lipdet.boxes.scores import logit
from lipdet.certificate.radius import certified_radii
from lipdet.certificate.truths import truths_of
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector, packaged_names
from lipdet.detector import SSD
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.certified import certify_batch, join, outputs, pictures, summary
from lipdet.images.pack import Pack
from lipdet.types import Detections, Target

NAME = "certified-small"
# Objectives that take away objects, boxes and classes.
HARMFUL = ("vanish", "localisation", "mislabel")
IMAGES = 6
STEPS = 8
IOU = 0.5


class Certified(NamedTuple):
    detector: SSD
    verifier: Verifier
    images: Tensor
    targets: list[Target]
    names: tuple[str, ...]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def certified(house_numbers: Pack) -> Certified:
    if NAME not in packaged_names():
        pytest.skip(f"the packaged weights {NAME} are not here")
    detector = load_detector(NAME).detector
    images = pictures(house_numbers, range(IMAGES))
    targets = [house_numbers.target(index) for index in range(IMAGES)]
    verifier = verifier_of(detector, AP_SELECTION, images)
    return Certified(detector, verifier, images, targets, house_numbers.class_names)


def _stays(found: Detections, target: Target, index: int) -> bool:
    """Whether some detection of the object's class overlaps it by IOU."""
    mine = found["boxes"][found["labels"] == target["labels"][index]]
    overlaps = box_iou(mine, target["boxes"][index : index + 1])
    return bool((overlaps >= IOU).any())


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_no_attack_breaks_an_object_within_its_radius(certified: Certified, share: float) -> None:
    """In each image the object of the largest radius is attacked at a share of that radius."""
    raw = outputs(certified.detector, certified.images)
    truths = truths_of(certified.targets)
    radii = certified_radii(certified.verifier, raw, truths, IOU, logit(0.01))
    # Without certified objects there is nothing to break, and the test could not fail.
    assert (radii > 0.01).sum() >= IMAGES // 2
    for image, target in enumerate(certified.targets):
        mine = radii[truths.image == image]
        if not (mine > 0.01).any():
            continue
        index = int(mine.argmax())
        for objective in HARMFUL:
            outcome = attack_and_detect(
                certified.detector,
                certified.images[image : image + 1],
                [target],
                AttackSettings(share * float(mine[index]), objective, steps=STEPS),
                [image],
            )
            assert _stays(outcome.detections[0], target, index), (image, index, objective)


def test_certified_ap_is_below_attacked_ap(certified: Certified) -> None:
    raw = outputs(certified.detector, certified.images)
    for epsilon in (0.02, 0.05, 0.1):
        found = certify_batch(certified.verifier, raw, certified.targets, epsilon)
        least = summary(epsilon, join([found]), certified.names)["ap50"]
        for objective in HARMFUL:
            outcome = attack_and_detect(
                certified.detector,
                certified.images,
                certified.targets,
                AttackSettings(epsilon, objective, steps=STEPS),
                range(IMAGES),
            )
            attacked = average_precision(certified.targets, outcome.detections, certified.names)
            assert least <= attacked.ap50 + 1e-9, (epsilon, objective)


def test_float32_and_float64_share_their_certificates(certified: Certified) -> None:
    """Certified from float32 outputs, attacked in float64."""
    detector = load_detector(NAME).detector.double()
    raw = outputs(certified.detector, certified.images)
    truths = truths_of(certified.targets)
    radii = certified_radii(certified.verifier, raw, truths, IOU, logit(0.01))
    for image, target in enumerate(certified.targets):
        mine = radii[truths.image == image]
        if not (mine > 0.01).any():
            continue
        index = int(mine.argmax())
        epsilon = 0.99 * float(mine[index])
        outcome = attack_and_detect(
            certified.detector,
            certified.images[image : image + 1],
            [target],
            AttackSettings(epsilon, "vanish", steps=STEPS),
            [image],
        )
        moved = outcome.images.double()
        with torch.no_grad():
            [found] = select_detections(detector(moved), certified.verifier.decoder, AP_SELECTION)
        assert _stays(found, target, index)
