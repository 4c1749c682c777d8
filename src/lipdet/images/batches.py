"""Training batches from weighted packs: seeded, resumable at any step, straight from the maps.

Notable choices:
- Batch b of epoch e depends on (seed, e, b) alone, so that nothing has to be stored to resume.
- Validation is cut by photograph: all crops of one photograph are on the same side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.images.pack import Pack
from lipdet.types import Target


class Batch(NamedTuple):
    """`images` (B, 3, H, W) uint8 and the B targets."""

    images: Tensor
    targets: list[Target]


@dataclass(frozen=True)
class Part:
    """Some pictures of a pack, by index."""

    pack: Pack
    indices: NDArray[np.int64]

    def objects(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return boxes (N, 4) and labels (N,) of all objects in these pictures."""
        counts = np.diff(self.pack.starts)
        own = np.repeat(np.isin(np.arange(len(self.pack)), self.indices), counts)
        return self.pack.boxes[own], self.pack.labels[own]


def split(pack: Pack, share: float, limit: int, seed: int) -> tuple[Part, Part]:
    """Cut a pack into training and validation part, by photograph.

    Of each held-out photograph one crop is validated.

    Args:
        pack: the pack.
        share: share of the photographs to hold out, rounded down.
        limit: hold out at most so many.
        seed: of the choice.
    """
    photographs, first_crops = np.unique(pack.pictures, return_index=True)
    order = np.random.default_rng([seed, 1]).permutation(len(photographs))
    held_out = order[: min(int(len(photographs) * share), limit)]
    training = np.flatnonzero(~np.isin(pack.pictures, photographs[held_out]))
    return Part(pack, training), Part(pack, np.sort(first_crops[held_out]))


class Mixture:
    """Several parts, mixed by weight, served in batches.

    Args:
        parts: what to draw from; none may be empty.
        weights: relative share of each part in an epoch.
        epoch_pictures: pictures per epoch; the last, smaller batch is left out.
        batch_size: pictures per batch.
        seed: of the order.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        weights: Sequence[float],
        epoch_pictures: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.parts = parts
        self.batch_size = batch_size
        self.seed = seed
        shares = np.asarray(weights, float) / sum(weights) * epoch_pictures
        self.counts = np.floor(shares).astype(int)
        self.counts[np.argsort(self.counts - shares)[: epoch_pictures - self.counts.sum()]] += 1
        self.batches_per_epoch = epoch_pictures // batch_size

    def batch(self, epoch: int, index: int) -> Batch:
        """Return batch `index` of an epoch."""
        chosen = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        images = np.stack([self.parts[part].pack.images[picture] for part, picture in chosen])
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            [self.parts[part].pack.target(picture) for part, picture in chosen],
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the (part, picture) pairs of an epoch, (epoch_pictures, 2)."""
        if getattr(self, "_ordered_epoch", None) != epoch:
            self._ordered_epoch = epoch
            rows = [self._draw(number, epoch) for number in range(len(self.parts))]
            pairs = np.concatenate(rows)
            self._pairs = np.random.default_rng([self.seed, 2, epoch]).permutation(pairs)
        return self._pairs

    def _draw(self, number: int, epoch: int) -> NDArray[np.int64]:
        """Draw this epoch's share of one part: go on where the last stopped, pass after pass."""
        indices, count = self.parts[number].indices, int(self.counts[number])
        places = np.arange(epoch * count, (epoch + 1) * count)
        passes = places // len(indices)
        drawn = np.empty(count, np.int64)
        for turn in np.unique(passes):
            order = np.random.default_rng([self.seed, 3, number, int(turn)]).permutation(indices)
            here = passes == turn
            drawn[here] = order[places[here] % len(indices)]
        return np.stack([np.full(count, number), drawn], axis=1)
