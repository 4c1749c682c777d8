"""Attacks on segmenters: the same climbing, with objectives of pixels.

A mask tells what is right; what is not labelled counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.attack.gradient import attack_images
from lipdet.attack.settings import AttackSettings
from lipdet.detector.forward import frozen
from lipdet.segmenter import Segmenter
from lipdet.types import IGNORED

# An attack's temperature, where the median margin of a picture's pixels is 1. Without such a unit
# the attack would hang on what logits happen to mean: far below, it raises pixels that no
# perturbation can flip. Chosen with scripts/attack_steepness.py.
STEEPNESS = 12.0


class PixelScores(NamedTuple):
    """Terms of objectives, for the labelled pixels of each picture of a batch.

    Attributes:
        behind: (B, H, W) how far the logit of the right class is behind the best other one.
        entropy: (B, H, W) cross entropy in nats.
        known: (B, H, W) whether a pixel is labelled.
    """

    behind: Tensor
    entropy: Tensor
    known: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the labelled pixels of each picture, (B,)."""
        counts = self.known.flatten(1).sum(dim=1).clamp(min=1)
        return (values * self.known).flatten(1).sum(dim=1) / counts


def pixel_scores(logits: Tensor, masks: Tensor, temperature: Tensor | float) -> PixelScores:
    """Compare logits (B, K, H, W) with masks (B, H, W).

    Args:
        logits: of a batch.
        masks: of the same pictures.
        temperature: (B,), or one for all: what entropies multiply logits by.
    """
    temperature = torch.as_tensor(temperature, device=logits.device).reshape(-1, 1, 1, 1)
    known = masks != IGNORED
    labels = masks.long().where(known, 0)
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    entropy = functional.cross_entropy(temperature * logits, labels, reduction="none")
    return PixelScores(others - own[:, 0], entropy, known)


# Scores and temperatures (B,) to what an attack raises, (B,): the share of pixels that are wrong,
# as a gradient can climb it; the mean margin lost; the mean loss.
OBJECTIVES: dict[str, Callable[[PixelScores, Tensor], Tensor]] = {
    "flip": lambda scores, t: scores.mean(torch.sigmoid(t[:, None, None] * scores.behind)),
    "margin": lambda scores, t: scores.mean(scores.behind),
    "cross-entropy": lambda scores, t: scores.mean(scores.entropy),
}


@dataclass(frozen=True)
class PixelSettings(AttackSettings):
    """One attack on a segmenter."""

    objectives: ClassVar = tuple(OBJECTIVES)
    unnamed: ClassVar = {"flip": 1.0}
    worst: ClassVar = dict.fromkeys(OBJECTIVES, 1.0)

    objective: str = "flip"


def attack_pixels(
    segmenter: Segmenter,
    images: Tensor,
    masks: Tensor,
    attacks: Sequence[AttackSettings],
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Return of each picture the worst that several attacks find, by pixels that are wrong.

    Where none finds anything worse, the picture itself is returned.

    Args:
        segmenter: frozen meanwhile.
        images: (B, 3, H, W) in [0, 1].
        masks: (B, H, W) uint8.
        attacks: `PixelSettings`, each for every picture.
        indices: as in `lipdet.attack.attack_batch`.
    """
    reference = next(segmenter.parameters())
    images, masks = images.to(reference), masks.to(reference.device)

    def wrong(batch: Tensor) -> Tensor:
        predicted: Tensor = segmenter(batch).argmax(dim=1)
        missed = (predicted != masks) & (masks != IGNORED)
        return missed.flatten(1).sum(dim=1)

    with frozen(segmenter):
        with torch.no_grad():
            worst, most = images, wrong(images)
            temperature = _temperature(segmenter(images), masks)
        for settings in attacks:
            value = OBJECTIVES[settings.objective]

            def raised(batch: Tensor, rows: Tensor, value: Callable[..., Tensor] = value) -> Tensor:
                scores = pixel_scores(segmenter(batch), masks[rows], temperature[rows])
                return value(scores, temperature[rows])

            found = attack_images(raised, images, settings, indices).images
            with torch.no_grad():
                count = wrong(found)
            better = count > most
            worst = torch.where(better[:, None, None, None], found, worst)
            most = torch.where(better, count, most)
    return worst


def _temperature(logits: Tensor, masks: Tensor) -> Tensor:
    """Return by what an attack multiplies the logits of each clean picture, (B,)."""
    scores = pixel_scores(logits, masks, 1.0)
    margins = scores.behind.abs().masked_fill(~scores.known, torch.nan)
    median = margins.flatten(1).nanmedian(dim=1).values.nan_to_num(1.0)
    return STEEPNESS / median.clamp_min(1e-6)
