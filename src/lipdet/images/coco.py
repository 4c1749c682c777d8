"""COCO detection json, in and out (Lin et al., "Microsoft COCO", ECCV 2014).

Notable choices:
- Category ids, which COCO numbers with gaps, become 0..C-1 in the order of the ids.
- Boxes that overhang the border are clipped; a box without area inside the picture is an error,
  because a file that a user has made can be repaired.
- The size in the json is compared with the picture's header: a resized or rotated picture would
  otherwise shift every box without a sign.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdet.errors import InputError
from lipdet.images.source import AnnotatedPicture, Skipped, Source, box_inside, picture_size
from lipdet.types import Target

LISTS = {"image": "images", "category": "categories", "annotation": "annotations"}


def read_coco(file: Path) -> Source:
    """Read a COCO detection json.

    Args:
        file: the json; picture names are relative to its folder or to `images/` beside it.

    Returns:
        The pictures in the order of the json, those without annotations included. Boxes are xyxy
        pixels clipped to the picture. Crowd annotations are left out and counted in `skipped`
        under their picture, which stays.

    Raises:
        InputError: the file is missing, malformed or contradicts itself or its pictures; the
            message names the file, the entry and the line on which it begins.
    """
    root = _load(file)
    images, categories, annotations = (_by_id(file, root, key) for key in LISTS.values())
    class_index = {category_id: index for index, category_id in enumerate(sorted(categories))}
    names = tuple(_string(file, "category", categories[i], "name") for i in class_index)
    if not names or len(set(names)) < len(names):
        raise InputError(f"{file}: needs at least one category, and a name of its own for each.")

    objects: dict[int, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
    crowds: dict[int, int] = defaultdict(int)
    for annotation in annotations.values():
        image_id = _known(file, annotation, "image_id", images)
        category_id = _known(file, annotation, "category_id", categories)
        if annotation.get("iscrowd"):
            crowds[image_id] += 1
        else:
            box = _box(file, annotation, images[image_id])
            objects[image_id].append((class_index[category_id], box))

    pictures = [
        AnnotatedPicture.of(_picture_path(file, image), objects[image_id])
        for image_id, image in images.items()
    ]
    skipped = [
        Skipped(images[image_id]["file_name"], f"{count} crowd annotations left out")
        for image_id, count in crowds.items()
    ]
    return Source(f"coco:{file.name}", names, tuple(pictures), tuple(skipped))


def coco_dict(
    sizes: Sequence[tuple[str, int, int]], targets: Sequence[Target], class_names: Sequence[str]
) -> dict[str, Any]:
    """Write targets as the dictionary of a COCO detection json.

    Args:
        sizes: (file name, width, height) of each image, in pixels.
        targets: the objects of each image, in the same order.
        class_names: the name of each label.

    Returns:
        COCO's `images`, `annotations` and `categories` with boxes as xywh and ids from 1, so that
        label k is category k + 1 and image i of the sequence is image i + 1.
    """
    images = [
        {"id": i, "file_name": name, "width": width, "height": height}
        for i, (name, width, height) in enumerate(sizes, start=1)
    ]
    annotations: list[dict[str, Any]] = []
    for image, target in zip(images, targets, strict=True):
        pairs = zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
        for (x1, y1, x2, y2), label in pairs:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _load(file: Path) -> dict[str, Any]:
    try:
        root = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{file}: no such file; name a COCO detection json.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}, line {error.lineno}: cannot be read as json ({error.msg}); check the file."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as json ({error}); check the file.") from None
    if not isinstance(root, dict):
        raise InputError(f"{file}: holds no json object; name a COCO detection json.")
    return root


def _by_id(file: Path, root: dict[str, Any], key: str) -> dict[int, dict[str, Any]]:
    """Return the entries of one of the three lists under their ids, in the order of the file."""
    entries = root.get(key)
    if not isinstance(entries, list):
        raise InputError(
            f"{file}: has no list `{key}`; COCO needs images, annotations, categories."
        )
    by_id: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        entry_id = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(entry_id, int) and entry_id not in by_id:
            by_id[entry_id] = entry
            continue
        repeated = f"repeats the id {entry_id}; ids are unique."
        wrong = repeated if isinstance(entry_id, int) else "has no integer `id`; add one."
        raise InputError(f"{_at(file, key, position)}: {key}[{position}] {wrong}")
    return by_id


def _wrong(file: Path, kind: str, entry: dict[str, Any], words: str) -> InputError:
    """Return the error that an image, category or annotation has what the words say."""
    where = _at(file, LISTS[kind], entry)
    return InputError(f"{where}: {kind} {entry['id']} {words}")


def _at(file: Path, key: str, entry: int | dict[str, Any]) -> str:
    """Return the file and the line on which an entry of one of its lists begins, for messages.

    The text is read again, since json keeps no lines; `entry` is a position or what has been read.
    """
    text = file.read_text(encoding="utf-8")
    decode = json.JSONDecoder().raw_decode
    found = at = _next(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = decode(text, at)
        at = _next(text, at)
        if name != key or text[at] != "[":
            at = _next(text, decode(text, at)[1])
            continue
        at, position = _next(text, at + 1), 0
        while text[at] != "]":
            value, end = decode(text, at)
            # By id, which is unique: an entry that holds a NaN does not equal itself.
            entry_id = value.get("id") if isinstance(value, dict) else None
            if entry == position if isinstance(entry, int) else entry["id"] == entry_id:
                found = at
            at, position = _next(text, end), position + 1
        at = _next(text, at + 1)
    return f"{file}, line {text.count(chr(10), 0, found) + 1}"


def _next(text: str, at: int) -> int:
    """Find the next value or bracket, beyond white space and the signs between values."""
    while text[at] in " \t\r\n,:":
        at += 1
    return at


def _known(
    file: Path, annotation: dict[str, Any], key: str, entries: dict[int, dict[str, Any]]
) -> int:
    entry_id = annotation.get(key)
    if not isinstance(entry_id, int) or entry_id not in entries:
        words = f"has {key} {entry_id!r}, which is not in the file; correct it."
        raise _wrong(file, "annotation", annotation, words)
    return entry_id


def _string(file: Path, kind: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise _wrong(file, kind, entry, f"has no `{key}`; add it.")
    return value


def _size(file: Path, image: dict[str, Any]) -> tuple[int, int]:
    width, height = image.get("width"), image.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise _wrong(file, "image", image, "needs a positive integer `width` and `height`.")
    return width, height


def _box(file: Path, annotation: dict[str, Any], image: dict[str, Any]) -> NDArray[np.float32]:
    """Return the box (4,) xyxy inside the picture."""
    width, height = _size(file, image)
    try:
        x, y, w, h = (_number(value) for value in annotation.get("bbox") or ())
    except (TypeError, ValueError, OverflowError):
        words = f"of image {image['id']} needs a `bbox` of four numbers [x, y, width, height]."
        raise _wrong(file, "annotation", annotation, words) from None
    box = box_inside((x, y, x + w, y + h), width, height)
    if box is None:
        words = (
            f"of image {image['id']} has the box [{x:g}, {y:g}, {w:g}, {h:g}], which has no area "
            f"inside the {width}x{height} image; correct or remove it."
        )
        raise _wrong(file, "annotation", annotation, words)
    return box


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _picture_path(file: Path, image: dict[str, Any]) -> Path:
    """Return the picture of an `images` entry, present and of the stated size."""
    name = _string(file, "image", image, "file_name")
    tried = (file.parent / name, file.parent / "images" / name)
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        words = f"is neither {tried[0]} nor {tried[1]}; add the picture."
        raise _wrong(file, "image", image, words)
    actual = picture_size(path)
    if actual != (stated := _size(file, image)):
        words = (
            f"is stated as {stated[0]}x{stated[1]}, but {path} is {actual[0]}x{actual[1]}; correct "
            "the size and the boxes."
        )
        raise _wrong(file, "image", image, words)
    return path
