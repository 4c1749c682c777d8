"""The loop itself: best iterates, images that leave, schedules, undefined values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipdet.attack.balls import L2Ball
from lipdet.attack.loop import SCHEDULES, Apgd, Pgd, checkpoints, climb

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
