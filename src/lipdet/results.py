"""What `lipdet eval` measures, as json: the type of every object, and how files are read back.

Notable choices:
- Results are plain dictionaries, so that json is the value itself, with no conversion either way.
- docs/json.md explains every key; AP, recall and precision are fractions, not percent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from lipdet.errors import InputError
from lipdet.types import Canvas


class DataSummary(TypedDict):
    """The pictures: what they are in words, their size, their hash, and how many of what.

    `canvas` is height and width as the network sees them; older results lack it.
    """

    name: str
    canvas: NotRequired[list[int]]
    hash: str
    images: int
    objects: int
    skipped: int
    ignored: NotRequired[int]


class ClassAP(TypedDict):
    """AP of one class at IoU 0.5 and over 0.5:0.95, fractions; None where it has no objects."""

    ap50: float | None
    ap: float | None


class AveragePrecision(TypedDict):
    """Mean AP at IoU 0.5 and over IoU 0.5:0.95, fractions, and those of each class by name."""

    ap50: float
    ap: float
    per_class: dict[str, ClassAP]


class Figures(TypedDict):
    """Mean AP as in `AveragePrecision`, and the share of objects found at IoU 0.5 and a score."""

    ap50: float
    ap: float
    recall: float


class Consistency(TypedDict):
    """Numbers of detections shown on clean pictures, and of what becomes of them under attack."""

    shown: int
    kept: int
    changed: int
    vanished: int
    appeared: int


class AttackedResult(Figures):
    """Figures that one attack of radius `epsilon`, in [0, 1] pixel units, leaves.

    `grey_levels` is the same radius for people; see `Canvas`.
    Either `objective` is what was raised, or this is the lowest of `objectives` and `composite`.
    Recall is of detections with a score above `recall_score`.
    """

    epsilon: float
    grey_levels: NotRequired[float]
    attack: str
    norm: str
    steps: int
    restarts: int
    seed: int
    recall_score: float
    consistency: Consistency
    objective: NotRequired[str]
    composite: NotRequired[Figures]
    objectives: NotRequired[dict[str, Figures]]


class CertifiedClass(ClassAP):
    """Certified AP, recall and precision of one class; None where there is nothing to divide by."""

    recall: float | None
    precision: float | None


class CertifiedCount(TypedDict):
    """Share of pictures in which the number of a class cannot change, and the mean leeway."""

    exact: float
    leeway: float


class CertifiedReading(TypedDict):
    """Shares of pictures of which the labels from left to right are right, stay, or both."""

    right: float
    steady: float
    certified: float


class CertifiedResult(Figures):
    """Bounds from below under every perturbation with an L2 norm of at most `epsilon`.

    `grey_levels` as in an `AttackedResult`; `failed` counts objects by the condition that fails.
    Older results say nothing of readings and counts. There is no `reading` where no picture
    is judged as a whole.
    """

    epsilon: float
    grey_levels: NotRequired[float]
    recall_score: float
    precision: float | None
    vanish_recall: float
    class_recall: float
    failed: dict[str, int]
    per_class: dict[str, CertifiedClass]
    reading: NotRequired[CertifiedReading]
    counts: NotRequired[dict[str, CertifiedCount]]
    rounding: str


class ClassPixels(TypedDict):
    """Of one class IoU, recall, precision (None where undefined), and how many pixels it has."""

    iou: float | None
    recall: float | None
    precision: float | None
    pixels: int


class Pixels(TypedDict):
    """Accuracy over labelled pixels, the mean of the classes' IoU, and each class."""

    accuracy: float
    miou: float
    per_class: dict[str, ClassPixels]


class AttackedPixels(Pixels):
    """Figures under one attack: of each picture the worst by wrong pixels that was found.

    `cross_entropy` (nats) and `margin` (logits, by which right classes are ahead) are means over
    labelled pixels, `flipped` is the mean number of pixels of a picture whose class changed;
    `grey_levels` as in an `AttackedResult`.
    """

    epsilon: float
    grey_levels: float
    attack: str
    norm: str
    objectives: list[str]
    steps: int
    restarts: int
    cross_entropy: float
    margin: float
    flipped: float


class CertifiedClassPixels(TypedDict):
    """Bounds of one class: the least IoU, and the largest share of its pixels that is not found."""

    iou: float | None
    false_negatives: float | None


class CertifiedPixels(TypedDict):
    """Bounds under every perturbation of a picture with an L2 norm of at most `epsilon`.

    `accuracy`, `miou`, `per_class` and `flipped`, which is the mean number of pixels of a picture
    whose class can change, follow from how the cells of a picture share a perturbation (theory
    §13.4). `single` and `joint` are the accuracy by less: by radii alone, and by one budget of all
    pixels; `larger` names the one of the two that promises more. Bounds of different figures need
    not be reached by one perturbation.
    """

    epsilon: float
    grey_levels: float
    accuracy: float
    single: float
    joint: float
    larger: str
    miou: float
    per_class: dict[str, CertifiedClassPixels]
    flipped: float


