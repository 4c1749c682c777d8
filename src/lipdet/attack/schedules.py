"""Which iterate comes next: PGD with steps planned in advance, APGD with steps that adapt.

A schedule is made once per climb and remembers what it needs per image; the loop is in
`lipdet.attack.loop`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lipdet.attack.balls import Ball, per_image

# PGD's first step as a share of the radius; the steps fall linearly to zero.
FIRST_STEP = 1.0


class Iterates(NamedTuple):
    """Images (B, 3, H, W) with their objective values (B,) and gradients (B, 3, H, W)."""

    images: Tensor
    values: Tensor
    gradients: Tensor

    def at(self, rows: Tensor) -> Iterates:
        """Return those of some images."""
        return Iterates(*(tensor[rows] for tensor in self))

    def replaced(self, places: Tensor, others: Iterates) -> Iterates:
        """These, but at `places` (b,) the `others` (b, …) wherever their value is higher."""
        higher = others.values > self.values[places]
        return Iterates(
            *(
                old.index_copy(0, places[higher], new[higher])
                for old, new in zip(self, others, strict=True)
            )
        )


class Schedule(Protocol):
    """What the loop needs of a schedule; `Pgd` and `Apgd` are made from the same arguments."""

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
        """Nothing is remembered per image."""

    def next(self, now: Iterates, best: Iterates, clean: Tensor) -> Tensor:
        """Return one step along the steepest direction."""
        length = FIRST_STEP * self.ball.epsilon * (1 - self.step / self.steps)
        self.step += 1
        return self.ball.project(now.images + length * self.ball.direction(now.gradients), clean)


class _Memory(NamedTuple):
    """What Auto-PGD knows of each image, (B, …).

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
        """At a checkpoint: halve the steps that do not help and go back to the best iterates."""
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
