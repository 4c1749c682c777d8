"""Time of one training step and of folded inference for each 3×3 layer, next to a plain conv.

    python benchmarks/layers.py [--quick]

A training step is forward and backward in the weight and in the input, with the construction of
the weight. orthogonium's AOC and torchlip's SpectralConv2d run beside ours. --quick measures only
64 channels, 20×20 pixels, batch 64.

Notable choices:
- All layers take turns within a round, in a shuffled order, and ratios are medians of the ratios
  within a round: what else the machine does then hits every layer alike.
- Every layer has zero padding and no bias.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipdet.hardware import keep_freed_memory
from lipdet.layers import AOLConv2d, BCOPConv2d, CPLBlock, L2NormConv2d, SLLBlock, SpectralConv2d
from lipdet.layers import fold as folded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside the two packages, at import
    from deel import torchlip
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d

PLAIN = "nn.Conv2d"
OURS: dict[str, Callable[[int], nn.Module]] = {
    "AOLConv2d": lambda c: AOLConv2d(c, c, 3, padding=1, bias=False),
    "BCOPConv2d": lambda c: BCOPConv2d(c, c, 3, padding=1, bias=False),
    "SpectralConv2d": lambda c: SpectralConv2d(c, c, 3, padding=1, bias=False),
    "L2NormConv2d": lambda c: L2NormConv2d(c, c, 3, padding=1, bias=False),
    "SLLBlock (two convs)": lambda c: SLLBlock(c, bias=False),
    "CPLBlock (two convs)": lambda c: CPLBlock(c, bias=False),
}
OTHERS: dict[str, Callable[[int], nn.Module]] = {
    "orthogonium AOC": lambda c: AdaptiveOrthoConv2d(
        c, c, 3, padding=1, bias=False, padding_mode="zeros"
    ),
    "torchlip SpectralConv2d": lambda c: torchlip.SpectralConv2d(c, c, 3, padding=1, bias=False),
}
Timed = dict[str, list[float]]


def train_step(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """Forward and backward, in the weight and in the input."""
    layer.zero_grad()
    x.grad = None
    layer(x).backward(gradient)


def interleaved(steps: dict[str, Callable[[], None]], budget: float) -> Timed:
    """Seconds of each step in rounds, after one that is not counted, for about `budget` seconds."""
    seconds: Timed = {name: [] for name in steps}
    names, start, rounds = list(steps), time.perf_counter(), 0
    while rounds < 4 or time.perf_counter() - start < budget:
        random.shuffle(names)
        for name in names:
            started = time.perf_counter()
            steps[name]()
            if rounds:
                seconds[name].append(time.perf_counter() - started)
        rounds += 1
    return seconds


def cells(timed: Timed, name: str) -> str:
    """Median milliseconds and median ratio to the plain convolution of the same round."""
    pairs = zip(timed[name], timed[PLAIN], strict=True)
    ratio = statistics.median(own / plain for own, plain in pairs)
    return f"{1000 * statistics.median(timed[name]):.1f} | {ratio:.2f}"


def measure(channels: int, side: int, batch: int, budget: float) -> None:
    """Print the rows of one shape."""
    builders = {PLAIN: lambda c: nn.Conv2d(c, c, 3, padding=1, bias=False), **OURS, **OTHERS}
    layers = {name: build(channels) for name, build in builders.items()}
    x = torch.randn(batch, channels, side, side, requires_grad=True)
    gradient = torch.randn_like(x)
    training = interleaved(
        {n: lambda m=m: train_step(m, x, gradient) for n, m in layers.items()}, budget
    )
    plain = {n: folded(layers[n]).eval() for n in (PLAIN, *OURS)}
    with torch.inference_mode():
        inference = interleaved({n: lambda m=m: m(x) for n, m in plain.items()}, budget / 4)
    for name in layers:
        after = cells(inference, name) if name in inference else "– | –"
        print(
            f"| {channels} | {side}×{side} | {batch} | {name} | {cells(training, name)} | {after} |"
        )


def main() -> None:
    """Print the table."""
    random.seed(0)
    torch.manual_seed(0)
    keep_freed_memory()
    print("| channels | pixels | batch | layer | step, ms | ÷ plain | folded, ms | ÷ plain |")
    print("|---|---|---|---|---|---|---|---|")
    if "--quick" in sys.argv:
        measure(64, 20, 64, budget=20)
        return
    for channels, side, batch in itertools.product((32, 64, 128), (20, 37), (16, 64)):
        measure(channels, side, batch, budget=2)


if __name__ == "__main__":
    main()
