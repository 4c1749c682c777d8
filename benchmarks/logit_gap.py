"""How far an object's logit stands above everything that shall not be detected.

    python benchmarks/logit_gap.py certified --data svhn:../shared/svhn/test

A certificate at ε needs a gap of 2ε. Logits are those of a one-vs-all detector, before temperature.
Of each object the highest logit of its class on boxes that match it; of each picture the highest
logit of any class on boxes that touch no object (IoU below 0.3). The norm of a logit's gradient in
the picture says how much of the bound of 1 the network uses.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from lipdet.boxes.coding import pairwise_iou
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.detector.forward import raw_output
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data

MATCH, TOUCH = 0.5, 0.3
GRADIENTS = 16


def main() -> None:
    """Print medians over objects and pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--data", default="rendered:200")
    options = parser.parse_args()
    detector = load_detector(options.detector).detector
    pack = open_data(options.data, "test", detector.framing, 0)
    objects, background = gaps(detector, pack)
    difference = objects.median() - background.median()
    print(f"median logit of objects {objects.median():.2f}, highest background of a picture")
    print(f"{background.median():.2f}, gap {difference:.2f}; norm of the gradient of a picture's")
    print(f"highest logit {gradient_norms(detector, pack).median():.2f}")


def gaps(detector: SSD, pack: Pack) -> tuple[Tensor, Tensor]:
    """Logits of objects that a box matches, and the highest background of each picture."""
    objects, background = [], []
    for index in range(len(pack)):
        raw, target = raw_output(detector, pack.pixels([index])), pack.target(index)
        overlap = pairwise_iou(detector.decoder.boxes(raw.offsets)[0], target["boxes"])
        for place, label in enumerate(target["labels"].tolist()):
            matching = raw.logits[0, overlap[:, place] >= MATCH, label]
            objects += [matching.max()] if len(matching) else []
        background.append(raw.logits[0, (overlap < TOUCH).all(dim=1)].max())
    return torch.stack(objects), torch.stack(background)


def gradient_norms(detector: SSD, pack: Pack) -> Tensor:
    """‖∂z/∂x‖₂ of the highest logit of the first pictures."""
    detector.requires_grad_(False)
    norms = []
    for index in range(min(GRADIENTS, len(pack))):
        image = pack.pixels([index]).requires_grad_(True)
        [gradient] = torch.autograd.grad(detector(image).logits.max(), image)
        norms.append(gradient.norm())
    return torch.stack(norms)


if __name__ == "__main__":
    main()
