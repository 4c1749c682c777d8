"""Packs: what is written is what is read, and damage is noticed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lipdet.errors import InputError
from lipdet.images.pack import (
    ARRAYS,
    Pack,
    PackedPicture,
    open_pack,
    same_pictures,
    write_pack,
)
from lipdet.images.source import Skipped
from lipdet.types import Canvas

SIZE = 16
CLASSES = ("cat", "dog")


def some_pictures(count: int = 6, most_boxes: int = 3) -> list[PackedPicture]:
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(count):
        n = index % (most_boxes + 1)
        first = rng.uniform(0, 8, (n, 2))
        pictures.append(
            PackedPicture(
                rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8),
                np.concatenate([first, first + 4], axis=1).astype(np.float32),
                rng.integers(0, 2, n),
                index // 2,
            )
        )
    return pictures


def write(folder: Path, pictures: list[PackedPicture]) -> Pack:
    skipped = [Skipped("9.png", "no reason")]
    provenance = {"name": "six", "seed": 4}
    return write_pack(
        folder, pictures, len(pictures), Canvas(SIZE, SIZE), CLASSES, provenance, skipped
    )


def check_contents(pack: Pack, pictures: list[PackedPicture]) -> None:
    assert len(pack) == len(pictures)
    for index, picture in enumerate(pictures):
        np.testing.assert_array_equal(pack.images[index], picture.image)
        target = pack.target(index)
        np.testing.assert_array_equal(target["boxes"].numpy(), picture.boxes)
        np.testing.assert_array_equal(target["labels"].numpy(), picture.labels)
        assert target["boxes"].shape == (len(picture.labels), 4)
    assert pack.pictures.tolist() == [picture.picture for picture in pictures]


def test_round_trip(tmp_path: Path) -> None:
    pictures = some_pictures()
    written = write(tmp_path / "deep" / "pack", pictures)
    reopened = open_pack(tmp_path / "deep" / "pack")
    for pack in (written, reopened):
        check_contents(pack, pictures)
        assert pack.class_names == CLASSES
        assert pack.describe() == {
            "name": "six",
            "canvas": [16, 16],
            "hash": written.hash,
            "images": 6,
            "objects": 0 + 1 + 2 + 3 + 0 + 1,
            "skipped": 1,
        }
        assert pack.meta["skipped"] == [{"name": "9.png", "reason": "no reason"}]
        assert pack.meta["seed"] == 4
    # Mapped, not read.
    assert isinstance(reopened.images, np.memmap)
    assert not reopened.images.flags.writeable


def test_nothing_but_the_pack_is_left(tmp_path: Path) -> None:
    write(tmp_path / "pack", some_pictures())
    assert os.listdir(tmp_path) == ["pack"]
    expected = {"meta.json", *(f"{name}.npy" for name in ARRAYS)}
    assert set(os.listdir(tmp_path / "pack")) == expected


def test_the_hash_is_that_of_the_contents(tmp_path: Path) -> None:
    one = write(tmp_path / "one", some_pictures())
    same = write(tmp_path / "same", some_pictures())
    pictures = some_pictures()
    pictures[3].boxes[0, 0] += 0.25
    other = write(tmp_path / "other", pictures)
    assert one.hash == same.hash != other.hash


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_head(tmp_path: Path, limit: int) -> None:
    pack = write(tmp_path / "pack", some_pictures())
    head = pack.head(limit)
    check_contents(head, some_pictures()[:limit])
    described = head.describe()
    assert described["images"] == limit
    assert described["objects"] == sum(len(p.labels) for p in some_pictures()[:limit])
    assert described["hash"] != pack.hash


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("place", ["first", "header", "last"])
def test_a_flipped_byte_is_noticed(tmp_path: Path, name: str, place: str) -> None:
    write(tmp_path / "pack", some_pictures())
    file = tmp_path / "pack" / f"{name}.npy"
    data = bytearray(file.read_bytes())
    data[{"first": 0, "header": 22, "last": -1}[place]] ^= 0x40
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"is a damaged pack .*again"):
        open_pack(tmp_path / "pack")


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), "meta.json"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.98])
def test_a_truncated_file_is_noticed(tmp_path: Path, name: str, kept: float) -> None:
    write(tmp_path / "pack", some_pictures())
    file = tmp_path / "pack" / name
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match=r"is a damaged pack .*again"):
        open_pack(tmp_path / "pack")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '"hash"', "{"])
def test_an_unusable_description_is_noticed(tmp_path: Path, text: str) -> None:
    write(tmp_path / "pack", some_pictures())
    (tmp_path / "pack" / "meta.json").write_text(text)
    with pytest.raises(InputError, match="is a damaged pack"):
        open_pack(tmp_path / "pack")


def test_pickles_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "pack", some_pictures())
    np.save(tmp_path / "pack" / "labels.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="is a damaged pack"):
        open_pack(tmp_path / "pack")


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="is no pack"):
            open_pack(folder)


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    before = write(tmp_path / "pack", some_pictures()).hash
    with pytest.raises(InputError, match="pack exists already"):
        write(tmp_path / "pack", some_pictures(2))
    assert open_pack(tmp_path / "pack").hash == before


def test_an_empty_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable picture"):
        write(tmp_path / "pack", [])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, InputError, KeyboardInterrupt])
def test_nothing_is_left_when_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def broken() -> Iterator[PackedPicture]:
        yield from some_pictures(3)
        raise error("the third picture")

    with pytest.raises(error, match="the third picture"):
        write_pack(tmp_path / "pack", broken(), 6, Canvas(SIZE, SIZE), CLASSES, {"name": "x"})
    assert os.listdir(tmp_path) == []


def test_labels_without_a_class_name_are_refused(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    boxes = np.array([[0, 0, 2, 2]], np.float32)
    picture = PackedPicture(image, boxes, np.array([1]), 0)
    with pytest.raises(InputError, match="labels without a class name"):
        write_pack(tmp_path / "pack", [picture], 1, Canvas(4, 4), ("only",), {"name": "x"})


def test_packs_of_one_source_share_photographs(tmp_path: Path) -> None:
    # Photographs 0, 0, 1, 1, 2, 2; then those of which one, or no, crop was left.
    every = some_pictures()
    full = write(tmp_path / "full", every)
    part = write(tmp_path / "part", [every[5], every[1], every[0]])
    assert same_pictures([full], 2) == [[0, 2]]
    assert same_pictures([full, part], 9) == [[0, 4], [1, 0]]
    assert same_pictures([part, full], 1) == [[1], [0]]
