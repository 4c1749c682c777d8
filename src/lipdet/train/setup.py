"""What a training needs before its first step: its data, and what these decide of its job.

Notable choices:
- A job may leave open what only its data can say; `set_up` decides it, and the run folder keeps it.
- The pictures that weights are chosen by are photographs cut from the training data, or data of
  their own; never a test set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lipdet import distributed
from lipdet.checkpoint import LoadedDetector, load_detector, load_segmenter
from lipdet.config import DIGIT_CHANGES, DetectorConfig, SegmenterConfig, TrainConfig
from lipdet.detector import SSD, build_detector
from lipdet.detector.fitting import (
    LEAST_COVERED,
    Fit,
    coverage,
    described,
    fit_default_boxes,
    warning_of,
)
from lipdet.errors import InputError
from lipdet.images.batches import Mixture, Part, split
from lipdet.images.pack import Pack
from lipdet.images.spec import Purpose, find_data
from lipdet.progress import console
from lipdet.segmenter import Segmenter, build_segmenter
from lipdet.train.job import Job
from lipdet.types import IGNORED

# Where no number of epochs is given: pictures that are seen, and validations.
PICTURES_SEEN, VALIDATIONS = 100_000, 20
# Objects by which a checkpoint, and what its boxes suppress, can be chosen.
LEAST_HELD_OUT = 100


class Setup(NamedTuple):
    """A training before its first step.

    Attributes:
        job: in which nothing is left to be decided by the data.
        detector: or segmenter; random, or made of the weights to start from.
        training: batches of pictures.
        validation: held-out pictures.
    """

    job: Job
    detector: SSD | Segmenter
    training: Mixture
    validation: list[Part]


def set_up(job: Job) -> Setup:
    """Open a job's data and decide what they decide; of several processes all find the same.

    Raises:
        InputError: the data cannot be used, or the weights to start from do not suit the job.
    """
    packs, held_out = distributed.made_once(
        lambda: (
            open_packs(job, job.data, "train"),
            open_packs(job, job.validation, "validation"),
        )
    )
    distributed.check_same("The training data", [pack.hash for pack in (*packs, *held_out)])
    job = job.with_detector(class_names=packs[0].class_names, whole=framed_whole(job, packs))
    training, validation = training_data(job.train, job.weights, packs, held_out)
    job = replace(job, train=decided(job, training))
    if isinstance(job.detector, SegmenterConfig):
        return Setup(job, first_segmenter(job, [*packs, *held_out]), training, validation)
    start = None
    if job.train.start_from:
        loaded = load_detector(job.train.start_from)
        start = loaded.detector
        unit = job.detector.offset_unit or trained_unit(loaded)
        own, other = job.detector.head_size, start.config.head_size
        job = job.with_detector(offset_unit=unit)
        if own != other:
            console.log(
                f"Heads that read {own}×{own} cells start anew: those of {job.train.start_from} "
                f"read {other}×{other}."
            )
    job = job.with_detector(**default_boxes_of(job, training.parts, start))
    job = job.with_detector(most_shown=most_shown_by(job, training.parts))
    return Setup(job, first_detector(job, start), training, validation)


def open_packs(job: Job, specs: Sequence[str], purpose: Purpose) -> list[Pack]:
    """Return packs for a job, with the labels of the one that has most classes.

    Raises:
        InputError: another has a class that this one has not, or a SPEC cannot be used.
    """
    packs = [find_data(spec, purpose, job.detector.framing, job.train.seed) for spec in specs]
    names = max((pack.class_names for pack in packs), key=len, default=())
    return [pack.in_classes(names) for pack in packs]


def framed_whole(job: Job, packs: Sequence[Pack]) -> bool:
    """Return whether the detector looks at whole pictures: where all that it learns from are.

    Raises:
        InputError: some are whole and others are crops.
    """
    kinds = {pack.whole for pack in packs}
    if len(kinds) > 1:
        raise InputError(
            f"Of {', '.join(job.data)} some are whole pictures and others crops around objects; a "
            "detector learns from one kind."
        )
    return kinds.pop()


def trained_unit(loaded: LoadedDetector) -> float:
    """Return the offset unit that a detector's heads have learned, whatever was chosen later."""
    trained: dict[str, float] = loaded.info.get("training", {}).get("detector", {})
    return trained.get("offset_unit", loaded.detector.config.offset_unit)


