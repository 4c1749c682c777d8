"""The network as it leaves: constructed weights folded, outputs in plain tuples, any batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lipdet.detector import SSD
from lipdet.layers import fold

RAW = ("logits", "offsets")
# What non-maximum suppression works on; the outputs that follow the raw ones.
SCORED = ("decoded", "log_odds")


class Outputs(nn.Module):
    """A folded detector whose outputs are a tuple: `RAW`, and `SCORED` where asked for."""

    def __init__(self, detector: SSD, scored: bool) -> None:
        super().__init__()
        self.decoder = detector.decoder
        self.scored = scored
        self.detector = fold(detector)
        self.register_buffer("default_boxes", detector.default_boxes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images to logits, offsets, boxes and log-odds.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            logits (B, A, K) and offsets (B, A, 4); then, if scored, boxes (B, A, 4) xyxy pixels
            inside the image and log-odds (B, classes, A), −∞ where there is no vote.
        """
        logits, offsets = self.detector(images)
        if not self.scored:
            return logits, offsets
        scores = self.decoder.scores
        votes = scores.votes(scores.log_odds(logits))
        return logits, offsets, self.decoder.boxes(offsets), votes.transpose(1, 2)


def output_names(scored: bool) -> Sequence[str]:
    """Return the names of the outputs in their order."""
    return RAW + SCORED if scored else RAW


def traced(detector: SSD, scored: bool = False) -> ExportedProgram:
    """Trace a detector for inputs of its own size and any batch, in float32 on the CPU.

    Args:
        detector: left as it is.
        scored: whether boxes and log-odds follow the raw outputs.
    """
    network = Outputs(detector, scored).cpu().float().eval().requires_grad_(False)
    # A batch of one would be taken for a constant.
    example = torch.zeros(2, 3, *detector.config.canvas)
    return torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
