"""From annotated pictures to a pack, for each way to crop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipdet.config import DIGIT_CROP
from lipdet.errors import InputError
from lipdet.images.crop import Region, cut, into_region, reference_region
from lipdet.images.pack import Pack, open_pack
from lipdet.images.prepare import Crop, pack_rendered, pack_source
from lipdet.images.render import rendered
from lipdet.images.source import AnnotatedPicture, Skipped, Source, load_rgb
from lipdet.images.svhn import read_svhn
from lipdet.types import Canvas


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Four photographs: two usual ones, one too wide for a square, one without objects."""
    rng = np.random.default_rng(0)
    annotations = {
        "1.png": [[20, 10, 30, 30], [32, 11, 44, 31]],
        "2.png": [[50, 30, 60, 50]],
        "3.png": [[2, 10, 88, 20]],
        "4.png": [],
    }
    pictures = []
    for name, boxes in annotations.items():
        Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / name)
        pictures.append(
            AnnotatedPicture(
                tmp_path / name,
                np.array(boxes, np.float32).reshape(-1, 4),
                np.arange(len(boxes)),
            )
        )
    return Source("four", ("a", "b"), tuple(pictures), (Skipped("0.png", "unreadable"),))


def packed(source: Source, folder: Path, crop: Crop, seed: int = 0, crops: int = 1) -> Pack:
    return pack_source(source, folder / crop, crop, DIGIT_CROP, seed, crops)


def test_reference_crops(source: Source, tmp_path: Path) -> None:
    pack = packed(source, tmp_path, "reference")
    assert pack.pictures.tolist() == [0, 1]
    assert [entry["name"] for entry in pack.meta["skipped"]] == ["0.png", "3.png", "4.png"]
    assert pack.class_names == ("a", "b")
    assert pack.meta["crop"] == "reference"
    for position, picture in enumerate(source.pictures[:2]):
        # Oracle: the crop drawn with the stated seed, cut by the tested functions.
        rng = np.random.default_rng([0, position])
        region = reference_region(picture.boxes, 90, 60, rng)
        assert region is not None
        expected = cut(load_rgb(picture.path), region, DIGIT_CROP)
        np.testing.assert_array_equal(pack.images[position], expected)
        boxes, _ = into_region(picture.boxes, region, DIGIT_CROP)
        np.testing.assert_array_equal(pack.target(position)["boxes"].numpy(), boxes)
        assert pack.target(position)["labels"].tolist() == picture.labels.tolist()


def test_jittered_crops(source: Source, tmp_path: Path) -> None:
    pack = packed(source, tmp_path, "jitter", crops=5)
    assert pack.pictures.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert [entry["name"] for entry in pack.meta["skipped"]] == ["0.png", "4.png"]
    first = pack.images[:5]
    assert len({image.tobytes() for image in first}) == 5
    # Every crop holds the whole number.
    assert [len(pack.target(index)["labels"]) for index in range(15)] == [2] * 5 + [1] * 10


def test_full_pictures(source: Source, tmp_path: Path) -> None:
    pack = packed(source, tmp_path, "full")
    # A picture without objects is a picture here.
    assert pack.pictures.tolist() == [0, 1, 2, 3]
    assert len(pack.target(3)["labels"]) == 0
    # By hand: 90 × 60 in a square of 90 that begins 15 above, at 74 / 90.
    expected = np.array([[50, 45, 60, 65]]) * 74 / 90
    np.testing.assert_allclose(pack.target(1)["boxes"].numpy(), expected, rtol=1e-5)
    region = Region(0, -15, 90, 75)
    picture = load_rgb(source.pictures[1].path)
    np.testing.assert_array_equal(pack.images[1], cut(picture, region, DIGIT_CROP))


def test_areas_that_are_not_judged_go_with_their_pictures(source: Source, tmp_path: Path) -> None:
    """A pack keeps crowds, cut, shortened and under other labels, too."""
    areas = np.array([[1, 30, 15, 90, 60], [0, 0, 0, 45, 30]], np.float64)
    first, second, *others = source.pictures
    crowded = replace(source, pictures=(first, replace(second, ignored=areas), *others))
    folder = packed(crowded, tmp_path, "full").folder
    for pack in (open_pack(folder), open_pack(folder).head(2)):
        assert pack.describe()["ignored"] == 2
        assert "ignored" not in pack.target(0)
        ignored = pack.target(1)["ignored"]
        # By hand: 90 × 60 in a square of 90 that begins 15 above, at 74 / 90.
        expected = np.array([[30, 30, 90, 75], [0, 15, 45, 45]]) * 74 / 90
        np.testing.assert_allclose(ignored["boxes"].numpy(), expected, rtol=1e-5)
        assert ignored["labels"].tolist() == [1, 0]
        assert pack.in_classes(("b", "c", "a")).target(1)["ignored"]["labels"].tolist() == [0, 2]
    assert "ignored" not in open_pack(folder).head(1).describe()


@pytest.mark.parametrize("crop", ["reference", "jitter"])
def test_the_seed_determines_the_pack(source: Source, tmp_path: Path, crop: Crop) -> None:
    one, again, other = (
        packed(source, tmp_path / name, crop, seed)
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert one.hash == again.hash != other.hash


@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_an_unreadable_picture_is_named(source: Source, tmp_path: Path, damage: str) -> None:
    file = source.pictures[1].path
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"no picture")
    with pytest.raises(InputError, match=r"2\.png"):
        packed(source, tmp_path / "out", "jitter")
    assert list((tmp_path / "out").glob("*")) == []
    assert list((tmp_path / "out").glob(".*")) == []


def test_rendered_packs(tmp_path: Path) -> None:
    pack = pack_rendered(tmp_path / "pack", "test", 5, DIGIT_CROP, seed=2)
    assert len(pack) == 5
    # Oracle: the renderer itself.
    image, boxes, labels = rendered("test", 3, 2, 74)
    np.testing.assert_array_equal(pack.images[3], image)
    np.testing.assert_array_equal(pack.target(3)["boxes"].numpy(), boxes)
    assert pack.target(3)["labels"].tolist() == labels.tolist()
    assert pack.pictures.tolist() == [0, 1, 2, 3, 4]


def test_rendered_packs_on_a_wide_canvas(tmp_path: Path) -> None:
    pack = pack_rendered(tmp_path / "pack", "test", 2, Canvas(40, 100), seed=2)
    image, boxes, _ = rendered("test", 1, 2, 40)
    # By hand: 30 pixels on either side, in which the edge is repeated.
    np.testing.assert_array_equal(pack.images[1][:, 30:70], image)
    np.testing.assert_array_equal(pack.images[1][:, 0], image[:, 0])
    np.testing.assert_allclose(
        pack.target(1)["boxes"].numpy(), boxes + np.array([30, 0, 30, 0]), atol=1e-4
    )


def test_real_photographs(svhn: Path, tmp_path: Path) -> None:
    pack = packed(read_svhn(svhn / "test"), tmp_path, "reference")
    described = pack.describe()
    # Source: README of the folder (128 pictures, 241 digits); one number is wider than its
    # picture is high.
    assert (described["images"], described["skipped"]) == (127, 1)
    assert 241 - 6 <= described["objects"] < 241
    boxes = pack.boxes
    assert boxes.min() >= 0
    assert boxes.max() <= 74
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 0).all()
    # The number fills the square to at least 1 / 1.3 less the rounding of the growth.
    for index in range(len(pack)):
        own = pack.target(index)["boxes"].numpy()
        extent = max(own[:, 2:].max(axis=0) - own[:, :2].min(axis=0))
        assert extent > 74 / 1.3 * 0.93
