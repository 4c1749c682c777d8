"""Pascal VOC xml (Everingham et al., "The Pascal Visual Object Classes", IJCV 2010).

A folder holds Annotations/*.xml and JPEGImages/, and may hold ImageSets/Main/SPLIT.txt. Tools also
write `annotations/` and `images/`, or all into one folder.

Notable choices:
- Coordinates are VOC's: pixels count from 1 and xmax, ymax are the last ones inside. A box is
  therefore [xmin - 1, ymin - 1, xmax, ymax] here; xmin = 1, xmax = width is the whole width. Tools
  that count from 0 give boxes one pixel too large at the left and the top.
- The format has no list of classes: they are the lines of FOLDER/classes.txt, or else all names in
  Annotations (of every split), sorted.
- Objects marked `difficult` are areas in which detections are not judged, as in VOC's own measure.
- Boxes that overhang the border are clipped; those without area inside the picture, as where
  xmin = xmax, are left out and counted.
- The picture of an annotation is the one with the name of the xml file, of several the one that
  `<filename>` says; else that of `<filename>`.
- A picture without an annotation and an xml in a subfolder are left out, and listed in `skipped`.
- A file with a document type is refused: only there could entities be declared, which expand to
  any size. No annotation needs one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from lipdet.errors import InputError
from lipdet.images.source import (
    AnnotatedPicture,
    LabelledBox,
    Skipped,
    Source,
    absolute,
    box_inside,
    doubts,
    files_in,
    no_area,
    picture_size,
    pictures_in,
    read_names,
    read_text,
)

CLASSES = "classes.txt"
ANNOTATION_FOLDERS = ("Annotations", "annotations", ".")
PICTURE_FOLDERS = ("JPEGImages", "images", ".", "Annotations", "annotations")
# What old lists say behind a name: whether a class is there.
MARK = re.compile(r"\s+(-1|0|1)$")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class Element:
    """One xml element and the line on which it begins."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """Return the children of a tag."""
        return [child for child in self.children if child.tag == tag]

    def value(self, tag: str) -> str:
        """Return the text of the first child of a tag; empty if there is none."""
        return next((child.text.strip() for child in self.all(tag)), "")


def read_voc(path: Path) -> Source:
    """Read Pascal VOC annotations.

    Args:
        path: a folder that holds Annotations/ and JPEGImages/, for all its annotations; or a file
            FOLDER/ImageSets/Main/SPLIT.txt, for those that it lists.

    Returns:
        The pictures by name, or in the order of the list. Boxes are xyxy pixels (from 0, exclusive
        ends) clipped to the picture.

    Raises:
        InputError: a folder or picture is missing or an annotation malformed; the message names
            the file and the line.
    """
    listed = path.is_file()
    folder, annotations = _annotations_of(path, listed)
    files = files_in(annotations, "*.xml")
    chosen = _listed(path, annotations) if listed else files
    if not chosen:
        raise InputError(f"{path}: names no annotation; there is nothing to read.")
    # A list may name what lies in subfolders.
    roots = {file: _parse(file) for file in dict.fromkeys([*files, *chosen])}
    names = _class_names(folder, roots)
    places = [folder / name for name in PICTURE_FOLDERS if (folder / name).is_dir()]
    present = [picture for place in places for picture in pictures_in(place)]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for picture in present:
        by_stem[picture.stem].append(picture)
    skipped: list[Skipped] = []
    pictures = [
        _picture(file, roots[file], _picture_of(file, roots[file], places, by_stem), names, skipped)
        for file in chosen
    ]
    name = f"{folder.resolve().name}/{path.stem}" if listed else folder.resolve().name
    if not listed:
        skipped += _left_out(annotations, present, pictures)
    skipped += doubts(name, pictures, ())
    return Source(f"voc:{name}", names, tuple(pictures), tuple(skipped))


def _annotations_of(path: Path, listed: bool) -> tuple[Path, Path]:
    """Return the folder of a data set and that of its xml files; beside a link before behind it."""
    folders = [path]
    if listed:
        folders = [one.parent.parent.parent for one in (absolute(path), path.resolve())]
    for folder in folders:
        for name in ANNOTATION_FOLDERS:
            if (folder / name).is_dir() and files_in(folder / name, "*.xml"):
                return folder, folder / name
    if not path.exists():
        beside = sorted(one.name for one in path.parent.glob("*.txt"))
        there = f"; there are {', '.join(beside)}" if beside else ""
        raise InputError(f"{path} does not exist{there}.")
    where = f"{folders[0]} (of {path})" if listed else str(path)
    raise InputError(
        f"{where} holds no Annotations/ and JPEGImages/; name a folder that does, or "
        "its ImageSets/Main/SPLIT.txt."
    )


def _parse(file: Path) -> Element:
    parser = expat.ParserCreate()
    document = Element("", 0)
    open_elements = [document]

    def start(tag: str, _: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def text(characters: str) -> None:
        open_elements[-1].text += characters

    def refuse(*_: Any) -> None:
        raise InputError(
            f"{file}, line {parser.CurrentLineNumber}: declares a document type, which an "
            "annotation does not need; remove it."
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_elements.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        raise InputError(
            f"{file}, line {error.lineno}: is no xml ({expat.ErrorString(error.code)})."
        ) from None
    except (OSError, LookupError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as xml ({error}).") from None
    [root] = document.children
    if root.tag != "annotation":
        raise InputError(
            f"{file}, line {root.line}: holds <{root.tag}> where Pascal VOC has <annotation>."
        )
    return root


def _class_names(folder: Path, roots: dict[Path, Element]) -> tuple[str, ...]:
    file = folder / CLASSES
    if file.is_file():
        return read_names(file)
    found = {one.value("name") for root in roots.values() for one in root.all("object")} - {""}
    if not found:
        raise InputError(f"{folder}: no annotation names a class; add a {CLASSES} with the names.")
    return tuple(sorted(found))


def _listed(file: Path, annotations: Path) -> list[Path]:
    """Return the annotation files of a split's list, which may say -1, 0 or 1 behind a name."""
    chosen = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if name := line.strip():
            tries = [annotations / f"{one}.xml" for one in (name, MARK.sub("", name))]
            annotation = next((one for one in tries if one.is_file()), None)
            if annotation is None:
                raise InputError(f"{file}, line {number}: {tries[1]} does not exist.")
            chosen.append(annotation)
    return chosen


