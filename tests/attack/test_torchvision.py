"""torchvision's detectors through their own losses: random weights, tiny pictures, no downloads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from lipdet.attack import AttackSettings, attack_torchvision
from lipdet.attack.attackable import raisable
from lipdet.attack.foreign import ForeignDetector
from lipdet.attack.settings import single_attacks
from lipdet.boxes import AP_SELECTION
from lipdet.errors import InputError
from lipdet.types import Target

pytestmark = pytest.mark.slow

NO_WEIGHTS = {"weights": None, "weights_backbone": None, "num_classes": 3}
SMALL = {"min_size": 64, "max_size": 64}


def ssdlite() -> nn.Module:
    return detection.ssdlite320_mobilenet_v3_large(**NO_WEIGHTS)


def faster_rcnn() -> nn.Module:
    few = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20}
    return detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        **NO_WEIGHTS, **SMALL, **few, box_batch_size_per_image=16
    )


def retinanet() -> nn.Module:
    # A backbone of two convolutions: the adapter is under test, not ResNet-50.
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    backbone.out_channels = 8
    anchors = detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),))
    return detection.RetinaNet(backbone, num_classes=3, anchor_generator=anchors, **SMALL)


def ssd() -> nn.Module:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    anchors = detection.anchor_utils.DefaultBoxGenerator([[2]], scales=[0.3, 0.6])
    head = detection.ssd.SSDHead([8], anchors.num_anchors_per_location(), 3)
    return detection.ssd.SSD(backbone, anchors, (64, 64), num_classes=3, head=head)


MODELS = [ssd, ssdlite, retinanet, faster_rcnn]
TARGETS = [
    Target(boxes=torch.tensor([[8.0, 8.0, 40.0, 44.0]]), labels=torch.tensor([1])),
    Target(boxes=torch.tensor([[20.0, 4.0, 50.0, 30.0]]), labels=torch.tensor([2])),
]


def settle(model: nn.Module, images: Tensor) -> nn.Module:
    """Let random networks normalise by these images; their outputs would not depend on any else."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()(list(images), [dict(target) for target in TARGETS[: len(images)]])
    return model.eval()


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_the_loss_rises_within_the_ball(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    model = settle(build(), images)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values: dict[int, list[float]] = {0: [], 1: []}

    def keep(step: int, places: Tensor, now: Tensor) -> None:
        for place, value in zip(places.tolist(), now.tolist(), strict=True):
            values[place].append(value)

    settings = AttackSettings(1.0, "multibox", steps=3)
    attacked = attack_torchvision(model, images, TARGETS, settings, on_step=keep)
    assert ((attacked - images).double().flatten(1).norm(dim=1) <= 1.0).all()
    assert all(max(curve) > curve[0] for curve in values.values())
    # Normalisation kept its statistics, and the model its mode.
    assert all(torch.equal(state[name], now) for name, now in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_images_do_not_depend_on_their_companions() -> None:
    # Faster R-CNN samples proposals at random: the sampling must not depend on who came before.
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    model = settle(faster_rcnn(), images)
    settings = AttackSettings(1.0, "multibox", steps=2)
    together = attack_torchvision(model, images, TARGETS, settings)
    alone = attack_torchvision(model, images[1:], TARGETS[1:], settings, [1])
    torch.testing.assert_close(alone, together[1:], atol=1e-5, rtol=0)


class TwoClasses(nn.Module):
    """One box on the first target, with two classes whose log-odds are linear in the picture."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.weights = nn.Parameter(
            torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        )
        self.bias = torch.tensor([1.0, -1.0])

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            scores = ((self.weights * (image - 0.5)).sum((1, 2, 3)) + self.bias).sigmoid()
            kept = scores > self.floor
            boxes = TARGETS[0]["boxes"].expand(2, 4)
            found.append(
                {"boxes": boxes[kept], "labels": torch.tensor([1, 2])[kept], "scores": scores[kept]}
            )
        return found


@pytest.mark.parametrize("objective", ["mislabel", "vanish"])
def test_the_optimum_of_linear_log_odds_is_reached(objective: str) -> None:
    # Oracle: on a ball of radius ε, w·δ is at most ε‖w‖.
    model, images = TwoClasses(0.0), torch.full((1, 3, 8, 8), 0.5)
    right, wrong = model.weights.detach()
    direction = wrong - right if objective == "mislabel" else -right
    settings = AttackSettings(0.1, objective, steps=20)
    attacked = attack_torchvision(model, images, TARGETS[:1], settings)
    reached = (direction * (attacked[0] - images[0])).sum()
    assert reached >= 0.99 * 0.1 * direction.norm()


def test_where_nothing_is_detected_nothing_is_left_to_attack() -> None:
    model, images = TwoClasses(1.0), torch.full((1, 3, 8, 8), 0.5)
    for objective in ("demote", "mislabel", "vanish", "fabricate"):
        settings = AttackSettings(0.1, objective, steps=3)
        attacked = attack_torchvision(model, images, TARGETS[:1], settings)
        assert (attacked - images).norm() <= 0.1


def test_scores_without_a_gradient_are_no_robustness() -> None:
    class Detached(TwoClasses):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            with torch.no_grad():
                return super().forward(images)

    images = torch.full((1, 3, 8, 8), 0.5)
    with pytest.raises(InputError, match="cannot be differentiated"):
        attack_torchvision(Detached(0.0), images, TARGETS[:1], AttackSettings(0.1))


def test_losses_are_left_out_where_a_module_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    unnamed = single_attacks("pgd", AttackSettings(0.1))
    detector = ForeignDetector.of("mine", TwoClasses(0.0))
    assert [one.objective for one in raisable(detector, unnamed)] == [
        "demote",
        "mislabel",
        "fabricate",
    ]
    assert raisable(detector, unnamed) == raisable(detector, unnamed)
    assert capsys.readouterr().err.count("mine has no losses to raise: ") == 1
    # Whoever names one is told why it cannot be.
    asked = single_attacks("pgd", AttackSettings(0.1), "multibox")
    assert raisable(detector, asked) == asked
    torch.manual_seed(0)
    with_losses = settle(ssd(), torch.rand(2, 3, 64, 64))
    assert raisable(ForeignDetector.of("ssd", with_losses), unnamed) == unnamed
    assert not capsys.readouterr().err


class WithStatistics(nn.Module):
    """Its losses follow a layer that normalises, by the picture's own statistics in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.Dropout(0.5)
        )
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: list[Tensor], targets: object = None) -> object:
        assert self.training
        batch = torch.stack(images)
        features = self.body(batch)
        self.seen.append((batch.detach().clone(), features.detach()))
        return {"loss": features.square().sum()}


