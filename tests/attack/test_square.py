"""Square attack: stays in the ball, asks for values only, and finds what random noise does not."""

from __future__ import annotations

import torch
from torch import Tensor

from lipdet.attack import square_attack
from lipdet.attack.balls import L2Ball
from lipdet.attack.gradient import random_start

SHAPE, EPSILON, QUERIES = (3, 16, 16), 1.0, 400


def test_it_climbs_a_smooth_function_without_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    # A coarse pattern, as those that images respond to.
    coarse = torch.randn(1, 3, 4, 4, generator=generator)
    weights = torch.nn.functional.interpolate(coarse, scale_factor=4.0)[0]
    clean = torch.full((4, *SHAPE), 0.5)
    asked: list[int] = []

    def objective(images: Tensor, places: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        asked.append(len(images))
        return ((images - 0.5) * weights).flatten(1).sum(1)

    seeds = [(0, index) for index in range(4)]
    attacked = square_attack(objective, clean, EPSILON, QUERIES, seeds)
    assert asked == [4] * QUERIES
    assert ((attacked - clean).double().flatten(1).norm(dim=1) <= EPSILON).all()
    reached = objective_value(attacked, weights)
    # Oracle: the optimum of a linear function is eps * ||w||; a random point reaches almost none
    # of it, and random search must get a good part of the way.
    optimum = EPSILON * weights.norm()
    noise = random_start(clean, L2Ball(EPSILON), seeds)
    assert (objective_value(noise, weights) < 0.15 * optimum).all()
    assert (reached > 0.3 * optimum).all()
    assert (reached <= optimum * (1 + 1e-5)).all()


def objective_value(images: Tensor, weights: Tensor) -> Tensor:
    return ((images - 0.5) * weights).flatten(1).sum(1)
