"""Annotated pictures before they are cropped: what every reader of an annotation format returns."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from lipdet.errors import InputError
from lipdet.images.tensors import to_uint8

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# What holds a picture in Python; see `as_rgb`.
Picture = Image.Image | Path | str | NDArray[np.uint8] | Tensor
LARGEST_OF_12_BITS = 4095
# By which share of its picture a box may reach beyond it: what rounding and drawing do.
BEYOND = 0.05
# Four numbers as they are written, and the box xyxy that they mean, as shares of the picture.
Given = tuple[tuple[float, float, float, float], tuple[float, float, float, float]]
LabelledBox = tuple[int, NDArray[np.float32]]


class MaskFile(NamedTuple):
    """A picture's mask: its file, and whether 255 is the second of two classes, or ignored."""

    path: Path
    white: bool


@dataclass(frozen=True)
class AnnotatedPicture:
    """One picture on disk and its objects.

    Attributes:
        path: the picture file.
        boxes: (N, 4) float32 xyxy in pixels of the picture, inside it, of positive area.
        labels: (N,) int64 class indices.
        ignored: (K, 5) float64 class and xyxy box of areas in which what is found of that class is
            neither right nor wrong: crowds, difficult objects.
        mask: where the classes of its pixels are, if they are labelled.
    """

    path: Path
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 5)))
    mask: MaskFile | None = None

    @classmethod
    def of(
        cls, path: Path, objects: Sequence[LabelledBox], ignored: Sequence[LabelledBox] = ()
    ) -> AnnotatedPicture:
        """Make one of the label and the box (4,) of each object and of each ignored area."""
        boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
        labels = np.array([label for label, _ in objects], np.int64)
        areas = np.array([[label, *box] for label, box in ignored], np.float64).reshape(-1, 5)
        return cls(path, boxes, labels, areas)


@dataclass(frozen=True)
class Skipped:
    """A thing left out or read otherwise than it is written, and why, in a few words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """The pictures of one data set in a fixed order, with what had to be skipped."""

    name: str
    class_names: tuple[str, ...]
    pictures: Sequence[AnnotatedPicture]
    skipped: Sequence[Skipped]


def load_rgb(
    path: Path, formats: tuple[str, ...] | None = None, most_pixels: float = math.inf
) -> Image.Image:
    """Read a picture file as 8-bit RGB, turned upright as its EXIF orientation says.

    Args:
        path: the file.
        formats: names of Pillow's that are allowed; all if not given.
        most_pixels: a larger picture is refused before it is decoded.

    Raises:
        InputError: the file is missing, truncated, too large, not a picture, or has values whose
            range is not known.
    """
    with readable(path), Image.open(path, formats=formats) as image:
        if image.width * image.height > most_pixels:
            raise InputError(
                f"{path} has {image.width}×{image.height} pixels; choose one of at most "
                f"{most_pixels / 1e6:g} million."
            )
        return _eight_bits(ImageOps.exif_transpose(image))


def as_rgb(picture: Picture) -> Image.Image:
    """Return one picture as 8-bit RGB, whatever holds it.

    Args:
        picture: its file, an image of Pillow's (turned upright like a file), an array (H, W, 3) of
            uint8, or a tensor (3, H, W) of floats in [0, 1], rounded to 8 bits as in a file.

    Raises:
        InputError: it is none of these, or `load_rgb` refuses the file.
    """
    if isinstance(picture, Path | str):
        return load_rgb(Path(picture))
    what = type(picture).__name__
    if isinstance(picture, Image.Image):
        what = f"{what} of {picture.width}×{picture.height} pixels"
        if min(picture.size) > 0:
            with readable(what):
                return _eight_bits(ImageOps.exif_transpose(picture))
    if isinstance(picture, np.ndarray):
        what = f"{what} {picture.shape} of {picture.dtype}"
        if picture.dtype == np.uint8 and picture.shape[2:] == (3,) and picture.size:
            return Image.fromarray(np.ascontiguousarray(picture))
    if isinstance(picture, Tensor):
        what = f"{what} {tuple(picture.shape)} of {picture.dtype}"
        dense = picture.layout == torch.strided and not picture.is_meta
        shaped = dense and picture.ndim == 3 and len(picture) == 3 and picture.numel()
        if shaped and picture.is_floating_point():
            low, high = picture.detach().aminmax()
            what = f"{what} with values from {low:g} to {high:g}"
            if low >= 0 and high <= 1:
                return Image.fromarray(to_uint8(picture))
    raise InputError(
        "A picture is a file, an image of Pillow's, an array (H, W, 3) of uint8 or a tensor "
        f"(3, H, W) in [0, 1], not this {what}."
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return RGB; raise ValueError for values whose range is not known."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips them at 255.
        values = np.asarray(image)
        if values.size and values.max() <= LARGEST_OF_12_BITS:
            raise ValueError(
                f"its 16-bit values end at {values.max()} of 65535: 12 bits, or nearly black; "
                "convert it to 8 bits"
            )
        image = Image.fromarray((values // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its values have 32 bits, of unknown range; convert it to 8 bits")
    return image.convert("RGB")


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of the picture that `load_rgb` returns, from its header alone.

    Raises:
        InputError: the file is missing, too large or not a picture.
    """
    with readable(path), Image.open(path) as image:
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (height, width) if sideways else (width, height)


