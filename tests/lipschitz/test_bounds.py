"""Bounds of whole networks: never below the truth, tight rules attained, the unknown refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lipdet.certificate import UnknownLipschitz, lipschitz_bound
from lipdet.errors import InputError
from lipdet.layers import BCOPConv2d, CPLBlock, FoldedResidual, MaxMin, SLLBlock, fold
from tests.certificate.helpers import Apply, conv, jacobian_norm
from tests.certificate.networks import BUILDERS, FUNCTIONS, Functions, random_network


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(sorted(BUILDERS)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_networks_are_never_above_their_bound(kinds: list[str], seed: int) -> None:
    network, shape = random_network(kinds, seed)
    # Oracle: SVD of Jacobians, the truth for affine networks and a lower bound for others.
    assert jacobian_norm(network, shape, points=2) <= lipschitz_bound(network, shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_every_builder_gives_layers_that_are_bounded(kind: str) -> None:
    networks = [random_network([kind], seed) for seed in range(3)]
    used = [(network, shape) for network, shape in networks if len(network)]  # type: ignore[arg-type]
    assert used
    for network, shape in used:
        assert jacobian_norm(network, shape, points=2) <= lipschitz_bound(network, shape)


@pytest.mark.parametrize("number", range(FUNCTIONS))
def test_every_chain_of_functions_is_bounded(number: int) -> None:
    torch.manual_seed(number)
    network = Functions(number)
    assert jacobian_norm(network, (2, 5, 6), points=2) <= lipschitz_bound(network, (2, 5, 6))


def _beside(inner: Callable[[Tensor], Tensor], x: Tensor, dim: int = 1) -> Tensor:
    """One half goes through a function, the other half waits beside it."""
    through, waiting = x.chunk(2, dim)
    return torch.cat([inner(through), waiting], dim)


@pytest.mark.parametrize(
    ("layer", "constant"),
    [
        (nn.MaxPool2d(3, 2), 2.0),  # attained: theory §2
        (nn.MaxPool2d(2), 1.0),
        (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), 2.0),
        (nn.MaxPool2d((3, 2), (1, 1)), math.sqrt(6)),
        (nn.AvgPool2d(2), 0.5),  # 1/√(2·2)
        (nn.AvgPool2d((3, 1)), 1 / math.sqrt(3)),
        (nn.Upsample(scale_factor=3), 3.0),  # s for integer s × s
        (nn.Upsample(scale_factor=(2, 1)), math.sqrt(2)),
        (nn.LeakyReLU(0.1), 1.0),
        (nn.LeakyReLU(-3.0), 3.0),
        (nn.Sigmoid(), 0.25),
        (nn.GELU(), 1.129),
        (nn.GELU("tanh"), 1.1291),
        (nn.SiLU(inplace=True), 1.0999),
        (nn.Mish(), 1.0886),
        (nn.Hardswish(), 1.5),
        (nn.ELU(0.5), 1.0),
        (nn.ELU(3.0), 3.0),
        (nn.PReLU(init=-2.0), 2.0),
        (nn.Softplus(2.0), 1.0),
        (nn.Tanh(), 1.0),
        (nn.AdaptiveAvgPool2d(1), 1 / 6),
        (nn.AdaptiveAvgPool2d((3, None)), 1 / math.sqrt(2)),
        (Apply(lambda x: x.mean((2, 3))), 1 / 6),
        (Apply(lambda x: torch.mean(x, 1, keepdim=True)), 1 / math.sqrt(2)),
        (nn.Softmax(dim=1), 0.5),
        (MaxMin(), 1.0),
        (nn.ZeroPad2d((1, -2, 3, 0)), 1.0),
        (Apply(lambda x: 2 * x - 1), 2.0),
        (Apply(lambda x: 3 - x / 4), 0.25),
        (Apply(lambda x: x + x), 2.0),
        (Apply(lambda x: torch.cat([x, x, x], 1)), math.sqrt(3)),
        (Apply(lambda x: (x, [x, 1.0], {"x": x})), math.sqrt(3)),
        (Apply(lambda x: x.shape[1] * x.chunk(2, 1)[0]), 2.0),
        (Apply(lambda x: torch.cat([*x.chunk(2, 1), x], 1)), math.sqrt(2)),
        (Apply(lambda x: torch.cat([3 * x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1)), math.sqrt(10)),
        (Apply(lambda x: _beside(lambda a: 3 * a, x)), 3.0),
        (Apply(lambda x: 2 * _beside(lambda a: _beside(lambda b: 5 * b, a, 2), x)), 10.0),
        (Apply(lambda x: _beside(lambda a: a + x[:, :1], x)), math.sqrt(5)),
        (Apply(lambda x: torch.cat([*(y := x.chunk(2, 1)), y[0]], 1)), math.sqrt(2)),
        # Chunks that hold the same entries are not apart.
        (Apply(lambda x: _beside(lambda a: 3 * a, torch.cat([x, x], 1))), 3 * math.sqrt(2)),
    ],
)
def test_rules(layer: nn.Module, constant: float) -> None:
    """Activations, pools and means among the rules, with their constants."""
    assert lipschitz_bound(layer.eval(), (2, 6, 6)) == pytest.approx(constant, rel=2e-6)


@pytest.mark.parametrize(
    ("activation", "curvature"),
    [
        # Largest second derivative: 2φ(0) of GELU and 2·1/4 of SiLU at 0; of the others as the grid
        # shows by differences of slopes, with some to spare.
        (nn.GELU(), 0.8),
        (nn.GELU("tanh"), 0.9),
        (nn.SiLU(), 0.51),
        (nn.Mish(), 0.7),
    ],
)
def test_smooth_activations_have_proven_slopes(activation: nn.Module, curvature: float) -> None:
    """The largest slope on a fine grid, with its rise in between, is below."""
    x = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(activation(x).sum(), x)
    step = 1e-5
    measured = float(slopes.diff().abs().max()) / step
    assert measured <= curvature
    bound = lipschitz_bound(activation, (1, 2, 2))
    # Attained, too, up to a ten-thousandth; outside the grid slopes have come to rest at 0 and 1.
    assert bound - 1.2e-4 <= float(slopes.abs().max()) + curvature * step / 2 <= bound
    assert abs(float(slopes[0])) < 1e-3
    assert float(slopes[-1]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("size", [(2, 3), 4, (None, 5), 7])
def test_adaptive_pools_have_the_norm_of_their_matrix(size: object) -> None:
    """Adaptive pools, where the input size is known."""
    pool = nn.AdaptiveAvgPool2d(size)  # type: ignore[arg-type]
    # Oracle: SVD of the dense matrix. Windows overlap where the sizes do not divide.
    truth = jacobian_norm(pool, (1, 6, 7))
    assert lipschitz_bound(pool, (1, 6, 7)) == pytest.approx(truth, rel=1e-5)


def test_average_pool_at_the_border_can_exceed_one() -> None:
    # Border windows are divided by fewer pixels: it is above 1 there.
    layer = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    truth = jacobian_norm(layer, (1, 5, 5))
    assert truth > 1.01
    assert truth <= lipschitz_bound(layer, (1, 5, 5)) <= truth * (1 + 1e-5)


@pytest.mark.parametrize("kind", [SLLBlock, CPLBlock])
def test_residual_blocks_have_bound_one(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    block = kind(4)
    assert 1 <= lipschitz_bound(block, (4, 6, 6)) <= 1 + 1e-6
    assert 1 <= lipschitz_bound(fold(block), (4, 6, 6)) <= 1 + 1e-6


def test_a_residual_block_that_breaks_its_theorem_is_seen() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(4, 4, 3, 3)
    twice = 2 * kernel.flip(2, 3).transpose(0, 1)
    block = FoldedResidual(kernel, twice, None)
    # ‖V‖ is far above 1: the bound says so instead of trusting the name.
    assert 10 < jacobian_norm(block, (4, 6, 6), 5) <= lipschitz_bound(block, (4, 6, 6))
    with pytest.raises(UnknownLipschitz, match="not twice the transpose"):
        lipschitz_bound(FoldedResidual(kernel, 1.01 * twice, None), (4, 6, 6))


def test_a_chain_of_orthogonal_layers_has_bound_one() -> None:
    torch.manual_seed(0)
    layers = [BCOPConv2d(4, 4, 3, padding=1), MaxMin(), BCOPConv2d(4, 8, 2, 2), MaxMin()]
    assert 0.9 < lipschitz_bound(nn.Sequential(*layers), (4, 6, 6)) <= 1 + 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReflectionPad2d((1, 2, 3, 0)),
        nn.ReplicationPad2d((3, 0, 1, 1)),
        nn.CircularPad2d((2, 1, 0, 4)),
        Apply(lambda x: functional.pad(x, (1, 2, -1, 3), mode="replicate")),
    ],
)
def test_padding_that_repeats_pixels_has_its_exact_norm(layer: nn.Module) -> None:
    truth = jacobian_norm(layer, (2, 4, 5))  # Oracle: SVD of the dense matrix.
    assert truth > 1.4
    assert truth <= lipschitz_bound(layer, (2, 4, 5)) <= truth * (1 + 1e-5)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_a_convolution_that_pads_with_repeated_pixels(mode: str, padding: object) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, (2, 3), padding=padding, padding_mode=mode)  # type: ignore[arg-type]
    truth = jacobian_norm(layer, (2, 6, 5))  # Oracle: SVD of the dense matrix.
    assert truth <= lipschitz_bound(layer, (2, 6, 5)) <= 3 * truth
    # Constant images pass a mean filter unchanged.
    mean = conv(torch.full((1, 1, 3, 3), 1 / 9), padding=1, padding_mode=mode)
    assert 1 <= jacobian_norm(mean, (1, 4, 4)) <= lipschitz_bound(mean, (1, 4, 4))


class Centred(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean())


def _not_finite() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), conv(torch.full((3, 3, 1, 1), math.nan)))


UNKNOWN = {
    "layer norm": (lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(6)), r'LayerNorm at "1": it has'),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(1, 3)), 'GroupNorm at "0": it has no rule'),
    "mean": (lambda: Apply(lambda x: x.mean()), "mixes images"),
    "early softplus": (lambda: nn.Softplus(threshold=2), "threshold of at least 20"),
    "softplus in float64": (
        lambda: nn.Sequential(conv(torch.ones(3, 3, 1, 1)), nn.Softplus()).double(),
        "in float64 of 33",
    ),
    "pad": (lambda: Apply(lambda x: functional.pad(x, (1,) * 6, mode="circular")), "width only"),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), r"Norm2d.*eval"),
    "no statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False).eval(), "batch statis"),
    "dropout": (lambda: nn.Sequential(nn.Dropout()), r'Dropout at "0".*eval'),
    "dropout function": (lambda: Apply(functional.dropout), "dropout.*eval"),
    "spectral": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), "every use"),
    "nan": (_not_finite, r'Conv2d at "1": The weights are not all finite'),
    "subclass": (lambda: nn.Sequential(Centred(3, 3, 1)), 'mean at "0"'),
    "square": (lambda: Apply(lambda x: x * x), "product of two maps"),
    "power": (lambda: Apply(lambda x: x**2), "pow"),
    "quotient": (lambda: Apply(lambda x: 1 / x), "dividing by"),
    "zero divisor": (lambda: Apply(lambda x: x / 0), "not finite"),
    "broadcast": (lambda: Apply(lambda x: x + x[:, :1]), "broadcasting"),
    "broadcast factor": (lambda: Apply(lambda x: x[:, :1] * torch.ones(4, 1, 1)), "broadcasting"),
    "limits": (lambda: Apply(lambda x: x[:, :1].clamp(torch.ones(3, 1, 1))), "clamping to tensors"),
    "overlap": (lambda: Apply(lambda x: x.tensor_split((2, 1), 1)), "tensor_split"),
    "repeats": (lambda: Apply(lambda x: x[:, [0, 0]]), "by a list or tensor"),
    "in place": (lambda: Apply(lambda x: x.mul_(3)), "mul_"),
    "branch on values": (lambda: Apply(lambda x: x if x.sum() > 0 else 2 * x), "cannot be traced"),
    "indices": (lambda: Apply(lambda x: functional.max_pool2d(x, 2, return_indices=True)), "max_p"),
    "type": (lambda: Apply(lambda x: x.view(torch.int32)), "types of numbers"),
    "argument": (lambda: Apply(lambda x: torch.add(x, x, alpha=3)), "does not cover"),
    "dilated pool": (lambda: nn.MaxPool2d(2, dilation=2), "dilation"),
    "trained up": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), "bicubic"),
}  # fmt: skip


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_has_no_rule_is_refused_by_name(make: tuple[Callable[[], nn.Module], str]) -> None:
    build, message = make
    with pytest.raises(UnknownLipschitz, match=message):
        lipschitz_bound(build(), (3, 6, 6))


def test_a_wrong_shape_is_bad_input() -> None:
    with pytest.raises(InputError, match=r"does not accept inputs of \(2, 6, 6\)|\(2, 6, 6\)"):
        lipschitz_bound(nn.Conv2d(3, 3, 1), (2, 6, 6))