class SegmentationResult(TypedDict):
    """Measurements of one segmenter on one data set.

    `constant` are the figures of one answer for all pixels, the most frequent class, which is
    certified at every radius. `joint_constant` is that of the map to all logits, and `rounding` how
    far each may lie from real arithmetic, as measured in float32; None without certificates.
    """

    weights: str
    weights_hash: str
    parameters: int
    data: DataSummary
    seed: int
    versions: dict[str, str]
    seconds: float
    clean: Pixels
    constant: Pixels
    attacked: list[AttackedPixels]
    certified: list[CertifiedPixels]
    joint_constant: float | None
    rounding: float | None


class WorkingPoint(TypedDict):
    """The 95 % interval of AP50 at one ε (0: clean), and false positives at fixed recalls."""

    epsilon: float
    ap50_interval: list[float]
    false_positives_per_image: dict[str, float | None]


class EvaluationResult(TypedDict):
    """Measurements of one detector on one data set, with all that is needed to repeat them.

    `device` is where it was computed. Older results lack it and the hash of the weights, which is
    None for detectors that lipdet did not build.
    """

    weights: str
    weights_hash: NotRequired[str | None]
    parameters: int
    data: DataSummary
    seed: int
    versions: dict[str, str]
    device: NotRequired[str]
    seconds: float
    clean: AveragePrecision
    attacked: list[AttackedResult]
    certified: list[CertifiedResult]
    working_points: NotRequired[list[WorkingPoint]]


NEEDED = {"weights", "parameters", "data", "seed", "versions", "clean", "attacked", "certified"}


def read_results(files: Sequence[Path]) -> list[EvaluationResult]:
    """Return all results in json files: of `lipdet eval --json`, or lists of such results.

    Raises:
        InputError: a file is missing, or is no result.
    """
    return [result for file in files for result in _read(file)]


def _read(file: Path) -> list[EvaluationResult]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise InputError(f"{file} is no json; give what `lipdet eval --json` wrote.") from None
    results = content if isinstance(content, list) else [content]
    for result in results:
        if not isinstance(result, dict) or (missing := NEEDED - set(result)):
            what = (
                f"it lacks {', '.join(sorted(missing))}"
                if isinstance(result, dict)
                else "no object"
            )
            raise InputError(f"{file} holds no result of `lipdet eval` ({what}).")
        if "joint_constant" in result:
            raise InputError(f"{file} is of a segmenter; this is for results of detectors.")
    return results


def same_data(data: DataSummary, results: Sequence[EvaluationResult]) -> None:
    """Refuse to set results side by side that were measured on other pictures than these.

    Raises:
        InputError: their data differ.
    """
    for result in results:
        if result["data"]["hash"] != data["hash"]:
            raise InputError(
                f"{result['weights']} was measured on {_described(result['data'])}, not on "
                f"{_described(data)}; measure it again, or give the same --data and --limit."
            )


def same_weights(name: str, weights: str, results: Sequence[EvaluationResult]) -> None:
    """Refuse results that were not measured with these weights.

    Args:
        name: of the detector.
        weights: its `lipdet.evaluate.chunks.weights_hash`.
        results: to be set under its name.

    Raises:
        InputError: of one the weights differ, or are not known.
    """
    for result in results:
        if result.get("weights_hash") != weights:
            raise InputError(
                f"A result of {result['weights']} was measured with other weights than those of "
                f"{name}, or by an older lipdet: measure it again with `lipdet eval`."
            )


def attacked(result: EvaluationResult) -> dict[float, AttackedResult]:
    """Return by radius the attack with the lowest AP50 in L2, the norm certificates speak of."""
    entries: dict[float, AttackedResult] = {}
    for entry in result["attacked"]:
        known = entries.get(entry["epsilon"])
        if entry.get("norm", "l2") == "l2" and (known is None or entry["ap50"] < known["ap50"]):
            entries[entry["epsilon"]] = entry
    return entries


def certified(result: EvaluationResult) -> dict[float, CertifiedResult]:
    """Return the certificates by radius."""
    return {entry["epsilon"]: entry for entry in result["certified"]}


def radii(results: Sequence[EvaluationResult]) -> list[float]:
    """Return all radii at which anything was measured, rising."""
    return sorted({epsilon for one in results for epsilon in (*attacked(one), *certified(one))})


def input_size(result: EvaluationResult) -> str:
    """Return `74x74`; a dash for a result that does not say it."""
    canvas = result["data"].get("canvas")
    return str(Canvas(*canvas)) if canvas else "–"


def radius_told(results: Sequence[EvaluationResult], epsilon: float) -> str:
    """Return `ε = 0.25 (grey levels: 0.5 at 74x74)`, with all input sizes of these results."""
    levels = {
        f"{entry['grey_levels']:.2g} at {input_size(result)}": None
        for result in results
        for entries in (attacked(result), certified(result))
        if (entry := entries.get(epsilon)) and "grey_levels" in entry
    }
    told = f" (grey levels: {', '.join(levels)})" if levels else ""
    return f"ε = {epsilon:g}{told}"


def _described(data: DataSummary) -> str:
    return f"{data['images']} pictures of {data['name']} (hash {data['hash'][:12]}…)"
