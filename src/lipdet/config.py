"""Frozen settings of detectors and trainings, and the named presets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from lipdet.errors import InputError

DIGITS = tuple("0123456789")
IMAGE_SIZE = 74

Optimizer = Literal["adamw", "sgd"]
Precision = Literal["auto", "bf16", "float32"]


@dataclass(frozen=True)
class DetectorConfig:
    """What fixes a detector's shape; stored with its weights.

    Attributes:
        architecture: name of the builder.
        class_names: the classes, background not counted.
        image_size: side of the square input in pixels.
        width: channels of the body; 0 where the architecture has its own.
        offset_unit: what an offset of 1 moves a centre by, in sides of the default box, and half of
            what it adds to the logarithm of a side; 0 where the architecture has its own. Where
            offsets are 1-Lipschitz it is a second dial: boxes move by less in smaller units, and
            are harder to find.
    """

    architecture: str = "tinier-ssd"
    class_names: tuple[str, ...] = DIGITS
    image_size: int = IMAGE_SIZE
    width: int = 0
    offset_unit: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.offset_unit < math.inf:
            raise InputError(
                f"offset_unit must be positive, or 0 for the architecture's own, not "
                f"{self.offset_unit}."
            )


@dataclass(frozen=True)
class TrainConfig:
    """How a detector is trained; every field can be given in YAML or on the command line.

    Attributes:
        epochs: passes over the training mixture.
        epoch_pictures: pictures per epoch; 0 means as many as the packs hold together.
        batch_size: pictures per step.
        optimizer: adamw, or sgd with Nesterov momentum 0.9.
        learning_rate: peak of the schedule.
        weight_decay: decoupled decay, on convolution weights only.
        warmup: share of all steps in which the learning rate rises linearly; then a cosine to 0.
        gradient_clip: largest L2 norm of the whole gradient.
        ema_decay: decay per step of the averaged weights, which are the ones evaluated and kept.
        precision: bf16 autocast, float32, or auto (bf16 where the processor or GPU computes in it).
        augment: photometric changes (brightness, contrast, inversion, channel order).
        margin: ε in [0, 1] pixel units whose worst case the classification loss counts, where
            logits are 1-Lipschitz: the dial between clean and certified AP.
        localisation_weight: of the loss of offsets; that of classes has weight 1.
        near_iou: default boxes that overlap an object by at least this much, but by less than 0.5,
            are no negatives of its class; 0.5 for none.
        start_temperature: temperature of one-vs-all scores at the start; it rises to the detector's
            own within the first 60 % of the steps.
        adversarial_epsilon: ε in [0, 1] pixel units of adversarial training: every picture is
            replaced by what L2 PGD on the loss finds near it (Madry et al., 2018); 0 for none.
        adversarial_steps: gradients of that PGD; each costs as much as a training step.
        start_from: a DETECTOR whose weights training starts from; none starts from random ones.
        validation_share: share of the pictures held out to choose the best checkpoint.
        validation_limit: at most this many held-out pictures of each data set.
        validate_every: epochs between two validations; the last epoch is always validated.
        checkpoint_seconds: longest time between two resumable checkpoints.
        seed: of initial weights, order, augmentation and validation split.
        threads: CPU threads; 0 leaves the choice to PyTorch.
        tensorboard: also write TensorBoard events (needs the extra `tensorboard`).
    """

    epochs: int = 10
    epoch_pictures: int = 0
    batch_size: int = 64
    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1
    gradient_clip: float = 10.0
    ema_decay: float = 0.998
    precision: Precision = "auto"
    augment: bool = True
    margin: float = 0.0
    localisation_weight: float = 2.0
    near_iou: float = 0.5
    start_temperature: float = 3.0
    adversarial_epsilon: float = 0.0
    adversarial_steps: int = 3
    start_from: str = ""
    validation_share: float = 0.05
    validation_limit: int = 256
    validate_every: int = 1
    checkpoint_seconds: float = 60.0
    seed: int = 0
    threads: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, before anything is written."""
        for name in (
            "epochs",
            "batch_size",
            "learning_rate",
            "gradient_clip",
            "validate_every",
            "start_temperature",
            "adversarial_steps",
            "localisation_weight",
            "near_iou",
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}.")
        for name in (
            "epoch_pictures",
            "weight_decay",
            "margin",
            "adversarial_epsilon",
            "validation_limit",
            "checkpoint_seconds",
            "seed",
            "threads",
        ):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, but is {getattr(self, name)}.")
        for name in ("warmup", "ema_decay", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        for name, kind in (("optimizer", Optimizer), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise InputError(f"{name} must be one of {choices}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Preset:
    """A named detector with the training that suits it."""

    detector: DetectorConfig = field(default_factory=DetectorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


CERTIFIED_WIDTH, CERTIFIED_SMALL_WIDTH = 80, 48

# About 7 million parameters as in the reference experiment, and a width for two CPU cores.
SLL_WIDTH, SLL_SMALL_WIDTH = 240, 48


def _sll(architecture: str, width: int) -> Preset:
    return Preset(DetectorConfig(architecture, width=width), TrainConfig(learning_rate=1e-3))


def _certified(width: int, architecture: str = "orthogonal-ssd") -> Preset:
    # Photometric changes and weight decay cost a network of such rigid layers what it needs. With
    # its steep scores the loss of classes would drown that of boxes.
    settings = TrainConfig(
        learning_rate=2e-3,
        weight_decay=0.0,
        gradient_clip=100.0,
        augment=False,
        margin=0.5,
        localisation_weight=20.0,
        near_iou=0.3,
    )
    return Preset(DetectorConfig(architecture, width=width), settings)


PRESETS = {
    "naive": Preset(),
    "naive-adversarial": Preset(train=TrainConfig(adversarial_epsilon=0.5)),
    "certified": _certified(CERTIFIED_WIDTH),
    "certified-small": _certified(CERTIFIED_SMALL_WIDTH),
    "certified-small-aol": _certified(CERTIFIED_SMALL_WIDTH, "aol-ssd"),
    "certified-small-spectral": _certified(CERTIFIED_SMALL_WIDTH, "spectral-ssd"),
    **{
        name: _sll(architecture, width)
        for architecture in ("sll-spectral", "sll-conv", "sll-l2")
        for name, width in (
            (architecture, SLL_WIDTH),
            (f"{architecture}-small", SLL_SMALL_WIDTH),
        )
    },
}


def as_plain(config: DetectorConfig | TrainConfig) -> dict[str, object]:
    """Return a dataclass as values that json and YAML can hold."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }
