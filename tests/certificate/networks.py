"""Small random networks of every supported module and function."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.layers import (
    Abs,
    AOLConv2d,
    BCOPConv2d,
    CPLBlock,
    DropChannels,
    Householder,
    L2NormConv2d,
    MaxMin,
    OrthogonalConv1x1,
    ScaledAvgPool2d,
    SLLBlock,
    SpaceToDepth,
    SpectralConv2d,
    UnitNormConv2d,
    ZeroPadChannels,
)
from tests.certificate.helpers import randomised

Shape = tuple[int, int, int]
Builder = Callable[[random.Random, Shape], nn.Module]


class Residual(nn.Module):
    """x + f(x), with the sum written in several ways."""

    def __init__(self, branch: nn.Module, way: int) -> None:
        super().__init__()
        self.branch = branch
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.way == 0:
            return x + y
        if self.way == 1:
            return torch.sub(x, y).mul(0.7)
        return torch.maximum(x, 1 - y / 2)


class Branches(nn.Module):
    """Two maps of the same input, concatenated or stacked and merged."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x), self.second(-x), x]
        return torch.stack(torch.cat(parts, dim=1).chunk(1, 1), dim=1).flatten(1, 2)


class Functions(nn.Module):
    """Chains of functions, methods and operators, by number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.register_buffer("std", torch.tensor([0.3, -0.5]).reshape(2, 1, 1))
        self.std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[-2]
        chains = (
            lambda: functional.pad(2 * x - 1, (1, -1, 0, 2)),
            lambda: functional.leaky_relu(x.clamp(-1, 1), 1.5),
            lambda: torch.sigmoid(functional.max_pool2d(x, 3, 2, 1)),
            lambda: functional.avg_pool2d(x, 3, stride=2, padding=1).tanh(),
            lambda: functional.interpolate(x, scale_factor=1.5, mode="nearest"),
            lambda: functional.interpolate(x, size=(height + 3, 5), mode="bilinear"),
            lambda: x[:, :1, ..., ::2].permute(0, 1, 3, 2).reshape(x.shape[0], 1, -1, height),
            lambda: functional.softmax(x, dim=1) - x.abs().relu() / 3,
            lambda: x[:, :1].transpose(2, 3).roll(1, 2) / self.std[0],
            lambda: torch.cat([x, functional.dropout(x, training=False)], 1).flip(1),
        )
        return chains[self.number]()


FUNCTIONS = 10


def _conv(rng: random.Random, shape: Shape) -> nn.Module:
    groups = rng.choice([g for g in (1, 2) if shape[0] % g == 0])
    return nn.Conv2d(
        shape[0],
        groups * rng.randint(1, 4 // groups),
        (rng.randint(1, 3), rng.randint(1, 3)),
        rng.randint(1, 2),
        rng.randint(0, 2),
        rng.randint(1, 2),
        groups,
        padding_mode=rng.choice(["zeros", "circular", "reflect", "replicate"]),
    )


def _pool(kind: type[nn.Module]) -> Builder:
    def build(rng: random.Random, shape: Shape) -> nn.Module:
        size = rng.randint(1, 3)
        extra = {"count_include_pad": rng.random() < 0.5} if kind is nn.AvgPool2d else {}
        padding = rng.randint(0, size // 2)
        return kind(size, rng.randint(1, 3), padding, ceil_mode=rng.random() < 0.5, **extra)

    return build


def _constructed(kind: type[nn.Module]) -> Builder:
    def build(rng: random.Random, shape: Shape) -> nn.Module:
        layer = kind(shape[0], rng.randint(1, 4), rng.randint(1, 3), padding=rng.randint(0, 1))
        return _shuffled(layer)

    return build


def _shuffled(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _small(rng: random.Random, shape: Shape) -> nn.Module:
    return nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=rng.random() < 0.5)


def _fixed(make: Callable[[], nn.Module]) -> Builder:
    return lambda rng, shape: make()


BUILDERS: dict[str, Builder] = {
    "conv": _conv,
    "conv-bn": lambda rng, shape: nn.Sequential(_small(rng, shape), nn.BatchNorm2d(shape[0])),
    "bn": lambda rng, shape: nn.BatchNorm2d(shape[0], affine=rng.random() < 0.8),
    "linear": lambda rng, shape: nn.Linear(shape[2], rng.randint(1, 6)),
    "max-pool": _pool(nn.MaxPool2d),
    "average-pool": _pool(nn.AvgPool2d),
    "up": lambda rng, shape: nn.Upsample(
        scale_factor=(rng.choice([1.5, 2.0]), rng.choice([0.7, 3.0])),
        mode=rng.choice(["nearest", "nearest-exact", "bilinear"]),
    ),
    "relu": _fixed(lambda: nn.ReLU(inplace=True)),
    "leaky": _fixed(lambda: nn.LeakyReLU(-1.4)),
    "sigmoid": _fixed(nn.Sigmoid),
    "softmax": _fixed(lambda: nn.Softmax(dim=1)),
    "tanh": _fixed(nn.Tanh),
    "hardtanh": _fixed(nn.Hardtanh),
    "pad": _fixed(lambda: nn.ZeroPad2d((1, 0, -1, 2))),
    "shuffle": _fixed(lambda: nn.PixelUnshuffle(2)),
    "dropout": _fixed(nn.Dropout),
    "residual": lambda rng, shape: Residual(_small(rng, shape), rng.randrange(3)),
    "branches": lambda rng, shape: Branches(_small(rng, shape), nn.Sigmoid()),
    "functions": lambda rng, shape: Functions(rng.randrange(FUNCTIONS)),
    "maxmin": _fixed(MaxMin),
    "abs": _fixed(Abs),
    "householder": lambda rng, shape: _shuffled(Householder(shape[0])),
    "space-to-depth": _fixed(lambda: SpaceToDepth(2)),
    "scaled-average": _fixed(lambda: ScaledAvgPool2d(2)),
    "add-channels": lambda rng, shape: ZeroPadChannels(shape[0] + 1),
    "drop-channels": lambda rng, shape: DropChannels(max(1, shape[0] - 1)),
    "aol": _constructed(AOLConv2d),
    "bcop": _constructed(BCOPConv2d),
    "spectral": _constructed(SpectralConv2d),
    "l2": _constructed(L2NormConv2d),
    "unit": _constructed(UnitNormConv2d),
    "1x1": lambda rng, shape: _shuffled(OrthogonalConv1x1(shape[0], rng.randint(1, 4))),
    "sll": lambda rng, shape: _shuffled(SLLBlock(shape[0], rng.randint(1, 4))),
    "cpl": lambda rng, shape: _shuffled(CPLBlock(shape[0], rng.randint(1, 4))),
}


def random_network(kinds: list[str], seed: int) -> tuple[nn.Module, Shape]:
    """Stack the layers that fit behind each other; return the network and its input shape."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shape = rng.choice([1, 2, 2, 4]), rng.randint(4, 6), rng.randint(4, 6)
    network = nn.Sequential()
    x = torch.rand(1, *shape)
    for kind in kinds:
        try:
            layer = randomised(BUILDERS[kind](rng, (x.shape[1], x.shape[2], x.shape[3])))
            y = layer(x.clone())
        except (RuntimeError, ValueError):
            continue
        if 0 < y.numel() <= 160 and y.ndim == 4:
            network.append(layer)
            x = y.detach()
    return network, shape
