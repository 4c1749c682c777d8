"""The loop of every gradient attack: climb an objective inside a ball, each image for itself.

Which iterate comes next is the schedule's: PGD with steps planned in advance, APGD with steps that
adapt. A schedule is made once per climb and remembers what it needs per image.

Notable choices:
- A batch saves time and nothing else: every image has its own gradient, step, ball and best
  iterate, so no result depends on which images share a batch.
- An image whose gradient is zero or not finite has nothing left to climb and leaves the batch.
- The best iterate by the objective's value is kept, which is not always the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lipdet.attack.balls import Ball, per_image

# Images (b, 3, H, W) and their places in the batch (b,) to one value per image (b,), to be raised.
Objective = Callable[[Tensor, Tensor], Tensor]
# Called at every step with its number, the places (b,) of the images still climbing and their
# values (b,).
OnStep = Callable[[int, Tensor, Tensor], None]
# PGD's first step as a share of the radius; the steps fall linearly to zero.
FIRST_STEP = 1.0


class Iterates(NamedTuple):
    """Images (B, 3, H, W) with their objective values (B,) and gradients (B, 3, H, W)."""

    images: Tensor
    values: Tensor
    gradients: Tensor

    def at(self, rows: Tensor) -> Iterates:
        """Return the iterates of some images."""
        return Iterates(*(tensor[rows] for tensor in self))

    def replaced(self, places: Tensor, others: Iterates) -> Iterates:
        """Return these, but at `places` (b,) the `others` (b, …) where their value is higher."""
        higher = others.values > self.values[places]
        return Iterates(
            *(
                old.index_copy(0, places[higher], new[higher])
                for old, new in zip(self, others, strict=True)
            )
        )


class Schedule(Protocol):
    """Interface of the schedules `Pgd` and `Apgd`, which are made from the same arguments."""

    def __init__(self, start: Iterates, ball: Ball, steps: int) -> None: ...

    def keep(self, rows: Tensor) -> None:
        """Forget all images but these."""

    def next(self, now: Iterates, best: Iterates, clean: Tensor) -> Tensor:
        """Return the next images (B, 3, H, W), inside the balls around `clean`."""


class Pgd:
    """Projected gradient ascent (Madry et al., 2018) with linearly shrinking steps."""

    def __init__(self, start: Iterates, ball: Ball, steps: int) -> None:
        self.ball = ball
        self.steps = steps
        self.step = 0

    def keep(self, rows: Tensor) -> None:
        """Do nothing: no memory is per image."""

    def next(self, now: Iterates, best: Iterates, clean: Tensor) -> Tensor:
        """Return one step along the steepest direction."""
        length = FIRST_STEP * self.ball.epsilon * (1 - self.step / self.steps)
        self.step += 1
        return self.ball.project(now.images + length * self.ball.direction(now.gradients), clean)


class _Memory(NamedTuple):
    """Memory of Auto-PGD for each image, (B, …).

    Attributes:
        images: the iterate before the present one.
        value: its objective value.
        length: of the next step.
        rises: updates since the last checkpoint that raised the objective.
        halved: whether the step was halved at the last checkpoint.
        best: the best value at the last checkpoint.
    """

    images: Tensor
    value: Tensor
    length: Tensor
    rises: Tensor
    halved: Tensor
    best: Tensor


class Apgd:
    """Auto-PGD (Croce & Hein, 2020, algorithm 1): momentum, and steps halved at checkpoints.

    A step is halved, and the image goes back to its best iterate, when too few updates since the
    last checkpoint raised the objective, or when neither step nor best value have changed since.
    """

    MOVE = 0.75  # the rest of a movement repeats the last one
    RISING = 0.75

    def __init__(self, start: Iterates, ball: Ball, steps: int) -> None:
        self.ball = ball
        self.checkpoints = checkpoints(steps)
        self.step = 0
        zeros = torch.zeros_like(start.values)
        self.memory = _Memory(
            images=start.images,
            value=start.values,
            length=zeros + 2 * ball.epsilon,
            rises=zeros,
            halved=zeros.bool(),
            best=start.values,
        )

    def keep(self, rows: Tensor) -> None:
        """Forget all images but these."""
        self.memory = _Memory(*(tensor[rows] for tensor in self.memory))

    def next(self, now: Iterates, best: Iterates, clean: Tensor) -> Tensor:
        """Return a step along the steepest direction, mixed with the last movement."""
        rises = self.memory.rises + (now.values > self.memory.value)
        memory = self.memory._replace(rises=rises)
        if self.step in self.checkpoints[1:]:
            now, memory = self._check(now, best, memory)
        step = per_image(memory.length, now.images) * self.ball.direction(now.gradients)
        images = self.ball.project(now.images + step, clean)
        if self.step > 0:
            images = now.images + self.MOVE * (images - now.images)
            images = images + (1 - self.MOVE) * (now.images - memory.images)
            images = self.ball.project(images, clean)
        self.memory = memory._replace(images=now.images, value=now.values)
        self.step += 1
        return images

    def _check(self, now: Iterates, best: Iterates, memory: _Memory) -> tuple[Iterates, _Memory]:
        """Halve, at a checkpoint, the steps that do not help and go back to the best iterates."""
        interval = self.step - max(point for point in self.checkpoints if point < self.step)
        stands_still = ~memory.halved & (best.values <= memory.best)
        halve = (memory.rises < self.RISING * interval) | stands_still
        now = Iterates(
            *(
                torch.where(per_image(halve, new), old, new)
                for old, new in zip(best, now, strict=True)
            )
        )
        memory = memory._replace(
            # Without a last movement: the momentum starts anew.
            images=torch.where(per_image(halve, now.images), now.images, memory.images),
            length=torch.where(halve, memory.length / 2, memory.length),
            rises=torch.zeros_like(memory.rises),
            halved=halve,
            best=best.values,
        )
        return now, memory


SCHEDULES: dict[str, type[Schedule]] = {"pgd": Pgd, "apgd": Apgd}


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which Auto-PGD judges its progress, 0 first: ever shorter intervals."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Sums of decimal fractions may come out a rounding error too high.
    return sorted({math.ceil(share * steps - 1e-9) for share in shares[:-1]})


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
    """Count undefined values as the worst, so that a defined one replaces them."""
    return values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _can_move(gradients: Tensor) -> Tensor:
    largest = gradients.flatten(1).abs().amax(dim=1)
    return (largest > 0) & largest.isfinite()
