"""`lipdet certify`: how much perturbation each detection in a picture survives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lipdet.certificate.radius import REMAINING_IOU
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import load_detector
from lipdet.commands.attack_options import EPSILON_HELP, parse_epsilons
from lipdet.commands.options import (
    DETECTOR_HELP,
    FLOAT64_HELP,
    Parser,
    parse_region,
)
from lipdet.commands.pictures import PictureFiles, picture_parser
from lipdet.errors import InputError
from lipdet.hardware import DeviceName, measuring_device
from lipdet.reading import certified, look, regions_of, shown_above, tallied
from lipdet.reading.detections import radii_explained, with_radius
from lipdet.reading.marks import draw_certificates


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = picture_parser(
        "Say how much perturbation each detection survives, and what is read and counted, and draw "
        "where boxes can go.",
        "lipdet certify certified door.jpg --out found",
        DETECTOR_HELP,
    )
    parser.add_argument(
        "--epsilon", nargs="+", default=["0.1"], metavar="E", help=f"{EPSILON_HELP}, for counts"
    )
    parser.add_argument("--float64", action="store_true", help=FLOAT64_HELP)
    parser.add_function_arguments(run, skip={"detector", "images", "epsilon", "float64"})
    return parser


def run(
    detector: str,
    images: Sequence[Path],
    out: Path,
    crop: str | None = None,
    iou: float = REMAINING_IOU,
    score: float | None = None,
    epsilon: Sequence[str] = ("0.1",),
    float64: bool = False,
    device: DeviceName | None = None,
) -> None:
    """Certify the detections in pictures; write an overlay of each square and one json for all.

    Each overlay is written when it is done; the json, when all are or the work is interrupted.

    Args:
        detector: DETECTOR.
        images: picture files, or folders of them.
        out: folder for NAME-N.png, one for each square looked at, and certificates.json.
        crop: LEFT,TOP,RIGHT,BOTTOM in pixels: look only there, and do not search. With a minus
            first it is written --crop=-5,….
        iou: how much of a box must remain.
        score: show what has a higher score; radii are about remaining above it. By default the
            threshold that is stored with the detector.
        epsilon: radii at which objects are counted.
        float64: compute in float64.
        device: cpu or cuda; by default the GPU if there is one, with --float64 the CPU.
    """
    if not 0 < iou < 1:
        raise InputError(f"--iou must lie between 0 and 1, not {iou:g}.")
    epsilons = parse_epsilons(epsilon)
    # How many squares a picture has is found out later.
    files = PictureFiles(images, out, ends=())
    place = measuring_device(device, float64)
    loaded = load_detector(detector)
    loaded.detector.to(place)
    model = loaded.detector.double() if float64 else loaded.detector
    names = model.config.class_names
    canvas = model.framing.canvas
    region = parse_region(crop) if crop else None
    selection = shown_above(model, score)
    verifier = verifier_of(model, selection)
    result = {
        "weights": loaded.name,
        "canvas": list(canvas),
        "iou": iou,
        "score": selection.score_floor,
        "rounding": verifier.rounding_known,
    }
    with files.written("certificates.json", result):
        for index, image in files.each("Certifying"):
            views = look(model, names, image, regions_of(model, image, region), selection)
            views = certified(views, verifier, iou)
            tallies = tallied(views, verifier, epsilons)
            overlays = {
                f"-{square}": draw_certificates(Image.fromarray(view.pixels), view.detections)
                for square, view in enumerate(views, start=1)
            }
            regions = [
                {**view.as_dict(), **tally.as_dict()}
                for view, tally in zip(views, tallies, strict=True)
            ]
            found = [with_radius(one, canvas) for view in views for one in view.detections]
            words = [", ".join(found) or "nothing found"]
            for square, tally in enumerate(tallies, start=1):
                which = f"square {square} of {len(tallies)} " if len(tallies) > 1 else ""
                words.append(f"  {which}{tally.words}")
            files.keep(index, overlays, {"regions": regions}, "\n".join(words))
    print(
        f"Overlays and certificates.json: {out} ({radii_explained(canvas)}; rounding "
        f"{verifier.rounding_known})\nA detection stays up to its ε. Readings and counts change "
        "earlier where others may appear beside it."
    )
