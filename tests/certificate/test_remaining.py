"""What is promised of detections without ground truth, against adversaries in random scenes.

Both promises are told apart from weaker ones that the same adversaries break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lipdet.boxes.coding import corners
from lipdet.boxes.select import MOST_COVERED, covered_share, one_per_place
from lipdet.certificate import radius as radius_module
from lipdet.certificate.geometry.box_range import BoxRange
from lipdet.certificate.radius import Remaining, largest_covered_share, remaining_detections
from lipdet.certificate.verifier import Verifier
from lipdet.types import Detections
from tests.certificate.adversaries import perturbed
from tests.certificate.scenes import CANVAS, Scene, clipped, detect, random_scene

IOU = 0.5
SCENES = range(4000, 4012)
# Scenes in which the weaker promises are broken: a rival that overtakes leaves the region of what
# matches for sure; of what is detected, another reading is shown.
OVERTAKES, BEATEN = 4006, 4001
PERTURBED = 40
Broken = Callable[[Detections, int, Remaining, int, Detections], bool]


def _broken(
    scenes: Iterable[int], most_covered: float | None, is_broken: Broken
) -> tuple[int, int]:
    """How many promises there are in scenes, and how many are broken in some perturbed scene."""
    promises, broken = 0, 0
    for seed in scenes:
        scene = random_scene(seed)
        found = _shown(scene, most_covered)
        kept = remaining_detections(
            scene.verifier, scene.raw, found, IOU, tolerance=0.01, most_covered=most_covered
        )
        for image, (before, remaining) in enumerate(zip(found, kept, strict=True)):
            for row, radius in enumerate(remaining.radius.tolist()):
                if not 0 < radius < 30:
                    continue
                near = replace(scene, epsilon=radius * (1 - 1e-5))
                outputs = perturbed(near, PERTURBED, seed + row)
                after = detect(scene, outputs)[image :: len(found)]
                promises += 1
                broken += any(is_broken(before, row, remaining, row, one) for one in after)
    return promises, broken


def _shown(scene: Scene, most_covered: float | None) -> list[Detections]:
    found = detect(scene, scene.raw)
    return found if most_covered is None else [one_per_place(one) for one in found]


def _still_there(before: Detections, row: int, after: Detections) -> Tensor:
    """Boxes (N, 4) of the class that still lie on a detection."""
    boxes = after["boxes"][after["labels"] == before["labels"][row]]
    return boxes[box_iou(before["boxes"][row : row + 1], boxes)[0] >= IOU]


def _leaves(before: Detections, row: int, kept: Remaining, place: int, after: Detections) -> bool:
    boxes, region = _still_there(before, row, after), kept.region[place]
    beyond = torch.cat([region[:2] - boxes[:, :2], boxes[:, 2:] - region[2:]], dim=1)
    return not bool((beyond <= 1e-3).all(dim=1).any())


def _is_beaten(
    before: Detections, row: int, kept: Remaining, place: int, after: Detections
) -> bool:
    return len(_still_there(before, row, one_per_place(after))) == 0


@pytest.mark.slow
def test_what_remains_lies_in_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    promises, broken = _broken(SCENES, None, _leaves)
    assert promises > 20
    assert broken == 0

    def with_overtaking(verifier: Verifier) -> Verifier:
        return verifier

    monkeypatch.setattr(radius_module, "without_overtaking", with_overtaking)
    assert _broken([OVERTAKES], None, _leaves)[1] > 0


@pytest.mark.slow
def test_what_is_shown_stays_shown() -> None:
    promises, broken = _broken(SCENES, MOST_COVERED, _is_beaten)
    assert promises > 20
    assert broken == 0
    assert _broken([BEATEN], None, _is_beaten)[1] > 0


def test_most_that_boxes_can_cover() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform([-4, -4, 0, 0], [CANVAS.width, CANVAS.height, 12, 12], (40, 4))
    boxes = BoxRange(*map(torch.from_numpy, (low, low + rng.uniform(0, 6, (40, 4)))))
    bound = largest_covered_share(boxes, boxes, CANVAS)
    seen = torch.zeros_like(bound)
    for _ in range(400):
        share = torch.from_numpy(rng.choice([0, 1, rng.random()], (40, 4)))
        place = boxes.low + share * (boxes.high - boxes.low)
        seen = torch.maximum(seen, covered_share(clipped(corners(place))))
    # A box and itself move alike, which the bound does not know.
    assert (seen <= bound + 1e-9).all()
    assert (bound - seen).median() < 0.1
