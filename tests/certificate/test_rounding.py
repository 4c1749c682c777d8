"""What is taken for the rounding of a forward pass, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lipdet.boxes import BoxCoding, SigmoidScores
from lipdet.certificate import UnknownLipschitz, output_bounds
from lipdet.certificate.constants.rounding import SAFETY, measured_rounding, proven_rounding
from lipdet.config import DetectorConfig
from lipdet.detector import SSD
from lipdet.detector.ssd import Head
from lipdet.layers import BCOPConv2d, MaxMin, SpaceToDepth, UnitNormConv2d, fold
from lipdet.types import Canvas, RawOutput
from tests.certificate.detectors import small_detector


class OneLevel(nn.Module):
    """16 × 16 images to a map of 4 × 4, through orthogonal layers."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [layer for _ in range(4) for layer in (BCOPConv2d(48, 48, 3, padding=1), MaxMin())]
        self.layers = nn.Sequential(SpaceToDepth(4), *blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: Tensor = self.layers(images)
        return [maps]


@pytest.fixture(scope="module")
def detector() -> SSD:
    torch.manual_seed(0)
    head = Head(UnitNormConv2d(48, 6, 3, padding=1), UnitNormConv2d(48, 8, 3, padding=1), logits=3)
    config = DetectorConfig(class_names=("a", "b", "c"), canvas=Canvas(16, 16))
    boxes = torch.rand(32, 4)
    return SSD(config, OneLevel(), [head], boxes, BoxCoding(), SigmoidScores(1.0)).eval()


def outputs(raw: RawOutput) -> Tensor:
    return torch.cat([raw.logits.double(), raw.offsets.double()], dim=-1)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_other_images_and_batches_stay_within_what_was_measured(detector: SSD, batch: int) -> None:
    torch.manual_seed(1)
    measured = measured_rounding(detector, torch.rand(8, 3, 16, 16))
    exact = fold(detector).double()
    images = torch.rand(batch, 3, 16, 16)
    with torch.no_grad():
        error = (outputs(detector(images)) - outputs(exact(images.double()))).abs().max()
    # Oracle: the same weights in float64.
    assert 0 < error < measured / 2
    assert measured < 1e-4
    assert measured / SAFETY > 1e-8


def test_measuring_sees_what_a_coarser_machine_would_do(
    detector: SSD, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(4, 3, 16, 16)
    plain = measured_rounding(detector, images)
    convolve = nn.Conv2d.forward

    def with_eight_bits(self: nn.Conv2d, x: Tensor) -> Tensor:
        return convolve(self, x.bfloat16().float() if x.dtype == torch.float32 else x)

    monkeypatch.setattr(nn.Conv2d, "forward", with_eight_bits)
    coarse = fold(detector)
    assert isinstance(coarse, SSD)
    assert measured_rounding(coarse, images) > 100 * plain


@pytest.mark.slow
def test_a_perturbed_pass_in_either_precision_stays_within_the_slack(detector: SSD) -> None:
    torch.manual_seed(2)
    bounds = output_bounds(detector)
    constants = torch.cat([bounds.logits, bounds.offsets], dim=1)
    slack = 2 * measured_rounding(detector, torch.rand(8, 3, 16, 16))
    exact = fold(detector).double()
    images, noise = torch.rand(32, 3, 16, 16), torch.randn(32, 3, 16, 16)
    # Down to perturbations that are smaller than the rounding itself.
    for epsilon in (1e-7, 1e-4, 0.1):
        changed = images + epsilon * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
        radii = (changed.double() - images.double()).flatten(1).norm(dim=1)
        with torch.no_grad():
            before = outputs(detector(images)), outputs(exact(images.double()))
            after = outputs(detector(changed)), outputs(exact(changed.double()))
        for first in before:
            for second in after:
                assert ((second - first).abs() <= radii[:, None, None] * constants + slack).all()


@pytest.mark.slow
def test_the_proven_bound_covers_float32(detector: SSD) -> None:
    bound = proven_rounding(detector, torch.float32)
    exact = fold(detector).double()
    extreme = [torch.rand(16, 3, 16, 16), torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)]
    images = torch.cat(extreme)
    with torch.no_grad():
        error = (outputs(detector(images)) - outputs(exact(images.double()))).abs().max()
    assert error < bound
    # A bound that grows with n·u scales with the precision, and is of use in float64.
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    found = proven_rounding(detector, torch.float64)
    assert found == pytest.approx(bound * ratio, rel=0.02)
    assert found < 1e-9


def test_the_proven_bound_of_one_convolution() -> None:
    config = DetectorConfig(class_names=("a",), canvas=Canvas(8, 8))
    layer = nn.Conv2d(3, 4, 1)
    nn.init.constant_(layer.weight, -0.5)
    nn.init.constant_(layer.bias, 2.0)  # type: ignore[arg-type]
    offsets = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(offsets.weight)
    nn.init.zeros_(offsets.bias)  # type: ignore[arg-type]

    class Same(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [images]

    head = Head(layer, offsets, 4)
    detector = SSD(
        config, Same(), [head], torch.rand(64, 4), BoxCoding(), SigmoidScores(1.0), nn.Identity()
    ).eval()
    # Oracle, by hand: images have a norm of at most √192 around grey, found as √192 / 2 at grey
    # plus as much; ‖|W|‖ = 0.5 · √12; biases (2, 2, 2, 2) in 64 cells; n = 3 + 2.
    unit = 2.0**-24
    gamma = 5 * unit / (1 - 5 * unit)
    wanted = gamma * (0.5 * 12**0.5 * 192**0.5 + 4 * 8)
    assert proven_rounding(detector, torch.float32) == pytest.approx(wanted, rel=1e-6)


def test_no_proof_for_other_layers_is_made_up() -> None:
    with pytest.raises(UnknownLipschitz, match="rounding"):
        proven_rounding(small_detector().eval(), torch.float64)
