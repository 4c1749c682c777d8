"""What an interrupted attack on a data set leaves behind: finished chunks, found by a hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from lipdet.attack import AttackSettings, Outcome
from lipdet.checkpoint import read_tensors, write_tensors
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.images.pack import Pack
from lipdet.types import Detections


class Found(NamedTuple):
    """Detections and damage of every picture of a pack, in its order."""

    detections: list[Detections]
    damage: list[float]


def write_chunk(file: Path, outcome: Outcome) -> None:
    """Keep the detections and the damage of a chunk.

    Raises:
        InputError: a file stands where the folder should be.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{file.parent} is a file; the state needs a folder.") from None
    found = outcome.detections
    write_tensors(
        file,
        {
            "boxes": torch.cat([one["boxes"] for one in found]),
            "labels": torch.cat([one["labels"] for one in found]),
            "scores": torch.cat([one["scores"] for one in found]),
            "counts": torch.tensor([len(one["labels"]) for one in found]),
            "damage": torch.tensor(outcome.damage, dtype=torch.float64),
        },
        {},
    )


def read_chunk(file: Path) -> Found:
    """What `write_chunk` kept.

    Raises:
        InputError: the file is damaged.
    """
    tensors, _ = read_tensors(file)
    columns = (
        torch.split(tensors[name], tensors["counts"].tolist())
        for name in ("boxes", "labels", "scores")
    )
    detections = [
        Detections(boxes=boxes, labels=labels, scores=scores)
        for boxes, labels, scores in zip(*columns, strict=True)
    ]
    return Found(detections, tensors["damage"].tolist())


def attack_key(detector: SSD, pack: Pack, settings: AttackSettings, source: SSD | None) -> str:
    """A hash of everything that determines the outcome."""
    parts = {
        "detector": _weights_hash(detector),
        "source": _weights_hash(source or detector),
        "data": pack.hash,
        "settings": asdict(settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _weights_hash(detector: SSD) -> str:
    digest = hashlib.sha256(repr((detector.config, detector.coding, detector.scores)).encode())
    for name, tensor in sorted(detector.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
