"""The loop of every gradient attack: climb an objective inside a ball, each image for itself.

Notable choices:
- A batch saves time and nothing else: every image has its own gradient, step, ball and best
  iterate, so no result depends on which images share a batch.
- An image whose gradient is zero or not finite has nothing left to climb and leaves the batch.
- The best iterate by the objective's value is kept, which is not always the last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipdet.attack.balls import Ball
from lipdet.attack.schedules import Iterates, Schedule

# Images (b, 3, H, W) and their places in the batch (b,) to one value per image (b,), to be raised.
Objective = Callable[[Tensor, Tensor], Tensor]
# Called at every step with its number, the places (b,) of the images still climbing and their
# values (b,).
OnStep = Callable[[int, Tensor, Tensor], None]


def climb(
    objective: Objective,
    clean: Tensor,
    start: Tensor,
    ball: Ball,
    schedule: type[Schedule],
    steps: int,
    on_step: OnStep | None = None,
) -> Iterates:
    """Raise an objective by projected gradient steps.

    Args:
        objective: what is raised, per image.
        clean: (B, 3, H, W) in [0, 1], the centres of the balls.
        start: (B, 3, H, W) inside the balls.
        ball: what a perturbation may be.
        schedule: chooses each next iterate, `Pgd` or `Apgd`.
        steps: number of gradients taken; the objective is evaluated once more at the end.
        on_step: told about every step; may raise to stop the attack.

    Returns:
        The best iterate of each image. No graph is kept.
    """
    places = torch.arange(len(clean), device=clean.device)
    now = _evaluate(objective, start, places)
    best = now
    walk = schedule(now, ball, steps)
    for step in range(steps):
        if on_step:
            on_step(step, places, now.values)
        moving = _can_move(now.gradients)
        if not moving.all():
            places, now = places[moving], now.at(moving)
            walk.keep(moving)
        if len(places) == 0:
            return best
        images = walk.next(now, best.at(places), clean[places])
        now = _evaluate(objective, images, places, gradient=step + 1 < steps)
        best = best.replaced(places, now)
    if on_step:
        on_step(steps, places, now.values)
    return best


def _evaluate(
    objective: Objective, images: Tensor, places: Tensor, gradient: bool = True
) -> Iterates:
    images = images.detach()
    if not gradient:
        with torch.no_grad():
            values = objective(images, places)
            return Iterates(images, _comparable(values), torch.zeros_like(images))
    with torch.enable_grad():
        images.requires_grad_(True)
        values = objective(images, places)
        # The images are independent: the gradient of the sum holds that of each.
        [gradients] = torch.autograd.grad(values.sum(), images)
    return Iterates(images.detach(), _comparable(values.detach()), gradients)


def _comparable(values: Tensor) -> Tensor:
    """Undefined values count as the worst, so that a defined one replaces them."""
    return values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _can_move(gradients: Tensor) -> Tensor:
    largest = gradients.flatten(1).abs().amax(dim=1)
    return (largest > 0) & largest.isfinite()
