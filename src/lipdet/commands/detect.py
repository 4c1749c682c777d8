"""`lipdet detect`: find objects in pictures of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipdet.checkpoint import load_detector
from lipdet.commands.options import DETECTOR_HELP, Parser, parse_region
from lipdet.commands.pictures import PictureFiles, picture_parser
from lipdet.detector.forward import Network
from lipdet.export.runtime import load_onnx
from lipdet.reading import Reading, certified_reading, known_verifier, read, shown_above
from lipdet.reading.detections import left_to_right, radii_explained, with_radius
from lipdet.reading.marks import draw_classes
from lipdet.types import Canvas, spell


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = picture_parser(
        "Find objects in pictures of any size.",
        "lipdet detect naive door.jpg --out found",
        f"{DETECTOR_HELP}, or an exported .onnx file",
    )
    parser.add_function_arguments(run, skip={"detector", "images"})
    return parser


def run(
    detector: str,
    images: Sequence[Path],
    out: Path,
    crop: str | None = None,
    score: float | None = None,
) -> None:
    """Find objects in pictures; write an overlay of each and one json for all.

    Each overlay is written when it is done; the json, when all are or the work is interrupted.

    Args:
        detector: DETECTOR.
        images: picture files, or folders of them.
        out: folder for NAME.png and detections.json.
        crop: LEFT,TOP,RIGHT,BOTTOM in pixels: look only there, and do not search. With a minus
            first it is written --crop=-5,….
        score: show what has a higher score; radii are about remaining above it. By default the
            threshold that is stored with the detector.
    """
    files = PictureFiles(images, out)
    model, names = _load(detector)
    selection = shown_above(model, score)
    canvas = model.framing.canvas
    region = parse_region(crop) if crop else None
    verifier = known_verifier(model, selection)
    result = {"weights": detector, "canvas": list(canvas), "score": selection.score_floor}
    with files.written("detections.json", result):
        for index, image in files.each("Detecting"):
            reading = read(model, names, image, region, selection)
            if verifier:
                reading = certified_reading(reading, verifier)
            overlay = draw_classes(image, reading.detections, names)
            files.keep(index, {"": overlay}, reading.as_dict(), _words(reading, canvas))
    told = radii_explained(canvas) if verifier else "no radii: its constants are not known here"
    print(f"Overlays and detections.json: {out} ({told})")


def _load(detector: str) -> tuple[Network, tuple[str, ...]]:
    """Return a network, in torch or in ONNX Runtime, and its class names."""
    if detector.endswith(".onnx"):
        model = load_onnx(Path(detector))
        return model, model.class_names
    loaded = load_detector(detector).detector
    return loaded, loaded.config.class_names


def _words(reading: Reading, canvas: Canvas) -> str:
    """Return the class names in reading order, each with its radius if it has one."""
    words = [
        with_radius(one, canvas) if one.radius else one.label
        for one in left_to_right(reading.detections)
    ]
    between = " " if spell([one.label for one in reading.detections]) else ", "
    return between.join(words) or "nothing found"
