"""No image depends on its companions, on the batch size, or on the mode the detector was in.

Bit for bit where the detector sums in a fixed order; with a network, convolutions may choose other
kernels for other batch sizes, so results agree to rounding, and detections are compared.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipdet.attack import OBJECTIVES, AttackSettings, attack_batch, detect
from lipdet.boxes import DISPLAY_SELECTION, SigmoidScores
from lipdet.checkpoint import load_detector
from lipdet.config import DetectorConfig
from lipdet.detector import SSD, build_detector
from lipdet.images.pack import Pack
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


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, images, targets = toy()
    settings = AttackSettings(0.5, steps=3)
    together = attack_batch(detector, images, targets, settings)
    sizes: list[int] = []
    detector.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr("lipdet.attack.attackable.Own.at_once", 3)
    assert torch.equal(attack_batch(detector, images, targets, settings), together)
    assert max(sizes) == 3


def test_starts_depend_on_seed_index_and_restart() -> None:
    detector, images, targets = toy()
    one, target = images[:1], targets[:1]

    def attacked(index: int, **changes: int) -> Tensor:
        settings = AttackSettings(0.5, "multibox", steps=1, **changes)  # type: ignore[arg-type]
        return attack_batch(detector, one, target, settings, [index])

    assert torch.equal(attacked(7), attacked(7))
    assert not torch.equal(attacked(7), attacked(8))
    assert not torch.equal(attacked(7), attacked(7, seed=1))


def test_more_restarts_never_lower_the_objective() -> None:
    # The first restart's start is the only start of a single one.
    detector, images, targets = toy()
    reached = []
    for restarts in (1, 4):
        values: dict[int, float] = {}

        def keep(step: int, places: Tensor, now: Tensor, values: dict[int, float] = values) -> None:
            for place, value in zip(places.tolist(), now.tolist(), strict=True):
                values[place] = max(value, values.get(place, value))

        settings = AttackSettings(0.5, "fabricate", steps=2, restarts=restarts)
        attack_batch(detector, images, targets, settings, on_step=keep)
        reached.append([values[place] for place in range(8)])
    assert all(more >= fewer for fewer, more in zip(*reached, strict=True))


def test_a_network_gives_the_same_detections_in_any_batch(doors: Pack) -> None:
    detector = load_detector("naive").detector
    images = torch.from_numpy(doors.images[:4].copy()).permute(0, 3, 1, 2).float() / 255
    targets = [doors.target(index) for index in range(4)]
    settings = AttackSettings(0.5, "mislabel", steps=4)
    together = detect(
        detector, attack_batch(detector, images, targets, settings), DISPLAY_SELECTION
    )
    for index in range(4):
        alone = attack_batch(
            detector, images[index : index + 1], [targets[index]], settings, [index]
        )
        [found] = detect(detector, alone, DISPLAY_SELECTION)
        assert torch.equal(found["labels"], together[index]["labels"])
        torch.testing.assert_close(found["scores"], together[index]["scores"], atol=1e-3, rtol=0)


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
