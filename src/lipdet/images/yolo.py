"""YOLO txt folders as Ultralytics documents them: one txt file of boxes per picture.

A line is `class cx cy w h`: the class's number from 0, then the centre and size of the box as
fractions of the (upright) picture's width and height. A sixth number, a confidence, does not count;
`class x1 y1 x2 y2 x3 y3 …` is a polygon, of which the box around it is read. Where the yaml has
`kpt_shape`, key points follow the box; they are left out.

Notable choices:
- What is named is one split: a folder, a txt list of pictures, or a data.yaml that has one split.
  Pictures lie in FOLDER/images, with those in its subfolders; in CVAT's FOLDER/obj_train_data; or
  in FOLDER itself.
- The labels of a picture lie where the last `images` of its path reads `labels`, or beside it.
- Class names come from the nearest file that has any: in FOLDER, with the labels, or up to two
  folders above.
- A picture without a txt file has no objects, as for Ultralytics. A txt file without a picture, or
  in an unexpected place, is listed in `skipped`, since a picture may have been lost.
- Boxes that overhang the border are clipped; those without area are left out and counted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from lipdet.errors import InputError
from lipdet.images.source import (
    AnnotatedPicture,
    Given,
    LabelledBox,
    Skipped,
    Source,
    absolute,
    box_inside,
    check_names,
    doubts,
    files_in,
    no_area,
    picture_size,
    pictures_in,
    read_names,
    read_text,
)

YAML_NAMES = ("data.yaml", "dataset.yaml")
TEXT_NAMES = ("classes.txt", "obj.names")
# What lies beside pictures and labels without being either.
LISTS = frozenset({"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"})
SPLIT = re.compile(r"(train|val|test)[a-z]*\d*")
# Numbers beyond are pixels; less is what drawing over the border and rounding do.
LARGEST = 2.0


class Classes(NamedTuple):
    """Names of classes, and whether the file that has them says that key points follow boxes."""

    names: tuple[str, ...]
    key_points: bool = False


def read_yolo(path: Path) -> Source:
    """Read pictures with YOLO labels.

    Args:
        path: one split; see the module's first lines for the forms.

    Returns:
        The pictures in the order of their names or of the list, those without objects included.
        Boxes are xyxy pixels clipped to the picture.

    Raises:
        InputError: a folder, the class names or all labels are missing, several splits are there,
            or a file is malformed; the message names the file and the line.
    """
    if path.suffix in (".yaml", ".yml") and path.is_file():
        places = _splits_of_yaml(path)
        if len(places) != 1:
            advice = " or ".join(map(str, places)) or "a folder that holds images/ and labels/"
            raise InputError(f"{path}: names {len(places)} splits; name one: {advice}.")
        return _read(places[0], _classes_of_yaml(path))
    return _read(path, None)


def _read(path: Path, classes: Classes | None) -> Source:
    listed = path.suffix == ".txt" and path.is_file()
    folder = path.parent if listed else _picture_folder(path)
    pattern = "**/*" if "images" in absolute(folder).parts or folder != path else "*"
    files = _listed(path) if listed else pictures_in(folder, pattern)
    labels = {file: _label_file(file) for file in files}
    expected = _label_place(folder / "x").parent
    trees = () if listed else dict.fromkeys([expected, absolute(folder)])
    texts = [
        text
        for tree in trees
        for text in files_in(tree, f"{pattern}.txt")
        if text.name not in LISTS
    ]
    if not texts and not any(file.is_file() for file in labels.values()):
        raise InputError(f"{path}: its pictures have no labels; {expected} holds no txt file.")
    beside = sorted({one.parent for one in labels.values()})
    classes = classes or _classes([folder if listed else path, *beside, folder])
    name = path.stem if listed else path.resolve().name
    skipped: list[Skipped] = []
    given: list[Given] = []
    found = [_picture(file, text, classes, skipped, given) for file, text in labels.items()]
    used, stems = {text.resolve() for text in labels.values()}, {file.stem for file in files}
    for text in texts:
        if text.resolve() not in used:
            where = "where none are expected" if text.stem in stems else "without a picture"
            skipped.append(Skipped(text.name, f"labels {where}"))
    skipped += doubts(name, found, given)
    return Source(f"yolo:{name}", classes.names, tuple(found), tuple(skipped))


def _listed(file: Path) -> list[Path]:
    """Return the pictures of a list: as given, from its folder, or by the last parts from there."""
    pictures = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if given := line.strip().replace("\\", "/"):
            parts = Path(given).parts
            tries = [file.parent / Path(*parts[at:]) for at in range(len(parts))]
            path = next((one for one in tries if one.is_file()), None)
            if path is None:
                raise InputError(f"{file}, line {number}: {tries[0]} does not exist.")
            pictures.append(path)
    if not pictures:
        raise InputError(f"{file}: lists no picture; there is nothing to read.")
    return pictures


def _picture_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder, txt list or data.yaml; name a folder that holds images/ "
            "and labels/."
        )
    for place in (folder / "images", folder):
        if any(pictures_in(place)):
            return place
    subfolders = [one for one in files_in(folder / "images", "*") if any(pictures_in(one, "**/*"))]
    if subfolders and not any(SPLIT.fullmatch(one.name) for one in subfolders):
        return folder / "images"
    splits = [
        *subfolders,
        *(one.parent for one in files_in(folder, "*/images") if any(pictures_in(one, "**/*"))),
        *(one for one in files_in(folder, "obj_*_data") if any(pictures_in(one, "**/*"))),
    ]
    if len(splits) == 1 and splits[0].name.startswith("obj_"):
        return splits[0]
    named = " or ".join(map(str, sorted(splits)))
    advice = f"name one split: {named}" if named else "it needs images/ and labels/"
    raise InputError(f"{folder}: holds no pictures; {advice}.")


def _label_place(picture: Path) -> Path:
    """Return where the labels of a picture are expected: `labels` for its path's last `images`."""
    parts = list(absolute(picture).with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _label_file(picture: Path) -> Path:
    """Return the labels of a picture: where they are expected, beside it, or behind its links."""
    places = [
        _label_place(picture),
        absolute(picture).with_suffix(".txt"),
        _label_place(picture.resolve()),
    ]
    return next((place for place in places if place.is_file()), places[0])


def _classes(folders: list[Path]) -> Classes:
    """Return the classes of the nearest file that names any."""
    first = folders[0]
    above = [*absolute(first).parents[:2], *first.resolve().parents[:2]]
    for folder in dict.fromkeys([*folders, *above]):
        yamls = [*files_in(folder, "*.yaml"), *files_in(folder, "*.yml")]
        preferred = [folder / name for name in YAML_NAMES if folder / name in yamls]
        named = preferred[:1] or [one for one in yamls if "names" in _entries(one)]
        if len(named) > 1:
            both = " and ".join(map(str, named))
            raise InputError(f"{both} have class names; name one of them, as yolo:{named[0]}.")
        if named:
            return _classes_of_yaml(named[0])
        text = next((folder / name for name in TEXT_NAMES if (folder / name).is_file()), None)
        if text:
            return Classes(read_names(text))
    raise InputError(
        f"{first}: its classes have no names; add a data.yaml with `names`, or a "
        f"{TEXT_NAMES[0]} with one name per line."
    )


def _entries(file: Path) -> dict[str, yaml.Node]:
    """Return what a yaml file maps words to."""
    try:
        root = yaml.compose(read_text(file), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{file}, line {line}: is no YAML ({error.problem}).") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: is no YAML ({reason}).") from None
    return {str(key.value): value for key, value in _items(root)}


def _splits_of_yaml(file: Path) -> list[Path]:
    """Return the places that `train`, `val` and `test` of a data.yaml name and that exist."""
    entries = _entries(file)
    root = file.parent
    if "path" in entries and (root / str(entries["path"].value)).is_dir():
        root = root / str(entries["path"].value)
    found = []
    for key in ("train", "val", "test"):
        node = entries.get(key)
        values = node.value if isinstance(node, yaml.SequenceNode) else [node] if node else []
        for given in (str(value.value) for value in values):
            # Some tools write `../train/images` for what lies beside the file.
            tries = [root / given, root / given.removeprefix("../"), file.parent / given]
            found += [one for one in tries if one.exists()][:1]
    return list(dict.fromkeys(found))


def _classes_of_yaml(file: Path) -> Classes:
    """Return the entry `names`, a list or a mapping from 0, 1, …; words like `no` stay words."""
    entries = _entries(file)
    if "names" not in entries:
        raise InputError(f"{file}: has no `names`; list the classes there.")
    names = check_names(file, _names(file, entries["names"]))
    count = entries.get("nc")
    if count is not None and count.value != str(len(names)):
        raise InputError(
            f"{file}, line {_line(count)}: nc is {count.value}, but there are {len(names)} names; "
            "correct one of them."
        )
    return Classes(names, "kpt_shape" in entries)


def _items(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _names(file: Path, node: yaml.Node) -> tuple[str, ...]:
    if isinstance(node, yaml.MappingNode):
        numbered = {str(key.value): (key, value) for key, value in _items(node)}
        for key, _ in _items(node):
            if key.value not in map(str, range(len(numbered))):
                raise InputError(
                    f"{file}, line {_line(key)}: the numbers of the classes must be 0, 1, 2, … "
                    f"without a gap, not {key.value}."
                )
        values = [numbered[str(number)][1] for number in range(len(numbered))]
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


def _picture(
    path: Path,
    file: Path,
    classes: Classes,
    skipped: list[Skipped],
    given: list[Given],
) -> AnnotatedPicture:
    """Read the labels of a picture, and add to what is skipped and to the boxes as given."""
    width, height = picture_size(path)
    text = read_text(file) if file.is_file() else ""
    objects: list[LabelledBox] = []
    polygons = empty = 0
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()[: 5 if classes.key_points else None]
        if not fields:
            continue
        label, (x1, y1, x2, y2) = _object(f"{file}, line {number}", fields, len(classes.names))
        polygons += len(fields) > 6
        numbers = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        given.append((numbers, (x1, y1, x2, y2)))
        box = box_inside((x1 * width, y1 * height, x2 * width, y2 * height), width, height)
        if box is None:
            empty += 1
        else:
            objects.append((label, box))
    if polygons:
        skipped.append(Skipped(path.name, f"{polygons} polygons read as the boxes around them"))
    if empty:
        skipped.append(Skipped(path.name, no_area(empty)))
    return AnnotatedPicture.of(path, objects)


def _object(
    where: str, fields: list[str], classes: int
) -> tuple[int, tuple[float, float, float, float]]:
    """Return class and box, xyxy as fractions of the picture, of one line."""
    try:
        number, *rest = (float(field) for field in fields)
    except ValueError:
        rest = []
    polygon = len(rest) >= 6 and len(rest) % 2 == 0
    if len(rest) not in (4, 5) and not polygon:
        raise InputError(
            f"{where}: needs the five numbers `class cx cy w h`, not {' '.join(fields)[:60]!r}."
        )
    if number not in range(classes):
        raise InputError(
            f"{where}: class {fields[0]} is none of the {classes} classes, which count from 0."
        )
    shares = rest if polygon else rest[:4]
    least = -1.0 if polygon else min(rest[2:4])
    if not all(-1 <= value <= LARGEST for value in shares) or -1 < least < 0:
        raise InputError(
            f"{where}: cx, cy, w, h must be fractions of the picture between 0 and 1, not "
            f"{' '.join(fields[1:])}; divide pixels by the picture's width and height."
        )
    if polygon:
        return int(number), (min(rest[::2]), min(rest[1::2]), max(rest[::2]), max(rest[1::2]))
    cx, cy, w, h = shares
    return int(number), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
