"""At equal steps the margin reached is at most that of foolbox's L2 PGD (an independent oracle)."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from lipdet.attack import AttackSettings, attack_images

STEPS, EPSILON, CLASSES = 20, 0.3, 3


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.Tanh(), nn.Linear(32, CLASSES)
    ).requires_grad_(False)


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Logit of the right class minus the best other one."""
    logits = model(images)
    right = logits.gather(1, labels[:, None]).squeeze(1)
    return right - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


@pytest.mark.parametrize("schedule", ["pgd", "apgd"])
def test_margins_are_not_above_those_of_foolbox(schedule: str) -> None:
    with warnings.catch_warnings():
        # Its dependencies warn at import under new Python versions.
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed (extra dev)")
        model, images = classifier(), torch.rand(16, 3, 8, 8, generator=torch.manual_seed(1))
        labels = model(images).argmax(1)
        theirs = foolbox.attacks.L2ProjectedGradientDescentAttack(steps=STEPS)
        victim = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
        _, their_images, _ = theirs(victim, images, labels, epsilons=EPSILON)

    def objective(batch: Tensor, places: Tensor) -> Tensor:
        # What foolbox's attack raises too.
        return nn.functional.cross_entropy(model(batch), labels[places], reduction="none")

    settings = AttackSettings(EPSILON, schedule=schedule, steps=STEPS)  # type: ignore[arg-type]
    ours = attack_images(objective, images, settings).images
    reached, their_margins = margins(model, ours, labels), margins(model, their_images, labels)
    # Both end at the same optimum of a smooth function; a thousandth is the optimisation's rest.
    assert (reached <= their_margins + 1e-3 * margins(model, images, labels).abs()).all()
    assert reached.mean() < margins(model, images, labels).mean() - 0.1
