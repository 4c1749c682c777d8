"""The part of torchvision's detectors that a Lipschitz bound can speak of: pixels to head maps.

Everything behind the maps (box decoding, NMS, the second stage of Faster R-CNN, which cuts features
along predicted boxes) has no constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.errors import InputError


def is_torchvision(module: nn.Module) -> bool:
    """Return whether a module is built as `torchvision.models.detection` builds them."""
    head = hasattr(module, "head") or hasattr(getattr(module, "rpn", None), "head")
    return head and hasattr(module, "transform") and hasattr(module, "backbone")


class PixelsToHeads(nn.Module):
    """One image of a fixed size to the maps of a torchvision detector's heads, in eval mode.

    Normalisation and resizing of the model's transform are part of it; the heads of Faster R-CNN
    are those of its region proposals.

    Args:
        model: of torchvision.models.detection.
        input_shape: (3, H, W) of the images.

    Raises:
        InputError: the model's transform does not take this shape.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Any, input_shape: Sequence[int]) -> None:
        super().__init__()
        transform = model.transform
        try:
            resized = transform.resize(torch.zeros(tuple(input_shape)), None)[0]
            batch = transform.batch_images([resized], size_divisible=transform.size_divisible)
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"The model's transform does not accept inputs {tuple(input_shape)}: {error}"
            ) from None
        self.given = tuple(input_shape[-2:])
        self.size = tuple(resized.shape[-2:])
        # Right and below, with zeros, to the shape of a batch.
        down, right = (
            whole - part for whole, part in zip(batch.shape[-2:], self.size, strict=True)
        )
        self.padding = (0, right, 0, down)
        self.backbone = model.backbone
        self.head = model.head if hasattr(model, "head") else model.rpn.head
        columns = (
            torch.as_tensor(values) for values in (transform.image_mean, transform.image_std)
        )
        mean, deviation = (column.float()[:, None, None] for column in columns)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.eval()

    def forward(self, images: Tensor) -> Any:
        """Map images (1, 3, H, W) in [0, 1] to whatever the head returns."""
        x = (images - self.mean) / self.deviation
        if self.size != self.given:
            x = functional.interpolate(x, self.size, mode="bilinear", align_corners=False)
        features = self.backbone(functional.pad(x, self.padding))
        return self.head(list(features.values()) if isinstance(features, dict) else [features])
