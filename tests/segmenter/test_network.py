"""The segmenter: any canvas, 1-Lipschitz logits, a joint constant that holds.

The oracle of constants is the dense Jacobian at random pictures; of the map, the picture's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_module

from lipdet.attack.pixels import PixelSettings, attack_pixels
from lipdet.certificate.pixels import bounds_of_pixels
from lipdet.config import SegmenterConfig
from lipdet.errors import InputError, UnknownLipschitz
from lipdet.layers import MaxMin, SpaceToDepth, orthogonal_
from lipdet.segmenter import Segmenter, build_segmenter
from lipdet.segmenter.calibration import add_offsets, choose_offsets
from lipdet.segmenter.loss import class_weights, labelled_weight, pixel_loss
from lipdet.segmenter.network import Beside
from lipdet.types import IGNORED, Canvas

SMALL = SegmenterConfig(canvas=Canvas(13, 10), class_names=("a", "b", "c"))


def trained_alike(config: SegmenterConfig = SMALL, seed: int = 0) -> Segmenter:
    """A segmenter with random orthogonal layers and heads, as a training may leave it."""
    torch.manual_seed(seed)
    segmenter = build_segmenter(config)
    orthogonal_(segmenter)
    for name, parameter in segmenter.named_parameters():
        if "raw" in name or "bias" in name:
            nn.init.normal_(parameter, std=0.02)
    return segmenter.eval()


def jacobian(segmenter: Segmenter, picture: Tensor) -> Tensor:
    """(K, H, W, 3·H·W) of the logits at one picture (3, H, W)."""
    segmenter.requires_grad_(False)
    with torch.no_grad():
        shape = segmenter(picture[None]).shape[1:]
    # A copy of the picture for each logit: one pass back then finds all rows.
    copies = picture.expand(shape.numel(), -1, -1, -1).clone().requires_grad_(True)
    chosen = segmenter(copies).flatten(1).diagonal()
    (rows,) = torch.autograd.grad(chosen.sum(), copies)
    return rows.reshape(*shape, -1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_constants_hold_for_the_dense_operator(seed: int) -> None:
    segmenter = trained_alike(seed=seed)
    picture = torch.rand(3, *SMALL.canvas, generator=torch.Generator().manual_seed(seed))
    rows = jacobian(segmenter, picture).double()
    bounds = bounds_of_pixels(segmenter, picture[None])
    assert float(rows.norm(dim=3).max()) <= 1 + 1e-5
    assert float(rows.norm(dim=3).max()) > 0.4  # the rest is lost at the borders of small maps
    largest = float(torch.linalg.matrix_norm(rows.flatten(0, 2), 2))
    assert 0.3 * bounds.joint < largest <= bounds.joint
    centred = rows - rows.mean(dim=0)
    moved = float(torch.linalg.matrix_norm(centred.flatten(0, 2), 2)) * 2**0.5
    assert moved <= bounds.contrasts
    above, left = segmenter.missing(*SMALL.canvas)[:2]
    for one, other in ((0, 1), (1, 2)):
        apart = (rows[one] - rows[other]).norm(dim=2)
        for y, x in ((0, 0), (5, 7), (12, 9)):
            place = (y + above) % segmenter.cell, (x + left) % segmenter.cell
            assert apart[y, x] <= bounds.pairwise[one, other, place[0], place[1]]


def test_a_large_canvas_has_the_same_constants() -> None:
    config = replace(SMALL, canvas=Canvas(192, 192), class_names=("a", "b"))
    segmenter = trained_alike(config)
    assert segmenter.cell == 16
    # The canvas decides the network, which then takes pictures of any size.
    picture = torch.rand(3, *SMALL.canvas, generator=torch.Generator().manual_seed(0))
    rows = jacobian(segmenter, picture).double()
    bounds = bounds_of_pixels(segmenter, picture[None])
    assert float(rows.norm(dim=3).max()) <= 1 + 1e-5
    assert float(torch.linalg.matrix_norm(rows.flatten(0, 2), 2)) <= bounds.joint


@pytest.mark.parametrize("architecture", ["orthogonal-segmenter", "plain-segmenter"])
@pytest.mark.parametrize("size", [(16, 16), (37, 50)])
def test_logits_of_pictures_of_any_size(architecture: str, size: tuple[int, int]) -> None:
    segmenter = build_segmenter(replace(SMALL, architecture=architecture)).eval()
    assert segmenter(torch.rand(2, 3, *size)).shape == (2, 3, *size)


def test_a_pixel_is_labelled_where_it_is() -> None:
    segmenter = trained_alike()
    picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    picture.requires_grad_(True)
    logits = segmenter(picture)
    (gradient,) = torch.autograd.grad(logits[0, :, 20:22, 9].sum(), picture)
    seen = gradient[0].square().sum(dim=0)
    rows, columns = (seen.sum(dim=axis) for axis in (1, 0))
    assert abs(float((rows * torch.arange(32)).sum() / rows.sum()) - 20.5) < 5
    assert abs(float((columns * torch.arange(48)).sum() / columns.sum()) - 9) < 5


def test_all_classes_start_alike() -> None:
    segmenter = build_segmenter(SMALL).eval()
    logits = segmenter(torch.rand(1, 3, *SMALL.canvas))
    assert torch.equal(logits[:, 0], logits[:, 1])


def test_beside_leaves_the_second_half() -> None:
    x = torch.rand(1, 4, 2, 2)
    found = Beside(nn.Tanh())(x)
    assert torch.equal(found, torch.cat([x[:, :2].tanh(), x[:, 2:]], dim=1))


def test_what_cannot_be_bounded_is_refused() -> None:
    plain = build_segmenter(replace(SMALL, architecture="plain-segmenter")).eval()
    with pytest.raises(UnknownLipschitz, match="BatchNorm2d, which has no bound"):
        bounds_of_pixels(plain, torch.rand(1, 3, *SMALL.canvas))
    hooked = trained_alike()
    hooked.body[0].register_forward_hook(lambda layer, x, y: 2 * y)
    with pytest.raises(UnknownLipschitz, match="hooks"):
        bounds_of_pixels(hooked, torch.rand(1, 3, *SMALL.canvas))
    wide = trained_alike()
    wide.head = nn.Conv2d(*wide.head.weight.shape[1::-1], 3, padding=1)
    with pytest.raises(UnknownLipschitz, match="no 1×1 convolution"):
        bounds_of_pixels(wide, torch.rand(1, 3, *SMALL.canvas))
    coarse = trained_alike()
    coarse.body, coarse.head = nn.Sequential(SpaceToDepth(8)), nn.Conv2d(192, 48, 1)
    with pytest.raises(UnknownLipschitz, match="a map of another size"):
        bounds_of_pixels(coarse, torch.rand(1, 3, *SMALL.canvas))
    broken = trained_alike()
    with torch.no_grad():
        broken.head.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(UnknownLipschitz, match="not all finite"):
        bounds_of_pixels(broken, torch.rand(1, 3, *SMALL.canvas))


def _own_forward(module: nn.Module) -> None:
    original = module.forward
    module.forward = lambda x: 100 * original(x)  # type: ignore[method-assign]


def _hooked_plain_head(segmenter: Segmenter) -> None:
    segmenter.head = nn.Conv2d(*segmenter.head.weight.shape[1::-1], 3, padding=1)
    segmenter.head.register_forward_hook(lambda module, args, y: 100 * y)


@pytest.mark.parametrize(
    "change",
    [
        _own_forward,
        lambda segmenter: _own_forward(segmenter.head),
        _hooked_plain_head,
        # Its rounding would be measured against itself.
        lambda segmenter: segmenter.double(),
    ],
)
def test_a_segmenter_that_does_something_else_is_refused(
    change: Callable[[Segmenter], object],
) -> None:
    segmenter = trained_alike()
    change(segmenter)
    with pytest.raises((UnknownLipschitz, ValueError)):
        bounds_of_pixels(segmenter, torch.rand(1, 3, *SMALL.canvas))


def _hook_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def larger(module: nn.Module, x: object, y: Tensor) -> Tensor | None:
        return 1.3 * y if isinstance(module, MaxMin) else None

    monkeypatch.setitem(torch_module._global_forward_hooks, -1, larger)


def _replaced_method(monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.PixelShuffle.forward
    monkeypatch.setattr(nn.PixelShuffle, "forward", lambda layer, x: 20 * original(layer, x))


def _replaced_function(monkeypatch: pytest.MonkeyPatch) -> None:
    original = functional.pixel_shuffle
    monkeypatch.setattr(functional, "pixel_shuffle", lambda x, cell: 20 * original(x, cell))


@pytest.mark.parametrize("replace_code", [_hook_of_all, _replaced_method, _replaced_function])
def test_code_that_is_replaced_everywhere_is_refused(
    replace_code: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, picture = trained_alike(), torch.rand(1, 3, *SMALL.canvas)
    assert bounds_of_pixels(segmenter, picture).joint > 0
    replace_code(monkeypatch)
    with pytest.raises(UnknownLipschitz):
        bounds_of_pixels(segmenter, picture)


def test_a_layer_that_is_passed_twice_counts_twice() -> None:
    segmenter = trained_alike()
    double = nn.Conv2d(SMALL.width, SMALL.width, 1, bias=False)
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(SMALL.width)[..., None, None])
    picture = torch.rand(1, 3, *SMALL.canvas)
    before = bounds_of_pixels(segmenter, picture).joint
    segmenter.body = nn.Sequential(*segmenter.body, double, double)
    assert bounds_of_pixels(segmenter, picture).joint == pytest.approx(4 * before, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "word"), [({"width": 44}, "44"), ({"class_names": ("a",)}, "1")]
)
def test_configurations_that_cannot_work(changes: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=rf"not {word}\."):
        build_segmenter(replace(SMALL, **changes))  # type: ignore[arg-type]


def test_the_loss_is_that_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    masks = torch.randint(0, 3, (2, 4, 5), generator=generator, dtype=torch.uint8)
    masks[0, 0] = IGNORED
    weights = class_weights(torch.tensor([80, 15, 5]))
    assert float(weights @ torch.tensor([0.8, 0.15, 0.05])) == pytest.approx(1)
    assert float(weights[2] / weights[0]) == pytest.approx(4)  # the root of 16 times as rare
    total = counted = 0.0
    for image, mask in zip(logits, masks, strict=True):
        for y in range(4):
            for x in range(5):
                if (label := int(mask[y, x])) != IGNORED:
                    moved = image[:, y, x].clone()
                    moved[label] -= 2**0.5 * 0.1
                    weight = float(weights[label])
                    total -= weight * float((7 * moved).log_softmax(dim=0)[label])
                    counted += weight
    loss = pixel_loss(logits, masks, weights, temperature=7.0, margin=0.1).total
    assert float(loss) == pytest.approx(total / counted, rel=1e-5)
    assert float(labelled_weight(masks, weights)) == pytest.approx(counted, rel=1e-5)
    assert not pixel_loss(logits, torch.full_like(masks, IGNORED), weights, 7.0).total


def test_offsets_make_the_mean_iou_as_high_as_a_fine_search() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, generator=generator) < 0.15).long()
    logits = torch.randn(4000, 2, generator=generator)
    logits[:, 1] += 1.5 * labels + 0.7  # too much is shown of the second class

    def mean_iou(offset: float) -> float:
        shown = logits[:, 1] + offset > logits[:, 0]
        pairs = [(shown, labels == 1), (~shown, labels == 0)]
        return float(sum((a & b).sum() / (a | b).sum() for a, b in pairs)) / 2

    offsets = choose_offsets(logits, labels)
    assert offsets[0] == 0
    best = max(mean_iou(offset / 100) for offset in range(-400, 400))
    assert mean_iou(0.0) < mean_iou(float(offsets[1]))
    assert mean_iou(float(offsets[1])) > best - 0.005


def test_offsets_move_logits_and_no_constant() -> None:
    segmenter, picture = trained_alike(), torch.rand(1, 3, *SMALL.canvas)
    with torch.no_grad():
        before, bounds = segmenter(picture), bounds_of_pixels(segmenter, picture)
        add_offsets(segmenter, torch.tensor([0.0, 0.5, -1.0]))
        moved = segmenter(picture) - before
    assert torch.allclose(moved[:, 1], torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(moved[:, 2], torch.tensor(-1.0), atol=1e-5)
    assert bounds_of_pixels(segmenter, picture).joint == bounds.joint


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_an_attack_does_not_depend_on_what_a_logit_means(scale: float) -> None:
    torch.manual_seed(0)
    segmenter = build_segmenter(replace(SMALL, architecture="plain-segmenter")).eval()
    nn.init.normal_(segmenter.head.weight)  # type: ignore[arg-type]
    images, masks = torch.rand(2, 3, *SMALL.canvas), torch.randint(3, (2, *SMALL.canvas))
    # An unlabelled picture has nothing to raise.
    masks[1] = IGNORED
    attack = PixelSettings(0.5, steps=5)
    found = attack_pixels(segmenter, images, masks.to(torch.uint8), [attack])
    with torch.no_grad():
        for one in (segmenter.head.weight, segmenter.head.bias):
            one.mul_(scale)  # type: ignore[operator]
    again = attack_pixels(segmenter, images, masks.to(torch.uint8), [attack])
    assert (found[0] - images[0]).norm() > 0.4
    assert torch.equal(found[1], images[1])
    assert torch.allclose(found, again, atol=1e-3)
