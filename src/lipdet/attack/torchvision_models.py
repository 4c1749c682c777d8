"""Attacks on detectors with torchvision's protocol (SSD, SSDlite, RetinaNet, Faster R-CNN, …).

Notable choices:
- `mislabel`, `vanish` and `fabricate` look at the detections that the model returns as it is
  evaluated; only their scores have a gradient.
- The losses exist in training mode only. The modules are then in training mode, except those that
  would behave differently on the same image: normalisation and dropout.
- Images pass one by one, so that no image depends on its companions.
- Faster R-CNN samples proposals at random in training; the sampling is seeded alike for every call.
- The model's own resizing is part of the model: epsilon counts in the pixels that are given to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lipdet.attack.gradient import attack_in_parts, frozen
from lipdet.attack.loop import Objective, OnStep
from lipdet.attack.objectives import GONE, ON_PREDICTIONS, PredictionObjective, Predictions
from lipdet.attack.settings import AttackSettings
from lipdet.detector.matching import pad_targets
from lipdet.errors import InputError
from lipdet.types import Detections, Target

# Words in the names of torchvision's losses; `multibox` is the sum of all.
LOSSES = {
    "multibox": ("",),
    "classification": ("classif", "objectness"),
    "localisation": ("regression", "box_reg"),
}
# A score in float32 this close to 0 or 1 has no gradient left.
SATURATED = 1e-7


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
        model: returns detections in eval mode, and a dictionary of losses in training mode.
        images: (B, 3, H, W) in [0, 1].
        targets: the objects, with the model's own labels (torchvision counts from 1).
        settings: of the attack.
        indices: number of each image in its data set.
        on_step: told about every step.

    Raises:
        InputError: the objective follows scores, and these have no gradient.
    """
    on_predictions = ON_PREDICTIONS.get(settings.objective)

    def objective_of(part: range) -> Objective:
        target = targets[part.start]
        if on_predictions:
            return lambda batch, _: _value(model, batch, target, on_predictions)
        return lambda batch, _: _loss(model, batch, target, LOSSES[settings.objective])

    mode = frozen if on_predictions else _computing_losses
    with mode(model):
        found = attack_in_parts(objective_of, images, settings, indices, on_step, at_once=1)
    return found.images


def _value(
    model: nn.Module, image: Tensor, target: Target, objective: PredictionObjective
) -> Tensor:
    """Return the value (1,) of an objective of what is detected in one image (1, 3, H, W)."""
    [found] = model(list(image))
    if torch.is_grad_enabled() and len(found["scores"]) and not found["scores"].requires_grad:
        raise InputError(
            "The module's scores cannot be differentiated by the picture; an attack that follows "
            "them would do nothing. Let them, or choose the objective multibox."
        )
    predictions = _predictions(found, target)
    # Where nothing is detected, nothing depends on the image.
    return objective(predictions, pad_targets([target]).to(image.device)) + 0 * image.sum()


def _predictions(found: Detections, target: Target) -> Predictions:
    """Return detections of one image as boxes with log-odds: a class that is not detected is gone.

    On every object stands one box with nothing in it, for what is no longer detected there.
    """
    boxes = torch.cat([found["boxes"].detach(), target["boxes"].to(found["boxes"])])
    labels = torch.cat([found["labels"], target["labels"].to(found["labels"])])
    log_odds = found["scores"].double().logit(SATURATED)
    classes = 1 + int(labels.max()) if len(labels) else 1
    table = log_odds.new_full((len(boxes), classes), GONE)
    rows = torch.arange(len(log_odds), device=boxes.device)
    table = table.index_put((rows, found["labels"]), log_odds)
    return Predictions(boxes[None], table[None])


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