def default_boxes_of(job: Job, parts: Sequence[Part], start: SSD | None) -> dict[str, Any]:
    """Return stride and sides of default boxes: of the detector to start from, or fitted.

    Those of a detector to start from stay, unless they cover little and others on its map more.
    What they cover is said, and if that is little, warned of.

    Raises:
        InputError: there is no object.
    """
    assert isinstance(job.detector, DetectorConfig)
    boxes, labels = objects_of(parts)
    if not len(labels):
        raise InputError(f"{', '.join(job.data)}: there is no object, so nothing to learn.")
    if not job.detector.sides:
        return {}
    if "scale" in (job.train.augment or ()):
        boxes = boxes * random_scales(len(boxes), job.train.scales, job.train.seed)
    names = job.detector.class_names
    kept = None
    if start and start.config.sides and start.config.class_names == names:
        sides, stride = start.config.sides, start.config.stride
        covered = coverage(boxes.astype(np.float64), labels, len(names), sides, stride)
        kept = Fit(stride, sides, covered)
    if kept and kept.share >= LEAST_COVERED:
        fit = kept
    else:
        stride = start.config.stride if start else 0
        fit = fit_default_boxes(boxes, labels, len(names), job.train.seed, stride)
        if kept and kept.share >= fit.share:
            fit = kept
        elif kept:
            console.log(
                f"The default boxes of {job.train.start_from} cover {100 * kept.share:.1f} % of "
                "the objects: others are fitted, and their heads start anew."
            )
    console.log(described(fit))
    if fit.share < LEAST_COVERED:
        console.log(warning_of(fit, names))
    return {"stride": fit.stride, "sides": fit.sides}


def most_shown_by(job: Job, parts: Sequence[Part]) -> int:
    """Return how many boxes of a picture are shown: enough for the most crowded one.

    Twice its objects, since false positives take places too, and certificates need room for all
    that a perturbation could put ahead.
    """
    assert isinstance(job.detector, DetectorConfig)
    crowded = max(int(np.diff(part.pack.starts)[part.indices].max(initial=0)) for part in parts)
    return max(job.detector.most_shown, 2 * crowded)


def decided(job: Job, training: Mixture) -> TrainConfig:
    """Return settings in which nothing is left to be decided by the data."""
    config = job.train
    pictures = training.batches_per_epoch * config.batch_size
    epochs = config.epochs or math.ceil(PICTURES_SEEN / pictures)
    every = config.validate_every or math.ceil(epochs / VALIDATIONS)
    changes = config.augment
    if changes is None and job.detector.whole:
        changes = ("scale",) if config.margin else ("scale", "light")
    elif changes is None:
        changes = () if config.margin else DIGIT_CHANGES
    return replace(config, epochs=epochs, validate_every=every, augment=changes)


def summary_of(setup: Setup) -> str:
    """Say what is trained on what, and for how long."""
    job, _, training, validation = setup
    halves = training.parts, validation
    pictures, kept = (sum(len(part.indices) for part in parts) for parts in halves)
    objects, held_out = (len(objects_of(parts)[1]) for parts in halves)
    steps = job.train.epochs * training.batches_per_epoch
    boxes = isinstance(job.detector, DetectorConfig)
    of = f" with {objects:,} objects of" if boxes else ", each of"
    text = (
        f"{job.preset} on {pictures:,} pictures of {job.detector.canvas} pixels{of} "
        f"{len(job.detector.class_names)} classes; {steps:,} steps of {job.train.batch_size} "
        f"pictures in {job.train.epochs} epochs. Held out: {kept:,} pictures"
    )
    if boxes:
        text += f" with {held_out:,} objects"
        if held_out < LEAST_HELD_OUT:
            text += ", too few to choose by; give more with --validation"
    return f"{text}."


def pixels_of_classes(parts: Sequence[Part], classes: int) -> NDArray[np.int64]:
    """Return how many pixels of some parts of packs have each class, (classes,)."""
    counts = np.zeros(IGNORED + 1, np.int64)
    for part in parts:
        assert part.pack.masks is not None
        for index in part.indices:
            counts += np.bincount(part.pack.masks[index].ravel(), minlength=IGNORED + 1)
    return counts[:classes]


