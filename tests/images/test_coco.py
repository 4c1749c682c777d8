"""COCO json in and out. Expected values are written by hand unless a comment names an oracle."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lipdet.errors import InputError
from lipdet.images.coco import coco_dict, read_coco
from lipdet.images.source import Source, load_rgb
from lipdet.types import Target

SMALL: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "b.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "a.png", "width": 20, "height": 10},
    ],
    "annotations": [
        {"id": 11, "image_id": 3, "category_id": 90, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
        {"id": 12, "image_id": 3, "category_id": 2, "bbox": [15, -2, 10, 6]},
        {"id": 13, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 5, "name": "cow"}],
}


def write(folder: Path, root: Any, pictures: Path | None = None) -> Path:
    pictures = pictures or folder
    pictures.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(pictures / "b.png")
    Image.new("RGB", (20, 10)).save(pictures / "a.png")
    file = folder / "instances.json"
    file.write_text(json.dumps(root, indent=1))
    return file


@pytest.mark.parametrize("subfolder", [".", "images"])
def test_reads_boxes_classes_and_crowds(tmp_path: Path, subfolder: str) -> None:
    source = read_coco(write(tmp_path, SMALL, tmp_path / subfolder))
    assert source.name == "coco:instances.json"
    assert source.class_names == ("dog", "cow", "cat")  # in the order of the ids 2, 5, 90
    b, a = source.pictures  # the order of the json
    assert (b.path, a.path) == (tmp_path / subfolder / "b.png", tmp_path / subfolder / "a.png")
    assert (b.boxes.shape, b.labels.shape) == ((0, 4), (0,))
    np.testing.assert_array_equal(b.ignored, [[0, 0, 0, 40, 30]])  # the crowd: class and box
    assert a.ignored.shape == (0, 5)
    # xywh -> xyxy; the second box overhangs the top and the right of the 20 x 10 picture.
    np.testing.assert_array_equal(a.boxes, [[1.5, 2, 4.5, 6], [15, 0, 20, 4]])
    assert a.labels.tolist() == [2, 0]
    assert (a.boxes.dtype, a.labels.dtype) == (np.float32, np.int64)
    assert not source.skipped


def edit(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    root = copy.deepcopy(SMALL)
    change(root)
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("images"), "no list `images`"),
        (lambda r: r.update(categories={}), "no list `categories`"),
        (lambda r: r["images"].append("x"), r"images\[2\] is no json object"),
        (lambda r: r["images"][1].pop("id"), r"images\[1\] has no `id`"),
        (lambda r: r["images"][1].update(id=7), r"image 7 repeats the id"),
        (lambda r: r["categories"][1].pop("name"), "category 2 has no `name`"),
        (lambda r: r["categories"][1].update(name=" "), "category 2 has no `name`"),
        (lambda r: r["categories"][1].update(name="a\nb"), "category 2 .* control characters"),
        (lambda r: r["images"][0].pop("file_name"), "image 7 has no `file_name`"),
        (lambda r: r["annotations"][0].update(iscrowd="0"), "11 has the `iscrowd` '0'"),
        (lambda r: r["images"][1].pop("width"), "image 3 needs a positive integer `width`"),
        (lambda r: r["annotations"][0].update(image_id=8), "annotation 11 has image_id 8"),
        (lambda r: r["annotations"][0].update(category_id=1), "annotation 11 has category_id 1"),
        (lambda r: r["annotations"][0].pop("bbox"), "annotation 11 of image 3 needs a `bbox`"),
        (lambda r: r["annotations"][0].update(bbox=["x"] * 4), "annotation 11 .* four numbers"),
        (lambda r: r["annotations"][0].update(bbox=[10**400, 2, 3, 4]), "11 .* four numbers"),
        (lambda r: r["annotations"][0].update(bbox=[1, 1, 1, float("nan")]), "11 .* not finite"),
        (
            lambda r: r["images"][0].update(file_name="nowhere.png"),
            "image 7 is in none of .*images",
        ),
        (lambda r: r["images"][0].update(width=30, height=40), "30x40, but .* is 40x30"),
    ],
)
def test_bad_entries_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    file = write(tmp_path, edit(change))
    with pytest.raises(InputError, match=message) as error:
        read_coco(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "key", "position"),
    [
        (lambda r: r["annotations"][1].pop("category_id"), "annotations", 1),
        (lambda r: r["annotations"][1].update(bbox=[1, 1, 1, float("nan")]), "annotations", 1),
        (lambda r: r["annotations"][0].update(image_id=8), "annotations", 0),
        (lambda r: r["categories"].append({"id": 2}), "categories", 3),
    ],
)
def test_the_line_of_an_entry_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], key: str, position: int
) -> None:
    root = edit(change)
    file = write(tmp_path, root)
    # Oracle: with this indentation each entry of a list begins on a line "  {" of its own.
    lists = ("images", "annotations", "categories")
    before = sum(len(root[name]) for name in lists[: lists.index(key)]) + position
    lines = file.read_text().split("\n")
    line = [number for number, text in enumerate(lines, start=1) if text == "  {"][before]
    with pytest.raises(InputError) as error:
        read_coco(file)
    assert str(error.value).startswith(f"{file}, line {line}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as json"),
        (b'{"images":\n [', r"x\.json, line 2: cannot be read as json"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b"[" * 100_000, "cannot be read as json"),
        (b"[]", "holds no json object"),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_coco(file)


def test_missing_file_and_unreadable_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_coco(tmp_path / "nowhere.json")
    file = write(tmp_path, SMALL)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png: cannot be read as a picture"):
        read_coco(file)


def written(source: Source) -> dict[str, Any]:
    sizes = [(p.path.name, *load_rgb(p.path).size) for p in source.pictures]
    targets: list[Target] = [
        {
            "boxes": torch.from_numpy(p.boxes),
            "labels": torch.from_numpy(p.labels),
            "ignored": {
                "boxes": torch.from_numpy(p.ignored[:, 1:]),
                "labels": torch.from_numpy(p.ignored[:, 0]).long(),
            },
        }
        for p in source.pictures
    ]
    return coco_dict(sizes, targets, source.class_names)


def test_round_trip(tmp_path: Path) -> None:
    first = read_coco(write(tmp_path, SMALL))
    second = read_coco(write(tmp_path, written(first)))
    assert second.class_names == first.class_names
    assert [p.path for p in second.pictures] == [p.path for p in first.pictures]
    for old, new in zip(first.pictures, second.pictures, strict=True):
        np.testing.assert_array_equal(new.boxes, old.boxes)
        np.testing.assert_array_equal(new.labels, old.labels)
        np.testing.assert_array_equal(new.ignored, old.ignored)


def test_written_form_is_read_by_pycocotools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the reference implementation of the format.
    pycocotools = pytest.importorskip("pycocotools.coco")
    file = tmp_path / "out.json"
    file.write_text(json.dumps(written(read_coco(write(tmp_path, SMALL)))))
    coco = pycocotools.COCO(str(file))
    capsys.readouterr()
    assert coco.getImgIds() == [1, 2]
    assert coco.getCatIds(catNms=["cat"]) == [3]
    (crowd,) = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert (crowd["bbox"], crowd["iscrowd"]) == ([0.0, 0.0, 40.0, 30.0], 1)
    (box,) = coco.loadAnns(coco.getAnnIds(imgIds=[2], catIds=[3]))
    assert (box["bbox"], box["area"], box["iscrowd"]) == ([1.5, 2.0, 3.0, 4.0], 12.0, 0)


@pytest.mark.parametrize("names", [[], ["cat", "dog", "cat"], ["cat", " cat\n"]])
def test_categories_need_names_of_their_own(tmp_path: Path, names: list[str]) -> None:
    root = copy.deepcopy(SMALL)
    root["annotations"] = []
    root["categories"] = [{"id": index, "name": name} for index, name in enumerate(names)]
    with pytest.raises(InputError, match=r"instances\.json: needs at least one category"):
        read_coco(write(tmp_path, root))


def moved(tmp_path: Path, json_in: str, pictures_in: str, name: str = "") -> Source:
    """Read SMALL with its json and its pictures in folders of their own."""
    (tmp_path / json_in).mkdir(parents=True, exist_ok=True)
    (tmp_path / pictures_in).mkdir(parents=True, exist_ok=True)
    root = edit(lambda r: r["images"][1].update(file_name=name or "a.png"))
    write(tmp_path, root, tmp_path / pictures_in)
    return read_coco((tmp_path / "instances.json").rename(tmp_path / json_in / "val.json"))


@pytest.mark.parametrize("folder", ["images", "val2017", "images/val2017", "."])
def test_pictures_beside_the_folder_of_the_json(tmp_path: Path, folder: str) -> None:
    """`annotations/val.json` as in the official files, of CVAT and Datumaro."""
    source = moved(tmp_path, "annotations", folder)
    assert [p.path for p in source.pictures] == [tmp_path / folder / n for n in ("b.png", "a.png")]


def test_a_picture_in_two_places_is_refused_and_a_missing_one_says_where(tmp_path: Path) -> None:
    """Exactly one place, or the message lists them."""
    moved(tmp_path, "annotations", "val")
    (tmp_path / "train").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "train" / "b.png")
    with pytest.raises(InputError, match=r"image 7 may be .*train/b\.png and .*val/b\.png"):
        read_coco(tmp_path / "annotations" / "val.json")
    for folder in ("val", "train"):
        (tmp_path / folder / "b.png").unlink()
    with pytest.raises(InputError, match=r"image 7 is in none of .*annotations, .*images, .*train"):
        read_coco(tmp_path / "annotations" / "val.json")


@pytest.mark.parametrize(
    "name",
    [
        "sub\\a.png",
        "D:\\data\\a.png",
        "/gone/a.png",
        "https://x.org/y/a.png",
        "%61.png",
        "sub%2Fa.png",
    ],
)
def test_names_of_other_machines_are_found_by_their_last_part(tmp_path: Path, name: str) -> None:
    """Other slashes, percent signs, absolute paths and addresses."""
    assert moved(tmp_path, ".", "images", name).pictures[1].path == tmp_path / "images" / "a.png"


def test_a_name_as_it_is_given_comes_before_its_last_part(tmp_path: Path) -> None:
    """Another file of that last part lies nearer."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "images").mkdir()
    file = write(
        tmp_path,
        edit(lambda r: r["images"][1].update(file_name="val\\a.png")),
        tmp_path / "images" / "val",
    )
    assert read_coco(file).pictures[1].path == tmp_path / "images" / "val" / "a.png"


