"""YOLO folders. Expected values are written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipdet.errors import InputError
from lipdet.images.source import Source
from lipdet.images.yolo import read_yolo

LABELS = {"a.txt": "1 0.5 0.5 0.5 0.2\n\n0 0.95 0.1 0.2 0.1\n", "b.txt": ""}
NAMES = "names:\n  0: cat\n  1: no\nnc: 2\n"


def write(
    root: Path, pictures: str = "images", labels: str = "labels", names: str = "data.yaml"
) -> Path:
    """Three pictures of 40 × 20, the last without a label file."""
    for place in (pictures, labels):
        (root / place).mkdir(parents=True, exist_ok=True)
    for picture in ("a.png", "b.JPG", "c.png"):
        Image.new("RGB", (40, 20)).save(root / pictures / picture)
    for file, text in LABELS.items():
        (root / labels / file).write_text(text)
    (root / names).parent.mkdir(parents=True, exist_ok=True)
    (root / names).write_text(NAMES if names.endswith("yaml") else "cat\nno\n")
    return root


def check(source: Source) -> None:
    assert source.class_names == ("cat", "no")  # a word, though YAML reads `no` as false
    assert [p.path.name for p in source.pictures] == ["a.png", "b.JPG", "c.png"]
    first, *others = source.pictures
    # Centre 20, 10 and size 20, 4; centre 38, 2 and size 8, 2 overhangs the right by 2.
    np.testing.assert_allclose(first.boxes, [[10, 8, 30, 12], [34, 1, 40, 3]], rtol=1e-6)
    assert first.labels.tolist() == [1, 0]
    assert (first.boxes.dtype, first.labels.dtype) == (np.float32, np.int64)
    assert [picture.boxes.shape for picture in others] == [(0, 4), (0, 4)]


@pytest.mark.parametrize(
    ("pictures", "labels", "names", "named"),
    [
        # One folder; Ultralytics' own layout; the layout of many exports; labels beside.
        ("images", "labels", "data.yaml", "."),
        ("images", "labels", "labels/classes.txt", "."),
        ("images/train", "labels/train", "data.yaml", "images/train"),
        ("images/train", "labels/train", "dataset.yaml", "images/train"),
        ("train/images", "train/labels", "data.yaml", "train"),
        ("train/images", "train/labels", "data.yaml", "train/images"),
        ("set", "set", "set/classes.txt", "set"),
        ("images/set", "images/set", "images/classes.txt", "images/set"),
    ],
)
def test_layouts(tmp_path: Path, pictures: str, labels: str, names: str, named: str) -> None:
    source = read_yolo(write(tmp_path, pictures, labels, names) / named)
    check(source)
    assert source.name == f"yolo:{(tmp_path / named).resolve().name}"
    assert not source.skipped


def test_names_in_other_forms(tmp_path: Path) -> None:
    write(tmp_path)
    for text in ("names: [cat, no]", "\ufeffnames:\n- cat\n- 'no'\n", "names: {0: cat, 1: no}"):
        (tmp_path / "data.yaml").write_text(text, encoding="utf-8")
        check(read_yolo(tmp_path))


def test_linked_subfolders_are_entered_and_loops_left(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        for place in (tmp_path / "set" / kind / "a", tmp_path / "elsewhere" / kind):
            place.mkdir(parents=True)
            if kind == "images":
                Image.new("RGB", (40, 20)).save(place / "1.png")
            else:
                (place / "1.txt").write_text("0 0.5 0.5 0.5 0.2\n")
        (tmp_path / "set" / kind / "b").symlink_to(tmp_path / "elsewhere" / kind)
        (tmp_path / "set" / kind / "b" / "loop").symlink_to(tmp_path / "set" / kind)
    (tmp_path / "set" / "data.yaml").write_text(NAMES)
    source = read_yolo(tmp_path / "set")
    images = tmp_path / "set" / "images"
    assert [p.path for p in source.pictures] == [images / "a" / "1.png", images / "b" / "1.png"]
    assert [len(p.boxes) for p in source.pictures] == [1, 1]
    assert not source.skipped


def test_labels_of_a_lost_picture_are_listed(tmp_path: Path) -> None:
    (write(tmp_path) / "images" / "a.png").unlink()
    source = read_yolo(tmp_path)
    assert [p.path.name for p in source.pictures] == ["b.JPG", "c.png"]
    assert [(s.name, s.reason) for s in source.skipped] == [("a.txt", "labels without a picture")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "needs the five numbers"),
        ("cat 0.5 0.5 0.5 0.5", "needs the five numbers .* not 'cat 0.5"),
        ("2 0.5 0.5 0.5 0.5", "class 2 is none of the 2 classes"),
        ("nan 0.5 0.5 0.5 0.5", "class nan is none"),
        ("0 20 10 20 4", "must be fractions .* not 20 10 20 4; divide pixels"),
        ("0 0.5 0.5 -0.5 0.5", "must be fractions"),
        ("0 0.5 0.5 0.5 0.5 0.9 0.1 0.2", "needs the five numbers"),
        ("0 0.5 nan 0.5 0.5", "must be fractions"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path)
    file = tmp_path / "labels" / "c.txt"
    file.write_text(f"0 0.5 0.5 0.5 0.5\n\n{line}\n")
    with pytest.raises(InputError, match=message) as error:
        read_yolo(tmp_path)
    assert str(error.value).startswith(f"{file}, line 3: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.yaml: has no `names`"),
        ("nc: 2\nnames:\n  0: a\n  2: b\n", "line 4: the numbers .* not 2"),
        ("nc: 3\nnames: [a, b]", "line 1: nc is 3, but there are 2 names"),
        ("path: .\nnames: cat", "line 2: `names` must be a list"),
        ("names:\n- a\n- [b]\n", "line 3: a class name must be one word"),
        ("names: [a, a]", "needs at least one class, and a name of its own"),
        ("names: [a,\nb", "line 2: is no YAML"),
        ("names: [a]\n? [x]\n: 1\n---\nnames: [b]", "line 4: is no YAML"),
    ],
)
def test_bad_names_are_named(tmp_path: Path, text: str, message: str) -> None:
    (write(tmp_path) / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_yolo(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "data.yaml"))
    assert "\n" not in str(error.value)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_yolo(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no pictures; it needs images/ and labels/"):
        read_yolo(tmp_path)
    root = write(tmp_path / "one")
    (root / "data.yaml").unlink()
    with pytest.raises(InputError, match=r"have no names; add a data\.yaml"):
        read_yolo(root)
    for file in LABELS:
        (root / "labels" / file).unlink()
    with pytest.raises(InputError, match="labels holds no txt file"):
        read_yolo(root)


def test_a_folder_of_splits_asks_for_one(tmp_path: Path) -> None:
    """Splits are not read together."""
    write(tmp_path / "x", "images/train", "labels/train")
    with pytest.raises(InputError, match=r"name one split: .*/x/images/train\.$"):
        read_yolo(tmp_path / "x")
    write(tmp_path / "y", "train/images", "train/labels")
    write(tmp_path / "y", "valid/images", "valid/labels")
    with pytest.raises(InputError, match=r"name one split: .*/y/train or .*/y/valid\.$"):
        read_yolo(tmp_path / "y")


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00\xd8", b"\x00\x01"])
def test_binary_labels(tmp_path: Path, damage: bytes) -> None:
    (write(tmp_path) / "labels" / "a.txt").write_bytes(damage)
    with pytest.raises(InputError, match=r"a\.txt(: cannot be read as text|, line 1)"):
        read_yolo(tmp_path)


def test_key_points_are_no_polygon(tmp_path: Path) -> None:
    points = "0.45 0.45 2 0.55 0.45 2 0.45 0.55 1 0.55 0.55 0"
    (write(tmp_path) / "labels" / "a.txt").write_text(f"0 0.5 0.5 0.2 0.4 {points}\n")
    (tmp_path / "data.yaml").write_text(f"{NAMES}kpt_shape: [4, 3]\n")
    source = read_yolo(tmp_path)
    # Centre 20, 10 and size 8, 8.
    np.testing.assert_allclose(source.pictures[0].boxes, [[16, 6, 24, 14]], rtol=1e-6)
    assert not source.skipped


def one_line(tmp_path: Path, line: str) -> Source:
    write(tmp_path)
    (tmp_path / "labels" / "c.txt").write_text(line)
    return read_yolo(tmp_path)


@pytest.mark.parametrize(
    ("line", "box", "said"),
    [
        ("1 0.5 0.5 0.5 0.2 0.93", [10, 8, 30, 12], None),
        ("1 1.02 0.5 0.2 0.2", [36.8, 8, 40, 12], None),
        ("1 0.25 0.5 0.5 0.25 0.25 0.75", [10, 5, 20, 15], "1 polygons read as the boxes"),
        ("1 0.5 0.5 0 0.2", None, "a box without area"),
        ("1 1.005 0.5 0.005 0.5", None, "a box without area"),
    ],
)
def test_confidences_polygons_centres_outside_and_boxes_without_width(
    tmp_path: Path, line: str, box: list[float] | None, said: str | None
) -> None:
    """What lines of labels may hold."""
    source = one_line(tmp_path, line)
    expected = np.reshape([] if box is None else box, (-1, 4))
    np.testing.assert_allclose(source.pictures[2].boxes, expected, rtol=1e-5)
    assert [one.reason.startswith(said or "") for one in source.skipped] == [True] * bool(said)


def test_pictures_in_subfolders_and_labels_beside_are_read(tmp_path: Path) -> None:
    """Labels in the same subfolders, or beside; others are reported."""
    write(tmp_path)
    for folder in ("images/x", "labels/x", "images/y"):
        (tmp_path / folder).mkdir()
    for name in ("x/1", "y/2", "y/3"):
        Image.new("RGB", (40, 20)).save(tmp_path / "images" / f"{name}.png")
    for text in ("labels/x/1.txt", "images/y/2.txt", "labels/3.txt"):
        (tmp_path / text).write_text("0 0.5 0.5 0.5 0.5")
    source = read_yolo(tmp_path)
    counts = {p.path.name: len(p.labels) for p in source.pictures}
    assert counts == {"a.png": 2, "b.JPG": 0, "c.png": 0, "1.png": 1, "2.png": 1, "3.png": 0}
    assert [(s.name, s.reason) for s in source.skipped] == [
        ("3.txt", "labels where none are expected")
    ]


def test_the_folder_that_cvat_writes(tmp_path: Path) -> None:
    """YOLO 1.1 with obj.data, obj.names, obj_train_data/ and a list."""
    write(tmp_path, "obj_train_data", "obj_train_data", "obj.names")
    (tmp_path / "obj.data").write_text("classes = 2\ntrain = data/train.txt\n")
    lines = [f"data/obj_train_data/{name}" for name in ("a.png", "b.JPG", "c.png")]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    for path in (tmp_path, tmp_path / "train.txt"):
        check(read_yolo(path))


@pytest.mark.parametrize("key", ["train", "val"])
def test_a_yaml_that_names_one_split_or_a_list(tmp_path: Path, key: str) -> None:
    """A yaml of any name; a list; names out of order."""
    write(tmp_path, "images/x", "labels/x", "mine.yaml")
    (tmp_path / "list.txt").write_text("./images/x/a.png\n./images/x/b.JPG\nimages/x/c.png\n")
    for place in ("images/x", "../images/x", "list.txt"):
        (tmp_path / "mine.yaml").write_text(f"names: {{1: 'no', 0: cat}}\n{key}: {place}\n")
        check(read_yolo(tmp_path / "mine.yaml"))
    check(read_yolo(tmp_path / "images" / "x"))  # finds the names, whatever the yaml is called
    (tmp_path / "mine.yaml").write_text("names: [a, b]\ntrain: images/x\nval: list.txt\n")
    with pytest.raises(InputError, match=r"names 2 splits; name one: .*images/x or .*list\.txt"):
        read_yolo(tmp_path / "mine.yaml")


@pytest.mark.parametrize("split", ["", "/train"])
def test_a_folder_of_images_that_is_a_link(tmp_path: Path, split: str) -> None:
    """`images/` or a split is a link, with its labels beside the link."""
    pictures = write(tmp_path / "set", f"images{split}", f"labels{split}") / f"images{split}"
    pictures.rename(tmp_path / "elsewhere")
    pictures.symlink_to(tmp_path / "elsewhere")
    check(read_yolo(pictures if split else tmp_path / "set"))


def test_what_operating_systems_leave_is_ignored(tmp_path: Path) -> None:
    """`._a.png` is no picture."""
    write(tmp_path)
    for name in ("images/._a.png", "labels/._a.txt", "images/.DS_Store", "images/Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\1")
    check(read_yolo(tmp_path))


def test_byte_order_marks(tmp_path: Path) -> None:
    """A yaml or a txt may begin with a mark."""
    write(tmp_path)
    for file in (tmp_path / "data.yaml", tmp_path / "labels" / "a.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    check(read_yolo(tmp_path))


def test_corners_where_centre_and_size_are_expected_are_said(tmp_path: Path) -> None:
    """Boxes may be x1, y1, x2, y2 as shares of the picture."""
    source = one_line(tmp_path, "0 0.8 0.7 0.95 0.9\n" * 2 + "0 0.7 0.8 0.9 0.98\n" * 2)
    twice, corners = source.skipped
    assert twice.reason.startswith("2 objects stand there twice")
    assert corners.reason.startswith("4 of 6 boxes reach far beyond their picture, and 4 of them")
