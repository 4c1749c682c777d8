"""Attacks on torchvision's detectors (SSD, SSDlite, RetinaNet, Faster R-CNN) through their losses.

Notable choices:
- torchvision computes losses in training mode only, so the modules are in training mode, except
  those that would then behave differently on the same image: normalisation and dropout.
- Images pass one by one: the losses are then per image, and no image depends on its companions.
- Faster R-CNN samples proposals at random; the sampling is seeded alike for every call.
- The model's own resizing is part of the model: epsilon counts in the pixels that are given to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lipdet.attack.gradient import attack_in_parts, frozen
from lipdet.attack.loop import Objective, OnStep
from lipdet.attack.settings import AttackSettings
from lipdet.errors import InputError
from lipdet.types import Target

# Words in the names of torchvision's losses; `multibox` is the sum of all.
LOSSES = {
    "multibox": ("",),
    "classification": ("classif", "objectness"),
    "localisation": ("regression", "box_reg"),
}


def attack_torchvision(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[Target],
    settings: AttackSettings,
    indices: Sequence[int] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Like `lipdet.attack.attack_batch`, for a detector of `torchvision.models.detection`.

    Args:
        model: returns a dictionary of losses in training mode.
        images: (B, 3, H, W) in [0, 1].
        targets: the objects, with the model's own labels (torchvision counts from 1).
        settings: `objective` must be multibox (all losses), classification or localisation.
        indices: number of each image in its data set.
        on_step: told about every step.

    Raises:
        InputError: the objective needs raw output, which these models do not give.
    """
    if settings.objective not in LOSSES:
        raise InputError(
            f"The objective {settings.objective!r} needs raw output, which torchvision's detectors "
            f"do not give; choose one of: {', '.join(LOSSES)}."
        )
    words = LOSSES[settings.objective]

    def objective_of(part: range) -> Objective:
        return lambda batch, _: _loss(model, batch, targets[part.start], words)

    with _computing_losses(model):
        found = attack_in_parts(objective_of, images, settings, indices, on_step, at_once=1)
    return found.images


def _loss(model: nn.Module, image: Tensor, target: Target, words: Sequence[str]) -> Tensor:
    """The sum (1,) of the losses of one image (1, 3, H, W) whose names contain one of the words."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses: dict[str, Tensor] = model(list(image), [dict(target)])
    chosen = [loss for name, loss in losses.items() if any(word in name for word in words)]
    return torch.stack(chosen).sum().view(1)


@contextmanager
def _computing_losses(model: nn.Module) -> Iterator[None]:
    with frozen(model):
        for module in model.modules():
            statistics = isinstance(
                module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd
            )
            module.training = not statistics
        yield
