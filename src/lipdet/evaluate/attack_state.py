"""Detections of pictures as the tensors that the file of a chunk holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lipdet.evaluate.chunks import Pass, Tensors
from lipdet.types import Detections


def detections_to_tensors(found: Sequence[Detections]) -> Tensors:
    """Return detections of several pictures, one after the other, and how many each has."""
    return {
        "boxes": torch.cat([one["boxes"] for one in found]),
        "labels": torch.cat([one["labels"] for one in found]),
        "scores": torch.cat([one["scores"] for one in found]),
        "counts": torch.tensor([len(one["labels"]) for one in found]),
    }


def detections_from_tensors(tensors: Tensors) -> list[Detections]:
    """Return what `detections_to_tensors` was given."""
    columns = (
        torch.split(tensors[name], tensors["counts"].tolist())
        for name in ("boxes", "labels", "scores")
    )
    return [
        Detections(boxes=boxes, labels=labels, scores=scores)
        for boxes, labels, scores in zip(*columns, strict=True)
    ]


def detecting_pass(
    label: str,
    pictures: int,
    size: int,
    compute: Callable[[range], list[Detections]],
    folder: Path | None,
) -> Pass[list[Detections]]:
    """Make a pass whose results are detections; the arguments are those of `Pass`."""
    codec = detections_to_tensors, detections_from_tensors
    return Pass(label, pictures, size, compute, *codec, folder)


def in_order(chunks: Sequence[list[Detections]]) -> list[Detections]:
    """Join the detections of all chunks, picture by picture."""
    return [one for chunk in chunks for one in chunk]
