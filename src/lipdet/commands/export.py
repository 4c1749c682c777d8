"""`lipdet export`: a detector or segmenter as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lipdet.checkpoint import load_own
from lipdet.commands.options import DETECTOR_HELP, Parser, check_writable, verb_parser
from lipdet.errors import InputError
from lipdet.export.torch_file import export_torch
from lipdet.hardware import keep_freed_memory
from lipdet.images.spec import Purpose, open_data
from lipdet.progress import console
from lipdet.types import Framing

# How many pictures on which the exported network must equal its original, and how many at least
# where they are large; of how many pixels in all they are then.
MOST_VERIFIED, LEAST_VERIFIED, PIXELS = 100, 16, 1_600_000
# More calibration pictures than this cost minutes and change little.
CALIBRATED = 500
FEWEST = 100


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = verb_parser(
        "Write a detector as a file for other programs, and check it against torch.",
        "lipdet export naive --out naive.onnx --detections",
    )
    parser.add_argument("detector", help=DETECTOR_HELP)
    parser.add_argument(
        "--detections",
        action="store_true",
        help="also decode boxes and suppress doubles inside the model; onnx only",
    )
    parser.add_function_arguments(run, skip={"detections", "detector"})
    return parser


def run(
    detector: str,
    out: Path,
    format: Literal["onnx", "torch-export"] | None = None,  # the option is called --format
    detections: bool = False,
    int8: str | None = None,
) -> None:
    """Write a detector as a file for other programs, and check it against torch.

    Args:
        detector: DETECTOR.
        out: the file to write, such as NAME.onnx or NAME.pt2.
        format: onnx (needs the extra `onnx`) or torch-export; by default by the file's ending.
        detections: the model also decodes boxes and suppresses doubles (onnx only).
        int8: SPEC of pictures to calibrate on, 100 or more: the network computes in 8-bit integers
            (onnx only).
    """
    check_writable(out)
    if format is None:
        format = "torch-export" if out.suffix == ".pt2" else "onnx"
    if (detections or int8) and format != "onnx":
        raise InputError(
            "--detections and --int8 need an .onnx file; torch-export holds raw float32 outputs."
        )
    if format == "onnx" and out.suffix == ".pt2":
        raise InputError(f"{out}: write .pt2 files with --format torch-export.")
    if format == "torch-export" and out.suffix == ".onnx":
        raise InputError(f"{out}: --format torch-export writes .pt2 files; name it NAME.pt2.")
    loaded = load_own(detector)
    keep_freed_memory()
    canvas = loaded.framing.canvas
    count = min(MOST_VERIFIED, max(LEAST_VERIFIED, PIXELS // (canvas.height * canvas.width)))
    images = _pictures(f"rendered:{count}", "test", loaded.framing)
    calibration = _pictures(int8, "train", loaded.framing) if int8 else None
    if calibration is not None and len(calibration) < FEWEST:
        raise InputError(f"--int8 {int8}: {len(calibration)} pictures; give {FEWEST} or more.")
    console.log(
        f"Writing {out}, and checking on {len(images)} rendered house numbers, whatever its "
        "classes are, that it computes what the detector does."
    )
    if format == "torch-export":
        metadata = export_torch(loaded, out, images)
    else:
        try:
            from lipdet.export.onnx_file import export_onnx
        except ImportError as error:
            raise InputError(
                f"--format onnx needs {error.name}; in the clone of lipdet: "
                "pip install -e '.[onnx]'."
            ) from None
        metadata = export_onnx(loaded, out, images, detections, calibration)
    _print(out, metadata)


def _pictures(spec: str, purpose: Purpose, framing: Framing) -> Tensor:
    """Return at most `CALIBRATED` pictures of a SPEC, (B, 3, H, W) in [0, 1]."""
    pack = open_data(spec, purpose, framing).head(CALIBRATED)
    return pack.pixels(range(len(pack)))


def _print(out: Path, metadata: dict[str, Any]) -> None:
    verified = metadata["verified"]
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, checked on {verified['pictures']} pictures")
    print(f"  float32: {_differences(verified)}")
    _print_detections(verified)
    if certified := verified.get("certificates"):
        what = "detections" if "detections" in certified else "pixels"
        print(
            f"  certificates at ε = {certified['epsilon']:g}: {certified['certified']:,} of "
            f"{certified[what]:,} {what}, as in torch on {certified['agree']:,}"
        )
        if not certified[what]:
            console.log("Nothing is detected on these pictures, so no certificates were compared.")
    if "int8" in metadata:
        print(f"  int8: {_differences(metadata['int8'])}")
        _print_detections(metadata["int8"])


def _print_detections(comparison: dict[str, Any]) -> None:
    count = comparison.get("detections")
    if count:
        same = comparison["same_detections"]
        print(f"  detections are lipdet's own on {same} of them, {count:,} detections in all")
    elif count == 0:
        console.log("Nothing is detected on these pictures, so no detections were compared.")


def _differences(comparison: dict[str, Any]) -> str:
    parts = [
        f"{name} differ by at most {comparison[name]['largest_difference']:.2g} "
        f"(largest {comparison[name]['largest_value']:.3g})"
        for name in ("logits", "offsets")
        if name in comparison
    ]
    return f"from torch, {' and '.join(parts)}"
