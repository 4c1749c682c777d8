"""COCO detection json, in and out (Lin et al., "Microsoft COCO", ECCV 2014).

Notable choices:
- Category ids, which COCO numbers with gaps, become 0..C-1 in the order of the ids. Ids may be
  numbers or text; an annotation needs none.
- Crowds are areas in which detections are not judged.
- Boxes that overhang the border are clipped; those without area inside the picture are left out and
  counted, and so are categories without objects that only name a group of the others.
- The size in the json is compared with the picture's header: a resized or rotated picture would
  otherwise shift every box without a sign.
- What the json says of a picture is taken as it is given, and then its last part alone: beside the
  json, in `images/` there, then in folders around. Two entries that come to one file are refused.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from lipdet.errors import InputError
from lipdet.images.source import (
    AnnotatedPicture,
    Given,
    LabelledBox,
    Skipped,
    Source,
    absolute,
    box_inside,
    doubts,
    no_area,
    picture_size,
    read_text,
)
from lipdet.types import Objects, Target, ignored_of

LISTS = {"image": "images", "category": "categories", "annotation": "annotations"}


@dataclass(frozen=True)
class Entry:
    """An image, category or annotation of a json.

    Attributes:
        file: the json.
        kind: one of LISTS.
        position: in its list, from 0.
        fields: what it says.
    """

    file: Path
    kind: str
    position: int
    fields: dict[str, Any]

    @property
    def id(self) -> str | None:
        """Its id; `7`, `7.0` and `"7"` are the same."""
        return _id(self.fields.get("id"))

    def wrong(self, words: str) -> InputError:
        """Return the error that it has what the words say."""
        key = LISTS[self.kind]
        name = f"{key}[{self.position}]" if self.id is None else f"{self.kind} {self.id}"
        return InputError(f"{_at(self.file, key, self.position)}: {name} {words}")

    def text(self, key: str) -> str:
        """Return one of its texts, which must be there, in one line."""
        value = self.fields.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"has no `{key}`; add it.")
        if any(letter < " " for letter in value.strip()):
            raise self.wrong(f"has a `{key}` with control characters, {value!r}; leave them out.")
        return value

    def size(self) -> tuple[int, int]:
        """Return width and height of an image."""
        sides = self.fields.get("width"), self.fields.get("height")
        if not all(
            isinstance(side, int | float) and side > 0 and side == side // 1 for side in sides
        ):
            raise self.wrong("needs a positive integer `width` and `height`.")
        width, height = map(int, sides)  # type: ignore[arg-type]
        return width, height


def read_coco(file: Path) -> Source:
    """Read a COCO detection json.

    Args:
        file: the json; see the module's first lines for where its pictures may lie.

    Returns:
        The pictures in the order of the json, those without annotations included. Boxes are xyxy
        pixels clipped to the picture; a box that is missing is that around the polygons.

    Raises:
        InputError: the file is missing, malformed or contradicts itself or its pictures; the
            message names the file, the entry and the line on which it begins.
    """
    root = _load(file)
    images, categories = (_by_id(file, root, kind) for kind in ("image", "category"))
    annotations = _entries(file, root, "annotation")
    used = {_known(one, "category_id", categories) for one in annotations}
    groups = {one.fields.get("supercategory") for one in categories.values()}
    unused = [
        key
        for key, one in categories.items()
        if key not in used and one.fields.get("name") in groups - {one.fields.get("supercategory")}
    ]
    skipped = [
        Skipped(file.name, f"the category {categories.pop(key).text('name')} has no objects and "
                "only names a group of others; left out")
        for key in unused
    ]  # fmt: skip
    class_index = {key: index for index, key in enumerate(sorted(categories, key=_rank))}
    names = tuple(categories[key].text("name").strip() for key in class_index)
    if not names or len(set(names)) < len(names):
        raise InputError(f"{file}: needs at least one category, and a name of its own for each.")

    objects: dict[str, list[LabelledBox]] = defaultdict(list)
    crowds: dict[str, list[LabelledBox]] = defaultdict(list)
    empty: Counter[str] = Counter()
    given: list[Given] = []
    for annotation in annotations:
        image_id = _known(annotation, "image_id", images)
        label = class_index[_known(annotation, "category_id", categories)]
        width, height = images[image_id].size()
        x, y, w, h = _box(annotation, image_id)
        left, top, across, down = x / width, y / height, w / width, h / height
        given.append(((left, top, across, down), (left, top, left + across, top + down)))
        box = box_inside((x, y, x + w, y + h), width, height)
        if box is None:
            empty[image_id] += 1
        else:
            crowd = annotation.fields.get("iscrowd") or 0
            if crowd not in (0, 1):
                raise annotation.wrong(f"has the `iscrowd` {crowd!r}, which must be 0 or 1.")
            (crowds if crowd else objects)[image_id].append((label, box))

    places = list(_places(file))
    pictures = [
        AnnotatedPicture.of(_picture_path(image, places), objects[key], crowds[key])
        for key, image in images.items()
    ]
    _check_apart(list(images.values()), pictures)
    skipped += [
        Skipped(images[key].text("file_name"), no_area(count)) for key, count in empty.items()
    ]
    skipped += doubts(file.name, pictures, given)
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
        label k is category k + 1 and image i of the sequence is image i + 1. Ignored areas are
        crowds, behind all objects.
    """
    images = [
        {"id": i, "file_name": name, "width": width, "height": height}
        for i, (name, width, height) in enumerate(sizes, start=1)
    ]
    annotations: list[dict[str, Any]] = []
    every: list[tuple[Objects, int]] = [(one, 0) for one in targets] + [
        (ignored_of(one), 1) for one in targets
    ]
    for image, (target, crowd) in zip(images * 2, every, strict=True):
        pairs = zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
        for (x1, y1, x2, y2), label in pairs:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": crowd,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file}: no such file; name a COCO detection json.")
    try:
        root = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}, line {error.lineno}: cannot be read as json ({error.msg}); check the file."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as json ({error}); check the file.") from None
    if not isinstance(root, dict):
        raise InputError(f"{file}: holds no json object; name a COCO detection json.")
    return root