def stored_size(path: Path) -> tuple[int, int]:
    """Return width and height as they are stored, not turned; nothing is decoded.

    Raises:
        InputError: the file is missing, too large or not a picture.
    """
    with readable(path), Image.open(path) as image:
        return image.size


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Say in one sentence why a picture cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture; check the path.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}).") from None


def clip_boxes(
    boxes: NDArray[np.floating[Any]], width: int, height: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clip xyxy boxes (N, 4) to a picture; also return the mask (N,) of those with area left."""
    clipped = boxes.clip(0, [width, height] * 2).astype(np.float32)
    has_area = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    return clipped, has_area


def box_inside(corners: Sequence[float], width: int, height: int) -> NDArray[np.float32] | None:
    """Clip an xyxy box to a picture, (4,); None if it is not finite or has no area left."""
    exact = np.array([corners], np.float64)
    boxes, has_area = clip_boxes(exact, width, height)
    return boxes[0] if has_area[0] and np.isfinite(exact).all() else None


def no_area(count: int) -> str:
    """Say that boxes without area inside their picture were left out."""
    boxes = "a box" if count == 1 else f"{count} boxes"
    return f"{boxes} without area inside the picture left out"


def doubts(
    name: str, pictures: Sequence[AnnotatedPicture], given: Sequence[Given]
) -> list[Skipped]:
    """Return what is suspicious in a whole data set, a sentence each.

    Args:
        name: of the file or folder.
        pictures: all.
        given: all boxes, of a format that has width and height.
    """
    twice = sum(_repeated(picture) for picture in pictures)
    limit = 1 + BEYOND
    beyond = [numbers for numbers, box in given if min(box) < -BEYOND or max(box) > limit]
    corners = sum(x < w <= limit and y < h <= limit for x, y, w, h in beyond)
    again = Counter(picture.path.resolve() for picture in pictures)
    found = [
        f"{path.name} stands there {count} times, each time as a picture of its own"
        for path, count in again.items()
        if count > 1
    ]
    if twice:
        found.append(f"{twice} objects stand there twice, with the same box and class")
    if 2 * corners > len(given):
        found.append(
            f"{len(beyond)} of {len(given)} boxes reach far beyond their picture, and {corners} of "
            "them would fit as x1, y1, x2, y2, where a place, width and height are expected"
        )
    return [Skipped(name, words) for words in found]


def _repeated(picture: AnnotatedPicture) -> int:
    rows = np.hstack([picture.labels[:, None], picture.boxes])
    return len(rows) - len(np.unique(rows, axis=0))


def read_text(file: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as text ({error}).") from None


def read_names(file: Path) -> tuple[str, ...]:
    """Read class names, one per line, in the order of their labels.

    Raises:
        InputError: as `check_names`, or the file cannot be read.
    """
    lines = read_text(file).rstrip().splitlines()
    return check_names(file, tuple(line.strip() for line in lines))


def check_names(file: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names as they are.

    Raises:
        InputError: there is none, or one is empty or not unique.
    """
    if not names or "" in names or len(set(names)) < len(names):
        raise InputError(f"{file}: needs at least one class, and a name of its own for each.")
    return names


def pictures_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return picture files of a folder, by name; none if there is no such folder.

    With the pattern `**/*` those of its subfolders, too.
    """
    return [path for path in files_in(folder, pattern) if path.suffix.lower() in PICTURES]


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Return files that match a pattern, sorted; hidden ones are none of the user's.

    A pattern that begins with `**/` also enters linked folders, as `Path.glob` does not.
    """
    folders = _tree(folder) if pattern.startswith("**/") else [folder]
    return sorted(
        path
        for one in folders
        for path in one.glob(pattern.removeprefix("**/"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _tree(folder: Path) -> Iterator[Path]:
    """Yield a folder and all folders below; what several links lead to, once: they may loop."""
    seen: set[str] = set()
    for place, inside, _ in os.walk(folder, followlinks=True):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if (real := os.path.realpath(place)) in seen:
            inside.clear()
        else:
            seen.add(real)
            yield Path(place)


def absolute(path: Path) -> Path:
    """Return a path from the root without following links: neighbours are sought beside a link."""
    return Path(os.path.abspath(path))
