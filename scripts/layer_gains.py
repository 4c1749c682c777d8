"""Gains of ten stacked layers of each kind at initialisation, as a table and a figure.

    python scripts/layer_gains.py FIGURE.png

Gaussian images, 32 channels, 20×20 pixels, 3×3 kernels, zero padding, seed 0. The figure shows how
much of a gradient at the output is left after each layer it passes on its way back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from torch import nn

from lipdet.layers import (
    AOLConv2d,
    BCOPConv2d,
    CPLBlock,
    GainProfile,
    L2NormConv2d,
    MaxMin,
    OrthogonalConv1x1,
    SLLBlock,
    SpectralConv2d,
    gain_profile,
)

mpl.use("Agg")
from matplotlib import pyplot as plt

DEPTH, CHANNELS, SIDE, BATCH = 10, 32, 20, 8


def gaussian_aol() -> nn.Module:
    """AOL from the start of an ordinary convolution, for comparison."""
    layer = AOLConv2d(CHANNELS, CHANNELS, 3, padding=1)
    nn.init.kaiming_normal_(layer.raw)
    return layer


KINDS: dict[str, Callable[[], list[nn.Module]]] = {
    "AOLConv2d + MaxMin": lambda: [AOLConv2d(CHANNELS, CHANNELS, 3, padding=1), MaxMin()],
    "BCOPConv2d + MaxMin": lambda: [BCOPConv2d(CHANNELS, CHANNELS, 3, padding=1), MaxMin()],
    "OrthogonalConv1x1 + MaxMin": lambda: [OrthogonalConv1x1(CHANNELS, CHANNELS), MaxMin()],
    "SLLBlock": lambda: [SLLBlock(CHANNELS)],
    "CPLBlock": lambda: [CPLBlock(CHANNELS)],
    "L2NormConv2d + MaxMin": lambda: [L2NormConv2d(CHANNELS, CHANNELS, 3, padding=1), MaxMin()],
    "SpectralConv2d + MaxMin": lambda: [SpectralConv2d(CHANNELS, CHANNELS, 3, padding=1), MaxMin()],
    "SpectralConv2d + ReLU": lambda: [SpectralConv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()],
    "AOLConv2d, Gaussian start, + MaxMin": lambda: [gaussian_aol(), MaxMin()],
}


def profile(kind: str) -> GainProfile:
    """The gains of ten layers of a kind."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(DEPTH) for layer in KINDS[kind]()))
    return gain_profile(model, torch.randn(BATCH, CHANNELS, SIDE, SIDE))


def backward_by_depth(gains: GainProfile) -> list[float]:
    """What is left of a gradient after it has passed 0, 1, ... 10 layers, from the output."""
    step = len(gains.layers) // DEPTH
    first_of_each = gains.layers[::step]
    return [1.0, *(row.backward_total for row in reversed(first_of_each))]


def draw(profiles: dict[str, GainProfile], path: Path) -> None:
    """One small panel for each kind, on common axes."""
    figure, axes = plt.subplots(3, 3, figsize=(9, 7), sharex=True, sharey=True)
    for axis, (kind, gains) in zip(axes.flat, profiles.items(), strict=True):
        axis.axhline(1, color="0.7", linewidth=1)
        axis.semilogy(range(DEPTH + 1), backward_by_depth(gains), "o-", color="#0072B2")
        axis.set_title(f"{kind}\n{gains.backward:.2g} after {DEPTH}", fontsize=9)
        axis.grid(alpha=0.3)
    figure.supxlabel("layers passed, from the output")
    figure.supylabel("norm of the gradient / norm at the output")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table and write the figure."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/layer_gains.py FIGURE.png")
    profiles = {kind: profile(kind) for kind in KINDS}
    print("| ten layers of | forward gain | backward gain |\n|---|---|---|")
    for kind, gains in profiles.items():
        print(f"| {kind} | {gains.forward:.2g} | {gains.backward:.2g} |")
    draw(profiles, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
