"""An exported ONNX model in 8-bit integers, by static quantisation of ONNX Runtime.

Notable choices:
- Activations and weights are signed 8-bit, weights with one scale per channel; ranges of
  activations are those seen on calibration pictures. Decoding and non-maximum suppression stay in
  float32, where a box is not rounded to a 256th of the image.
- No certificate carries over by itself: rounding is a step function, and no constant bounds how far
  the outputs of a quantised network move. See docs/export.md for what can still be said.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor

from lipdet.export.network import RAW

BATCH = 32


class Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Batches of pictures in the form that ONNX Runtime asks for."""

    def __init__(self, images: Tensor) -> None:
        starts = range(0, len(images), BATCH)
        self._batches = ({"images": images[start : start + BATCH].numpy()} for start in starts)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None after the last."""
        return next(self._batches, None)


def quantised(model: ModelProto, images: Tensor) -> ModelProto:
    """Turn the network of a model into 8-bit integers.

    Args:
        model: as `lipdet.export.onnx_file.onnx_model` makes it.
        images: (B, 3, S, S) in [0, 1], representative of what the model will see.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        # The exporter has inferred the shapes and folded what can be folded already.
        add_pre_process_metadata(model)
        onnx.save(model, source)
        # The calibration also looks at log-odds of -inf, which stay in float32.
        with np.errstate(invalid="ignore"):
            quantize_static(
                source,
                target,
                Pictures(images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=_after_raw(model),
            )
        return onnx.load(target)


def _after_raw(model: ModelProto) -> list[str]:
    """Names of the nodes that work on the raw outputs."""
    late = set(RAW)
    names = []
    for node in model.graph.node:
        if late & set(node.input):
            late |= set(node.output)
            names.append(node.name)
    return names
