"""`lipdet detect`: find digits in pictures of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lipdet.boxes import DISPLAY_SELECTION
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.radius import REMAINING_IOU
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector
from lipdet.commands.options import (
    DETECTOR_HELP,
    Parser,
    Verb,
    as_json,
    check_folder,
    check_no_input,
    distinct_stems,
    parse_region,
    verb_parser,
)
from lipdet.detect import (
    Found,
    certify_regions,
    detect_in_photograph,
    detect_in_region,
    radii_in_photograph,
)
from lipdet.detector import SSD
from lipdet.evaluate.run import Network
from lipdet.export.runtime import load_onnx
from lipdet.images.crop import Region
from lipdet.images.source import load_rgb
from lipdet.progress import track
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
    stems = distinct_stems(images)
    check_no_input((out / f"{stem}.png" for stem in stems), images)
    model, names = _load(detector)
    region = parse_region(crop) if crop else None
    found = [_detect_one(model, path, region) for path in track(images, "Detecting")]
    out.mkdir(parents=True, exist_ok=True)
    verifier = _verifier(model)
    entries = []
    for path, name, (image, one) in zip(images, stems, found, strict=True):
        draw_detections(image, one.detections, names).save(out / f"{name}.png")
        radii = _radii(model, verifier, image, one)
        entries.append({"image": str(path), **_as_dict(image, one, names, radii)})
        print(f"{path}: {_left_to_right(one.detections, names, radii) or 'nothing found'}")
    result = {"weights": detector, "pictures": entries}
    (out / "detections.json").write_text(as_json(result) + "\n")
    print(f"Overlays and detections.json: {out}")


def _load(detector: str) -> tuple[Network, tuple[str, ...]]:
    """Return a network, in torch or in ONNX Runtime, and its class names."""
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


def _verifier(model: Network) -> Verifier | None:
    """Return what certificates need, for detectors whose constants are known."""
    if not isinstance(model, SSD):
        return None
    try:
        return verifier_of(model, DISPLAY_SELECTION)
    except UnknownLipschitz:
        return None


def _radii(
    model: Network, verifier: Verifier | None, image: Image.Image, found: Found
) -> list[float | None]:
    """The largest ε under which each stays what is shown; None where no constants are known."""
    if verifier is None or not isinstance(model, SSD):
        return [None] * len(found.detections["labels"])
    certified = certify_regions(
        model, verifier, image, found.regions, REMAINING_IOU, one_reading=True
    )
    return list(radii_in_photograph(found, certified, image, model.config.image_size))


def _as_dict(
    image: Image.Image, found: Found, names: Sequence[str], radii: Sequence[float | None]
) -> dict[str, Any]:
    detections = found.detections
    rows = zip(
        detections["boxes"].tolist(),
        detections["labels"].tolist(),
        detections["scores"].tolist(),
        radii,
        strict=True,
    )
    return {
        "width": image.width,
        "height": image.height,
        "regions": [list(region) for region in found.regions],
        "detections": [
            {"box": box, "label": names[label], "score": score, "radius": radius}
            for box, label, score, radius in rows
        ],
    }


def _left_to_right(found: Detections, names: Sequence[str], radii: Sequence[float | None]) -> str:
    """Return the class names in reading order, each with its radius if it has one."""
    order = found["boxes"][:, 0].argsort().tolist()
    labels = found["labels"].tolist()
    return " ".join(
        f"{names[labels[index]]} (ε {radii[index]:.3f})" if radii[index] else names[labels[index]]
        for index in order
    )


VERB = Verb("find digits in pictures", parser, run)
