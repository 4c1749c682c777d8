"""Cost of one attack step beside one forward and backward of the bare network.

    python benchmarks/attack_step.py [DETECTOR] [STEPS]

Two bare passes are timed: with gradients of all parameters, as in training, and with the gradient
of the image alone, which is what an attack needs. Rounds of both alternate in one process, and the
median of their ratios is printed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lipdet.attack import OBJECTIVES, AttackSettings, attack_batch
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.evaluate.attacked import prepare
from lipdet.types import Target

BATCH = 16
ROUNDS = 3


def bare(detector: SSD, images: Tensor, steps: int) -> None:
    """Forward and backward, with a loss that costs nothing."""
    for _ in range(steps):
        batch = images.clone().requires_grad_(True)
        raw = detector(batch)
        (raw.logits.square().mean() + raw.offsets.square().mean()).backward()
        detector.zero_grad()


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call: other programs on the machine do not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Print the ratio of each objective."""
    name = sys.argv[1] if len(sys.argv) > 1 else "naive"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    frozen = prepare(load_detector(name).detector)
    trained = prepare(frozen).requires_grad_(True)
    canvas = frozen.config.canvas
    images = torch.rand(BATCH, 3, *canvas).contiguous(memory_format=torch.channels_last)
    box = torch.tensor([[0.2, 0.2, 0.5, 0.8], [0.5, 0.2, 0.8, 0.8]]) * torch.tensor(canvas.limits)
    targets = [Target(boxes=box, labels=torch.tensor([0, 1]))] * BATCH
    bare(trained, images, 1)
    print(f"{name}, {BATCH} images: processor time of an attack step over that of a bare pass")
    for schedule, objective in [*(("pgd", name) for name in OBJECTIVES), ("apgd", "multibox")]:
        settings = AttackSettings(0.5, objective, schedule, steps=steps)  # type: ignore[arg-type]
        ratios: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            attack = seconds(partial(attack_batch, frozen, images, targets, settings))
            full = seconds(partial(bare, trained, images, steps))
            alone = seconds(partial(bare, frozen, images, steps))
            ratios.append((attack / full, attack / alone))
        full, alone = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"  {schedule:4} {objective:14} {full:.2f} (image gradient alone {alone:.2f})")


if __name__ == "__main__":
    main()
