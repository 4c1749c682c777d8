"""Folders of masks: classes, what is ignored, sizes; rendered ink; packs that keep masks.

The oracle is what the test wrote.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipdet.errors import InputError
from lipdet.images.crop import Region, cut_mask, full_region
from lipdet.images.masks import read_mask, read_masks
from lipdet.images.pack import open_pack
from lipdet.images.prepare import pack_rendered, pack_source
from lipdet.images.render import rendered, rendered_ink
from lipdet.images.spec import fingerprint
from lipdet.types import IGNORED, Canvas


def folder_of(place: Path, *masks: list[list[int]], names: str = "") -> Path:
    for part in ("images", "masks"):
        (place / part).mkdir(parents=True)
    for number, rows in enumerate(masks):
        values = np.array(rows, np.uint8)
        picture = np.repeat(values[..., None], 3, axis=2)
        Image.fromarray(picture).save(place / "images" / f"{number}.png")
        Image.fromarray(values).save(place / "masks" / f"{number}.png")
    if names:
        (place / "classes.txt").write_text(names)
    return place


@pytest.mark.parametrize(
    ("masks", "names", "classes", "first"),
    [
        # 0 and 255 alone are two classes; so are 0 and 1, of which 255 is none.
        ([[[0, 255]], [[0, 0]]], "", ("background", "object"), [[0, 1]]),
        ([[[0, 255]], [[0, 1]]], "", ("background", "object"), [[0, IGNORED]]),
        ([[[0, 255]], [[2, 1]]], "", ("0", "1", "2"), [[0, IGNORED]]),
        ([[[0, 255]]], "skin\npolyp\n", ("skin", "polyp"), [[0, 1]]),
        ([[[0, 255]]], "road\ncar\nsky\n", ("road", "car", "sky"), [[0, IGNORED]]),
        ([[[1, 0]]], "skin\npolyp\n", ("skin", "polyp"), [[1, 0]]),
    ],
)
def test_values_are_classes_or_ignored(
    tmp_path: Path,
    masks: list[list[list[int]]],
    names: str,
    classes: tuple[str, ...],
    first: list[list[int]],
) -> None:
    source = read_masks(folder_of(tmp_path / "data", *masks, names=names))
    assert source.class_names == classes
    file = source.pictures[0].mask
    assert file is not None
    assert read_mask(file).tolist() == first
    assert not source.skipped


def test_palettes_are_read_by_index_and_single_bits_as_0_and_1(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [[0, 0]], [[0, 0]])
    palette = Image.fromarray(np.array([[1, 0]], np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.save(folder / "masks" / "0.png")
    Image.fromarray(np.array([[True, False]])).save(folder / "masks" / "1.png")
    files = [picture.mask for picture in read_masks(folder).pictures]
    assert [read_mask(file).tolist() for file in files if file] == [[[1, 0]], [[1, 0]]]


@pytest.mark.parametrize("white", [255, 1])
def test_single_bits_beside_bytes_are_the_same_class(tmp_path: Path, white: int) -> None:
    folder = folder_of(tmp_path / "data", [[white, 0]], [[0, 0]])
    Image.fromarray(np.array([[True, False]])).save(folder / "masks" / "1.png")
    source = read_masks(folder)
    assert source.class_names == ("background", "object")
    files = [picture.mask for picture in source.pictures]
    assert [read_mask(file).tolist() for file in files if file] == [[[1, 0]], [[1, 0]]]


def test_greys_of_smoothed_edges_are_no_classes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [list(range(0, 256, 5))])
    with pytest.raises(InputError, match="52 different values, as smoothed edges do"):
        read_masks(folder)
    (folder / "classes.txt").write_text("".join(f"{number}\n" for number in range(255)))
    assert len(read_masks(folder).class_names) == 255


def test_what_has_no_other_half_is_skipped(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [[0, 1]], [[0, 1]], [[0, 1]])
    (folder / "masks" / "0.png").unlink()
    (folder / "images" / "2.png").unlink()
    skipped = [(one.name, one.reason) for one in read_masks(folder).skipped]
    assert skipped == [("0.png", "no mask"), ("2.png", "no picture")]


def test_of_two_pictures_with_one_mask_the_other_is_listed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [[0, 1]])
    Image.new("RGB", (2, 1)).save(folder / "images" / "0.jpg")
    source = read_masks(folder)
    assert [picture.path.name for picture in source.pictures] == ["0.png"]
    skipped = [(one.name, one.reason) for one in source.skipped]
    assert skipped == [("0.jpg", "0.png has the same name and was taken")]


def test_what_cannot_be_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs images/NAME\.jpg and masks/NAME\.png"):
        read_masks(tmp_path)
    folder = folder_of(tmp_path / "data", [[0, 3]], names="a\nb\n")
    with pytest.raises(InputError, match=r"0\.png: class 3 is none of the 2 classes"):
        read_masks(folder)
    Image.fromarray(np.zeros((1, 5), np.uint8)).save(folder / "masks" / "0.png")
    with pytest.raises(InputError, match=r"5×1 pixels, but its picture 2×1"):
        read_masks(folder)
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(folder / "masks" / "0.png")
    with pytest.raises(InputError, match="one number of 8 bits"):
        read_masks(folder)


def test_a_cut_mask_has_the_class_at_each_centre_and_ignores_what_is_beyond() -> None:
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    whole = cut_mask(mask, full_region(2, 2, Canvas(4, 4)), Canvas(4, 4))
    assert whole.tolist() == np.kron(mask, np.ones((2, 2), np.uint8)).tolist()
    wide = cut_mask(mask, full_region(2, 2, Canvas(2, 4)), Canvas(2, 4))
    assert wide.tolist() == [[IGNORED, 0, 1, IGNORED], [IGNORED, 2, 3, IGNORED]]
    assert cut_mask(mask, Region(1, 0, 2, 1), Canvas(1, 1)).tolist() == [[1]]


def test_a_pack_keeps_masks_and_they_are_part_of_its_hash(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [[0, 255], [0, 0]], [[255, 0], [0, 0]])
    source = read_masks(folder)
    pack = pack_source(source, tmp_path / "pack", "full", Canvas(4, 4), seed=0)
    assert pack.whole
    assert pack.target(1)["mask"].tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 0, 0]] * 2
    assert not len(pack.target(1)["boxes"])
    assert len(pack.head(1).masks) == 1  # type: ignore[arg-type]
    before = fingerprint(source)
    Image.fromarray(np.array([[255, 255, 0], [0, 0, 9]], np.uint8)).save(folder / "masks" / "0.png")
    assert fingerprint(source) != before
    masks = np.load(tmp_path / "pack" / "masks.npy")
    np.save(tmp_path / "pack" / "masks.npy", 1 - masks)
    with pytest.raises(InputError, match="hash differs"):
        open_pack(tmp_path / "pack")


def test_masks_are_not_numbered_anew(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [[0, 1]], names="background\ndog\n")
    pack = pack_source(read_masks(folder), tmp_path / "pack", "full", Canvas(4, 4), seed=0)
    assert pack.in_classes(("background", "dog", "cat")).class_names[2] == "cat"
    with pytest.raises(InputError, match="not the order of background, cat, dog"):
        pack.in_classes(("background", "cat", "dog"))


def test_rendered_ink_lies_in_the_boxes_of_the_same_picture(tmp_path: Path) -> None:
    pack = pack_rendered(tmp_path / "ink", "train", 3, Canvas(74, 74), seed=0, kind="ink")
    assert pack.class_names == ("background", "ink")
    assert pack.masks is not None
    for index in range(3):
        picture, boxes, _ = rendered("train", index)
        same, mask = rendered_ink("train", index)
        assert np.array_equal(picture, same)
        assert np.array_equal(pack.masks[index], mask)
        assert np.array_equal(pack.images[index], picture)
        inside = np.zeros_like(mask)
        for left, top, right, bottom in boxes.round().astype(int):
            inside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 1
        assert 0.02 < mask.mean() < 0.6
        assert (mask <= inside).mean() > 0.99
