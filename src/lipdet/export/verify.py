"""Whether an exported network computes what the detector computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lipdet.boxes import Decoder, Selection, select_detections
from lipdet.errors import InputError
from lipdet.types import RawOutput

# Of the largest output on the same pictures, or of 1 where all are smaller: float32 sums in
# another order differ by a few times 1e-7 of their largest terms.
TOLERANCE = 1e-5
# Batches of one, of several and of many, so that a batch taken for a constant would be found.
BATCHES = (1, 7, 32)

Network = Callable[[Tensor], RawOutput]


@torch.no_grad()
def compare(detector: Network, exported: Network, images: Tensor) -> dict[str, Any]:
    """Compare the raw outputs of two networks on the same pictures.

    Args:
        detector: the original, in eval mode.
        exported: run on batches of several sizes.
        images: (B, 3, S, S) in [0, 1].

    Returns:
        The number of pictures; per output the largest difference and the largest value.
    """
    batches = [images[rows] for rows in _batches(len(images))]
    expected = [detector(batch) for batch in batches]
    actual = [exported(batch) for batch in batches]
    found: dict[str, Any] = {"pictures": len(images)}
    for name in RawOutput._fields:
        ours = torch.cat([getattr(raw, name) for raw in expected])
        theirs = torch.cat([getattr(raw, name) for raw in actual])
        found[name] = {
            "largest_difference": float((ours - theirs).abs().max()),
            "largest_value": float(ours.abs().max()),
        }
    return found


def check(comparison: dict[str, Any]) -> None:
    """Refuse an export whose outputs differ by more than `TOLERANCE`.

    Raises:
        InputError: they do.
    """
    for name in RawOutput._fields:
        difference, largest = comparison[name].values()
        if not difference <= TOLERANCE * max(1.0, largest):
            raise InputError(
                f"The exported network is not the detector: its {name} differ by up to "
                f"{difference:.2g} where the largest is {largest:.2g}; nothing was written."
            )


def same_detections(
    found: tuple[Tensor, Tensor, Tensor], raw: RawOutput, decoder: Decoder, selection: Selection
) -> int:
    """Count the pictures on which a model's own detections are those that lipdet selects.

    Args:
        found: boxes (B, k, 4), labels (B, k) and scores (B, k) of the model.
        raw: the raw output of the same run.
        decoder: of the detector.
        selection: the one that the model was given.
    """
    return sum(
        bool(
            torch.equal(labels[labels >= 0], one["labels"])
            and torch.allclose(boxes[labels >= 0], one["boxes"], atol=1e-3)
            and torch.allclose(scores[labels >= 0].double(), one["scores"], atol=1e-5)
        )
        for boxes, labels, scores, one in zip(
            *found, select_detections(raw, decoder, selection), strict=True
        )
    )


def _batches(count: int) -> list[slice]:
    """Batches of `BATCHES` in turn, the last size again and again, that cover `count` images."""
    sizes = itertools.chain(BATCHES, itertools.repeat(BATCHES[-1]))
    starts = itertools.takewhile(
        lambda start: start < count, itertools.accumulate(sizes, initial=0)
    )
    return [slice(*pair) for pair in itertools.pairwise([*starts, count])]
