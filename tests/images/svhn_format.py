"""Writes folders and archives in the official SVHN Format-1 layout."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

Digit = tuple[float, float, float, float, float]  # label (1-10), left, top, width, height
FIELDS = ("label", "left", "top", "width", "height")


def write_digit_struct(file: Path, annotations: Mapping[str, Sequence[Digit]]) -> None:
    """Write `digitStruct.mat`: one digit as plain numbers, several as references."""
    with h5py.File(file, "w") as mat:
        refs = mat.create_group("#refs#")
        numbered = iter(range(10**9))

        def store(values: np.ndarray) -> h5py.Reference:
            return refs.create_dataset(f"r{next(numbered)}", data=values).ref

        names, boxes = [], []
        for name, digits in annotations.items():
            names.append(store(np.array([[ord(letter)] for letter in name], np.uint16)))
            group = refs.create_group(f"r{next(numbered)}")
            for field, column in zip(FIELDS, np.array(digits, float).T, strict=True):
                if len(column) == 1:
                    group.create_dataset(field, data=column[None])
                else:
                    rows = [[store(np.array([[value]]))] for value in column]
                    group.create_dataset(field, data=rows, dtype=h5py.ref_dtype)
            boxes.append(group.ref)
        struct = mat.create_group("digitStruct")
        struct.create_dataset("name", data=[[ref] for ref in names], dtype=h5py.ref_dtype)
        struct.create_dataset("bbox", data=[[ref] for ref in boxes], dtype=h5py.ref_dtype)


def write_split(
    folder: Path, annotations: Mapping[str, Sequence[Digit]], size: tuple[int, int] = (40, 30)
) -> Path:
    """Write a split's folder: a grey picture of `size` for each name, and the annotations."""
    folder.mkdir(parents=True)
    for name in annotations:
        Image.new("RGB", size, (128, 128, 128)).save(folder / name)
    write_digit_struct(folder / "digitStruct.mat", annotations)
    return folder


def write_archive(file: Path, folder: Path) -> Path:
    """Pack a split's folder as the official archives do: members are `<split>/N.png`."""
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    return file
