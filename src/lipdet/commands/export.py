"""`lipdet export`: a detector as a file for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.commands.options import DETECTOR_HELP, Parser, Verb, check_writable, verb_parser
from lipdet.errors import InputError
from lipdet.export.torch_file import export_torch
from lipdet.images.spec import open_data

# On which the exported network must equal the detector.
VERIFIED = "rendered:100"


def parser() -> Parser:
    """Options of `run`."""
    parser = verb_parser(
        "Write a detector as a file for other programs, and check it against torch.",
        "lipdet export naive --out naive.onnx --detections true",
    )
    parser.add_argument("detector", help=DETECTOR_HELP)
    parser.add_function_arguments(run, skip={"detector"})
    return parser


def run(
    detector: str,
    out: Path,
    format: Literal["onnx", "torch-export"] = "onnx",  # the option is called --format
    detections: bool = False,
) -> None:
    """Write a detector as a file for other programs, and check it against torch.

    Args:
        detector: DETECTOR.
        out: the file to write, such as NAME.onnx or NAME.pt2.
        format: onnx (needs the extra `onnx`) or torch-export.
        detections: the model also decodes boxes and suppresses doubles (onnx only).
    """
    check_writable(out)
    if detections and format != "onnx":
        raise InputError("--detections needs --format onnx: torch-export holds raw outputs only.")
    loaded = load_detector(detector)
    pack = open_data(VERIFIED, "test", loaded.detector.config.image_size)
    images = torch.from_numpy(pack.images[:].copy()).permute(0, 3, 1, 2).float() / 255
    if format == "torch-export":
        metadata = export_torch(loaded, out, images)
    else:
        metadata = _onnx_exporter()(loaded, out, images, detections)
    _print(out, metadata)


def _onnx_exporter() -> Callable[[LoadedDetector, Path, Tensor, bool], dict[str, Any]]:
    try:
        from lipdet.export.onnx_file import export_onnx
    except ImportError as error:
        raise InputError(
            f"--format onnx needs {error.name}; install it with: pip install 'lipdet[onnx]'."
        ) from None
    return export_onnx


def _print(out: Path, metadata: dict[str, Any]) -> None:
    verified = metadata["verified"]
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, checked on {verified['pictures']} pictures")
    for name in ("logits", "offsets"):
        difference, largest = verified[name].values()
        print(f"  {name} differ from torch by at most {difference:.1e} (largest {largest:.3g})")
    if "same_detections" in verified:
        print(f"  detections are lipdet's own on {verified['same_detections']} of them")


VERB = Verb("write a detector for other programs", parser, run)
