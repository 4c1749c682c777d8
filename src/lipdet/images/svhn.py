"""Street View House Numbers in their official Format 1: full pictures, one box per digit.

Source: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning",
NIPS workshop 2011. A folder holds `N.png` and `digitStruct.mat` (MATLAB 7.3, which is HDF5).

Notable choices:
- Boxes that overhang the border are clipped; a picture with an annotation that cannot be meant is
  left out and listed, with the reason, in `Source.skipped`.
- Sizes come from the picture's header; no pixel is decoded here.
- The HDF5 file is opened once and walked through h5py's identifiers: one Python object per
  reference instead of several makes the 33,402 training pictures a matter of seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lipdet.config import DIGITS
from lipdet.errors import InputError
from lipdet.images.source import AnnotatedPicture, Skipped, Source, clip_boxes, stored_size

SPLITS = ("train", "test", "extra")
ANNOTATIONS = "digitStruct.mat"
FIELDS = ("label", "left", "top", "width", "height")


def read_svhn(folder: Path) -> Source:
    """Read a folder of SVHN Format 1.

    Args:
        folder: holds `N.png` and `digitStruct.mat`, as unpacked from an official archive.

    Returns:
        The pictures in the order of their numbers. Boxes are xyxy pixels clipped to the picture;
        the official label 10 is the digit 0. Pictures that cannot be used are in `skipped`.

    Raises:
        InputError: no such folder, no usable `digitStruct.mat` in it, or no usable picture.
    """
    file = _annotation_file(folder)
    pictures: list[AnnotatedPicture] = []
    skipped: list[Skipped] = []
    for name, digits in sorted(_read_digit_struct(file), key=lambda entry: _natural(entry[0])):
        entry = _picture(folder, name, digits)
        if isinstance(entry, Skipped):
            skipped.append(entry)
        else:
            pictures.append(entry)
    if not pictures:
        reason = f"{skipped[0].name}: {skipped[0].reason}" if skipped else "it lists no pictures"
        raise InputError(f"{file}: none of its pictures can be used ({reason}); download it again.")
    return Source(f"svhn:{folder.resolve().name}", DIGITS, tuple(pictures), tuple(skipped))


def _annotation_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; `lipdet data download` fetches the official archives."
        )
    file = folder / ANNOTATIONS
    if file.is_file():
        return file
    subfolders = [str(folder / s) for s in SPLITS if (folder / s / ANNOTATIONS).is_file()]
    archives = [f"{s}.tar.gz" for s in SPLITS if (folder / f"{s}.tar.gz").is_file()]
    if subfolders:
        advice = f"name the subfolder instead: {' or '.join(subfolders)}"
    elif archives:
        advice = (
            f"unpack {' and '.join(archives)} with `lipdet data download` "
            f"and name the subfolder, such as {folder / archives[0].removesuffix('.tar.gz')}"
        )
    else:
        advice = "`lipdet data download` fetches the official archives"
    raise InputError(f"{folder}: holds no {ANNOTATIONS}; {advice}.")


def _read_digit_struct(file: Path) -> list[tuple[str, NDArray[np.float64]]]:
    """Return all (name, digits) of the file; digits is (N, 5) in the order of `FIELDS`."""
    try:
        with h5py.File(file, "r") as mat:
            return list(_walk(mat))
    # A damaged file surfaces as almost any exception of h5py, depending on the damaged byte.
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{file}: truncated, corrupt or not SVHN's {ANNOTATIONS} ({reason}); download it again."
        ) from None


def _walk(mat: h5py.File) -> Iterator[tuple[str, NDArray[np.float64]]]:
    names, boxes = mat["digitStruct/name"][()].ravel(), mat["digitStruct/bbox"][()].ravel()
    if len(names) != len(boxes):
        raise ValueError(f"{len(names)} names but {len(boxes)} annotations")
    for name_ref, box_ref in zip(names, boxes, strict=True):
        name = "".join(map(chr, _values(h5py.h5r.dereference(name_ref, mat.id)).astype(int)))
        group = h5py.h5r.dereference(box_ref, mat.id)
        columns = [_column(h5py.h5o.open(group, field.encode()), mat.id) for field in FIELDS]
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"{name} has fields of different lengths")
        yield name, np.stack(columns, axis=1)


def _column(dataset: Any, file: Any) -> NDArray[np.float64]:
    """Return one field of one picture: plain numbers for a single digit, references for several."""
    values = _values(dataset)
    if values.dtype != object:
        return values.astype(np.float64)
    # The explicit one-number space makes HDF5 refuse anything larger than the buffer.
    one, buffer = h5py.h5s.create_simple((1,)), np.empty(1)
    numbers = np.empty(len(values))
    for i, ref in enumerate(values):
        h5py.h5r.dereference(ref, file).read(one, h5py.h5s.ALL, buffer, h5py.h5t.NATIVE_DOUBLE)
        numbers[i] = buffer[0]
    return numbers


def _values(dataset: Any) -> NDArray[Any]:
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values.ravel()


def _natural(name: str) -> list[str | int]:
    """Sort key that puts 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _picture(folder: Path, name: str, digits: NDArray[np.float64]) -> AnnotatedPicture | Skipped:
    path = folder / name
    if path.parent != folder or name in ("", ".."):
        return Skipped(name, "its name is not a plain file name")
    if not path.exists():
        return Skipped(name, "the picture is missing from the folder")
    try:
        width, height = stored_size(path)
    except InputError:
        return Skipped(name, "cannot be read as a picture")

    labels = digits[:, 0]
    if not np.isin(labels, np.arange(1, 11)).all():
        return Skipped(name, "a label outside 1..10")
    if not (np.isfinite(digits).all() and (digits[:, 3:] > 0).all()):
        return Skipped(name, "a box whose width or height is not positive")
    corners = np.concatenate([digits[:, 1:3], digits[:, 1:3] + digits[:, 3:5]], axis=1)
    boxes, has_area = clip_boxes(corners, width, height)
    if not has_area.all():
        return Skipped(name, f"a box without area inside the {width}x{height} picture")
    return AnnotatedPicture(path, boxes, (labels % 10).astype(np.int64))
