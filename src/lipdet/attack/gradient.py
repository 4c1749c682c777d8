"""Gradient attacks on a batch of any size: random starts, restarts, bounded memory.

`attack_batch` is what training loops and all else call for lipdet's detectors; `attack_images` is
the same for any objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lipdet.attack.balls import BALLS, Ball
from lipdet.attack.loop import Objective, OnStep, climb
from lipdet.attack.objectives import OBJECTIVES
from lipdet.attack.scene import scene_of
from lipdet.attack.schedules import SCHEDULES, Iterates
from lipdet.attack.settings import AttackSettings
from lipdet.detector import SSD
from lipdet.types import Target

# Images whose activations are held at a time.
MOST_AT_ONCE = 32


def attack_batch(
    detector: SSD,
    images: Tensor,
    targets: Sequence[Target],
    settings: AttackSettings,
    indices: Sequence[int] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The worst images that an attack finds near the given ones.

    The detector is attacked in eval mode with frozen parameters, whatever mode it is in; modes and
    parameters are as before afterwards, and no parameter receives a gradient.

    Args:
        detector: whose raw output is attacked.
        images: (B, 3, S, S) in [0, 1].
        targets: the objects of the B images, in pixels.
        settings: radius, objective, schedule, steps, seed.
        indices: number of each image in its data set, which its random starts depend on; 0 to
            B - 1 if not given. In training, give numbers that change from step to step.
        on_step: told about every step of every start: its number, the places in `images` of those
            still climbing, and their values.

    Returns:
        (B, 3, S, S) in [0, 1], each within `settings.epsilon` of its original.
    """
    decoder, raise_value = detector.decoder, OBJECTIVES[settings.objective]
    scene = scene_of(targets, decoder)

    def objective(batch: Tensor, places: Tensor) -> Tensor:
        return raise_value(detector(batch), scene.at(places), decoder)

    with frozen(detector):
        return attack_images(objective, images, settings, indices, on_step).images


def attack_images(
    objective: Objective,
    images: Tensor,
    settings: AttackSettings,
    indices: Sequence[int] | None = None,
    on_step: OnStep | None = None,
) -> Iterates:
    """Climb any objective from random starts; see `attack_batch` for the arguments.

    Args:
        objective: images (b, 3, H, W) and their places in `images` (b,) to values (b,).
        images: (B, 3, H, W) in [0, 1].
        settings: of the attack; its `objective` is not used.
        indices: number of each image in its data set.
        on_step: told about every step.

    Returns:
        The best of all starts for each image, by the objective's value.
    """
    numbers = list(range(len(images)) if indices is None else indices)
    ball = BALLS[settings.norm](settings.epsilon)
    parts = [
        _best_of_starts(objective, images, places, numbers, ball, settings, on_step)
        for places in torch.split(torch.arange(len(images), device=images.device), MOST_AT_ONCE)
    ]
    return Iterates(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _best_of_starts(
    objective: Objective,
    images: Tensor,
    places: Tensor,
    numbers: Sequence[int],
    ball: Ball,
    settings: AttackSettings,
    on_step: OnStep | None,
) -> Iterates:
    clean = images[places]
    rows = torch.arange(len(places), device=places.device)
    starts: list[Iterates] = []
    for restart in range(settings.restarts):
        seeds = [(settings.seed, numbers[place], restart) for place in places.tolist()]
        found = climb(
            lambda batch, rows: objective(batch, places[rows]),
            clean,
            random_start(clean, ball, seeds),
            ball,
            SCHEDULES[settings.schedule],
            settings.steps,
            on_step and (lambda step, rows, values: on_step(step, places[rows], values)),
        )
        starts = [starts[0].replaced(rows, found)] if starts else [found]
    return starts[0]


def random_start(clean: Tensor, ball: Ball, seeds: Sequence[tuple[int, ...]]) -> Tensor:
    """A point of each image's ball (B, 3, H, W), drawn from that image's own seed alone."""
    noise = [ball.sample(np.random.default_rng(seed), tuple(clean.shape[1:])) for seed in seeds]
    return ball.project(clean + torch.from_numpy(np.stack(noise)).to(clean), clean)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients of parameters; the mode of every module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        # Parents come first, so that a child's own mode is the last word.
        for module, mode in modes:
            module.train(mode)
        for parameter, wanted in asked:
            parameter.requires_grad_(wanted)
