"""The network as it leaves, and as a .pt2 file of `torch.export`, which runs without lipdet.

Constructed weights are folded, outputs are plain tuples, the batch is any.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lipdet.checkpoint import LoadedNetwork, LoadedSegmenter
from lipdet.detector import SSD
from lipdet.export.metadata import KEY, describe
from lipdet.export.verify import verify
from lipdet.files import write_complete
from lipdet.layers import fold
from lipdet.segmenter import Segmenter
from lipdet.types import RawOutput

RAW = RawOutput._fields
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


def network_of(loaded: LoadedNetwork) -> SSD | Segmenter:
    """Return what is exported."""
    return loaded.segmenter if isinstance(loaded, LoadedSegmenter) else loaded.detector


def output_names(network: SSD | Segmenter, scored: bool) -> tuple[str, ...]:
    """Return the names of the outputs in their order."""
    if isinstance(network, Segmenter):
        return RAW[:1]
    return RAW + SCORED if scored else RAW


def traced(network: SSD | Segmenter, scored: bool = False) -> ExportedProgram:
    """Trace a network for inputs of its own size and any batch, in float32 on the CPU.

    Args:
        network: left as it is.
        scored: whether boxes and log-odds follow the raw outputs of a detector.
    """
    # A batch of one would be taken for a constant.
    example = torch.zeros(2, 3, *network.config.canvas)
    folded = Outputs(network, scored) if isinstance(network, SSD) else fold(network)
    folded = folded.cpu().float().eval().requires_grad_(False)
    return torch.export.export(folded, (example,), dynamic_shapes=({0: Dim("batch")},))


def export_torch(loaded: LoadedNetwork, out: Path, images: Tensor) -> dict[str, Any]:
    """Write a network's raw outputs as a .pt2 file; the metadata is `lipdet.json` in it.

    Args:
        loaded: the detector or segmenter.
        out: the file; it appears when the check has passed.
        images: (B, 3, H, W) in [0, 1], on which the program must equal it.

    Returns:
        The metadata in the file.

    Raises:
        InputError: the program differs from the network.
    """
    metadata = describe(loaded, images)
    program = traced(network_of(loaded))
    # Notes of the tracer that name files of this machine.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    network = torch.export.load(io.BytesIO(_as_bytes(program, metadata))).module()
    is_segmenter = isinstance(loaded, LoadedSegmenter)
    verify(loaded, network if is_segmenter else lambda x: RawOutput(*network(x)), metadata, images)
    write_complete(out, _as_bytes(program, metadata))
    return metadata


def _as_bytes(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={f"{KEY}.json": json.dumps(metadata)})
    return buffer.getvalue()
