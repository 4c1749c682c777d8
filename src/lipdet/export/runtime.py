"""An exported ONNX model as a detector: the network runs in ONNX Runtime, the rest in lipdet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipdet.boxes import Decoder, Selection
from lipdet.config import detector_config
from lipdet.errors import InputError
from lipdet.export.metadata import KEY, read_decoder
from lipdet.types import RawOutput


class OnnxModel:
    """Images to outputs, computed by ONNX Runtime on the CPU; torch only carries the arrays.

    Attributes:
        metadata: what the model says about itself.
    """

    def __init__(self, model: bytes, threads: int = 0) -> None:
        """Open a model.

        Args:
            model: the content of the file.
            threads: of one run; 0 leaves the choice to ONNX Runtime.

        Raises:
            ImportError: ONNX Runtime is not installed.
            KeyError, RuntimeError, ValueError: no model that lipdet exported.
        """
        # Not needed by the rest of the package.
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        # Its warnings concern the exporter, not the user.
        settings.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model, settings, providers=["CPUExecutionProvider"]
        )
        stored = self._session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = json.loads(stored[KEY])

    def run(self, images: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        """Return the outputs of these names."""
        found = self._session.run(list(names), {"images": images.cpu().float().numpy()})
        return [torch.from_numpy(array) for array in found]


class OnnxNetwork(OnnxModel):
    """An exported detector: images to raw output.

    Attributes:
        decoder: what turns the raw output into boxes.
        class_names: in the order of its labels.
        framing: how pictures get onto its canvas.
        display: what of its detections is shown.
    """

    def __init__(self, model: bytes, threads: int = 0) -> None:
        """Open a model; arguments and errors are those of `OnnxModel`, and TypeError."""
        super().__init__(model, threads)
        if "segmenter" in self.metadata:
            raise ValueError("it is of a segmenter: docs/export.md says how such a file is used")
        self.decoder: Decoder = read_decoder(self.metadata)
        config = detector_config(self.metadata["detector"])
        self.class_names = config.class_names
        self.framing = config.framing
        self.display = Selection(config.shown_above, config.most_shown)

    def __call__(self, images: Tensor) -> RawOutput:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, A, K) and offsets (B, A, 4)."""
        logits, offsets = self.run(images, RawOutput._fields)
        return RawOutput(logits, offsets)


class OnnxSegmenter(OnnxModel):
    """An exported segmenter."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, K, H, W)."""
        [logits] = self.run(images, ("logits",))
        return logits


def load_onnx(path: Path) -> OnnxNetwork:
    """Open a file that `lipdet export --format onnx` wrote.

    Raises:
        InputError: it is missing, no such file, or ONNX Runtime is not installed.
    """
    try:
        return OnnxNetwork(path.read_bytes())
    except ImportError:
        raise InputError(
            f"{path} needs ONNX Runtime; in the clone of lipdet: pip install -e '.[onnx]'."
        ) from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `lipdet export` writes one.") from None
    # ONNX Runtime has many exceptions of its own, all of them direct children of Exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is no detector that lipdet exported ({reason}).") from None
