"""The packed format: pictures of one size with their boxes, in a folder of memory-mapped arrays.

A pack is a folder with
    images.npy    (N, H, W, 3) uint8
    boxes.npy     (M, 4) float32 xyxy pixels, those of all pictures one after the other
    labels.npy    (M,) int64
    starts.npy    (N + 1,) int64: picture i owns boxes starts[i] to starts[i + 1]
    pictures.npy  (N,) int64: crops of the same photograph share a number
    ignored.npy   (K, 6) float64: areas of pictures in which what is found of a class is not judged:
                  number of the picture, class, box; by picture. Only where there are any
    masks.npy     (N, H, W) uint8 classes of pixels, or 255; only where pixels are labelled
    meta.json     name, class names, how it was made, what was skipped, SHA-256 of the arrays
Reading maps the arrays; nothing is decoded, so that loading never holds up training.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.errors import InputError
from lipdet.files import check_space, write_json
from lipdet.images.source import Skipped
from lipdet.images.tensors import to_tensor
from lipdet.results import DataSummary
from lipdet.types import Canvas, Objects, Target

ARRAYS = ("images", "boxes", "labels", "starts", "pictures")
IGNORED = "ignored"
MASKS = "masks"


class PackedPicture(NamedTuple):
    """One picture on its way into a pack.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (n, 4) float32 xyxy pixels of `image`.
        labels: (n,) int64.
        picture: number of the photograph it was cut from.
        ignored: (k, 5) class and box of areas that are not judged.
        mask: (H, W) uint8, of all pictures of a pack or of none.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    picture: int
    ignored: NDArray[np.float64] = np.zeros((0, 5))
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Pack:
    """An opened pack; see the module's first lines for the arrays."""

    folder: Path
    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    pictures: NDArray[np.int64]
    meta: dict[str, Any]
    ignored: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 6)))
    masks: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        """Say what the pictures are."""
        return str(self.meta["name"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes in the order of their labels."""
        return tuple(self.meta["class_names"])

    @property
    def hash(self) -> str:
        """Return the SHA-256 of all arrays."""
        return str(self.meta["hash"])

    @property
    def canvas(self) -> Canvas:
        """Return height and width of the pictures in pixels."""
        return Canvas(*self.images.shape[1:3])

    @property
    def whole(self) -> bool:
        """Return whether pictures are whole ones, letter-boxed, and no crops around objects."""
        return self.meta.get("crop") == "full"

    @property
    def crops(self) -> bool:
        """Return whether the pictures are crops around objects; rendered ones are neither."""
        return self.meta.get("crop") in ("reference", "jitter")

    def target(self, index: int) -> Target:
        """Return the objects of one picture."""
        own = slice(self.starts[index], self.starts[index + 1])
        target = Target(
            boxes=torch.from_numpy(self.boxes[own].copy()),
            labels=torch.from_numpy(self.labels[own].copy()),
        )
        if len(areas := self.ignored[self.ignored[:, 0] == index]):
            target["ignored"] = Objects(
                boxes=torch.from_numpy(areas[:, 2:].astype(np.float32)),
                labels=torch.from_numpy(areas[:, 1].astype(np.int64)),
            )
        if self.masks is not None:
            target["mask"] = torch.from_numpy(self.masks[index].copy())
        return target

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Return pictures as a batch (B, 3, H, W) float32 in [0, 1]."""
        return to_tensor([self.images[index] for index in indices])

    def describe(self) -> DataSummary:
        """Return what a result says about its data."""
        summary: DataSummary = {
            "name": self.name,
            "canvas": list(self.canvas),
            "hash": self.hash,
            "images": len(self),
            "objects": len(self.labels),
            "skipped": len(self.meta["skipped"]),
        }
        return {**summary, "ignored": len(self.ignored)} if len(self.ignored) else summary

    def in_classes(self, names: Sequence[str]) -> Pack:
        """Return the same pictures with the labels of another list of class names.

        Raises:
            InputError: a class is not in the list, or masks would have to be numbered anew.
        """
        own = self.class_names
        if own == tuple(names):
            return self
        if unknown := [name for name in own if name not in names]:
            raise InputError(
                f"{self.name} has the classes {', '.join(own)}; {', '.join(unknown)} is none of "
                f"{', '.join(names)}."
            )
        if self.masks is not None and own != tuple(names[: len(own)]):
            raise InputError(
                f"The masks of {self.name} number the classes {', '.join(own)}, which is not the "
                f"order of {', '.join(names)}: number the pixels alike, by the same classes.txt."
            )
        numbers = np.array([list(names).index(name) for name in own], np.int64)
        ignored = self.ignored.copy()
        ignored[:, 1] = numbers[ignored[:, 1].astype(np.int64)]
        # Of the old names as well: the same numbers may have stood for other classes.
        renamed = hashlib.sha256(repr((own, tuple(names))).encode()).hexdigest()[:8]
        return replace(
            self,
            labels=numbers[self.labels],
            ignored=ignored,
            meta={**self.meta, "class_names": list(names), "hash": f"{self.hash}/{renamed}"},
        )

    def head(self, limit: int | None) -> Pack:
        """Return the first `limit` pictures, or all; the hash of a part says that it is one."""
        if limit is None or limit >= len(self):
            return self
        objects = int(self.starts[limit])
        return replace(
            self,
            images=self.images[:limit],
            boxes=self.boxes[:objects],
            labels=self.labels[:objects],
            starts=self.starts[: limit + 1],
            pictures=self.pictures[:limit],
            masks=None if self.masks is None else self.masks[:limit],
            meta={**self.meta, "hash": f"{self.hash}[:{limit}]"},
            ignored=self.ignored[self.ignored[:, 0] < limit],
        )


def same_pictures(packs: Sequence[Pack], count: int) -> list[list[int]]:
    """Return indices of the first `count` photographs that all packs of one source hold.

    Returns:
        For each pack where it has them, in one order; fewer if it has none that others lack.
    """
    places: list[dict[int, int]] = [{} for _ in packs]
    for pack, place in zip(packs, places, strict=True):
        for index, number in enumerate(pack.pictures.tolist()):
            place.setdefault(number, index)  # of several crops the first
    shared = [one for one in sorted(places[0]) if all(one in other for other in places)]
    return [[place[one] for one in shared[:count]] for place in places]


def write_pack(
    folder: Path,
    pictures: Iterable[PackedPicture],
    count: int,
    canvas: Canvas,
    class_names: tuple[str, ...],
    provenance: dict[str, Any],
    skipped: Iterable[Skipped] = (),
) -> Pack:
    """Write a pack; the folder appears only when it is complete.

    Args:
        folder: where; must not exist yet.
        pictures: exactly `count` pictures, taken one by one.
        count: how many there will be.
        canvas: height and width of the pictures in pixels.
        class_names: names in the order of the labels.
        provenance: `name` and whatever else says how the pictures were made.
        skipped: what could not be used; may still be growing while `pictures` is consumed.

    Raises:
        InputError: the folder exists, or there is nothing to write.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another path or remove it.")
    if count == 0:
        raise InputError(f"There is no usable picture to write into {folder}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = count * math.prod(canvas) * 3
    check_space(folder.parent, size, f"{count:,} pictures of {canvas} pixels")
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _fill(unfinished, pictures, count, canvas)
        arrays = _arrays(unfinished)
        meta = {
            **provenance,
            "class_names": list(class_names),
            "skipped": [asdict(entry) for entry in skipped],
            "hash": _hash(arrays),
        }
        write_json(unfinished / "meta.json", meta)
        unfinished.chmod(0o755)
        _move(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return open_pack(folder)


def _move(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process may have finished the same pack first; then there is nothing to do.
        if not folder.exists():
            raise


def _fill(folder: Path, pictures: Iterable[PackedPicture], count: int, canvas: Canvas) -> None:
    images = _new_array(folder, "images", (count, *canvas, 3))
    boxes, labels, starts, numbers, ignored, masks = [], [], [0], [], [], None
    for index, picture in enumerate(pictures):
        images[index] = picture.image
        boxes.append(picture.boxes.reshape(-1, 4))
        labels.append(picture.labels)
        starts.append(starts[-1] + len(picture.labels))
        numbers.append(picture.picture)
        ignored.append(np.insert(picture.ignored, 0, index, axis=1))
        if picture.mask is not None:
            masks = _new_array(folder, MASKS, (count, *canvas)) if masks is None else masks
            masks[index] = picture.mask
    assert len(numbers) == count, f"{len(numbers)} pictures came where {count} were announced"
    images.flush()
    np.save(folder / "boxes.npy", np.concatenate(boxes).astype(np.float32))
    np.save(folder / "labels.npy", np.concatenate(labels).astype(np.int64))
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    np.save(folder / "pictures.npy", np.array(numbers, np.int64))
    if len(areas := np.concatenate(ignored)):
        np.save(folder / f"{IGNORED}.npy", areas)
    if masks is not None:
        masks.flush()


def _new_array(folder: Path, name: str, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    found: np.memmap[Any, Any] = np.lib.format.open_memmap(
        folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape
    )
    return found


def open_pack(folder: Path) -> Pack:
    """Map a pack and check it against its hash.

    Raises:
        InputError: the folder is no pack, or its contents are not what was written.
    """
    if not (folder / "meta.json").is_file():
        raise InputError(
            f"{folder} is no pack (it has no meta.json). Of pictures, say in which format they are "
            f"annotated, such as voc:{folder}; packs are made by `lipdet data prepare`."
        )
    try:
        meta = json.loads((folder / "meta.json").read_text())
        arrays = _arrays(folder)
        if missing := {"hash", "name", "class_names", "skipped"} - set(meta):
            raise ValueError(f"meta.json lacks {', '.join(sorted(missing))}")
    except (OSError, TypeError, ValueError) as error:
        raise _damaged(folder, str(error)) from None
    if _hash(arrays) != meta["hash"]:
        raise _damaged(folder, "its hash differs")
    if len(arrays["labels"]) and arrays["labels"].max() >= len(meta["class_names"]):
        raise _damaged(folder, "it has labels without a class name")
    return Pack(folder, **arrays, meta=meta)


def _damaged(folder: Path, reason: str) -> InputError:
    return InputError(f"{folder} is a damaged pack ({reason}); remove it and prepare it again.")


def _arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Map the arrays of a pack; those of ignored areas and of masks only where there are any."""
    more = [name for name in (IGNORED, MASKS) if (folder / f"{name}.npy").exists()]
    return {name: _array(folder, name) for name in (*ARRAYS, *more)}


def _array(folder: Path, name: str) -> NDArray[Any]:
    try:
        # The format's own reader: `np.load` takes what is no .npy file for a pickle.
        return np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")
    # A damaged header surfaces as almost any exception of Python's own parser.
    except (
        ArithmeticError,
        EOFError,
        LookupError,
        SyntaxError,
        TypeError,
        ValueError,
        tokenize.TokenError,
    ) as error:
        raise ValueError(f"{name}.npy: {type(error).__name__}") from None


def _hash(arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in arrays:
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        # Python cannot look at an empty array as bytes.
        if arrays[name].size:
            digest.update(np.ascontiguousarray(arrays[name]).data.cast("B"))
    return digest.hexdigest()
