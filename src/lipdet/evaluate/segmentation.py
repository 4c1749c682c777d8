"""What a segmenter gets right, pixel by pixel: confusions over a data set, and their figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.detector.forward import MOST_PIXELS, frozen
from lipdet.images.pack import Pack
from lipdet.progress import track
from lipdet.results import ClassPixels, Pixels
from lipdet.segmenter import Segmenter
from lipdet.types import IGNORED


@torch.no_grad()
def logits_of(segmenter: Segmenter, images: Tensor) -> Tensor:
    """Return logits (B, K, H, W) of images (B, 3, H, W) in [0, 1] in eval mode, on the CPU."""
    reference = next(segmenter.parameters())
    with frozen(segmenter):
        found: Tensor = segmenter(images.to(reference)).cpu()
    return found


def at_once(pack: Pack) -> int:
    """Return how many pictures of a pack pass together."""
    return max(1, MOST_PIXELS // (2 * pack.canvas.height * pack.canvas.width))


def confusion(logits: Tensor, masks: Tensor) -> NDArray[np.int64]:
    """Count labelled pixels by class (rows) and what has the highest logit (columns), (K, K).

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W) uint8.
    """
    classes, known = logits.shape[1], masks != IGNORED
    pairs = masks[known].long() * classes + logits.argmax(dim=1)[known]
    counts = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return np.asarray(counts.numpy(), np.int64)


def confusion_of_pack(
    segmenter: Segmenter, pack: Pack, indices: Sequence[int]
) -> NDArray[np.int64]:
    """Return the confusions (K, K) of all pixels of some pictures together."""
    masks, step = masks_of(pack), at_once(pack)
    total = np.zeros((len(pack.class_names),) * 2, np.int64)
    for start in track(range(0, len(indices), step), f"Segmenting {pack.name}"):
        chosen = list(indices[start : start + step])
        found = logits_of(segmenter, pack.pixels(chosen))
        total += confusion(found, torch.from_numpy(masks[chosen]))
    return total


def masks_of(pack: Pack) -> NDArray[np.uint8]:
    """Return the masks (N, H, W) of a pack that has some."""
    assert pack.masks is not None
    return pack.masks


def figures(counts: NDArray[np.int64], class_names: Sequence[str]) -> Pixels:
    """Sum up confusions (K, K): over all pixels together, so that large pictures count as much.

    A class that neither the masks nor the segmenter shows has no IoU, and is left out of the mean.
    """
    right, shown = np.diag(counts), counts.sum(axis=0)
    there = counts.sum(axis=1)
    per_class: dict[str, ClassPixels] = {
        name: {
            "iou": _share(right[k], there[k] + shown[k] - right[k]),
            "recall": _share(right[k], there[k]),
            "precision": _share(right[k], shown[k]),
            "pixels": int(there[k]),
        }
        for k, name in enumerate(class_names)
    }
    known = [one["iou"] for one in per_class.values() if one["iou"] is not None]
    return {
        "accuracy": float(right.sum() / max(counts.sum(), 1)),
        "miou": float(np.mean(known)) if known else 0.0,
        "per_class": per_class,
    }


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
