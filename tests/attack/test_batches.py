"""No image depends on its companions, on the batch size, or on the mode the detector was in.

Bit for bit where the detector sums in a fixed order; with a network, convolutions may choose other
kernels for other batch sizes, so results agree to rounding, and detections are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lipdet.attack import OBJECTIVES, AttackSettings, attack_batch
from lipdet.boxes import SigmoidScores
from lipdet.config import DetectorConfig
from lipdet.detector import SSD, build_detector
from lipdet.errors import InputError
from lipdet.types import Target
from tests.attack.toy import SIZE, linear_detector, nothing, on_both, on_left, weights


def toy() -> tuple[SSD, Tensor, list[Target]]:
    detector = linear_detector(SigmoidScores(3.0), weights(2, 3), offsets=weights(4, seed=5))
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    # Images without objects leave the batch at once under vanish and mislabel.
    targets = [on_left(1), nothing(), on_both(0, 2), on_left(2), nothing(), on_both(1, 1)]
    return detector, images, [*targets, on_left(0), on_left(1)]


@pytest.mark.parametrize("schedule", ["pgd", "apgd"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_batch_size_and_companions_change_no_bit(objective: str, schedule: str) -> None:
    detector, images, targets = toy()
    settings = AttackSettings(0.5, objective, schedule, steps=5, restarts=2)  # type: ignore[arg-type]

    def attacked(rows: list[int]) -> Tensor:
        chosen = [targets[row] for row in rows]
        return attack_batch(detector, images[rows], chosen, settings, rows)

    together = attacked(list(range(8)))
    # Vector and scalar code round a logarithm differently, and a value's place decides which it is.
    tolerance = 1e-12 if objective in ("multibox", "classification") else 0.0
    for size in (1, 3):
        parts = [list(range(start, min(start + size, 8))) for start in range(0, 8, size)]
        apart = torch.cat([attacked(rows) for rows in parts])
        torch.testing.assert_close(apart, together, rtol=0, atol=tolerance)
    shuffled = [5, 2, 7]
    torch.testing.assert_close(attacked(shuffled), together[shuffled], rtol=0, atol=tolerance)


def test_starts_depend_on_seed_index_and_restart() -> None:
    detector, images, targets = toy()
    one, target = images[:1], targets[:1]

    def attacked(index: int, **changes: int) -> Tensor:
        settings = AttackSettings(0.5, "multibox", steps=1, **changes)  # type: ignore[arg-type]
        return attack_batch(detector, one, target, settings, [index])

    assert torch.equal(attacked(7), attacked(7))
    assert not torch.equal(attacked(7), attacked(8))
    assert not torch.equal(attacked(7), attacked(7, seed=1))


@pytest.mark.parametrize("training", [True, False])
def test_the_detector_is_left_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    detector = build_detector(DetectorConfig()).train(training)
    detector.heads[0].eval()
    next(detector.parameters()).requires_grad_(False)
    modes = [module.training for module in detector.modules()]
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    target = Target(boxes=torch.tensor([[9.0, 9, 50, 60]]), labels=torch.tensor([3]))
    images = torch.rand(2, 3, 74, 74)
    attacked = attack_batch(detector, images, [target] * 2, AttackSettings(0.5, steps=2))
    # Batch statistics would have moved in training mode, and made images depend on each other.
    assert all(torch.equal(state[name], now) for name, now in detector.state_dict().items())
    assert [module.training for module in detector.modules()] == modes
    assert [p.requires_grad for p in detector.parameters()].count(False) == 1
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert not attacked.requires_grad
    assert attacked.grad_fn is None


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda images: images * 255, "float64 with values from .* to 25"),
        (lambda images: (images - 0.5) / 0.25, "values from -"),
        (lambda images: images.masked_fill(images > 0.9, torch.nan), "values from nan to nan"),
        (lambda images: (images * 255).to(torch.uint8), "uint8 with values from 0 to 25"),
    ],
)
def test_pictures_that_are_not_in_0_to_1_are_refused(
    change: Callable[[Tensor], Tensor], found: str
) -> None:
    """In 0..255, normalised, with NaN, as bytes: no ε could be promised."""
    detector, images, targets = toy()
    settings = AttackSettings(0.5, "multibox", steps=1)
    with pytest.raises(InputError, match=found):
        attack_batch(detector, change(images), targets, settings)


def test_an_empty_batch_is_an_empty_batch() -> None:
    """Of no picture the attack is none."""
    detector, images, _ = toy()
    attacked = attack_batch(detector, images[:0], [], AttackSettings(0.5, "multibox"))
    assert attacked.shape == images[:0].shape


def test_objectives_of_segmenters_are_refused() -> None:
    detector, images, targets = toy()
    with pytest.raises(InputError, match=r"'flip' is unknown; choose one of: demote, mislabel"):
        attack_batch(detector, images, targets, AttackSettings(0.5, "flip", steps=1))
