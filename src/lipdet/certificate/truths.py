"""Objects that certificates are asked for, of a whole batch in flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.types import Target


class Truths(NamedTuple):
    """G objects of a batch, and for each the others that a detection of its class may match.

    Attributes:
        image: (G,) which image of the batch.
        label: (G,) class of the detection that is to stay.
        box: (G, 4) float64 xyxy pixels.
        rival_starts: (G,) index of the first rival of each object in `rivals`.
        rival_counts: (G,) how many it has.
        rivals: (R, 4) float64 boxes of the others.
    """

    image: Tensor
    label: Tensor
    box: Tensor
    rival_starts: Tensor
    rival_counts: Tensor
    rivals: Tensor

    def at(self, index: Tensor) -> Truths:
        """Some of the objects, each with all of its rivals."""
        return self._replace(
            image=self.image[index],
            label=self.label[index],
            box=self.box[index],
            rival_starts=self.rival_starts[index],
            rival_counts=self.rival_counts[index],
        )

    def and_free(self, added: Truths) -> Truths:
        """These objects and after them others, which have no rivals."""
        return Truths(
            image=torch.cat([self.image, added.image]),
            label=torch.cat([self.label, added.label]),
            box=torch.cat([self.box, added.box]),
            rival_starts=torch.cat([self.rival_starts, added.rival_starts]),
            rival_counts=torch.cat([self.rival_counts, added.rival_counts]),
            rivals=self.rivals,
        )


def truths_of(targets: Sequence[Target]) -> Truths:
    """The objects of a batch of images; the rivals of each are the others of its class there."""
    image = torch.repeat_interleave(
        torch.tensor([len(target["labels"]) for target in targets], dtype=torch.int64)
    )
    label = torch.cat([target["labels"].cpu() for target in targets])
    box = torch.cat([target["boxes"].cpu().double() for target in targets])
    alike = (image[:, None] == image) & (label[:, None] == label)
    own, other = torch.nonzero(alike.fill_diagonal_(False), as_tuple=True)
    counts = torch.bincount(own, minlength=len(image))
    return Truths(image, label, box, counts.cumsum(0) - counts, counts, box[other])


def free_truths(image: Tensor, label: Tensor, box: Tensor) -> Truths:
    """Objects (G,) that compete with no other: of each one a detection shall merely remain."""
    none = torch.zeros_like(image)
    return Truths(image, label, box.double(), none, none, torch.zeros(0, 4, dtype=torch.float64))
