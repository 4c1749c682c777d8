"""Photometric changes: seeded, in range, and each of them occurs about as often as stated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipdet.config import Change
from lipdet.images.augment import augment
from lipdet.types import Target

SCALES = (0.625, 1.6)
PHOTOMETRIC = ("light", "inversion", "channels")


def run(images: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    changed, targets = augment(images, [nothing] * len(images), PHOTOMETRIC, generator, SCALES)
    assert len(targets) == len(images)
    return changed


def pictures(count: int, side: int = 8) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(9))


def test_shape_and_range() -> None:
    images = pictures(64)
    changed = run(images)
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert run(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_the_generator_alone_decides() -> None:
    images = pictures(32)
    first = run(images, seed=4)
    torch.manual_seed(123)
    assert torch.equal(first, run(images, seed=4))
    assert not torch.equal(first, run(images, seed=5))


def test_each_change_occurs_as_often_as_stated() -> None:
    """These pixels stay within [0, 1] under every change, so that it can be read off them."""
    ramp = torch.linspace(-0.05, 0.05, 8).repeat(8, 1)
    image = torch.stack([level + ramp for level in (0.40, 0.5, 0.56)])
    count = 2000
    changed = run(image.expand(count, -1, -1, -1))
    assert changed.min() > 0
    assert changed.max() < 1
    # Inversion turns the ramp round; contrast stretches it; brightness moves the mean.
    slope = (changed[:, :, :, -1] - changed[:, :, :, 0]).mean(dim=(1, 2)) / 0.1
    inverted = slope < 0
    contrast = slope.abs()
    # Stated: 30 % inverted, contrast 0.6–1.4; the bounds are five standard deviations wide.
    assert 0.25 < inverted.float().mean() < 0.35
    assert 0.6 <= contrast.min() < 0.62
    assert 1.38 < contrast.max() <= 1.4 + 1e-4
    mean = changed.mean(dim=(1, 2, 3))
    brightness = torch.where(inverted, 1 - mean, mean) - image.mean()
    assert -0.2 - 1e-4 <= brightness.min() < -0.19
    assert 0.19 < brightness.max() <= 0.2 + 1e-4
    # The order of the channel means tells the permutation; 30 % are drawn, 1 in 6 of them is none.
    levels = changed.mean(dim=(2, 3))
    order = torch.where(inverted[:, None], -levels, levels).argsort(dim=1)
    moved = (order != torch.arange(3)).any(dim=1)
    assert 0.2 < moved.float().mean() < 0.3
    assert len({tuple(one) for one in order.tolist()}) == 6


def marked(count: int) -> tuple[Tensor, Target]:
    """Black pictures with one white rectangle, which is their object."""
    images = torch.zeros(count, 3, 40, 60)
    images[:, :, 10:20, 30:45] = 1
    return images, Target(boxes=torch.tensor([[30.0, 10, 45, 20]]), labels=torch.tensor([3]))


@pytest.mark.parametrize(
    ("changes", "width", "count"),
    [
        (("flip",), 60, 2),
        (("turn",), 40, 4),
        (("flip", "turn"), 40, 8),
        # What is not square cannot be turned by a quarter.
        (("turn",), 60, 2),
        (("flip", "turn"), 60, 4),
    ],
)
def test_mirrored_and_turned_boxes_go_where_their_objects_go(
    changes: tuple[Change, ...], width: int, count: int
) -> None:
    images = torch.zeros(64, 3, 40, width)
    images[:, :, 10:18, 23:35] = 1
    target = Target(boxes=torch.tensor([[23.0, 10, 35, 18]]), labels=torch.tensor([3]))
    generator = torch.Generator().manual_seed(0)
    changed, targets = augment(images, [target] * 64, changes, generator, SCALES)
    places = set()
    for picture, found in zip(changed, targets, strict=True):
        # Oracle: the white pixels.
        rows, columns = torch.nonzero(picture[0] > 0.5, as_tuple=True)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found["boxes"][0].tolist() == [float(end) for end in seen]
        assert found["labels"].tolist() == [3]
        places.add(tuple(found["boxes"][0].tolist()))
    assert len(places) == count


@pytest.mark.parametrize("changes", [("scale",), ("scale", "flip")])
def test_scaled_boxes_go_where_their_objects_go(changes: tuple[Change, ...]) -> None:
    images, target = marked(64)
    generator = torch.Generator().manual_seed(0)
    changed, targets = augment(images, [target] * 64, changes, generator, SCALES)
    places, left_out = set(), 0.0
    for picture, found in zip(changed, targets, strict=True):
        mask = torch.zeros(40, 60)
        for x1, y1, x2, y2 in found["boxes"].round().int().tolist():
            mask[y1:y2, x1:x2] = 1
            # Oracle: white pixels fill a box, up to its blurred edges.
            assert picture[0, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 0.5
        assert found["labels"].tolist() == [3] * len(found["boxes"])
        # What is white outside of them is their blurred edges, or less than half of an object.
        edges = (2 * (found["boxes"][:, 2:] - found["boxes"][:, :2]).sum(dim=1)).sum()
        left_out = max(left_out, float((picture[0] * (1 - mask)).sum() - edges))
        places.update(tuple(box) for box in found["boxes"].round().tolist())
    assert left_out < 3 * 1.6**2 * 150 / 2
    assert len(places) > 40


def test_a_reduced_picture_has_others_around_it() -> None:
    """Pictures of one grey each, numbered by it, with one object of that number each."""
    count, side = 12, 40
    greys = torch.arange(1, count + 1) / 16
    images = greys.view(-1, 1, 1, 1).expand(count, 3, side, side)
    targets = [
        Target(boxes=torch.tensor([[0.0, 0, side, side]]), labels=torch.tensor([number]))
        for number in range(1, count + 1)
    ]
    generator = torch.Generator().manual_seed(0)
    changed, found = augment(images, targets, ("scale",), generator, (0.5, 0.5))
    for own, (picture, target) in enumerate(zip(changed, found, strict=True), start=1):
        assert own in target["labels"].tolist()
        # Oracle: the grey at the middle of each box; tiles of 20×20 pixels, at least half of them.
        for (x1, y1, x2, y2), label in zip(target["boxes"], target["labels"], strict=True):
            middle = picture[0, int((y1 + y2) / 2), int((x1 + x2) / 2)]
            assert float(middle) == pytest.approx(int(label) / 16)
            assert (x2 - x1) * (y2 - y1) >= 200
        assert len(set((16 * picture).round().unique().int().tolist())) >= 4


def test_without_changes_nothing_changes() -> None:
    images, target = marked(8)
    changed, targets = augment(images, [target] * 8, (), torch.Generator().manual_seed(0), SCALES)
    assert torch.equal(changed, images)
    assert all(torch.equal(one["boxes"], target["boxes"]) for one in targets)


def test_scales_lie_in_their_range() -> None:
    images, target = marked(200)
    generator = torch.Generator().manual_seed(0)
    _, targets = augment(images, [target] * 200, ("scale",), generator, (0.25, 0.5))
    heights = torch.cat([one["boxes"][:, 3] - one["boxes"][:, 1] for one in targets])
    # By hand: ten pixels high, at the borders cut by half at most.
    assert len(heights) > 4 * 200
    assert 1.25 <= heights.min() < 2.5
    assert 4.7 < heights.max() <= 5


@pytest.mark.parametrize("changes", [("flip",), ("turn",), ("scale",), ("scale", "flip", "turn")])
@pytest.mark.parametrize("size", [(12, 12), (12, 20)])
def test_masks_go_with_their_pictures(changes: tuple[Change, ...], size: tuple[int, int]) -> None:
    """Where a picture is white its mask is 1, and so it is after whatever happens to both."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 2, (16, 1, 3, 4), generator=generator).float()
    white = torch.nn.functional.interpolate(coarse, size)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    targets = [
        Target(boxes=nothing[0], labels=nothing[1], mask=one[0].to(torch.uint8)) for one in white
    ]
    images, changed = augment(white.expand(-1, 3, -1, -1), targets, changes, generator, (0.5, 2.0))
    masks = torch.stack([one["mask"] for one in changed])
    assert masks.dtype == torch.uint8
    assert masks.shape[1:] == size
    clear = (images[:, 0] < 0.1) | (images[:, 0] > 0.9)  # not blurred by resizing
    assert clear.float().mean() > 0.6
    agree = (images[:, 0] > 0.5) == (masks == 1)
    assert agree[clear].float().mean() > 0.98
    assert not torch.equal(masks, torch.stack([one["mask"] for one in targets]))