def test_statistics_stay_and_the_loss_is_that_of_the_detector_as_evaluated() -> None:
    """Layers are attacked as they are evaluated, and keep their state."""
    torch.manual_seed(0)
    model = WithStatistics().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = torch.rand(1, 3, 8, 8)
    settings = AttackSettings(0.5, "multibox", steps=2)
    attack_torchvision(model, image, TARGETS[:1], settings)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(model.body(batch), found) for batch, found in model.seen)


@pytest.mark.parametrize("kind", ["maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"])
def test_masks_and_keypoints_are_named_where_losses_need_them(kind: str) -> None:
    """Mask and Keypoint R-CNN detect, and are attacked by their scores."""
    torch.manual_seed(0)
    few = {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 5}
    model = getattr(detection, kind)(weights=None, weights_backbone=None, **SMALL, **few).eval()
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(InputError, match=r"\(.*(masks|keypoints).*\); choose .* mislabel"):
        attack_torchvision(model, image, TARGETS[:1], AttackSettings(0.5, "multibox", steps=1))
    attack_torchvision(model, image, TARGETS[:1], AttackSettings(0.5, "vanish", steps=1))
    [found] = ForeignDetector.of(kind, model).detect(image, AP_SELECTION)
    # Oracle: the module itself, which returns masks or keypoints, too.
    [own] = model(list(image))
    torch.testing.assert_close(found["boxes"], own["boxes"].detach())
