"""Detectors with one map: bounds of one, gradients that keep their norm, boxes where cells are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lipdet.certificate.constants.outputs import output_bounds
from lipdet.config import DIGIT_SIDES, PRESETS, DetectorConfig
from lipdet.detector import build_detector, forward
from lipdet.detector.one_map import KINDS, one_map_ssd
from lipdet.detector.ssd import SSD
from lipdet.detector.tiles import halo_of, output_in_tiles
from lipdet.errors import InputError
from lipdet.layers import BCOPConv2d, OrthonormalConv2d
from lipdet.types import Canvas

CERTIFIED = [name for name in KINDS if name != "plain-ssd"]


def small(
    architecture: str = "orthogonal-ssd", height: int = 74, width: int = 74, stride: int = 8
) -> DetectorConfig:
    return DetectorConfig(
        architecture,
        ("a", "b"),
        Canvas(height, width),
        width=48,
        stride=stride,
        sides=DIGIT_SIDES,
    )


def somewhere(config: DetectorConfig) -> SSD:
    """A detector whose orthogonal kernels are random, as after a training."""
    torch.manual_seed(0)
    detector = one_map_ssd(config).eval()
    for module in detector.modules():
        if isinstance(module, BCOPConv2d):
            module.orthogonal_()
    return detector


def test_shapes_of_the_preset() -> None:
    detector = build_detector(PRESETS["certified"].detector)
    raw = detector(torch.rand(2, 3, 74, 74))
    # By hand: 74 pixels padded by 3 make 10 cells of 8, with eight boxes each; ten classes without
    # background.
    assert raw.logits.shape == (2, 800, 10)
    assert raw.offsets.shape == (2, 800, 4)


@pytest.mark.parametrize("architecture", CERTIFIED)
def test_every_output_is_1_lipschitz(architecture: str) -> None:
    detector = somewhere(small(architecture, 34, 34))
    bounds = output_bounds(detector)
    assert max(bounds.features) <= 1 + 1e-5
    assert bounds.logits.max() <= 1 + 1e-5
    assert bounds.offsets.max() <= 1 + 1e-5


@pytest.mark.parametrize("size", [1, 5])
def test_outputs_of_other_heads_are_1_lipschitz(size: int) -> None:
    detector = somewhere(dataclasses.replace(small(height=34, width=34), head_size=size))
    image = torch.rand(1, 3, 34, 34)
    bounds = output_bounds(detector)
    # Oracle: the norm of every row of the dense operator, by autograd.
    rows = torch.autograd.functional.jacobian(
        lambda flat: torch.cat([part.flatten() for part in detector(flat.view_as(image))]),
        image.flatten(),
    )
    stated = torch.cat([bounds.logits.flatten(), bounds.offsets.flatten()])
    assert stated.max() <= 1 + 1e-5
    assert (rows.norm(dim=1) <= stated * (1 + 1e-5)).all()
    assert halo_of(detector) == 8 + size // 2


@pytest.mark.parametrize(("height", "width", "stride"), [(32, 50, 8), (45, 33, 4), (64, 33, 16)])
def test_bounds_hold_for_every_canvas(height: int, width: int, stride: int) -> None:
    detector = somewhere(small(height=height, width=width, stride=stride))
    rows, columns = -(-height // stride), -(-width // stride)
    assert len(detector.default_boxes) == rows * columns * 8
    bounds = output_bounds(detector)
    assert max(bounds.logits.max(), bounds.offsets.max(), *bounds.features) <= 1 + 1e-5
    # Oracle: the largest singular value of the dense operator, by autograd.
    image = torch.rand(1, 3, height, width)
    body = torch.autograd.functional.jacobian(
        lambda flat: detector.backbone(flat.view_as(image))[0].flatten()[::7], image.flatten()
    )
    assert torch.linalg.matrix_norm(body, 2) <= 1 + 1e-5


def test_a_body_starts_at_the_identity() -> None:
    body = one_map_ssd(small()).backbone
    image = torch.rand(1, 3, 74, 74)
    # Of 80 channels of four by four pixels, the first 48 are pixels; half of the deep channels of
    # two by two cells remain.
    kept = body(image)[0]
    assert kept.norm() <= image.norm() * (1 + 1e-5)
    assert kept.norm() > 0.6 * image.norm()


def test_gradients_keep_their_norm() -> None:
    # Orthogonal layers and MaxMin pass a gradient on as it is, but for what zero padding cuts off;
    # theory §3 has a spectrally normalised body of this depth below 1e-4.
    body = somewhere(small()).backbone
    images = torch.rand(1, 3, 74, 74, requires_grad=True)
    deepest = body(images)[-1]
    direction = torch.randn_like(deepest)
    deepest.backward(direction)
    assert images.grad is not None
    assert images.grad.norm() > 0.05 * direction.norm()


def test_default_boxes_stand_where_a_cell_looks() -> None:
    boxes = one_map_ssd(small()).default_boxes
    # By hand: 74 pixels padded by 3 on each side make 10 cells of 8.
    assert boxes[0].tolist() == pytest.approx([1, 1, 14.5, 27], abs=1e-4)
    assert boxes[-1].tolist() == pytest.approx([73, 73, 34.3, 63], abs=1e-4)
    assert (boxes[:, :2].mean(dim=0) - 37).abs().max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(202, 202), (187, 209)])
def test_a_cell_sees_the_pixels_around_its_centre(height: int, width: int) -> None:
    # Oracle: autograd. The gradient of a cell's features is centred on its default boxes, in an
    # image that is large enough for it not to reach the border.
    detector = somewhere(small(height=height, width=width))
    images = torch.rand(1, 3, height, width, requires_grad=True)
    row, column, cells = 12, 13, -(-width // 8)
    detector.backbone(images)[0][0, :, row, column].sum().backward()
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=(0, 1)) > 0
    rows, columns = torch.nonzero(seen, as_tuple=True)
    middle = [(float(axis.min()) + float(axis.max()) + 1) / 2 for axis in (columns, rows)]
    expected = detector.default_boxes[8 * (row * cells + column), :2].tolist()
    assert middle == pytest.approx(expected, abs=1.0)


def test_offsets_of_one_box_move_in_a_ball() -> None:
    torch.manual_seed(2)
    head = one_map_ssd(small()).heads[0].localisation
    assert isinstance(head, OrthonormalConv2d)
    rows = head.weight.detach().flatten(1)
    # Oracle: the definition of orthonormal rows.
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"canvas": Canvas(30, 90)}, "image_size of at least 32, not 30"),
        ({"width": 46}, "even width of at least 48, not 46"),
        ({"width": 49}, "even width"),
        ({"stride": 5}, "stride of 4, 8, 16, not 5"),
        ({"sides": ()}, "training fits them"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        one_map_ssd(dataclasses.replace(small(), **changes))


def test_more_filters_than_a_patch_has_values_are_refused() -> None:
    with pytest.raises(ValueError, match="orthonormal"):
        OrthonormalConv2d(1, 10, 3)


def scattered(architecture: str, height: int, width: int, stride: int) -> SSD:
    """A detector in float64 of which no kernel is an identity and no offset is zero."""
    detector = somewhere(small(architecture, height, width, stride)).double()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # what a border of zeros then becomes
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.uniform_(bias, -0.5, 0.5)
    return detector.requires_grad_(False)


@pytest.mark.parametrize("architecture", ["orthogonal-ssd", "plain-ssd"])
@pytest.mark.parametrize(
    ("height", "width", "stride", "side"),
    [(131, 90, 4, 32), (101, 333, 8, 64), (64, 200, 8, 24), (65, 401, 16, 100), (75, 74, 8, 200)],
)
def test_tiles_say_what_one_pass_says(
    architecture: str, height: int, width: int, stride: int, side: int
) -> None:
    detector = scattered(architecture, height, width, stride)
    images = torch.rand(2, 3, height, width, dtype=torch.float64)
    halo = halo_of(detector)
    assert halo is not None
    tiled = output_in_tiles(detector, images, side, halo)
    # Oracle: the network itself.
    for found, expected in zip(tiled, detector(images), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    if max(height, width) <= side:
        return
    # None of the halo can be spared.
    short = output_in_tiles(detector, images, side, halo - 1)
    assert (short.logits - tiled.logits).abs().max() > 1e-10


def test_a_halo_is_all_that_decides() -> None:
    detector = scattered("orthogonal-ssd", 200, 200, 8)
    image = torch.rand(1, 3, 200, 200, dtype=torch.float64, requires_grad=True)
    middle = (12 * 25 + 12) * len(DIGIT_SIDES)
    detector(image).logits[0, middle].sum().backward()
    assert image.grad is not None
    rows = image.grad[0].abs().sum(dim=(0, 2)).nonzero()[:, 0]
    # Oracle: autograd; by hand, 3 blocks of 4 pixels, 6 of 8 and a head of 8 on each side.
    assert rows.max() - rows.min() + 1 == 8 + 2 * (3 * 4 + 6 * 8 + 8)
    assert halo_of(detector) == -(-(3 * 4 + 6 * 8 + 8) // 8)


def test_large_images_pass_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = []
    monkeypatch.setattr(
        forward, "output_in_tiles", lambda *given: tiles.append(given[2]) or output_in_tiles(*given)
    )
    detector = scattered("orthogonal-ssd", 300, 200, 8)
    images = torch.rand(2, 3, 300, 200, dtype=torch.float64)
    expected = detector(images)
    for most in (60_000, 50_000):
        monkeypatch.setattr(forward, "MOST_PIXELS", most)
        for found, wanted in zip(forward.forward(detector, images), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    # By hand: one fits into 60,000; √50,000 = 223 is 79 and twice 9 cells of 8.
    assert tiles == [79, 79]


def test_what_may_look_anywhere_passes_at_once() -> None:
    detector = scattered("plain-ssd", 64, 64, 8)
    assert halo_of(detector) == 9

    class Other(SSD):
        pass

    def changed(change: Callable[[SSD], Any]) -> int | None:
        other = copy.deepcopy(detector)
        change(other)
        return halo_of(other)

    def replace_first(layer: nn.Module) -> int | None:
        return changed(lambda other: other.backbone.stages[1].__setitem__(2, layer))

    assert replace_first(nn.Conv2d(96, 96, 5, padding=2)) == 10
    for layer in (
        nn.Conv2d(96, 96, 3, padding=2, dilation=2),
        nn.Conv2d(96, 96, 3, padding="same"),
        nn.Conv2d(96, 96, 3, padding=1, padding_mode="circular"),
        nn.AdaptiveAvgPool2d(8),
    ):
        assert replace_first(layer) is None
    for change in (
        lambda other: setattr(other, "__class__", Other),
        lambda other: other.backbone.register_forward_hook(lambda *_: None),
        lambda other: setattr(other.normalize, "forward", lambda x: x - x.mean()),
        lambda other: other.heads.append(other.heads[0]),
    ):
        assert changed(change) is None
