"""Balls: what leaves them never stays outside, and directions are the best for linear functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipdet.attack.balls import BALLS, Ball

SHAPE = (3, 74, 74)


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