def test_a_picture_under_two_ids_is_refused(tmp_path: Path) -> None:
    root = edit(lambda r: r["images"].append({**r["images"][1], "id": 4}))
    with pytest.raises(InputError, match=r"image 4 and image 3 are both .*a\.png.*; join them"):
        read_coco(write(tmp_path, root))


def test_two_pictures_that_come_to_one_file_are_refused(tmp_path: Path) -> None:
    """Of two paths with the same last part one file is here."""
    moved(tmp_path, "annotations", "images/val")
    file = tmp_path / "annotations" / "val.json"
    root = edit(lambda r: r["images"][1].update(file_name="val/a.png"))
    root["images"].append({**root["images"][1], "id": 4, "file_name": "train/a.png"})
    file.write_text(json.dumps(root))
    with pytest.raises(
        InputError, match=r"image 4 and image 3 both come to .*val/a\.png; add .*tr"
    ):
        read_coco(file)


def test_boxes_without_height_or_width_are_left_out_and_counted(tmp_path: Path) -> None:
    """COCO's train2017 has two such boxes; some lie beside their picture."""
    boxes = [[1, 1, 0, 5], [1, 1, 5, 0], [20, 0, 5, 5], [9, 1, -5, 5]]
    entries = [{"image_id": 3, "category_id": 2, "bbox": box} for box in boxes]
    source = read_coco(write(tmp_path, edit(lambda r: r["annotations"].extend(entries))))
    assert [len(p.labels) for p in source.pictures] == [0, 2]
    [left] = source.skipped
    assert (left.name, left.reason) == (
        "a.png", "4 boxes without area inside the picture left out"
    )  # fmt: skip