def _left_out(
    annotations: Path, present: Sequence[Path], used: Sequence[AnnotatedPicture]
) -> list[Skipped]:
    """Return the annotations in subfolders, which are not read, and the pictures without one."""
    deeper = [one for one in files_in(annotations, "**/*.xml") if one.parent != annotations]
    taken = {picture.path.resolve() for picture in used}
    return [
        *(Skipped(str(one.relative_to(annotations)), "in a subfolder; not read") for one in deeper),
        *(Skipped(one.name, "no annotation") for one in present if one.resolve() not in taken),
    ]


def _picture_of(
    file: Path, root: Element, places: list[Path], by_stem: dict[str, list[Path]]
) -> Path:
    """Return the picture of an annotation."""
    name = root.value("filename").replace("\\", "/").rpartition("/")[2]
    if alike := by_stem.get(file.stem):
        return next((picture for picture in alike if picture.name == name), alike[0])
    found = next((place / name for place in places if (place / name).is_file()), None)
    if not name or found is None:
        line = next((element.line for element in root.all("filename")), root.line)
        where = ", ".join(map(str, places))
        raise InputError(
            f"{file}, line {line}: neither its <filename> {name} nor a picture {file.stem} is in "
            f"{where}; add the picture."
        )
    return found


def _picture(
    file: Path, root: Element, path: Path, names: tuple[str, ...], skipped: list[Skipped]
) -> AnnotatedPicture:
    """Read the objects of a picture, and add to what is skipped."""
    width, height = picture_size(path)
    for size in root.all("size"):
        stated = size.value("width"), size.value("height")
        if set(stated) <= {"", "0"}:
            skipped.append(Skipped(file.name, f"states no size; {width}x{height} was taken"))
        elif stated != (str(width), str(height)):
            raise InputError(
                f"{file}, line {size.line}: the size is stated as {'x'.join(stated)}, but {path} "
                f"is {width}x{height}; correct the size and the boxes."
            )
    kept: dict[bool, list[LabelledBox]] = {False: [], True: []}
    empty = 0
    for one in root.all("object"):
        label, corners = _object(file, one, names)
        box = box_inside(corners, width, height)
        if box is None:
            empty += 1
        else:
            kept[one.value("difficult").lower() in ("1", "true", "yes")].append((label, box))
    if empty:
        skipped.append(Skipped(path.name, no_area(empty)))
    return AnnotatedPicture.of(path, kept[False], kept[True])


def _object(
    file: Path, element: Element, names: tuple[str, ...]
) -> tuple[int, tuple[float, float, float, float]]:
    """Return class and box, xyxy in pixels from 0, of one object; empty where xmin = xmax."""
    name = element.value("name")
    if name not in names:
        raise InputError(
            f"{file}, line {element.line}: the object's <name> {name!r} is none of the classes "
            f"{', '.join(names)}, which are those of {CLASSES} where there is one."
        )
    corners = next(iter(element.all("bndbox")), Element("bndbox", element.line))
    where = f"{file}, line {corners.line}"
    try:
        xmin, ymin, xmax, ymax = numbers = [float(corners.value(tag)) for tag in CORNERS]
    except ValueError:
        raise InputError(
            f"{where}: the object needs a <bndbox> of four numbers xmin, ymin, xmax, ymax."
        ) from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: the box {numbers} is not finite; correct it.")
    if xmin == xmax or ymin == ymax:
        return names.index(name), (0, 0, 0, 0)
    return names.index(name), (xmin - 1, ymin - 1, xmax, ymax)
