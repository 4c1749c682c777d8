"""What climbs: the loop and its schedules, balls around images, and random search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lipdet.attack import square_attack
from lipdet.attack.balls import BALLS, Ball, L2Ball
from lipdet.attack.gradient import random_start
from lipdet.attack.loop import SCHEDULES, Apgd, Pgd, checkpoints, climb

SHAPE = (3, 74, 74)
CENTRE = torch.full((3, 3, 4, 4), 0.5)


@pytest.mark.parametrize("schedule", list(SCHEDULES.values()))
def test_the_best_iterate_is_kept(schedule: type[Pgd | Apgd]) -> None:
    # A narrow peak inside the ball, which steps jump over: the last iterate is not the best.
    peak = CENTRE + 0.02
    seen: list[Tensor] = []

    def objective(images: Tensor, places: Tensor) -> Tensor:
        values = -(images - peak[places]).flatten(1).norm(dim=1)
        seen.append(values.detach())
        return values

    best = climb(objective, CENTRE, CENTRE.clone(), L2Ball(0.5), schedule, steps=7)
    assert torch.equal(best.values, torch.stack(seen).amax(dim=0))
    torch.testing.assert_close(objective(best.images, torch.arange(3)), best.values)


@pytest.mark.parametrize("schedule", list(SCHEDULES.values()))
def test_an_image_without_gradient_leaves_and_the_others_go_on(
    schedule: type[Pgd | Apgd],
) -> None:
    sizes: list[int] = []
    weights = torch.tensor([1.0, 0.0, 1.0])

    def objective(images: Tensor, places: Tensor) -> Tensor:
        sizes.append(len(images))
        # The last one reaches its ceiling and has no gradient there.
        ceiling = torch.tensor([torch.inf, torch.inf, 0.2])[places]
        raw = (images - 0.5).flatten(1).sum(1) * weights[places]
        return torch.minimum(raw, ceiling)

    best = climb(objective, CENTRE, CENTRE.clone(), L2Ball(0.5), schedule, steps=10)
    assert sizes[0] == 3
    assert sizes[1] == 2
    assert sizes[-1] == 1
    # By hand: the sum over 48 values grows by at most eps * sqrt(48).
    assert best.values[0] == pytest.approx(0.5 * 48**0.5, rel=1e-3)
    assert best.values[1] == 0
    assert best.values[2] == pytest.approx(0.2)


def test_undefined_values_are_never_kept() -> None:
    def objective(images: Tensor, places: Tensor) -> Tensor:
        factors = torch.tensor([1.0, torch.nan, 1.0])[places]
        return (images - 0.5).flatten(1).sum(1) * factors

    best = climb(objective, CENTRE, CENTRE.clone(), L2Ball(0.5), Pgd, steps=3)
    assert torch.equal(best.images[1], CENTRE[1])
    assert best.images.isfinite().all()
    assert (best.values[[0, 2]] > 1).all()


def test_checkpoints_of_auto_pgd() -> None:
    # Croce & Hein (2020), §3: p0 = 0, p1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06);
    # by hand for 100 steps.
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("name", list(BALLS))
@pytest.mark.parametrize("epsilon", [0.0, 0.25, 4.0])
def test_projected_images_lie_in_the_ball_and_in_the_picture(name: str, epsilon: float) -> None:
    ball: Ball = BALLS[name](epsilon)
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(4, *SHAPE, generator=generator)
    images = ball.project(clean + torch.randn(4, *SHAPE, generator=generator), clean)
    assert images.min() >= 0
    assert images.max() <= 1
    # In float64, so that the check itself does not round.
    assert (ball.norm(images.double() - clean.double()) <= epsilon).all()
    torch.testing.assert_close(ball.project(images, clean), images)


@pytest.mark.parametrize("name", list(BALLS))
def test_samples_lie_in_the_ball(name: str) -> None:
    ball: Ball = BALLS[name](0.5)
    for seed in range(3):
        point = torch.from_numpy(ball.sample(np.random.default_rng(seed), SHAPE))[None]
        assert 0.45 <= float(ball.norm(point)) <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("name", list(BALLS))
def test_directions_are_steepest_and_survive_tiny_gradients(name: str) -> None:
    ball: Ball = BALLS[name](1.0)
    gradient = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    # Oracle: the dual norm, ‖w‖₂ for L2 and ‖w‖₁ for L∞.
    best = (gradient * ball.direction(gradient)).flatten(1).sum(1)
    dual = torch.linalg.vector_norm(gradient.flatten(1), 2 if name == "l2" else 1, dim=1)
    torch.testing.assert_close(best, dual)
    # Squares of 1e-30 are zero in float32; the direction must not be.
    torch.testing.assert_close(ball.direction(1e-30 * gradient), ball.direction(gradient))
    assert torch.equal(ball.direction(0 * gradient), 0 * gradient)


def test_it_climbs_a_smooth_function_without_gradients() -> None:
    epsilon, queries = 1.0, 400
    generator = torch.Generator().manual_seed(0)
    # A coarse pattern, as those that images respond to.
    coarse = torch.randn(1, 3, 4, 4, generator=generator)
    weights = torch.nn.functional.interpolate(coarse, scale_factor=4.0)[0]
    clean = torch.full((4, 3, 16, 16), 0.5)
    asked: list[int] = []

    def value(images: Tensor) -> Tensor:
        return ((images - 0.5) * weights).flatten(1).sum(1)

    def objective(images: Tensor, places: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        asked.append(len(images))
        return value(images)

    seeds = [(0, index) for index in range(4)]
    attacked = square_attack(objective, clean, epsilon, queries, seeds)
    assert asked == [4] * queries
    assert ((attacked - clean).double().flatten(1).norm(dim=1) <= epsilon).all()
    reached = value(attacked)
    # Oracle: the optimum of a linear function is eps * ||w||; a random point reaches almost none
    # of it, and random search must get a good part of the way.
    optimum = epsilon * weights.norm()
    noise = random_start(clean, L2Ball(epsilon), seeds)
    assert (value(noise) < 0.15 * optimum).all()
    assert (reached > 0.3 * optimum).all()
    assert (reached <= optimum * (1 + 1e-5)).all()
