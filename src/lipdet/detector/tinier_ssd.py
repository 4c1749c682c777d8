"""Tinier SSD, the "naive" detector: the network that Analog Devices published for the MAX78000.

Source: `models/ai85net-tinierssd.py` of analogdevicesinc/ai8x-training. Every convolution is
3×3 with padding 1 and bias, followed by batch normalisation; max-pooling comes before the
convolution of its stage. Left out are the device's own steps: 8-bit quantisation and the clamping
of activations to [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipdet.boxes import BoxCoding, SoftmaxScores
from lipdet.config import DetectorConfig
from lipdet.detector.default_boxes import DefaultBoxLevel, default_boxes, sides
from lipdet.detector.ssd import SSD, Head
from lipdet.errors import InputError

RATIOS = (0.85, 0.6, 0.4, 0.25)
LEVELS = (
    DefaultBoxLevel(18, 18, sides(0.15, RATIOS)),
    DefaultBoxLevel(9, 9, sides(0.35, RATIOS)),
    DefaultBoxLevel(4, 4, sides(0.55, RATIOS)),
    DefaultBoxLevel(2, 2, sides(0.725, RATIOS)),
)
TAP_CHANNELS = (32, 32, 32, 16)
# The sides that pooling turns into maps of the cells above.
SIDES = range(74, 78)
BACKGROUND_LOGIT = 5.0
# As in SSD.
OFFSET_UNIT = 0.1


def tinier_ssd(config: DetectorConfig) -> SSD:
    """Build Tinier SSD with random weights; 337,968 parameters for ten classes.

    Raises:
        InputError: its stages do not accept the image size.
    """
    check_canvas(config, SIDES)
    logits = len(config.class_names) + 1
    heads = [
        Head(
            classification=_classifier(channels, logits),
            localisation=_conv_bn(channels, len(RATIOS) * 4),
            logits=logits,
        )
        for channels in TAP_CHANNELS
    ]
    detector = SSD(
        config,
        backbone=TinierBackbone(),
        heads=heads,
        default_boxes=default_boxes(LEVELS, config.canvas),
        coding=BoxCoding.of_unit(config.offset_unit or OFFSET_UNIT),
        scores=SoftmaxScores(),
    )
    detector.apply(_initialise)
    return detector


def check_canvas(config: DetectorConfig, accepted: range) -> None:
    """Refuse images for which the maps would not have the cells of LEVELS.

    Raises:
        InputError: height or width is not one of those accepted.
    """
    if not set(config.canvas) <= set(accepted):
        raise InputError(
            f"{config.architecture} takes an image_size of {accepted[0]} to {accepted[-1]}, not "
            f"{config.canvas}; the presets plain and certified take every size from 32 by 32."
        )


class TinierBackbone(nn.Module):
    """74×74 images to the feature maps of fire8, fire9, fire10 and conv12_2."""

    def __init__(self) -> None:
        super().__init__()
        self.fire8 = nn.Sequential(
            *_conv_bn_relu(3, 32),
            *_conv_bn_relu(32, 32),
            nn.MaxPool2d(2),
            *_conv_bn_relu(32, 64),
            *_conv_bn_relu(64, 64),
            nn.MaxPool2d(3, stride=2),
            *_conv_bn_relu(64, 64),
            *_conv_bn_relu(64, 64),
            *_conv_bn_relu(64, 128),
            *_conv_bn_relu(128, 32),
        )
        self.fire9 = nn.Sequential(nn.MaxPool2d(2), *_conv_bn_relu(32, 32))
        self.fire10 = nn.Sequential(nn.MaxPool2d(3, stride=2), *_conv_bn_relu(32, 32))
        self.conv12 = nn.Sequential(*_conv_bn_relu(32, 16), nn.MaxPool2d(2), *_conv_bn_relu(16, 16))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn (B, 3, 74, 74) into maps of 32×18×18, 32×9×9, 32×4×4 and 16×2×2."""
        fire8 = self.fire8(images)
        fire9 = self.fire9(fire8)
        fire10 = self.fire10(fire9)
        return [fire8, fire9, fire10, self.conv12(fire10)]


def _conv_bn(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        # The reference's momentum; PyTorch's default is 0.1.
        nn.BatchNorm2d(out_channels, momentum=0.05),
    )


def _conv_bn_relu(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (*_conv_bn(in_channels, out_channels), nn.ReLU())


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution here has one


def _classifier(channels: int, logits: int) -> nn.Sequential:
    """Return a layer of class logits that start with every default box as background.

    Nearly all boxes are; the normalisation would otherwise start at even odds, and its bias needs
    thousands of small steps to get there. The idea is the prior of RetinaNet (Lin et al., 2017,
    §4.1).
    """
    layers = _conv_bn(channels, len(RATIOS) * logits)
    normalisation = layers[-1]
    assert isinstance(normalisation, nn.BatchNorm2d)
    nn.init.constant_(normalisation.weight, 0.3)
    with torch.no_grad():
        normalisation.bias[::logits] = BACKGROUND_LOGIT
    return layers
