"""Gradient attacks on a batch of any size: random starts, restarts, bounded memory.

`attack_batch` is what training loops and all else call for detectors; `attack_images` is the same
for any objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lipdet.attack.attackable import MOST_AT_ONCE, Attackable, attackable
from lipdet.attack.balls import BALLS, Ball
from lipdet.attack.loop import SCHEDULES, Iterates, Objective, OnStep, climb
from lipdet.attack.settings import AttackSettings
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.types import Target


def attack_batch(
    detector: SSD | Attackable,
    images: Tensor,
    targets: Sequence[Target],
    settings: AttackSettings,
    indices: Sequence[int] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return the worst images that an attack finds near the given ones.

    The detector is attacked in eval mode with frozen parameters, whatever mode it is in; modes and
    parameters are as before afterwards, and no parameter receives a gradient.

    Args:
        detector: an `SSD`, or another that answers what `Attackable` asks.
        images: (B, 3, H, W) in [0, 1].
        targets: the objects of the B images, in pixels.
        settings: radius, objective, schedule, steps, seed.
        indices: number of each image in its data set, which its random starts depend on; 0 to
            B - 1 if not given. In training, give numbers that change from step to step.
        on_step: told about every step of every start: its number, the places in `images` of those
            still climbing, and their values.

    Returns:
        (B, 3, H, W) in [0, 1], each within `settings.epsilon` of its original.
    """
    victim = attackable(detector)

    with victim.raising(settings.objective) as objective_of:

        def of_part(part: range) -> Objective:
            return objective_of([targets[place] for place in part])

        images = images.to(victim.device)
        return attack_in_parts(of_part, images, settings, indices, on_step, victim.at_once).images


def attack_images(
    objective: Objective,
    images: Tensor,
    settings: AttackSettings,
    indices: Sequence[int] | None = None,
) -> Iterates:
    """Climb any objective from random starts; return the best of all for each image, by its value.

    The objective takes images (b, 3, H, W) and their places in `images` (b,) to values (b,); that
    of the settings is not used. The other arguments are those of `attack_batch`.
    """

    def objective_of(part: range) -> Objective:
        return lambda batch, rows: objective(batch, rows + part.start)

    return attack_in_parts(objective_of, images, settings, indices, None, MOST_AT_ONCE)


def attack_in_parts(
    objective_of: Callable[[range], Objective],
    images: Tensor,
    settings: AttackSettings,
    indices: Sequence[int] | None,
    on_step: OnStep | None,
    at_once: int,
) -> Iterates:
    """Attack `at_once` images at a time, so that memory is bounded whatever their number.

    `objective_of` gives the objective of the images of one part, whose places then count from 0.
    """
    if not len(images):
        return Iterates(images, images.new_zeros(0), images)
    check_images(images)
    numbers = list(range(len(images)) if indices is None else indices)
    ball = BALLS[settings.norm](settings.epsilon)
    found = []
    for start in range(0, len(images), at_once):
        part = range(start, min(start + at_once, len(images)))
        seeds = [(settings.seed, numbers[place]) for place in part]
        told = on_step and partial(_tell, on_step, start)
        clean = images[start : part.stop]
        found.append(_best_of_starts(objective_of(part), clean, seeds, ball, settings, told))
    return Iterates(*(torch.cat(part) for part in zip(*found, strict=True)))


def check_images(images: Tensor) -> None:
    """Refuse pictures (B, 3, H, W) that are not floats in [0, 1]: within them ε is promised.

    Raises:
        InputError: it says what was found.
    """
    low, high = images.detach().aminmax()
    if not (images.is_floating_point() and low >= 0 and high <= 1):
        raise InputError(
            f"Pictures to attack must be floats in [0, 1], but these are {images.dtype} with "
            f"values from {low:g} to {high:g}; give them as they are before any normalisation."
        )


def _tell(on_step: OnStep, start: int, step: int, rows: Tensor, values: Tensor) -> None:
    on_step(step, rows + start, values)


def _best_of_starts(
    objective: Objective,
    clean: Tensor,
    seeds: Sequence[tuple[int, int]],
    ball: Ball,
    settings: AttackSettings,
    on_step: OnStep | None,
) -> Iterates:
    rows = torch.arange(len(clean), device=clean.device)
    starts: list[Iterates] = []
    for restart in range(settings.restarts):
        start = random_start(clean, ball, [(*seed, restart) for seed in seeds])
        schedule = SCHEDULES[settings.schedule]
        found = climb(objective, clean, start, ball, schedule, settings.steps, on_step)
        starts = [starts[0].replaced(rows, found)] if starts else [found]
    return starts[0]


def random_start(clean: Tensor, ball: Ball, seeds: Sequence[tuple[int, ...]]) -> Tensor:
    """Return a point of each image's ball (B, 3, H, W), drawn from that image's own seed alone."""
    noise = [ball.sample(np.random.default_rng(seed), tuple(clean.shape[1:])) for seed in seeds]
    return ball.project(clean + torch.from_numpy(np.stack(noise)).to(clean), clean)
