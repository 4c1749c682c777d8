"""The single-shot detector: a backbone that returns feature maps, and a head on each of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipdet.boxes import NMS_IOU, BoxCoding, Decoder, Scores, Selection
from lipdet.config import DetectorConfig
from lipdet.types import Framing, RawOutput


class Normalize(nn.Module):
    """Map pixel values from [0, 1] to [-1, 1]; part of the network, and of its constant (2)."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise pictures (B, 3, H, W)."""
        return 2 * images - 1


class Head(nn.Module):
    """Class logits and box offsets of one feature map."""

    def __init__(self, classification: nn.Module, localisation: nn.Module, logits: int) -> None:
        super().__init__()
        self.classification = classification
        self.localisation = localisation
        self.logits = logits

    def forward(self, features: Tensor) -> RawOutput:
        """Map features (B, C, n, n) to logits (B, n·n·boxes, K) and offsets (B, n·n·boxes, 4)."""
        return RawOutput(
            _per_box(self.classification(features), self.logits),
            _per_box(self.localisation(features), 4),
        )


def _per_box(maps: Tensor, values: int) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, values)


class SSD(nn.Module):
    """Images to raw output, with all that turns raw output into boxes kept beside it.

    Attributes:
        config: what the detector was built from.
        coding: how offsets relate to default boxes.
        scores: how logits become scores.
        nms_iou: overlap from which on a box suppresses lower ones of its class.
        default_boxes: (A, 4) cx, cy, w, h in pixels, in the order of the raw output.
    """

    default_boxes: Tensor

    def __init__(
        self,
        config: DetectorConfig,
        backbone: nn.Module,
        heads: Sequence[Head],
        default_boxes: Tensor,
        coding: BoxCoding,
        scores: Scores,
        normalize: nn.Module | None = None,
        nms_iou: float = NMS_IOU,
    ) -> None:
        super().__init__()
        self.config = config
        self.coding = coding
        self.scores = scores
        self.nms_iou = nms_iou
        self.normalize = Normalize() if normalize is None else normalize
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        # Not persistent: the configuration determines them.
        self.register_buffer("default_boxes", default_boxes, persistent=False)

    @property
    def framing(self) -> Framing:
        """Return how pictures get onto its canvas."""
        return self.config.framing

    @property
    def display(self) -> Selection:
        """Return which of its detections are shown."""
        return Selection(self.config.shown_above, self.config.most_shown)

    @property
    def decoder(self) -> Decoder:
        """Return what turns this detector's raw output into boxes, on its device."""
        return Decoder(
            self.default_boxes, self.coding, self.scores, self.config.canvas, self.nms_iou
        )

    def forward(self, images: Tensor) -> RawOutput:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, A, K) and offsets (B, A, 4)."""
        features = self.backbone(self.normalize(images))
        outputs = [head(level) for head, level in zip(self.heads, features, strict=True)]
        return RawOutput(
            torch.cat([output.logits for output in outputs], dim=1),
            torch.cat([output.offsets for output in outputs], dim=1),
        )
