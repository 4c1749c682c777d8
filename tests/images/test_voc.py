"""Pascal VOC folders. Expected values are written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipdet.errors import InputError
from lipdet.images.voc import read_voc

# The form of the official files: parts with boxes of their own, a difficult object.
FIRST = """<annotation>
  <folder>VOC2007</folder>
  <filename>a.jpg</filename>
  <size><width>40</width><height>20</height><depth>3</depth></size>
  <object>
    <name>person</name>
    <difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>
    <part><name>head</name>
      <bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>
  </object>
  <object>
    <name> cat </name>
    <bndbox><xmin>36</xmin><ymin>0</ymin><xmax>60.5</xmax><ymax>3.5</ymax></bndbox>
  </object>
  <object>
    <name>dog</name>
    <difficult>1</difficult>
    <bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
  </object>
</annotation>
"""
SECOND = "<annotation><filename>b.png</filename></annotation>"


def write(folder: Path, first: str = FIRST) -> Path:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(folder / "JPEGImages" / "a.jpg")
    Image.new("RGB", (30, 30)).save(folder / "JPEGImages" / "b.png")
    (folder / "Annotations" / "a.xml").write_text(first)
    (folder / "Annotations" / "b.xml").write_text(SECOND)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("b\n")
    (folder / "ImageSets" / "Main" / "both.txt").write_text("b  1\na -1\n")
    return folder


def test_reads_boxes_classes_and_difficult_objects(tmp_path: Path) -> None:
    """Difficult objects are areas that are not judged."""
    source = read_voc(write(tmp_path / "set"))
    assert source.name == "voc:set"
    assert source.class_names == ("cat", "dog", "person")  # of all objects, sorted
    a, b = source.pictures
    assert (a.path, b.path) == tuple(
        tmp_path / "set" / "JPEGImages" / n for n in ("a.jpg", "b.png")
    )
    # Pixels 1 to 40 are all of the width; the second box overhangs on three sides.
    np.testing.assert_array_equal(a.boxes, [[0, 0, 40, 20], [35, 0, 40, 3.5]])
    assert a.labels.tolist() == [2, 0]
    assert (a.boxes.dtype, a.labels.dtype) == (np.float32, np.int64)
    assert (b.boxes.shape, b.labels.shape) == ((0, 4), (0,))
    # The difficult dog: class and box.
    np.testing.assert_array_equal(a.ignored, [[1, 1, 1, 9, 9]])
    assert not source.skipped


def test_a_split_keeps_the_classes_of_the_whole(tmp_path: Path) -> None:
    lists = write(tmp_path / "set") / "ImageSets" / "Main"
    train, both = read_voc(lists / "train.txt"), read_voc(lists / "both.txt")
    assert train.name == "voc:set/train"
    assert [p.path.name for p in train.pictures] == ["b.png"]
    assert [p.path.name for p in both.pictures] == ["b.png", "a.jpg"]
    assert train.class_names == both.class_names == ("cat", "dog", "person")


def test_a_picture_that_stands_there_twice_is_said(tmp_path: Path) -> None:
    """Named twice by a list, and by two annotations."""
    folder = write(tmp_path)
    split = folder / "ImageSets" / "Main" / "both.txt"
    split.write_text("b\nb\na\n")
    (folder / "Annotations" / "c.xml").write_text(SECOND)
    for source in (read_voc(split), read_voc(folder)):
        [said] = source.skipped
        assert said.reason == "b.png stands there 2 times, each time as a picture of its own"


def test_a_list_of_classes_decides(tmp_path: Path) -> None:
    (write(tmp_path) / "classes.txt").write_text("person\ncow\ndog\ncat\n")
    source = read_voc(tmp_path)
    assert source.class_names == ("person", "cow", "dog", "cat")
    assert source.pictures[0].labels.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("<annotation>", "<annotations>", 21, "is no xml"),
        ("<width>40", "<width>20", 4, r"stated as 20x20, but .*a\.jpg is 40x20"),
        ("<name>person</name>", "", 5, "<name> '' is none of the classes"),
        ("<xmin>1<", "<xmin>one<", 8, "needs a <bndbox> of four numbers"),
        ("bndbox", "robndbox", 5, "needs a <bndbox> of four numbers"),
        ("<xmin>1<", "<xmin>nan<", 8, "the box .* is not finite"),
        ("<xmax>40<", "<xmax>inf<", 8, "the box .* is not finite"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY x "y">]><annotation>', 1, "document type"),
        ("<annotation>", '<!DOCTYPE a SYSTEM "file:///etc/passwd">\n<annotation>', 1, "document"),
        ("VOC2007", "&bomb;", 2, "is no xml"),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert old in FIRST
    write(tmp_path, FIRST.replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        read_voc(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    assert str(error.value).startswith(f"{file}, line {line}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: is no xml"),
        (FIRST[:200], "is no xml"),
        ("<html></html>", "line 1: holds <html> where Pascal VOC has <annotation>"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "no xml|cannot be read"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text)
    with pytest.raises(InputError, match=message):
        read_voc(tmp_path)


def test_a_class_outside_the_list(tmp_path: Path) -> None:
    (write(tmp_path) / "classes.txt").write_text("person\n")
    with pytest.raises(InputError, match=r"a\.xml, line 12: the object's <name> 'cat' is none"):
        read_voc(tmp_path)
    (tmp_path / "classes.txt").write_text("person\n\ncat\n")
    with pytest.raises(InputError, match=r"classes\.txt: needs at least one class"):
        read_voc(tmp_path)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist\.$"):
        read_voc(tmp_path / "nowhere")
    (tmp_path / "x.txt").touch()
    with pytest.raises(InputError, match=r"y\.txt does not exist; there are x\.txt"):
        read_voc(tmp_path / "y.txt")
    with pytest.raises(InputError, match="holds no Annotations/ and JPEGImages/"):
        read_voc(tmp_path / "x.txt")
    lists = write(tmp_path) / "ImageSets" / "Main"
    (lists / "train.txt").write_text("b\n\nq\n")
    with pytest.raises(InputError, match=r"train\.txt, line 3: .*q\.xml does not exist"):
        read_voc(lists / "train.txt")
    (lists / "train.txt").write_text("")
    with pytest.raises(InputError, match="names no annotation"):
        read_voc(lists / "train.txt")
    (tmp_path / "Annotations" / "a.xml").write_text(SECOND)
    with pytest.raises(InputError, match=r"no annotation names a class; add a classes\.txt"):
        read_voc(tmp_path)


def test_boxes_of_no_width_are_left_out_and_counted(tmp_path: Path) -> None:
    """A box with xmin = xmax; one beside the picture."""
    narrow = FIRST.replace("<xmin>1<", "<xmin>40<").replace("<xmin>36<", "<xmin>41<")
    source = read_voc(write(tmp_path, narrow))
    assert len(source.pictures[0].labels) == 0
    assert [(s.name, s.reason) for s in source.skipped] == [
        ("a.jpg", "2 boxes without area inside the picture left out")
    ]


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [("annotations", "images"), (".", "."), ("Annotations", "images"), ("annotations", ".")],
)
def test_other_folders(tmp_path: Path, annotations: str, pictures: str) -> None:
    """One folder for all, other names, endings in capitals."""
    for name in (annotations, pictures):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / annotations / "a.xml").write_text(FIRST)
    Image.new("RGB", (40, 20)).save(tmp_path / pictures / "a.JPG")
    [picture] = read_voc(tmp_path).pictures
    assert (picture.path, len(picture.labels)) == (tmp_path / pictures / "a.JPG", 2)


@pytest.mark.parametrize("name", ["a", "z.jpg", "b.png", "C:\\x\\a.jpg", ""])
def test_the_picture_is_that_of_the_name_of_the_xml(tmp_path: Path, name: str) -> None:
    """`<filename>` has no ending, or is of another picture."""
    write(tmp_path, FIRST.replace("<filename>a.jpg", f"<filename>{name}"))
    assert read_voc(tmp_path).pictures[0].path == tmp_path / "JPEGImages" / "a.jpg"


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_of_pictures_of_one_stem_the_filename_decides(tmp_path: Path, ending: str) -> None:
    write(tmp_path, FIRST.replace("a.jpg", f"a.{ending}"))
    Image.new("RGB", (40, 20)).save(tmp_path / "JPEGImages" / "a.png")
    source = read_voc(tmp_path)
    assert source.pictures[0].path.name == f"a.{ending}"
    other = {"jpg": "a.png", "png": "a.jpg"}[ending]
    assert [(s.name, s.reason) for s in source.skipped] == [(other, "no annotation")]


def test_pictures_without_xml_and_xml_in_subfolders_are_listed(tmp_path: Path) -> None:
    sub = write(tmp_path) / "Annotations" / "sub"
    sub.mkdir()
    (sub / "c.xml").write_text(SECOND)
    Image.new("RGB", (30, 30)).save(tmp_path / "JPEGImages" / "c.png")
    source = read_voc(tmp_path)
    assert [p.path.name for p in source.pictures] == ["a.jpg", "b.png"]
    assert [(s.name, s.reason) for s in source.skipped] == [
        ("sub/c.xml", "in a subfolder; not read"),
        ("c.png", "no annotation"),
    ]
    # A list chooses; what it leaves out is no loss.
    assert not read_voc(tmp_path / "ImageSets" / "Main" / "both.txt").skipped


def test_a_filename_that_is_not_the_name_of_the_xml_is_read(tmp_path: Path) -> None:
    """`<filename>` is not the stem."""
    write(tmp_path)
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "x y.jpg")
    (tmp_path / "Annotations" / "a.xml").write_text(FIRST.replace("a.jpg", "/data/x y.jpg"))
    assert read_voc(tmp_path).pictures[0].path.name == "x y.jpg"
    (tmp_path / "JPEGImages" / "x y.jpg").unlink()
    with pytest.raises(InputError, match=r"a\.xml, line 3: neither its <filename> x y\.jpg nor"):
        read_voc(tmp_path)


def test_a_size_of_zero_is_that_of_the_picture_and_said(tmp_path: Path) -> None:
    """`<size>` is 0×0."""
    zero = FIRST.replace(">40</width>", ">0</width>").replace(">20</height>", ">0</height>")
    source = read_voc(write(tmp_path, zero))
    assert len(source.pictures[0].labels) == 2
    assert source.skipped[0].reason == "states no size; 40x20 was taken"


def test_names_with_spaces_and_marks_in_lists(tmp_path: Path) -> None:
    """`door 2` is a name, and so is `door` with the mark 1 of an old list."""
    write(tmp_path)
    for name in ("door", "door 2"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text(SECOND)
        Image.new("RGB", (30, 30)).save(tmp_path / "JPEGImages" / f"{name}.png")
    file = tmp_path / "ImageSets" / "Main" / "train.txt"
    file.write_text("door 2\ndoor  1\ndoor 2 -1\ndoor 0\n")
    found = [picture.path.stem for picture in read_voc(file).pictures]
    assert found == ["door 2", "door", "door 2", "door"]


def test_what_operating_systems_leave_is_ignored(tmp_path: Path) -> None:
    """`._a.xml` is no annotation."""
    write(tmp_path)
    for name in ("Annotations/._a.xml", "JPEGImages/._a.jpg", "Annotations/.DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\1")
    assert [picture.path.name for picture in read_voc(tmp_path).pictures] == ["a.jpg", "b.png"]


def test_neighbours_are_sought_beside_a_link_first(tmp_path: Path) -> None:
    """A list that is a link."""
    lists = write(tmp_path / "set") / "ImageSets" / "Main"
    (tmp_path / "lists").mkdir()
    (lists / "train.txt").rename(tmp_path / "lists" / "mine.txt")
    (lists / "link.txt").symlink_to(tmp_path / "lists" / "mine.txt")
    assert [picture.path.name for picture in read_voc(lists / "link.txt").pictures] == ["b.png"]
    (tmp_path / "elsewhere.txt").symlink_to(lists / "both.txt")
    assert len(read_voc(tmp_path / "elsewhere.txt").pictures) == 2


def test_a_list_may_name_what_lies_in_a_subfolder(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "Annotations" / "sub").mkdir()
    (folder / "Annotations" / "b.xml").rename(folder / "Annotations" / "sub" / "b.xml")
    split = folder / "ImageSets" / "Main" / "train.txt"
    split.write_text("sub/b\n")
    assert [picture.path.name for picture in read_voc(split).pictures] == ["b.png"]
