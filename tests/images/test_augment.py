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


@pytest.mark.parametrize("changes", [("scale",), ("flip",), ("scale", "flip")])
def test_boxes_go_where_their_objects_go(changes: tuple[Change, ...]) -> None:
    images, target = marked(64)
    generator = torch.Generator().manual_seed(0)
    changed, targets = augment(images, [target] * 64, changes, generator, SCALES)
    places = set()
    for picture, found in zip(changed, targets, strict=True):
        if not len(found["labels"]):
            # Less than half of it is left inside.
            assert (picture[0] > 0.5).sum() < 1.6**2 * 150 / 2 + 40
            continue
        rows, columns = torch.nonzero(picture[0] > 0.5, as_tuple=True)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # Oracle: the white pixels; of those at an edge that is blurred, half are counted.
        assert found["boxes"][0].tolist() == pytest.approx([float(end) for end in seen], abs=1.3)
        assert found["labels"].tolist() == [3]
        places.add(tuple(found["boxes"][0].round().tolist()))
    assert len(places) == 2 if changes == ("flip",) else len(places) > 20


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
    # By hand: ten pixels high; a reduced picture lies inside whole.
    assert len(heights) == 200
    assert 2.5 <= heights.min() < 2.6
    assert 4.9 < heights.max() <= 5
