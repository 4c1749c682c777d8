"""A detector of torchvision, trained on packs of lipdet, for lipdet to attack and audit.

    lipdet data prepare svhn:SVHN/train --crop jitter --crops 24 --out packs/train
    python examples/torchvision_ssd.py packs/train --minutes 15
    export PYTHONPATH=examples
    lipdet eval torchvision_ssd:detector --data svhn:SVHN/test --epsilon 0.25 --attack pgd

The weights are written to torchvision_ssd.safetensors in the current folder, and looked for there.
The same photographs are held out as when lipdet trains.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import detection

from lipdet.images.batches import Mixture, split
from lipdet.images.pack import open_pack

WEIGHTS = Path("torchvision_ssd.safetensors")
SIZE = 74
CLASSES = tuple("0123456789")
BATCH, EPOCH = 64, 20_000
LEARNING_RATE, WARMUP_STEPS = 3e-3, 100


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """A convolution with batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def untrained() -> nn.Module:
    """Build torchvision's SSD for 74×74 pixels, with one map of stride 8."""
    backbone = nn.Sequential(
        *(block(3, 24, 2), block(24, 32), block(32, 48, 2), block(48, 64)),
        *(block(64, 96, 2), block(96, 96), block(96, 96)),
    )
    anchors = detection.anchor_utils.DefaultBoxGenerator([[2]], scales=[0.35, 0.6])
    count = 1 + len(CLASSES)
    head = detection.ssd.SSDHead([96], anchors.num_anchors_per_location(), count)
    grey = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model = detection.ssd.SSD(backbone, anchors, (SIZE, SIZE), count, head=head, **grey)
    model.image_size, model.class_names = SIZE, CLASSES
    return model


def detector() -> nn.Module:
    """Load what was trained."""
    model = untrained()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def train(packs: list[Path], minutes: float) -> None:
    """Train for some minutes, and write the weights to the current folder."""
    torch.manual_seed(0)
    model = untrained().train()
    parts = [split(open_pack(pack), 0.05, 256, 0)[0] for pack in packs]
    batches = Mixture(parts, [1.0] * len(parts), EPOCH, BATCH, 0)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    started, step = time.monotonic(), 0
    while (done := (time.monotonic() - started) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / WARMUP_STEPS) * (1 - done)
        batch = batches.batch(*divmod(step, batches.batches_per_epoch))
        # torchvision counts classes from 1.
        targets = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in batch.targets]
        losses = model(list(batch.images.float() / 255), targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            loss = float(total.detach())
            print(f"{step} steps, {done:.0%} of the time, loss {loss:.2f}", flush=True)
    save_file(model.state_dict(), WEIGHTS)
    print(f"{WEIGHTS}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    options = parser.parse_args()
    train(options.packs, options.minutes)


if __name__ == "__main__":
    main()
