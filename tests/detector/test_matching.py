"""Matching against loops in plain Python."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lipdet.boxes.coding import corners
from lipdet.config import DetectorConfig
from lipdet.detector import build_detector
from lipdet.detector.matching import PaddedTargets, match, pad_targets
from lipdet.types import Target

NOTHING = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
DEFAULTS = corners(build_detector(DetectorConfig()).default_boxes)


def random_target(generator: torch.Generator, count: int, size: float = 74) -> Target:
    first = torch.rand(count, 2, generator=generator) * size * 0.7
    sides = 3 + torch.rand(count, 2, generator=generator) * size * 0.4
    boxes = torch.cat([first, (first + sides).clamp(max=size)], dim=1)
    return Target(boxes=boxes, labels=torch.randint(0, 10, (count,), generator=generator))


def random_targets(seed: int) -> list[Target]:
    generator = torch.Generator().manual_seed(seed)
    return [random_target(generator, count) for count in (2, 0, 5, 1)]


def naive_match(default_corners: Tensor, target: Target, threshold: float = 0.5) -> dict[int, int]:
    """Positive default box -> object, for one image (Liu et al., 2016, section 2.2)."""
    if not len(target["boxes"]):
        return {}
    overlap = box_iou(default_corners, target["boxes"]).tolist()
    found = {}
    for anchor, row in enumerate(overlap):
        best = max(range(len(row)), key=lambda index: row[index])
        if row[best] >= threshold:
            found[anchor] = best
    for index in range(len(target["boxes"])):
        column = [row[index] for row in overlap]
        found[column.index(max(column))] = index
    return found


def as_dictionaries(default_corners: Tensor, targets: PaddedTargets) -> list[dict[int, int]]:
    matches = match(default_corners, targets)
    return [
        {anchor: int(objects[anchor]) for anchor in torch.nonzero(positive).flatten().tolist()}
        for positive, objects in zip(matches.positive, matches.objects, strict=True)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_matching_equals_a_loop(seed: int) -> None:
    targets = random_targets(seed)
    found = as_dictionaries(DEFAULTS, pad_targets(targets))
    # Oracle: the rule in plain Python, IoU from torchvision.
    assert found == [naive_match(DEFAULTS, target) for target in targets]
    assert found[1] == {}


def test_padding_never_matches() -> None:
    # Padding stands at 0, 0, 1, 1: a default box exactly there must not be taken by it.
    defaults = torch.tensor([[0.0, 0, 1, 1], [10, 10, 20, 20]])
    one = Target(boxes=torch.tensor([[10.0, 10, 20, 20]]), labels=torch.tensor([4]))
    two = Target(boxes=torch.tensor([[10.0, 10, 20, 20]] * 2), labels=torch.tensor([4, 5]))
    assert as_dictionaries(defaults, pad_targets([one, NOTHING, two])) == [{1: 0}, {}, {1: 1}]


def test_every_object_has_a_default_box_however_little_it_overlaps() -> None:
    defaults = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    far = Target(boxes=torch.tensor([[9.0, 9, 11, 11]]), labels=torch.tensor([0]))
    assert as_dictionaries(defaults, pad_targets([far])) == [{0: 0}]


def test_two_objects_with_the_same_best_default_box() -> None:
    # The stated rule: the later object has it, even where the earlier overlaps it better.
    defaults = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    target = Target(boxes=boxes, labels=torch.tensor([1, 2]))
    assert as_dictionaries(defaults, pad_targets([target])) == [{0: 1}]
    swapped = Target(boxes=boxes.flip(0), labels=torch.tensor([2, 1]))
    assert as_dictionaries(defaults, pad_targets([swapped])) == [{0: 1}]


def test_a_claim_overrides_a_better_overlap_of_another_object() -> None:
    # Anchor 0 overlaps object 0 best (1.0), but is the only one that object 1 touches.
    defaults = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.5]])
    boxes = torch.tensor([[0.0, 0, 10, 10.5], [0, 0, 2, 2]])
    target = Target(boxes=boxes, labels=torch.tensor([0, 1]))
    # By hand: object 0's best is anchor 1 (IoU 1), object 1's best is anchor 0 (4 / 100).
    assert as_dictionaries(defaults, pad_targets([target])) == [{0: 1, 1: 0}]


@pytest.mark.parametrize("seed", range(4))
def test_near_boxes_overlap_an_object_but_are_not_positive(seed: int) -> None:
    targets = random_targets(seed)
    matches = match(DEFAULTS, pad_targets(targets), near_iou=0.3)
    assert matches.near.any()
    # Oracle: IoU from torchvision.
    for target, positive, objects, near in zip(targets, *matches, strict=True):
        if not len(target["boxes"]):
            assert not near.any()
            continue
        best, which = box_iou(DEFAULTS, target["boxes"]).max(dim=1)
        assert torch.equal(near, (best >= 0.3) & ~positive)
        assert torch.equal(objects[near], which[near])


def test_the_threshold_is_reached_at_equality() -> None:
    # By hand: 10 × 10 and 10 × 5 inside it overlap by 0.5 exactly; 10 × 4.9 by less.
    defaults = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    for height, expected in ((5.0, {0: 0, 1: 0}), (4.9, {1: 0})):
        target = Target(boxes=torch.tensor([[0.0, 0, 10, height]]), labels=torch.tensor([0]))
        assert as_dictionaries(defaults, pad_targets([target])) == [expected]
