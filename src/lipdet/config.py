"""Frozen settings of detectors and trainings, and the named presets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from lipdet.errors import InputError
from lipdet.types import Canvas, Framing

DIGITS = tuple("0123456789")
# Of the pixels of rendered house numbers.
INK_CLASSES = ("background", "ink")
DIGIT_CROP = Canvas(74, 74)
LARGE_CANVAS = 192
# Nine tenths of the digits in SVHN's official annotations are then between 24 and 124 pixels high
# (scripts/photograph_heights.py), and half of those of test pictures more than 59.
PHOTOGRAPH = Canvas(160, 320)
# Of those training photographs, whose numbers are larger than those of others.
PHOTOGRAPH_SCALES = (0.4, 1.2)

Optimizer = Literal["muon", "adamw", "sgd"]
Precision = Literal["auto", "bf16", "float32"]
Change = Literal["scale", "flip", "turn", "light", "inversion", "channels"]
# Digits come in every colour, dark on light and light on dark; only their shape names them.
DIGIT_CHANGES: tuple[Change, ...] = ("light", "inversion", "channels")


@dataclass(frozen=True)
class DetectorConfig:
    """The shape of a detector; stored with its weights.

    Attributes:
        architecture: name of the builder.
        class_names: the classes, background not counted.
        canvas: height and width of the input in pixels.
        whole: as in `lipdet.types.Framing`.
        width: channels of the body; 0 where the architecture has its own.
        stride: pixels between the cells of the map that the heads read, 4, 8 or 16; 0 where the
            architecture has its own maps.
        sides: width and height in pixels of the default boxes of a cell; none where the
            architecture has its own.
        offset_unit: what an offset of 1 moves a centre by, in sides of the default box, and half of
            what it adds to the logarithm of a side; 0 where the architecture has its own. Where
            offsets are 1-Lipschitz it is a second dial: boxes move by less in smaller units, and
            are harder to find.
        head_size: cells along each side of what a default box's filters read; 3 in architectures
            with maps of their own. Larger ones gather more of an object, which matters where
            filters are of norm 1 (docs/certified-detector.md).
        class_margin: see `lipdet.boxes.SigmoidScores`; None for the architecture's own.
        nms_iou: overlap from which on a box suppresses others of its class; None for the
            architecture's own.
        most_shown: detections that are shown of a picture, at most.
        shown_above: score that a detection must exceed to be shown.
    """

    architecture: str = "tinier-ssd"
    class_names: tuple[str, ...] = DIGITS
    canvas: Canvas = DIGIT_CROP
    whole: bool = False
    width: int = 0
    stride: int = 0
    sides: tuple[tuple[float, float], ...] = ()
    offset_unit: float = 0.0
    head_size: int = 3
    class_margin: float | None = None
    nms_iou: float | None = None
    most_shown: int = 20
    shown_above: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.shown_above < 1:
            raise InputError(f"shown_above must lie between 0 and 1, not at {self.shown_above}.")
        if not self.class_names:
            raise InputError("class_names must name at least one class.")
        if self.nms_iou is not None and not 0 <= self.nms_iou <= 1:
            raise InputError(f"nms_iou must lie between 0 and 1, not at {self.nms_iou}.")
        if self.class_margin is not None and not 0 <= self.class_margin <= math.inf:
            raise InputError(f"class_margin must be at least 0, not {self.class_margin}.")
        if self.most_shown < 1:
            raise InputError(f"most_shown must be at least 1, not {self.most_shown}.")
        if not 0 <= self.offset_unit < math.inf:
            raise InputError(
                f"offset_unit must be positive, or 0 for the architecture's own, not "
                f"{self.offset_unit}."
            )
        if self.head_size < 1 or self.head_size % 2 == 0:
            raise InputError(f"head_size must be an odd number of cells, not {self.head_size}.")

    @property
    def framing(self) -> Framing:
        """Return how pictures get onto the canvas."""
        return Framing(self.canvas, self.whole)


@dataclass(frozen=True)
class SegmenterConfig:
    """The shape of a segmenter; stored with its weights.

    Attributes:
        architecture: name of the kind in `lipdet.segmenter`.
        class_names: the classes; index 0 is the background, if there is one.
        canvas: height and width in pixels of the pictures that it was trained on.
        whole: as in `lipdet.types.Framing`.
        width: channels of the finest map; twice as many of each that is half as fine.
    """

    architecture: str = "orthogonal-segmenter"
    class_names: tuple[str, ...] = INK_CLASSES
    canvas: Canvas = DIGIT_CROP
    whole: bool = False
    width: int = 48

    @property
    def cell(self) -> int:
        """Pixels between the cells of the finest map: of large pictures a step would take long."""
        return 4 if min(self.canvas) < LARGE_CANVAS else 16

    @property
    def framing(self) -> Framing:
        """Return how pictures get onto the canvas."""
        return Framing(self.canvas, self.whole)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; every field can be given in YAML or on the command line.

    Attributes:
        epochs: passes over the training mixture; 0 means as many as see 100,000 pictures.
        epoch_pictures: pictures per epoch; 0 means as many as the packs hold together.
        batch_size: pictures per step.
        optimizer: muon (matrices by Muon, the rest by AdamW), adamw, or sgd with Nesterov momentum
            0.9.
        learning_rate: peak of the schedule.
        weight_decay: decoupled decay, on convolution weights only.
        warmup: share of all steps in which the learning rate rises linearly; then a cosine to 0.
        gradient_clip: largest L2 norm of the whole gradient.
        ema_decay: decay per step of the averaged weights, which are the ones evaluated and kept.
        precision: bf16 autocast, float32, or auto (bf16 where the processor or GPU computes in it).
        augment: changes of pictures in training: scale (and place), flip, turn (by quarters; by a
            half where the canvas is no square), light, inversion, channels (their order); which of
            them leave an object what it is depends on the objects. None decides by the data: of
            whole pictures scale and light, of crops of digits light, inversion and channels. Of
            these, photometric changes cost a network of 1-Lipschitz layers what it needs, and are
            left out where there is a margin.
        scales: smallest and largest factor by which `scale` changes the sides of a picture.
        margin: ε in [0, 1] pixel units whose worst case the classification loss counts, where
            logits are 1-Lipschitz: the dial between clean and certified AP, or pixels.
        localisation_weight: of the loss of offsets; that of classes has weight 1.
        near_iou: default boxes that overlap an object by at least this much, but by less than 0.5,
            are no negatives of its class; 0.5 for none.
        start_temperature: temperature of one-vs-all scores at the start; it rises to the detector's
            own within the first 60 % of the steps; where training starts from weights, it is that.
        adversarial_epsilon: ε in [0, 1] pixel units of adversarial training: every picture is
            replaced by what L2 PGD on the loss finds near it (Madry et al., 2018); 0 for none.
        adversarial_steps: gradients of that PGD; each costs as much as a training step.
        start_from: a DETECTOR whose weights training starts from; none starts from random ones.
        validation_share: share of the pictures held out to choose the best checkpoint.
        validation_limit: at most this many held-out pictures of each data set.
        validate_every: epochs between two validations; the last epoch is always validated. 0 means
            20 validations.
        checkpoint_seconds: longest time between two resumable checkpoints.
        seed: of initial weights, order, augmentation and validation split.
        threads: CPU threads; 0 leaves the choice to PyTorch.
        tensorboard: also write TensorBoard events (needs the extra `tensorboard`).
    """

    epochs: int = 0
    epoch_pictures: int = 0
    batch_size: int = 64
    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1
    gradient_clip: float = 10.0
    ema_decay: float = 0.998
    precision: Precision = "auto"
    augment: tuple[Change, ...] | None = None
    scales: tuple[float, float] = (0.625, 1.6)
    margin: float = 0.0
    localisation_weight: float = 2.0
    near_iou: float = 0.5
    start_temperature: float = 3.0
    adversarial_epsilon: float = 0.0
    adversarial_steps: int = 3
    start_from: str = ""
    validation_share: float = 0.05
    validation_limit: int = 256
    validate_every: int = 0
    checkpoint_seconds: float = 60.0
    seed: int = 0
    threads: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, before anything is written."""
        for name in (
            "batch_size",
            "learning_rate",
            "gradient_clip",
            "start_temperature",
            "adversarial_steps",
            "localisation_weight",
            "near_iou",
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}.")
        for name in (
            "epochs",
            "validate_every",
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
        if not 0 < self.scales[0] <= self.scales[1] < math.inf:
            raise InputError(f"scales must be positive and in order, not {self.scales}.")
        for name, kind in (("optimizer", Optimizer), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise InputError(f"{name} must be one of {choices}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Preset:
    """A named detector or segmenter with the training that suits it."""

    detector: DetectorConfig | SegmenterConfig = field(default_factory=DetectorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


CERTIFIED_WIDTH, CERTIFIED_SMALL_WIDTH = 80, 48
# Chosen on held-out pictures, of 3, 5 and 7: docs/certified-detector.md.
CERTIFIED_HEAD_SIZE = 5
STRIDE = 8
# Default boxes of digits in crops of 74 pixels; training fits others to other objects.
DIGIT_SIDES = (
    *((14.5, 27.0), (19.2, 33.8), (15.6, 51.5), (24.3, 39.4)),
    *((20.5, 47.1), (23.8, 59.5), (29.2, 50.2), (34.3, 63.0)),
)

# About 7 million parameters as in the reference experiment, and a width for two CPU cores.
SLL_WIDTH, SLL_SMALL_WIDTH = 240, 48


def _one_map(architecture: str, width: int) -> DetectorConfig:
    return DetectorConfig(architecture, width=width, stride=STRIDE, sides=DIGIT_SIDES)


def _certified(width: int, architecture: str = "orthogonal-ssd") -> Preset:
    # Weight decay costs a network of such rigid layers what it needs. With its steep scores the
    # loss of classes would drown that of boxes.
    settings = TrainConfig(
        batch_size=32,
        optimizer="muon",
        learning_rate=1.5e-3,
        weight_decay=0.0,
        gradient_clip=100.0,
        margin=0.5,
        localisation_weight=20.0,
        near_iou=0.3,
    )
    detector = replace(_one_map(architecture, width), head_size=CERTIFIED_HEAD_SIZE)
    return Preset(detector, settings)


def _for_photographs(preset: Preset) -> Preset:
    """Return the same for whole photographs of house numbers."""
    return Preset(
        replace(preset.detector, canvas=PHOTOGRAPH, whole=True),
        replace(preset.train, scales=PHOTOGRAPH_SCALES),
    )


def _plain(width: int) -> Preset:
    return Preset(_one_map("plain-ssd", width), TrainConfig(near_iou=0.3))


PLAIN = _plain(CERTIFIED_WIDTH)
CERTIFIED = _certified(CERTIFIED_WIDTH)

SEGMENT_PLAIN = Preset(
    SegmenterConfig("plain-segmenter"),
    TrainConfig(batch_size=16, optimizer="muon", learning_rate=1.5e-3),
)
SEGMENT = Preset(
    SegmenterConfig(),
    replace(SEGMENT_PLAIN.train, weight_decay=0.0, gradient_clip=100.0, margin=0.05),
)

PRESETS = {
    "segment": SEGMENT,
    "segment-plain": SEGMENT_PLAIN,
    "plain": PLAIN,
    "plain-small": _plain(CERTIFIED_SMALL_WIDTH),
    "plain-photo": _for_photographs(PLAIN),
    "naive": Preset(),
    "naive-adversarial": Preset(train=TrainConfig(adversarial_epsilon=0.5)),
    "certified": CERTIFIED,
    "certified-photo": _for_photographs(CERTIFIED),
    "certified-small": _certified(CERTIFIED_SMALL_WIDTH),
    "certified-small-aol": _certified(CERTIFIED_SMALL_WIDTH, "aol-ssd"),
    "certified-small-spectral": _certified(CERTIFIED_SMALL_WIDTH, "spectral-ssd"),
    **{
        name: Preset(DetectorConfig(architecture, width=width), TrainConfig(learning_rate=1e-3))
        for architecture in ("sll-spectral", "sll-conv", "sll-l2")
        for name, width in (
            (architecture, SLL_WIDTH),
            (f"{architecture}-small", SLL_SMALL_WIDTH),
        )
    },
}


NetworkConfig = DetectorConfig | SegmenterConfig
N = TypeVar("N", DetectorConfig, SegmenterConfig)


def as_plain(config: NetworkConfig | TrainConfig) -> dict[str, Any]:
    """Return a dataclass as values that json and YAML can hold."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def stored(config: NetworkConfig) -> dict[str, Any]:
    """Return a network's configuration under the name of what it is: detector or segmenter."""
    kind = "segmenter" if isinstance(config, SegmenterConfig) else "detector"
    return {kind: as_plain(config)}


