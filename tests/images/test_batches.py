"""Batches: weighted, balanced, and determined by (seed, epoch, index) alone."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lipdet.images.batches import Mixture, Part, split
from lipdet.images.pack import Pack, PackedPicture, write_pack
from lipdet.types import Canvas


def numbered_pack(folder: Path, count: int, mark: int, crops: int = 1) -> Pack:
    """Pictures that show `mark` and their own index, each with as many objects as index % 3."""
    pictures = []
    for index in range(count):
        image = np.zeros((4, 4, 3), np.uint8)
        image[..., 0], image[..., 1] = mark, index
        n = index % 3
        boxes = np.tile(np.array([[0, 0, 1 + index, 4]], np.float32), (n, 1))
        pictures.append(PackedPicture(image, boxes, np.full(n, index), index // crops))
    return write_pack(
        folder,
        pictures,
        count,
        Canvas(4, 4),
        tuple(map(str, range(count))),
        {"name": f"pack {mark}"},
    )


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    packs = [numbered_pack(tmp_path / str(mark), count, mark) for mark, count in ((1, 7), (2, 40))]
    return [Part(pack, np.arange(len(pack))) for pack in packs]


def seen(mixture: Mixture, epochs: int) -> Counter[tuple[int, int]]:
    """How often each (pack, picture) is served."""
    counts: Counter[tuple[int, int]] = Counter()
    for epoch, index in itertools.product(range(epochs), range(mixture.batches_per_epoch)):
        images = mixture.batch(epoch, index).images
        counts.update(zip(images[:, 0, 0, 0].tolist(), images[:, 1, 0, 0].tolist(), strict=True))
    return counts


def test_a_batch(parts: list[Part]) -> None:
    batch = Mixture(parts, (1, 1), 24, 6, 0).batch(0, 1)
    assert batch.images.shape == (6, 3, 4, 4)
    assert batch.images.dtype == torch.uint8
    # Images and targets belong together: the second channel holds the index, which the boxes tell.
    for image, target in zip(batch.images, batch.targets, strict=True):
        index = int(image[1, 0, 0])
        assert target["labels"].tolist() == [index] * (index % 3)
        assert target["boxes"].tolist() == [[0, 0, 1 + index, 4]] * (index % 3)


@pytest.mark.parametrize(
    ("weights", "expected"), [((1, 1), (20, 20)), ((3, 1), (30, 10)), ((0.25, 1), (8, 32))]
)
def test_weights_are_respected(
    parts: list[Part], weights: tuple[float, float], expected: tuple[int, int]
) -> None:
    counts = seen(Mixture(parts, weights, 40, 8, 0), epochs=1)
    by_pack = Counter({1: 0, 2: 0})
    for (mark, _), times in counts.items():
        by_pack[mark] += times
    # By hand: 40 pictures divided in the ratio of the weights.
    assert (by_pack[1], by_pack[2]) == expected


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_all_pictures_of_a_part_are_served_equally_often(parts: list[Part], epochs: int) -> None:
    # 24 pictures an epoch, 12 of each part of 7 and 40: passes do not end with epochs.
    counts = seen(Mixture(parts, (1, 1), 24, 6, 0), epochs)
    for mark, count in ((1, 7), (2, 40)):
        times = [counts[mark, index] for index in range(count)]
        assert sum(times) == 12 * epochs
        assert max(times) - min(times) <= 1


def test_only_the_pictures_of_a_part_are_served(parts: list[Part]) -> None:
    some = Part(parts[1].pack, np.array([3, 30, 31]))
    counts = seen(Mixture([some], (1,), 12, 4, 0), 5)
    assert counts == {(2, 3): 20, (2, 30): 20, (2, 31): 20}


def test_a_batch_does_not_depend_on_history(parts: list[Part]) -> None:
    straight = Mixture(parts, (1, 2), 24, 6, 5)
    places = list(itertools.product(range(4), range(4)))
    expected = {place: straight.batch(*place).images for place in places}
    backwards = Mixture(parts, (1, 2), 24, 6, 5)
    for place in reversed(places):
        assert torch.equal(backwards.batch(*place).images, expected[place])
    for place in places:
        assert torch.equal(Mixture(parts, (1, 2), 24, 6, 5).batch(*place).images, expected[place])


def test_the_seed_and_the_epoch_determine_the_order(parts: list[Part]) -> None:
    one, other = (Mixture(parts, (1, 1), 24, 24, seed) for seed in (1, 2))
    assert not torch.equal(one.batch(0, 0).images, other.batch(0, 0).images)
    assert not torch.equal(one.batch(0, 0).images, one.batch(1, 0).images)
    # Parts of equal size are not served in step.
    twice = Mixture([parts[1], parts[1]], (1, 1), 40, 40, 0)
    assert not np.array_equal(twice._draw(0, 0)[:, 1], twice._draw(1, 0)[:, 1])


@pytest.fixture
def crops(tmp_path: Path) -> Pack:
    """240 crops of 60 photographs."""
    return numbered_pack(tmp_path / "crops", 240, 0, crops=4)


def test_no_photograph_is_on_both_sides_of_the_split(crops: Pack) -> None:
    training, validation = split(crops, share=0.25, limit=100, seed=3)
    held_out = set(crops.pictures[validation.indices].tolist())
    trained_on = set(crops.pictures[training.indices].tolist())
    assert not held_out & trained_on
    assert held_out | trained_on == set(range(60))
    # By hand: a quarter of 60 photographs, one crop of each; all crops of the other 45.
    assert len(validation.indices) == len(held_out) == 15
    assert len(training.indices) == 4 * 45


@pytest.mark.parametrize(
    ("share", "limit", "expected"), [(0.25, 4, 4), (0.0, 100, 0), (0.5, 0, 0), (0.33, 100, 19)]
)
def test_how_many_are_held_out(crops: Pack, share: float, limit: int, expected: int) -> None:
    training, validation = split(crops, share, limit, seed=0)
    # By hand: the share of 60, rounded down, at most the limit.
    assert len(validation.indices) == expected
    assert len(training.indices) == 240 - 4 * expected
