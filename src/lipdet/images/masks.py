"""Pictures whose pixels are labelled: a folder of pictures and one of masks.

Notable choices:
- FOLDER/masks/NAME.png has the class of each pixel of FOLDER/images/NAME.*: a number as it is
  stored, so of a palette the index, not the colour.
- Names of the classes are the lines of FOLDER/classes.txt, in the order of their numbers.
- 255 is ignored, as in Cityscapes, where there are more than two classes. Where masks hold no other
  values than 0 and 255, or two classes are named and no mask holds a 1, it is the second class, as
  is the white of a mask of one bit.
- Without classes.txt two classes are called background and object, and more of them by number; but
  not hundreds, which are the greys of smoothed edges.
- A picture without a mask, a mask without a picture, and all but one of pictures that share a mask
  are listed in `skipped`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipdet.errors import InputError
from lipdet.images.source import (
    AnnotatedPicture,
    MaskFile,
    Skipped,
    Source,
    picture_size,
    pictures_in,
    read_names,
    readable,
)
from lipdet.types import IGNORED

TWO_CLASSES = ("background", "object")
MOST_UNNAMED = 32


def read_masks(folder: Path) -> Source:
    """Read a folder of pictures with masks.

    Args:
        folder: see the module's first lines for the layout.

    Returns:
        The pictures that have a mask, in the order of their names; without boxes.

    Raises:
        InputError: pictures or masks are missing, or a mask is of another size than its picture,
            has colours, or a class without a name; the message names the file.
    """
    present = pictures_in(folder / "images")
    pictures = {path.stem: path for path in present}
    masks = {path.stem: path for path in sorted((folder / "masks").glob("*.png"))}
    both = [stem for stem in pictures if stem in masks]
    if not both:
        raise InputError(f"{folder}: needs images/NAME.jpg and masks/NAME.png of the same names.")
    found = {stem: _classes_in(masks[stem], pictures[stem]) for stem in both}
    every = set().union(*found.values())
    listed = folder / "classes.txt"
    names = read_names(listed) if listed.is_file() else _names(every, folder)
    white = len(names) == 2 and 1 not in every
    known = {*range(len(names)), IGNORED}
    for stem, values in found.items():
        if strange := values - known:
            raise InputError(
                f"{masks[stem]}: class {min(strange)} is none of the {len(names)} classes, which "
                f"count from 0 (or {IGNORED} for what is ignored)."
            )
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    chosen = [
        AnnotatedPicture(pictures[stem], *nothing, mask=MaskFile(masks[stem], white))
        for stem in both
    ]
    alone = [
        Skipped(path.name, f"no {what}")
        for own, others, what in ((pictures, masks, "mask"), (masks, pictures, "picture"))
        for stem, path in own.items()
        if stem not in others
    ]
    alone += [
        Skipped(path.name, f"{taken.name} has the same name and was taken")
        for path in present
        if (taken := pictures[path.stem]) != path
    ]
    return Source(f"masks:{folder.resolve().name}", names, tuple(chosen), tuple(alone))


def read_mask(file: MaskFile) -> NDArray[np.uint8]:
    """Return the class of each pixel (H, W), or IGNORED."""
    values, _ = _values(file.path)
    return np.where(values == IGNORED, np.uint8(1), values) if file.white else values


def _names(values: set[int], folder: Path) -> tuple[str, ...]:
    if len(values) > MOST_UNNAMED:
        raise InputError(
            f"{folder}/masks hold {len(values)} different values, as smoothed edges do: store the "
            "class of each pixel, or 0 and 255; or, if there are so many classes, name them in "
            "classes.txt, one a line."
        )
    largest = max(values - {IGNORED}, default=0)
    return TWO_CLASSES if largest < 2 else tuple(str(number) for number in range(largest + 1))


def _classes_in(mask: Path, picture: Path) -> set[int]:
    """Return the values of a mask, in which the white of one bit is 255.

    Raises:
        InputError: it does not fit its picture.
    """
    values, one_bit = _values(mask)
    width, height = picture_size(picture)
    if values.shape != (height, width):
        raise InputError(
            f"{mask}: has {values.shape[1]}×{values.shape[0]} pixels, but its picture "
            f"{width}×{height}."
        )
    found = set(np.unique(values).tolist())
    return {IGNORED if value else 0 for value in found} if one_bit else found


def _values(path: Path) -> tuple[NDArray[np.uint8], bool]:
    """Return the numbers of a mask (H, W), and whether they are of one bit."""
    with readable(path), Image.open(path) as image:
        if image.mode not in ("1", "L", "P"):
            raise ValueError("a mask has one number of 8 bits per pixel, not colours")
        return np.asarray(image, np.uint8), image.mode == "1"
