"""`lipdet detect`: find digits in pictures of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lipdet.checkpoint import load_detector
from lipdet.commands.options import (
    DETECTOR_HELP,
    Parser,
    Verb,
    as_json,
    check_folder,
    distinct_stems,
    verb_parser,
)
from lipdet.detect import Found, detect_in_photograph, detect_in_region
from lipdet.errors import InputError
from lipdet.evaluate.run import Network
from lipdet.export.runtime import load_onnx
from lipdet.images.crop import Region
from lipdet.images.source import load_rgb
from lipdet.report.overlay import draw_detections
from lipdet.types import Detections


def parser() -> Parser:
    """Options of `run`."""
    parser = verb_parser(
        "Find digits in pictures of any size.", "lipdet detect naive door.jpg --out found"
    )
    parser.add_argument("detector", help=f"{DETECTOR_HELP}, or an exported .onnx file")
    parser.add_argument("images", nargs="+", type=Path, help="picture files")
    parser.add_function_arguments(run, skip={"detector", "images"})
    return parser


def run(detector: str, images: Sequence[Path], out: Path, crop: str | None = None) -> None:
    """Find digits in pictures; write an overlay of each and one json for all.

    Args:
        detector: DETECTOR.
        images: picture files.
        out: folder for NAME.png and detections.json.
        crop: LEFT,TOP,RIGHT,BOTTOM in pixels: look only there, and do not search.
    """
    check_folder(out)
    model, names = _load(detector)
    region = _region(crop) if crop else None
    found = [_detect_one(model, path, region) for path in images]
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for path, name, (image, one) in zip(images, distinct_stems(images), found, strict=True):
        draw_detections(image, one.detections, names).save(out / f"{name}.png")
        entries.append({"image": str(path), **_as_dict(image, one, names)})
        digits = [names[label] for label in _left_to_right(one.detections)]
        print(f"{path}: {' '.join(digits) or 'nothing found'}")
    result = {"weights": detector, "pictures": entries}
    (out / "detections.json").write_text(as_json(result) + "\n")
    print(f"Overlays and detections.json: {out}")


def _load(detector: str) -> tuple[Network, tuple[str, ...]]:
    """A network, in torch or in ONNX Runtime, and its class names."""
    if detector.endswith(".onnx"):
        model = load_onnx(Path(detector))
        return model.detector, model.class_names
    loaded = load_detector(detector).detector
    return loaded, loaded.config.class_names


def _detect_one(model: Network, path: Path, region: Region | None) -> tuple[Image.Image, Found]:
    image = load_rgb(path)
    if region:
        return image, detect_in_region(model, image, region)
    return image, detect_in_photograph(model, image)


def _as_dict(image: Image.Image, found: Found, names: Sequence[str]) -> dict[str, Any]:
    detections = found.detections
    rows = zip(
        detections["boxes"].tolist(),
        detections["labels"].tolist(),
        detections["scores"].tolist(),
        strict=True,
    )
    return {
        "width": image.width,
        "height": image.height,
        "regions": [list(region) for region in found.regions],
        "detections": [
            {"box": box, "label": names[label], "score": score} for box, label, score in rows
        ],
    }


def _left_to_right(found: Detections) -> list[int]:
    labels: list[int] = found["labels"][found["boxes"][:, 0].argsort()].tolist()
    return labels


def _region(text: str) -> Region:
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--crop {text!r}: give LEFT,TOP,RIGHT,BOTTOM in pixels.") from None
    return Region(left, top, right, bottom)


VERB = Verb("find digits in pictures", parser, run)