def _entries(file: Path, root: dict[str, Any], kind: str) -> list[Entry]:
    """Return the entries of one of the three lists, in the order of the file."""
    key = LISTS[kind]
    entries = root.get(key)
    if not isinstance(entries, list):
        raise InputError(
            f"{file}: has no list `{key}`; COCO needs images, annotations, categories."
        )
    for position, fields in enumerate(entries):
        if not isinstance(fields, dict):
            raise Entry(file, kind, position, {}).wrong("is no json object.")
    return [Entry(file, kind, position, fields) for position, fields in enumerate(entries)]


def _by_id(file: Path, root: dict[str, Any], kind: str) -> dict[str, Entry]:
    """Return the entries of a list under their ids, in the order of the file."""
    by_id: dict[str, Entry] = {}
    for entry in _entries(file, root, kind):
        if entry.id is None:
            raise entry.wrong("has no `id`; add one.")
        if entry.id in by_id:
            raise entry.wrong("repeats the id of another; ids are unique.")
        by_id[entry.id] = entry
    return by_id


def _id(value: object) -> str | None:
    """Return an id as text; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) else None


def _rank(key: str) -> tuple[bool, int, str]:
    """Sort ids that are numbers by their values, and before others."""
    return not key.isdecimal(), int(key) if key.isdecimal() else 0, key


def _at(file: Path, key: str, position: int) -> str:
    """Return the file and the line on which an entry of one of its lists begins, for messages.

    The text is read again, since json keeps no lines.
    """
    text = read_text(file)
    decode = json.JSONDecoder().raw_decode
    found = at = _next(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = decode(text, at)
        at = _next(text, at)
        if name != key or text[at] != "[":
            at = _next(text, decode(text, at)[1])
            continue
        at, number = _next(text, at + 1), 0
        while text[at] != "]":
            if number == position:
                found = at
            at, number = _next(text, decode(text, at)[1]), number + 1
        at = _next(text, at + 1)
    return f"{file}, line {text.count(chr(10), 0, found) + 1}"


def _next(text: str, at: int) -> int:
    """Find the next value or bracket, beyond white space and the signs between values."""
    while text[at] in " \t\r\n,:":
        at += 1
    return at


def _known(annotation: Entry, key: str, entries: dict[str, Entry]) -> str:
    value = annotation.fields.get(key)
    entry_id = _id(value)
    if entry_id is None or entry_id not in entries:
        raise annotation.wrong(f"has {key} {value!r}, which is not in the file; correct it.")
    return entry_id


def _box(annotation: Entry, image_id: str) -> tuple[float, float, float, float]:
    """Return left, top, width and height in pixels, as given or around the polygons."""
    try:
        if annotation.fields.get("bbox"):
            x, y, w, h = (_number(value) for value in annotation.fields["bbox"])
        else:
            polygons = annotation.fields["segmentation"]
            xs, ys = ([_number(v) for one in polygons for v in one[at::2]] for at in (0, 1))
            x, y, w, h = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise annotation.wrong(
            f"of image {image_id} needs a `bbox` of four numbers [x, y, width, height]."
        ) from None
    if not np.isfinite([x, y, w, h]).all():
        raise annotation.wrong(f"of image {image_id} has a `bbox` that is not finite; correct it.")
    return x, y, w, h


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _picture_path(image: Entry, places: Sequence[list[Path]]) -> Path:
    """Return the picture of an `images` entry, present and of the stated size."""
    path = _found(image, places)
    actual = picture_size(path)
    if actual != (stated := image.size()):
        raise image.wrong(
            f"is stated as {stated[0]}x{stated[1]}, but {path} is {actual[0]}x{actual[1]}; correct "
            "the size and the boxes."
        )
    return path


def _found(image: Entry, places: Sequence[list[Path]]) -> Path:
    """Return the one file that an entry means: as it is given before its last part, the nearest."""
    given = image.text("file_name")
    plain = unquote(given).replace("\\", "/")
    for name in dict.fromkeys([given, plain, plain.rpartition("/")[2]]):
        for alike in places:
            paths = {path.resolve(): path for place in alike if (path := place / name).is_file()}
            if len(paths) > 1:
                where = " and ".join(map(str, paths.values()))
                raise image.wrong(f"may be {where}; move or remove all but one.")
            if paths:
                return next(iter(paths.values()))
    where = ", ".join(str(place) for alike in places for place in alike)
    raise image.wrong(f"is in none of {where}; add the picture {given}.")


def _check_apart(images: Sequence[Entry], pictures: Sequence[AnnotatedPicture]) -> None:
    """Refuse a file that two entries come to, by one name or by their last parts."""
    seen: dict[Path, Entry] = {}
    for image, picture in zip(images, pictures, strict=True):
        other = seen.setdefault(picture.path, image)
        if other is not image and other.text("file_name") == image.text("file_name"):
            raise image.wrong(
                f"and image {other.id} are both {picture.path}, each with a part of its objects; "
                "join them under one id."
            )
        if other.text("file_name") != image.text("file_name"):
            raise image.wrong(
                f"and image {other.id} both come to {picture.path}; add the picture "
                f"{image.text('file_name')}, or that of the other, under a name of its own."
            )


def _places(file: Path) -> Iterator[list[Path]]:
    """Yield folders in which the pictures of a json may lie, those at equal distance together."""
    beside = absolute(file).parent
    yield [beside]
    yield [beside / "images"]
    yield _folders_in(beside / "images")
    around = [beside.parent, beside.parent / "images"]
    inside = [one for folder in around for one in _folders_in(folder)]
    yield [*around, *(one for one in inside if one not in (*around, beside))]


def _folders_in(folder: Path) -> list[Path]:
    return sorted(one for one in folder.glob("*") if one.is_dir() and not one.name.startswith("."))