def network_config(plain: Mapping[str, Any]) -> NetworkConfig:
    """Return what `stored` was given, beside whatever else there is.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    if "segmenter" in plain:
        return _config(SegmenterConfig, plain["segmenter"])
    return detector_config(plain["detector"])


def detector_config(plain: Mapping[str, Any]) -> DetectorConfig:
    """Return what `as_plain` was given.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    return _config(DetectorConfig, plain)


def _config(kind: type[N], plain: Mapping[str, Any]) -> N:
    """Return a configuration, of which every value is of the type of its field's default.

    A whole number is a number, too; where the default is None, a number or None is right.
    """
    values = {**plain, "class_names": tuple(plain["class_names"])}
    values["canvas"] = Canvas(*plain["canvas"])
    if "sides" in plain:
        values["sides"] = tuple((float(width), float(height)) for width, height in plain["sides"])
    for one in dataclasses.fields(kind):
        value = values.get(one.name, one.default)
        types = {type(one.default)}
        if one.default is None:
            types.add(float)
        if float in types:
            types.add(int)
        if type(value) not in types:
            raise TypeError(f"{one.name} is {value!r}")
    return kind(**values)


def train_config(plain: Mapping[str, Any]) -> TrainConfig:
    """Return what `as_plain` was given.

    Raises:
        KeyError, TypeError: it is something else.
    """
    changes, scales = plain["augment"], plain["scales"]
    augment = None if changes is None else tuple(changes)
    return TrainConfig(**{**plain, "augment": augment, "scales": tuple(scales)})
