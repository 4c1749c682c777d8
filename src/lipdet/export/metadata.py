"""What an exported file says about itself, as one json text: enough to use it without its source.

Notable choices:
- Default boxes are stored as numbers, not as the recipe that made them: a reader needs no lipdet.
- The certificate's part is a summary per map, the largest constant of any output of that map; what
  certifies single detections is computed from the weights file. Of a segmenter it is all that a
  radius is computed from.
"""

from __future__ import annotations

import base64
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipdet.boxes import BoxCoding, Decoder, Scores, Selection, SigmoidScores, SoftmaxScores
from lipdet.certificate.constants.outputs import output_bounds
from lipdet.certificate.pixels import PixelBounds, bounds_of_pixels
from lipdet.checkpoint import LoadedNetwork, LoadedSegmenter
from lipdet.config import NetworkConfig, stored
from lipdet.detector import SSD
from lipdet.errors import UnknownLipschitz
from lipdet.segmenter import Segmenter
from lipdet.types import Canvas
from lipdet.versions import versions

KEY = "lipdet"
DTYPE = "<f4"
DOUBLE = "<f8"
UNITS = {"norm": "L2", "epsilon": "over all input values, in [0, 1] pixel units at input size"}
# A segmenter's rounding is measured on so many pictures, and noise.
MEASURED = 8


def describe(
    loaded: LoadedNetwork, images: Tensor, selection: Selection | None = None
) -> dict[str, Any]:
    """Tell what is known before the file is checked; docs/export.md explains each entry.

    Args:
        loaded: the detector or segmenter that is exported.
        images: (B, 3, H, W) in [0, 1], on which a segmenter's rounding is measured.
        selection: of the detections inside the model, if it has any.
    """
    if isinstance(loaded, LoadedSegmenter):
        config: NetworkConfig = loaded.segmenter.config
        own: dict[str, Any] = {"certificate": _of_pixels(loaded.segmenter, images[:MEASURED])}
    else:
        config = loaded.detector.config
        own = {
            "decoder": _decoder_as_dict(loaded.detector.decoder),
            "selection": asdict(selection) if selection else None,
            "certificate": _certificate(loaded.detector),
        }
    return {
        "weights": loaded.name,
        **stored(config),
        "figures": loaded.info.get("figures", {}),
        "input": {
            "name": "images",
            "shape": ["batch", 3, *config.canvas],
            "channels": "RGB",
            "range": [0, 1],
        },
        "precision": "float32",
        **own,
        "versions": versions(),
    }


def read_decoder(metadata: dict[str, Any]) -> Decoder:
    """Return the decoder that `describe` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is not in the form that `describe` writes.
    """
    stored = metadata["decoder"]
    numbers = np.frombuffer(base64.b64decode(stored["default_boxes"]), DTYPE).reshape(-1, 4)
    temperature = stored["temperature"]
    scores: Scores = SoftmaxScores()
    if temperature is not None:
        margin = stored["class_margin"]
        scores = SigmoidScores(float(temperature), math.inf if margin is None else float(margin))
    return Decoder(
        torch.from_numpy(numbers.astype(np.float32)),
        BoxCoding(float(stored["center_variance"]), float(stored["size_variance"])),
        scores,
        Canvas(*stored["canvas"]),
        float(stored["nms_iou"]),
    )


def _decoder_as_dict(decoder: Decoder) -> dict[str, Any]:
    numbers = decoder.default_boxes.cpu().numpy().astype(DTYPE)
    scores = decoder.scores
    margin = scores.class_margin if isinstance(scores, SigmoidScores) else math.inf
    return {
        "canvas": list(decoder.canvas),
        "anchors": len(numbers),
        "default_boxes": base64.b64encode(numbers.tobytes()).decode(),
        "default_boxes_form": "cx, cy, w, h in pixels; float32, little-endian, base64",
        "center_variance": decoder.coding.center_variance,
        "size_variance": decoder.coding.size_variance,
        "scores": "sigmoid" if isinstance(scores, SigmoidScores) else "softmax",
        "temperature": scores.temperature if isinstance(scores, SigmoidScores) else None,
        "class_margin": None if math.isinf(margin) else margin,
        "nms_iou": decoder.nms_iou,
    }


def _certificate(detector: SSD) -> dict[str, Any]:
    """Return the constants of the float32 network, or why there are none."""
    try:
        bounds = output_bounds(detector)
    except UnknownLipschitz as error:
        return {**UNITS, "unknown": str(error)}
    return {
        **UNITS,
        "joint": bounds.joint,
        "maps": [
            {
                "anchors": [rows.start, rows.stop],
                "features": features,
                "largest_logit": float(bounds.logits[rows].max()),
                "largest_offset": float(bounds.offsets[rows].max()),
            }
            for features, rows in zip(bounds.features, bounds.anchors, strict=True)
        ],
    }


def _of_pixels(segmenter: Segmenter, images: Tensor) -> dict[str, Any]:
    """Return what radii of pixels are computed from, or why there are none."""
    try:
        bounds = bounds_of_pixels(segmenter, images)
    except UnknownLipschitz as error:
        return {**UNITS, "unknown": str(error)}
    pairwise = bounds.pairwise.numpy().astype(DOUBLE)
    return {
        **UNITS,
        "joint": bounds.joint,
        "contrasts": bounds.contrasts,
        "rounding": bounds.rounding,
        "pairwise": base64.b64encode(pairwise.tobytes()).decode(),
        "pairwise_form": "class, class, row, column of a cell; float64, little-endian, base64",
        "cell": segmenter.cell,
        "first": list(segmenter.missing(*segmenter.config.canvas)[:2]),
    }


def read_bounds(metadata: dict[str, Any]) -> PixelBounds | None:
    """Return the constants of a segmenter that `describe` wrote; None where there are none."""
    stored, classes = metadata["certificate"], len(metadata["segmenter"]["class_names"])
    if "unknown" in stored:
        return None
    numbers = np.frombuffer(base64.b64decode(stored["pairwise"]), DOUBLE).astype(np.float64)
    shape = classes, classes, stored["cell"], stored["cell"]
    return PixelBounds(
        torch.from_numpy(numbers).reshape(shape),
        *(stored[name] for name in ("joint", "contrasts", "rounding")),
    )
