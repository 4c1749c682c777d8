"""Annotations as files of the formats that lipdet reads."""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np
import yaml

from lipdet.images.voc import CORNERS
from lipdet.types import Target


def yolo_text(width: int, height: int, target: Target) -> str:
    """Write the objects of a picture of `width` × `height` pixels as the text of its label file."""
    size = np.array([width, height])
    corners = target["boxes"].double().numpy()
    centres = (corners[:, :2] + corners[:, 2:]) / 2 / size
    sides = (corners[:, 2:] - corners[:, :2]) / size
    rows = zip(target["labels"].tolist(), np.hstack([centres, sides]).tolist(), strict=True)
    return "".join(f"{label} {' '.join(map(repr, box))}\n" for label, box in rows)


def yolo_yaml(class_names: tuple[str, ...]) -> str:
    """Write class names as the text of a data.yaml."""
    names = dict(enumerate(class_names))
    return str(yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False))


def voc_xml(
    file_name: str, width: int, height: int, target: Target, class_names: tuple[str, ...]
) -> str:
    """Write the objects of a picture of `width` × `height` pixels as a Pascal VOC annotation."""
    objects = "".join(
        f"  <object>\n    <name>{escape(class_names[label])}</name>\n    <bndbox>\n"
        + "".join(
            f"      <{tag}>{_number(value)}</{tag}>\n"
            for tag, value in zip(CORNERS, (x1 + 1, y1 + 1, x2, y2), strict=True)
        )
        + "    </bndbox>\n  </object>\n"
        for (x1, y1, x2, y2), label in zip(
            target["boxes"].tolist(), target["labels"].tolist(), strict=True
        )
    )
    size = f"<width>{width}</width><height>{height}</height><depth>3</depth>"
    return (
        f"<annotation>\n  <filename>{escape(file_name)}</filename>\n  <size>{size}</size>\n"
        f"{objects}</annotation>\n"
    )


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
