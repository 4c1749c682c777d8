"""Reading SVHN Format 1. Expected values are written down by hand from the layout's definition."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from lipdet.errors import InputError
from lipdet.images.svhn import read_svhn
from tests.images.svhn_format import write_split


def test_reads_single_and_several_digits(tmp_path: Path) -> None:
    folder = write_split(
        tmp_path / "train",
        {"1.png": [(5, 4, 3, 6, 10)], "2.png": [(1, 2, 3, 4, 5), (10, 8, 3, 7, 9)]},
    )
    source = read_svhn(folder)
    assert source.name == "svhn:train"
    assert source.class_names == tuple("0123456789")
    assert [picture.path for picture in source.pictures] == [folder / "1.png", folder / "2.png"]
    one, two = source.pictures
    # left, top, width, height -> xyxy by adding; label 10 is the digit 0.
    np.testing.assert_array_equal(one.boxes, [[4, 3, 10, 13]])
    np.testing.assert_array_equal(two.boxes, [[2, 3, 6, 8], [8, 3, 15, 12]])
    assert (one.labels.tolist(), two.labels.tolist()) == ([5], [1, 0])
    assert (one.boxes.dtype, one.labels.dtype) == (np.float32, np.int64)
    assert source.skipped == ()


def test_order_is_by_number(tmp_path: Path) -> None:
    names = ["10.png", "9.png", "100.png", "1.png"]
    source = read_svhn(write_split(tmp_path / "s", {name: [(1, 2, 3, 4, 5)] for name in names}))
    assert [p.path.name for p in source.pictures] == ["1.png", "9.png", "10.png", "100.png"]


def test_overhang_is_clipped(tmp_path: Path) -> None:
    folder = write_split(
        tmp_path / "s", {"1.png": [(3, -1, -2, 10, 40), (4, 35, 25, 10, 10), (5, 1, 1, 1e300, 99)]}
    )
    # The pictures are 40 x 30.
    np.testing.assert_array_equal(
        read_svhn(folder).pictures[0].boxes, [[0, 0, 9, 30], [35, 25, 40, 30], [1, 1, 40, 30]]
    )


@pytest.mark.parametrize(
    ("digit", "reason"),
    [
        ((5, 4, 3, 0, 10), "width or height is not positive"),
        ((5, 4, 3, float("nan"), 10), "width or height is not positive"),
        ((5, 40, 3, 6, 10), "without area inside the 40x30 picture"),
        ((0, 4, 3, 6, 10), "label outside 1..10"),
        ((1.5, 4, 3, 6, 10), "label outside 1..10"),
    ],
)
def test_broken_annotation_skips_its_picture(
    tmp_path: Path, digit: tuple[float, float, float, float, float], reason: str
) -> None:
    good = (1, 2, 3, 4, 5)
    source = read_svhn(write_split(tmp_path / "s", {"1.png": [good], "2.png": [good, digit]}))
    assert [picture.path.name for picture in source.pictures] == ["1.png"]
    (skipped,) = source.skipped
    assert skipped.name == "2.png"
    assert reason in skipped.reason


def test_unusable_picture_is_skipped(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "s", {f"{i}.png": [(1, 2, 3, 4, 5)] for i in range(1, 4)})
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes(b"not a picture")
    source = read_svhn(folder)
    assert [picture.path.name for picture in source.pictures] == ["3.png"]
    assert [(s.name, s.reason.split(" (")[0]) for s in source.skipped] == [
        ("1.png", "the picture is missing from the folder"),
        ("2.png", "cannot be read as a picture"),
    ]


def test_missing_folder_and_missing_annotations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; `lipdet data download`"):
        read_svhn(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no digitStruct\.mat; `lipdet data download`"):
        read_svhn(tmp_path)


def test_names_the_subfolder_or_archive(tmp_path: Path) -> None:
    (tmp_path / "test.tar.gz").touch()
    with pytest.raises(InputError, match=r"unpack test\.tar\.gz .* such as .*test\."):
        read_svhn(tmp_path)
    write_split(tmp_path / "train", {"1.png": [(1, 2, 3, 4, 5)]})
    with pytest.raises(InputError, match=r"name the subfolder instead: .*train\."):
        read_svhn(tmp_path)


def test_damaged_annotations(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "s", {"1.png": [(1, 2, 3, 4, 5), (2, 9, 3, 4, 5)]})
    file = folder / "digitStruct.mat"
    whole = file.read_bytes()
    message = r"^[^\n]*digitStruct\.mat: truncated, corrupt or not SVHN's[^\n]*again\.$"

    for damaged in (b"", b"not HDF5 at all", whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            read_svhn(folder)

    file.unlink()
    with h5py.File(file, "w") as mat:
        mat["X"] = np.zeros(3)
    with pytest.raises(InputError, match=message):
        read_svhn(folder)


def test_overwritten_bytes_never_escape_as_another_exception(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "s", {"1.png": [(1, 2, 3, 4, 5), (2, 9, 3, 4, 5)]})
    file = folder / "digitStruct.mat"
    whole = file.read_bytes()
    outcomes = set()
    for start in range(0, len(whole), 251):
        file.write_bytes(whole[:start] + b"\xff" * 16 + whole[start + 16 :])
        try:
            read_svhn(folder)
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}  # some bytes are padding, most are not


@pytest.mark.slow
@pytest.mark.parametrize(("split", "pictures"), [("train", 256), ("test", 128)])
def test_agrees_with_the_official_annotations(svhn: Path, split: str, pictures: int) -> None:
    source = read_svhn(svhn / split)
    assert (len(source.pictures), source.skipped) == (pictures, ())

    # Oracle: the official annotations as an independently written table.
    expected: dict[str, list[list[float]]] = {}
    with gzip.open(svhn / f"{split}_boxes.csv.gz", "rt") as table:
        for row in csv.DictReader(table):
            width, height = float(row["image_width"]), float(row["image_height"])
            left, top = float(row["left"]), float(row["top"])
            expected.setdefault(row["image"].removesuffix(".png"), []).append(
                [
                    float(row["label"]) % 10,
                    max(left, 0),
                    max(top, 0),
                    min(left + float(row["width"]), width),
                    min(top + float(row["height"]), height),
                ]
            )
    for picture in source.pictures:
        rows = np.concatenate([picture.labels[:, None], picture.boxes], axis=1)
        np.testing.assert_array_equal(rows, expected[picture.path.stem])
