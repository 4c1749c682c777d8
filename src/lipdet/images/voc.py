"""Pascal VOC xml (Everingham et al., "The Pascal Visual Object Classes", IJCV 2010).

A folder holds Annotations/*.xml and JPEGImages/, and may hold ImageSets/Main/SPLIT.txt.

Notable choices:
- Coordinates are VOC's: pixels count from 1 and xmax, ymax are the last ones inside. A box is
  therefore [xmin - 1, ymin - 1, xmax, ymax] here; xmin = 1, xmax = width is the whole width. Tools
  that count from 0 give boxes one pixel too large at the left and the top.
- The format has no list of classes: they are the lines of FOLDER/classes.txt, or else all names in
  Annotations (of every split), sorted.
- Objects marked `difficult` are left out and counted in `skipped`, as VOC's own measure does.
- Boxes that overhang the border are clipped; a box without area inside the picture is an error.
- A file with a document type is refused: only there could entities be declared, which expand to
  any size. No annotation needs one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from lipdet.errors import InputError
from lipdet.images.source import (
    AnnotatedPicture,
    Skipped,
    Source,
    box_inside,
    picture_size,
    read_names,
    read_text,
)

CLASSES = "classes.txt"
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
    folder = path.resolve().parent.parent.parent if listed else path
    annotations = folder / "Annotations"
    if not annotations.is_dir() or not (folder / "JPEGImages").is_dir():
        raise InputError(
            f"{path}: {folder} holds no Annotations/ and JPEGImages/; name a folder that does, or "
            "its ImageSets/Main/SPLIT.txt."
        )
    files = sorted(annotations.glob("*.xml"))
    roots = {file: _parse(file) for file in files}
    names = _class_names(folder, roots)
    chosen = _listed(path, annotations) if listed else files
    if not chosen:
        raise InputError(f"{path}: names no annotation; there is nothing to read.")
    pictures: list[AnnotatedPicture] = []
    skipped: list[Skipped] = []
    for file in chosen:
        objects = roots[file].all("object")
        plain = [one for one in objects if one.value("difficult") not in ("1", "true")]
        pictures.append(_picture(folder, file, roots[file], plain, names))
        if difficult := len(objects) - len(plain):
            reason = f"{difficult} difficult objects left out"
            skipped.append(Skipped(pictures[-1].path.name, reason))
    name = f"{folder.resolve().name}/{path.stem}" if listed else folder.resolve().name
    return Source(f"voc:{name}", names, tuple(pictures), tuple(skipped))


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
    """Return the annotation files of a split's list, which may say more behind a name."""
    chosen = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            annotation = annotations / f"{line.split()[0]}.xml"
            if not annotation.is_file():
                raise InputError(f"{file}, line {number}: {annotation} does not exist.")
            chosen.append(annotation)
    return chosen


def _picture(
    folder: Path, file: Path, root: Element, objects: list[Element], names: tuple[str, ...]
) -> AnnotatedPicture:
    path = folder / "JPEGImages" / root.value("filename")
    if not path.is_file():
        line = next((element.line for element in root.all("filename")), root.line)
        raise InputError(f"{file}, line {line}: its <filename> {path} does not exist.")
    width, height = picture_size(path)
    for size in root.all("size"):
        stated = size.value("width"), size.value("height")
        if stated != (str(width), str(height)):
            raise InputError(
                f"{file}, line {size.line}: the size is stated as {'x'.join(stated)}, but {path} "
                f"is {width}x{height}; correct the size and the boxes."
            )
    rows = [_object(file, one, names, width, height) for one in objects]
    return AnnotatedPicture.of(path, rows)


def _object(
    file: Path, element: Element, names: tuple[str, ...], width: int, height: int
) -> tuple[int, NDArray[np.float32]]:
    """Return class and box (4,) of one object."""
    name = element.value("name")
    if name not in names:
        raise InputError(
            f"{file}, line {element.line}: the object's <name> {name!r} is none of the classes."
        )
    corners = next(iter(element.all("bndbox")), Element("bndbox", element.line))
    where = f"{file}, line {corners.line}"
    try:
        xmin, ymin, xmax, ymax = (float(corners.value(tag)) for tag in CORNERS)
    except ValueError:
        raise InputError(
            f"{where}: the object needs a <bndbox> of four numbers xmin, ymin, xmax, ymax."
        ) from None
    box = box_inside((xmin - 1, ymin - 1, xmax, ymax), width, height)
    if box is None:
        raise InputError(
            f"{where}: the box {xmin:g} {ymin:g} {xmax:g} {ymax:g} has no area inside the "
            f"{width}x{height} picture; correct or remove it."
        )
    return names.index(name), box
