"""YOLO txt folders as Ultralytics documents them: one txt file of boxes per picture.

A line is `class cx cy w h`: the class's number from 0, then the centre and size of the box as
fractions of the (upright) picture's width and height.

Notable choices:
- FOLDER is one split. Its pictures lie in FOLDER/images or in FOLDER itself; the labels lie where
  the last `images` of the pictures' path reads `labels`, or beside the pictures.
- Class names come from the nearest data.yaml or classes.txt: in FOLDER, with the labels, or up to
  two folders above.
- A picture without a txt file has no objects, as for Ultralytics. A txt file without a picture is
  listed in `skipped`, since a picture may have been lost.
- Boxes that overhang the border are clipped; a box without area inside the picture is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from lipdet.errors import InputError
from lipdet.images.source import (
    AnnotatedPicture,
    Skipped,
    Source,
    box_inside,
    check_names,
    picture_size,
    pictures_in,
    read_names,
    read_text,
)

YAML_NAMES = ("data.yaml", "dataset.yaml")
TEXT_NAMES = "classes.txt"
# Labels are rounded when written, so that a box at the border may end a little beyond it.
ROUNDING = 0.01


def read_yolo(folder: Path) -> Source:
    """Read a folder of pictures with YOLO labels.

    Args:
        folder: one split; see the module's first lines for the layouts.

    Returns:
        The pictures in the order of their names, those without objects included. Boxes are xyxy
        pixels clipped to the picture.

    Raises:
        InputError: a folder, the class names or all labels are missing, or a file is malformed;
            the message names the file and the line.
    """
    pictures = _picture_folder(folder)
    labels = _label_folder(pictures)
    names = _class_names([folder, labels, *folder.resolve().parents[:2]])
    found = [_picture(path, labels / f"{path.stem}.txt", names) for path in pictures_in(pictures)]
    stems = {picture.path.stem for picture in found}
    orphans = [
        Skipped(file.name, "labels without a picture")
        for file in _label_files(labels)
        if file.stem not in stems
    ]
    return Source(f"yolo:{folder.resolve().name}", names, tuple(found), tuple(orphans))


def _picture_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that holds images/ and labels/.")
    for place in (folder / "images", folder):
        if any(pictures_in(place)):
            return place
    splits = [*folder.glob("images/*"), *folder.glob("*/images")]
    named = [
        str(place.parent if place.name == "images" else place)
        for place in sorted(splits)
        if any(pictures_in(place))
    ]
    advice = f"name one split: {' or '.join(named)}" if named else "it needs images/ and labels/"
    raise InputError(f"{folder}: holds no pictures; {advice}.")


def _label_folder(pictures: Path) -> Path:
    parts = list(pictures.resolve().parts)
    places = [pictures]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        places.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]))
    for place in places:
        if any(_label_files(place)):
            return place
    raise InputError(f"{pictures}: its pictures have no labels; {places[0]} holds no txt file.")


def _label_files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.glob("*.txt")) if file.name != TEXT_NAMES)


def _class_names(folders: list[Path]) -> tuple[str, ...]:
    """Return the names in the nearest file that holds any."""
    for folder in folders:
        file = next((folder / n for n in (*YAML_NAMES, TEXT_NAMES) if (folder / n).is_file()), None)
        if file is not None:
            return read_names(file) if file.name == TEXT_NAMES else _names_of_yaml(file)
    raise InputError(
        f"{folders[0]}: its classes have no names; add a data.yaml with `names`, or a "
        f"{TEXT_NAMES} with one name per line."
    )


def _names_of_yaml(file: Path) -> tuple[str, ...]:
    """Return the entry `names`, a list or a mapping from 0, 1, …; words like `no` stay words."""
    try:
        root = yaml.compose(read_text(file), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{file}, line {line}: is no YAML ({error.problem}).") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: is no YAML ({reason}).") from None
    entries = {str(key.value): value for key, value in _items(root)}
    if "names" not in entries:
        raise InputError(f"{file}: has no `names`; list the classes there.")
    names = check_names(file, _names(file, entries["names"]))
    count = entries.get("nc")
    if count is not None and count.value != str(len(names)):
        raise InputError(
            f"{file}, line {_line(count)}: nc is {count.value}, but there are {len(names)} names; "
            "correct one of them."
        )
    return names


def _items(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _names(file: Path, node: yaml.Node) -> tuple[str, ...]:
    if isinstance(node, yaml.MappingNode):
        for position, (key, _) in enumerate(_items(node)):
            if key.value != str(position):
                raise InputError(
                    f"{file}, line {_line(key)}: the numbers of the classes must be 0, 1, 2, … in "
                    f"this order, not {key.value}."
                )
        values = [value for _, value in _items(node)]
    elif isinstance(node, yaml.SequenceNode):
        values = list(node.value)
    else:
        raise InputError(f"{file}, line {_line(node)}: `names` must be a list of class names.")
    for value in values:
        if not isinstance(value, yaml.ScalarNode):
            raise InputError(f"{file}, line {_line(value)}: a class name must be one word or text.")
    return tuple(str(value.value) for value in values)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _picture(path: Path, file: Path, names: tuple[str, ...]) -> AnnotatedPicture:
    width, height = picture_size(path)
    text = read_text(file) if file.is_file() else ""
    rows = [
        _object(f"{file}, line {number}", line.split(), len(names), width, height)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    return AnnotatedPicture.of(path, rows)


def _object(
    where: str, fields: list[str], classes: int, width: int, height: int
) -> tuple[int, NDArray[np.float32]]:
    """Return class and box (4,) of one line."""
    try:
        number, *rest = (float(field) for field in fields)
        cx, cy, w, h = rest
    except ValueError:
        raise InputError(
            f"{where}: needs the five numbers `class cx cy w h`, not {' '.join(fields)[:60]!r}."
        ) from None
    if number not in range(classes):
        raise InputError(
            f"{where}: class {fields[0]} is none of the {classes} classes, which count from 0."
        )
    if not all(-ROUNDING <= value <= 1 + ROUNDING for value in rest):
        raise InputError(
            f"{where}: cx, cy, w, h must be fractions of the picture between 0 and 1, not "
            f"{' '.join(fields[1:])}; divide pixels by the picture's width and height."
        )
    corners = (
        (cx - w / 2) * width,
        (cy - h / 2) * height,
        (cx + w / 2) * width,
        (cy + h / 2) * height,
    )
    box = box_inside(corners, width, height)
    if box is None:
        raise InputError(f"{where}: the box has no area inside the picture; correct or remove it.")
    return int(number), box
