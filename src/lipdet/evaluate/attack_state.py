"""Detections of pictures as the tensors that the file of a chunk holds, and the keys of attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from lipdet.attack import AttackSettings
from lipdet.detector import SSD
from lipdet.evaluate.chunks import Tensors, code, pass_key, weights_hash
from lipdet.images.pack import Pack
from lipdet.types import Detections


def detections_to_tensors(found: Sequence[Detections]) -> Tensors:
    """Detections of several pictures, one after the other, and how many each has."""
    return {
        "boxes": torch.cat([one["boxes"] for one in found]),
        "labels": torch.cat([one["labels"] for one in found]),
        "scores": torch.cat([one["scores"] for one in found]),
        "counts": torch.tensor([len(one["labels"]) for one in found]),
    }


def detections_of(chunks: Sequence[Tensors]) -> list[Detections]:
    """What `detections_to_tensors` was given, chunk after chunk."""
    return [one for tensors in chunks for one in _detections(tensors)]


def attack_key(detector: SSD, pack: Pack, settings: AttackSettings, source: SSD | None) -> str:
    """A hash of everything that determines the outcome."""
    return pass_key(
        detector=weights_hash(detector),
        source=weights_hash(source or detector),
        data=pack.hash,
        settings=asdict(settings),
        **code(),
    )


def _detections(tensors: Tensors) -> list[Detections]:
    columns = (
        torch.split(tensors[name], tensors["counts"].tolist())
        for name in ("boxes", "labels", "scores")
    )
    return [
        Detections(boxes=boxes, labels=labels, scores=scores)
        for boxes, labels, scores in zip(*columns, strict=True)
    ]