@pytest.mark.parametrize("root_name", ["cells", "cow"])
def test_a_root_category_without_objects_is_dropped_and_said(
    tmp_path: Path, root_name: str
) -> None:
    """Roboflow's first category only names the group of the others."""

    def change(root: dict[str, Any]) -> None:
        for one in root["categories"]:
            one["supercategory"] = root_name
        root["categories"].insert(0, {"id": 0, "name": root_name, "supercategory": "none"})

    source = read_coco(write(tmp_path, edit(change)))
    assert source.class_names == ("dog", "cow", "cat")
    assert root_name in source.skipped[0].reason


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path: Path) -> None:
    """A json may begin with a mark."""
    file = write(tmp_path, SMALL)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_coco(file).pictures) == 2
    file.write_bytes(file.read_bytes().replace(b'"image_id": 7', b'"image_id": 8'))
    with pytest.raises(InputError, match=r"line \d+: annotation 13 has image_id 8"):
        read_coco(file)


def test_ids_as_text_twice_or_missing_where_nothing_needs_them(tmp_path: Path) -> None:
    """An id that nothing needs is no reason to refuse."""

    def change(root: dict[str, Any]) -> None:
        root["images"][0].update(id="7", width=40.0)
        root["images"][1].update(id="x")
        first, second, _ = root["annotations"]
        first.update(id="a", image_id="x", category_id="90")
        second.update(id="a", image_id="x")
        del root["annotations"][2]["id"]

    plain, other = (read_coco(write(tmp_path, root)) for root in (SMALL, edit(change)))
    assert other.class_names == plain.class_names
    for one, same in zip(other.pictures, plain.pictures, strict=True):
        np.testing.assert_array_equal(one.boxes, same.boxes)
        np.testing.assert_array_equal(one.ignored, same.ignored)


def test_a_missing_box_is_that_of_the_polygons(tmp_path: Path) -> None:
    """A polygon is there, and no `bbox`."""

    def change(root: dict[str, Any]) -> None:
        del root["annotations"][0]["bbox"]
        root["annotations"][0]["segmentation"] = [[2, 3, 5, 3, 4, 7], [1, 4, 2, 4, 2, 5]]

    source = read_coco(write(tmp_path, edit(change)))
    np.testing.assert_array_equal(source.pictures[1].boxes[0], [1, 3, 5, 7])


def test_objects_that_stand_there_twice_and_corners_for_sizes_are_said(tmp_path: Path) -> None:
    """Read as it is written, and said with the numbers."""

    def change(root: dict[str, Any]) -> None:
        boxes = [[10, 5, 18, 9], [10, 5, 18, 9], [12, 4, 19, 8], [11, 6, 20, 9]]
        root["annotations"] = [{"image_id": 3, "category_id": 2, "bbox": box} for box in boxes]

    twice, corners = read_coco(write(tmp_path, edit(change))).skipped
    assert twice.reason.startswith("1 objects stand there twice")
    assert corners.reason.startswith("4 of 4 boxes reach far beyond their picture, and 4 of them")
    assert not read_coco(write(tmp_path, SMALL)).skipped