def first_segmenter(job: Job, packs: Sequence[Pack]) -> Segmenter:
    """Return the segmenter before the first step: random, or the one to start from.

    Raises:
        InputError: some data have no masks, adversarial training is asked for, which is for
            detectors, or the weights to start from are of another segmenter.
    """
    assert isinstance(job.detector, SegmenterConfig)
    for pack in packs:
        if pack.masks is None:
            raise InputError(
                f"{pack.name} has no masks, from which {job.preset} learns; give masks:FOLDER or "
                "rendered-ink."
            )
    if job.train.adversarial_epsilon:
        raise InputError("Adversarial training is for detectors: leave out --adversarial_epsilon.")
    torch.manual_seed(job.train.seed)
    segmenter = build_segmenter(job.detector)
    if job.train.start_from:
        start = load_segmenter(job.train.start_from).segmenter
        if start.config != job.detector:
            raise InputError(
                f"{job.train.start_from} is of another width, canvas or classes than the segmenter "
                "to be trained; start from weights that are alike."
            )
        segmenter.load_state_dict(start.state_dict())
    return segmenter


def random_scales(count: int, scales: Sequence[float], seed: int) -> NDArray[np.float32]:
    """Return factors (count, 1) as augmentation draws them."""
    low, high = np.log(scales)
    drawn = np.random.default_rng(seed).uniform(low, high, (count, 1))
    return np.exp(drawn).astype(np.float32)


def objects_of(parts: Sequence[Part]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return boxes (N, 4) and labels (N,) of all objects in some parts of packs."""
    every = [part.objects() for part in parts]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(one for one, _ in every)])
    return boxes, np.concatenate([np.zeros(0, np.int64), *(labels for _, labels in every)])


def training_data(
    config: TrainConfig,
    weights: Sequence[float],
    packs: Sequence[Pack],
    held_out: Sequence[Pack] = (),
) -> tuple[Mixture, list[Part]]:
    """Return a training mixture and validation parts: other packs, or cut from the same.

    Raises:
        InputError: other data have other classes or are the same, or an epoch is smaller than a
            batch.
    """
    # What follows a slash tells the order of the classes.
    learned = {pack.hash.partition("/")[0] for pack in packs}
    for pack in held_out:
        if pack.hash.partition("/")[0] in learned:
            raise InputError(f"--validation has what is learned from: {pack.name}; give another.")
    held_out = [pack.in_classes(packs[0].class_names) for pack in held_out]
    share = 0.0 if held_out else config.validation_share
    halves = [split(pack, share, config.validation_limit, config.seed) for pack in packs]
    training = [part for part, _ in halves]
    sizes = [len(part.indices) for part in training]
    pictures = config.epoch_pictures or sum(sizes)
    if pictures < config.batch_size:
        raise InputError(
            f"An epoch of {pictures} pictures is smaller than a batch of {config.batch_size}; "
            "give more data or a smaller --batch_size."
        )
    mixture = Mixture(training, weights or sizes, pictures, config.batch_size, config.seed)
    if held_out:
        return mixture, [Part(pack, np.arange(len(pack))) for pack in held_out]
    return mixture, [part for _, part in halves]


def first_detector(job: Job, start: SSD | None = None) -> SSD:
    """Return the detector before the first step: random, or made of one to start from.

    For other classes, default boxes or sizes of heads the body is taken over, and heads are new.

    Raises:
        InputError: the weights to start from have another body than the job's detector.
    """
    assert isinstance(job.detector, DetectorConfig)
    torch.manual_seed(job.train.seed)
    detector = build_detector(job.detector)
    if start is None:
        return detector
    own, other = job.detector, start.config
    if (own.architecture, own.width, own.stride) != (other.architecture, other.width, other.stride):
        raise InputError(
            f"{job.train.start_from} is {other.architecture} of width {other.width} and stride "
            f"{other.stride}, but {own.architecture} of width {own.width} and stride {own.stride} "
            "is to be trained; start from weights of the same preset."
        )
    same = (own.class_names, own.sides) == (other.class_names, other.sides)
    if same and _shapes(detector.heads) == _shapes(start.heads):
        detector.load_state_dict(start.state_dict())
    else:
        detector.backbone.load_state_dict(start.backbone.state_dict())
    return detector


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [tensor.shape for tensor in module.state_dict().values()]
