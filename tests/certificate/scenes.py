"""Scenes in which certificates are put to the test, and what adversaries make of them.

A scene holds the raw outputs of a few images, constants of these outputs, and objects. All numbers
are multiples of 1/8 where that matters, so that ties are exact in float32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from faster_coco_eval import COCO
from faster_coco_eval import COCOeval_faster as CocoEvaluation
from numpy.typing import NDArray
from torch import Tensor

from lipdet.boxes import BoxCoding, Selection, select_detections
from lipdet.boxes.scores import Scores, SigmoidScores, SoftmaxScores
from lipdet.boxes.select import Decoder
from lipdet.certificate.average_precision import certified_average_precision
from lipdet.certificate.certify import MAX_DETECTIONS, certified_up_to
from lipdet.certificate.outputs import OutputBounds
from lipdet.certificate.truths import truths_of
from lipdet.certificate.verifier import Verifier
from lipdet.evaluate.average_precision import average_precision
from lipdet.images.coco import coco_dict
from lipdet.types import Detections, RawOutput, Target

Certificates = tuple[Tensor, list[dict[int, float]]]
SIZE = 32
IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
CODING = BoxCoding()


@dataclass(frozen=True)
class Scene:
    """Images with uncertain outputs.

    Attributes:
        raw: (B, A, K) logits and (B, A, 4) offsets without perturbation.
        targets: B.
        verifier: with constants of the outputs, and the selection.
        epsilon: radius.
        rows: for outputs that are linear in a hidden image: (B, A · (K + 4), hidden) float64; else
            each output moves on its own.
    """

    raw: RawOutput
    targets: list[Target]
    verifier: Verifier
    epsilon: float
    rows: Tensor | None = None

    @property
    def classes(self) -> int:
        return self.raw.logits.shape[2] - isinstance(self.verifier.decoder.scores, SoftmaxScores)


class PairwiseTable:
    """Stands in for `PairwiseLogits`: constants of differences from a table (C, A, A)."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def constants(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        return self.table[labels, a, b]


def random_scene(seed: int) -> Scene:
    """A scene whose kind, size and settings the seed decides."""
    rng = np.random.default_rng(seed)
    images, anchors, classes = int(rng.integers(1, 4)), int(rng.integers(1, 15)), 2
    softmax = rng.random() < 0.2
    targets, seen = [], []
    for _ in range(images):
        boxes = _objects(rng, int(rng.choice([0, 1, 1, 2, 3])))
        labels = rng.choice([0, 0, 1], len(boxes))
        targets.append(
            Target(boxes=torch.from_numpy(boxes).float(), labels=torch.from_numpy(labels).long())
        )
        seen.append(boxes)
    everything = np.concatenate(seen)
    if len(everything) == 0:
        everything = np.array([[4.0, 4, 12, 16]])
    # Default boxes stand on objects of some image, exactly or not, or anywhere.
    shown = everything[rng.integers(0, len(everything), anchors)]
    moved = shown + rng.choice([0.0, 0.5, 1, 4], (anchors, 1)) * rng.normal(size=(anchors, 4))
    moved = np.concatenate(
        [np.minimum(moved[:, :2], moved[:, 2:] - 1), np.maximum(moved[:, 2:], moved[:, :2] + 1)], 1
    )
    default = np.concatenate(
        [(moved[:, :2] + moved[:, 2:]) / 2, moved[:, 2:] - moved[:, :2]], axis=1
    ).round(2)
    offsets = rng.choice([0.0, 0.0, 0.5, 2.0], (images, anchors, 1)) * rng.choice(
        [-1.0, 0, 0, 1], (images, anchors, 4)
    )
    spread = rng.choice([0.5, 2.0, 6.0])
    logits = np.round(spread * rng.normal(size=(images, anchors, classes + softmax)) * 4) / 4
    logits -= rng.choice([0, 0, 2])
    scores: Scores = SoftmaxScores() if softmax else SigmoidScores(1.0)
    selection = Selection(
        score_floor=float(rng.choice([0.01, 0.2])),
        nms_iou=float(rng.choice([0.3, 0.5])),
        top_k=int(rng.choice([1, 2, 3, 100, 100])),
    )
    decoder = Decoder(torch.from_numpy(default).float(), CODING, scores, SIZE)
    raw = RawOutput(torch.from_numpy(logits).float(), torch.from_numpy(offsets).float())
    epsilon = float(rng.choice([0, 0.5, 1.0, 1.0]))
    if rng.random() < 0.4 and not softmax:
        return _linear(rng, raw, targets, decoder, selection, epsilon)
    bounds = output_constants(
        torch.from_numpy(
            rng.choice([0.0, 0.25, 0.5, 1.0, 2.0], (1, 1))
            * rng.choice([0.5, 1.0], (anchors, classes + softmax))
        ),
        torch.from_numpy(rng.choice([0.0, 0.1, 0.5, 2.0], (1, 1)) * rng.random((anchors, 4))),
    )
    return Scene(raw, targets, Verifier(bounds, decoder, selection), epsilon)


def _linear(
    rng: np.random.Generator,
    raw: RawOutput,
    targets: list[Target],
    decoder: Decoder,
    selection: Selection,
    epsilon: float,
) -> Scene:
    """Outputs that depend on a hidden image of few values, so that they cannot move freely."""
    (_, anchors, classes), hidden = raw.logits.shape, int(rng.choice([2, 4, 12]))
    weights = torch.from_numpy(rng.normal(size=(anchors, classes + 4, hidden)))
    shared = torch.from_numpy(rng.normal(size=(1, classes + 4, hidden)))
    weights = (weights + rng.choice([0.0, 1.0, 3.0]) * shared) / hidden**0.5
    scale = torch.tensor([rng.choice([0.2, 0.6])] * classes + [rng.choice([0.0, 0.3])] * 4)
    weights = weights * scale[:, None]
    logits = weights[:, :classes]
    per_class = logits.transpose(0, 1)
    verifier = Verifier(
        output_constants(logits.norm(dim=2), weights[:, classes:].norm(dim=2)),
        decoder,
        selection,
        collective=torch.linalg.matrix_norm(per_class, 2),
        pairwise=PairwiseTable((per_class[:, :, None] - per_class[:, None]).norm(dim=-1)),  # type: ignore[arg-type]
    )
    return Scene(raw, targets, verifier, epsilon, weights)


def _objects(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Boxes inside the image, often beside each other, overlapping, or at the border."""
    sides = rng.choice([4.0, 6, 9, 14], (count, 2))
    corner = rng.integers(0, SIZE - 14, (1, 2)) + rng.choice([0.0, 2, 5, 12]) * rng.random(
        (count, 2)
    )
    corner = np.where(rng.random((count, 2)) < 0.15, 0.0, corner)
    corner = np.where(rng.random((count, 2)) < 0.15, SIZE - sides, corner)
    corner = corner.round(1).clip(0, SIZE - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def output_constants(logits: Tensor, offsets: Tensor) -> OutputBounds:
    """Constants of single outputs, (A, K) and (A, 4)."""
    logits, offsets = logits.double(), offsets.double()
    return OutputBounds((1.0,), (slice(0, len(logits)),), logits, offsets, offsets.norm(dim=1), 1.0)


def perturbed(scene: Scene, count: int, seed: int) -> RawOutput:
    """Outputs that the scene's constants allow: (count · B, A, K) and (count · B, A, 4)."""
    rng = np.random.default_rng(seed)
    parts = _linear_outputs if scene.rows is not None else _free_outputs
    logits, offsets = parts(scene, rng, count)
    return RawOutput(logits.flatten(0, 1).float(), offsets.flatten(0, 1).float())


def _linear_outputs(scene: Scene, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Push the hidden image along single outputs, differences of two, and at random."""
    rows = scene.rows
    assert rows is not None
    anchors, values, hidden = rows.shape
    flat = rows.reshape(-1, hidden)
    shape = (count, len(scene.targets))
    first = flat[rng.integers(0, len(flat), shape)]
    # The second row is often the same output of another anchor: what a rival gains on another.
    index = rng.integers(0, anchors, shape) * values + rng.integers(0, values, shape)
    direction = rng.choice([-1.0, 0, 1], (*shape, 1)) * first.numpy()
    direction = direction + rng.choice([-1.0, 0, 1], (*shape, 1)) * flat[index].numpy()
    same = rng.integers(0, values, shape)
    pair = rows[rng.integers(0, anchors, shape), same] - rows[rng.integers(0, anchors, shape), same]
    direction = np.where(rng.random((*shape, 1)) < 0.4, pair.numpy(), direction)
    direction = direction + rng.choice([1e-6, 0.1, 3.0], (*shape, 1)) * rng.normal(
        size=direction.shape
    )
    length = np.linalg.norm(direction, axis=-1, keepdims=True)
    # A little less than allowed: these outputs are rounded to float32.
    moved = torch.from_numpy(scene.epsilon * (1 - 1e-6) * direction / length)
    change = (moved @ flat.T).reshape(*shape, anchors, values)
    return (
        scene.raw.logits.double() + change[..., : scene.raw.logits.shape[-1]],
        scene.raw.offsets.double() + change[..., scene.raw.logits.shape[-1] :],
    )


def _free_outputs(scene: Scene, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Move every output on its own: to an end, towards what does harm, at random, or not.

    Logits go to an end all together more often than not, with one anchor against all others.
    Offsets go to vertices, or as near as they can to an object or to another anchor's box.
    """
    bounds, epsilon = scene.verifier.bounds, scene.epsilon
    images, anchors, classes = scene.raw.logits.shape
    shape = (count, images, anchors)
    common = rng.choice([-1.0, 0, 1], (count, images, 1, classes))
    own = rng.choice([-1.0, 0, 1], (*shape, classes))
    signs = np.where(rng.random((count, images, 1, 1)) < 0.6, common, own)
    chosen = rng.integers(0, anchors, (count, images, 1)) == np.arange(anchors)
    favour = rng.choice([-1.0, 1.0, 0.0], (count, images, 1, 1))
    signs = np.where(chosen[..., None] & (favour != 0), favour, signs)
    signs = np.where(rng.random((count, images, 1, 1)) < 0.1, rng.uniform(-1, 1, own.shape), signs)
    logits = scene.raw.logits.double() + epsilon * torch.from_numpy(signs) * bounds.logits

    clean = scene.raw.offsets.double()
    reach = epsilon * bounds.offsets.expand(count, images, anchors, 4)
    ends = clean + reach * torch.from_numpy(rng.choice([-1.0, 1.0], (*shape, 4)))
    anywhere = clean + reach * torch.from_numpy(rng.uniform(-1, 1, (*shape, 4)))
    default = scene.verifier.decoder.default_boxes.double()
    decoded = CODING.decode(clean, default)
    goals = [
        torch.cat([decoded[image], target["boxes"].double(), target["boxes"].double()])
        for image, target in enumerate(scene.targets)
    ]
    picked = torch.stack(
        [goal[rng.integers(0, len(goal), (count, anchors))] for goal in goals], dim=1
    )
    sides = (picked[..., 2:] - picked[..., :2]).clamp(min=0.01)
    picked = torch.cat([picked[..., :2], picked[..., :2] + sides], dim=-1)
    towards = CODING.encode(picked, default)
    towards = towards.clamp(clean - reach, clean + reach)
    mode = torch.from_numpy(rng.integers(0, 4, shape))[..., None]
    together = torch.from_numpy(rng.integers(0, 5, (count, images, 1, 1)))
    mode = torch.where(together < 4, together, mode)
    offsets = clean.expand(count, images, anchors, 4)
    for index, moved in enumerate((ends, anywhere, towards)):
        offsets = torch.where(mode == index, moved, offsets)
    return logits, offsets


def detect(scene: Scene, raw: RawOutput) -> list[Detections]:
    """The detector's own decoding."""
    return select_detections(raw, scene.verifier.decoder, scene.verifier.selection)


def certificates(scene: Scene) -> Certificates:
    """What is certified: log-odds per object and IoU (G, len(IOUS)), and AP per class and IoU."""
    verifier, truths = scene.verifier, truths_of(scene.targets)
    epsilon = torch.full((len(scene.targets),), scene.epsilon, dtype=torch.float64)
    candidates = verifier.candidates(scene.raw, epsilon)
    entries = verifier.entries(candidates, epsilon)
    found = verifier.certifiers(candidates, truths, epsilon, min(IOUS), entries)
    reached = certified_up_to(found, len(truths.image), IOUS)
    most = min(verifier.selection.top_k, MAX_DETECTIONS)
    precision = []
    for column in range(len(IOUS)):
        by_class = {}
        for label in range(scene.classes):
            objects = truths.label == label
            if objects.any():
                pooled = entries.pooled(label, scene.classes, most)
                by_class[label] = certified_average_precision(
                    reached[objects, column], pooled, int(objects.sum())
                )
        precision.append(by_class)
    return reached, precision


def matched_log_odds(scene: Scene, found: list[Detections], iou: float) -> Tensor:
    """By the real matcher: the score at which each object is matched, as log-odds, or −∞.

    All perturbed scenes are matched at once: scene p, class c is category p · C + c of an image.

    Returns:
        (count, G) float64.
    """
    images, classes = len(scene.targets), scene.classes
    count = len(found) // images
    truth = _per_perturbation(scene, count)
    names = [str(index) for index in range(count * classes)]
    coco = COCO(coco_dict([(str(i), SIZE, SIZE) for i in range(images)], truth, names))
    rows = [row for index, one in enumerate(found) for row in _rows(index, one, images, classes)]
    evaluation = CocoEvaluation(
        coco, coco.loadRes(rows), iouType="bbox", separate_eval=True, extra_calc=True
    )
    evaluation.params.iouThrs = np.array([iou])
    evaluation.evaluate()
    evaluation.accumulate()
    objects = sum(len(target["labels"]) for target in scene.targets)
    result = torch.zeros(count * objects, dtype=torch.float64)
    scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
    # Annotations of image i: those of perturbation 0, 1, …; each in the order of its objects.
    order = _annotation_order(scene, count)
    for pair in evaluation.eval["matched"]:
        detection, annotation = (int(part) for part in pair.split("_"))
        result[order[annotation - 1]] = scores[detection - 1]
    return result.reshape(count, objects).logit()


def _per_perturbation(scene: Scene, count: int) -> list[Target]:
    shift = torch.arange(count) * scene.classes
    return [
        Target(
            boxes=target["boxes"].repeat(count, 1),
            labels=(target["labels"] + shift[:, None]).flatten(),
        )
        for target in scene.targets
    ]


def _annotation_order(scene: Scene, count: int) -> list[int]:
    """For each annotation the index p · G + g of its perturbation and object."""
    objects = sum(len(target["labels"]) for target in scene.targets)
    starts = itertools.accumulate((len(target["labels"]) for target in scene.targets), initial=0)
    return [
        p * objects + first + g
        for first, target in zip(starts, scene.targets, strict=False)
        for p in range(count)
        for g in range(len(target["labels"]))
    ]


def _rows(index: int, found: Detections, images: int, classes: int) -> list[dict[str, object]]:
    perturbation, image = divmod(index, images)
    boxes = found["boxes"].double()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    return [
        {
            "image_id": image + 1,
            "category_id": perturbation * classes + label + 1,
            "bbox": box,
            "score": score,
        }
        for box, label, score in zip(
            boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
    ]


def average_precisions(scene: Scene, found: list[Detections]) -> dict[int, tuple[Tensor, Tensor]]:
    """The real AP50 and AP of each class that has objects, under each perturbation (count,)."""
    images, classes = len(scene.targets), scene.classes
    count = len(found) // images
    merged = []
    for image in range(images):
        parts = found[image::images]
        merged.append(
            Detections(
                boxes=torch.cat([part["boxes"] for part in parts]),
                labels=torch.cat([part["labels"] + p * classes for p, part in enumerate(parts)]),
                scores=torch.cat([part["scores"] for part in parts]),
            )
        )
    names = [str(index) for index in range(count * classes)]
    measured = average_precision(_per_perturbation(scene, count), merged, names).per_class
    found_classes = [label for label in range(classes) if measured[str(label)].ap50 is not None]
    return {
        label: (
            torch.tensor([measured[str(p * classes + label)].ap50 for p in range(count)]),
            torch.tensor([measured[str(p * classes + label)].ap for p in range(count)]),
        )
        for label in found_classes
    }


def violations(scene: Scene, count: int, seed: int) -> list[str]:
    """Everything that a certificate of the scene promised and an adversary took away."""
    promised = certificates(scene)
    if not (promised[0] > -torch.inf).any():
        return []
    # One threshold for the objects, to save time; all of them for AP.
    column = int(np.random.default_rng(seed).choice([0, 0, 0, 3, 5]))
    return broken_promises(scene, promised, perturbed(scene, count, seed), column)


def broken_promises(
    scene: Scene, promised: Certificates, outputs: RawOutput, column: int = 0
) -> list[str]:
    """What of `certificates(scene)` does not hold for some outputs (count · B, …).

    Args:
        scene: whose outputs they are.
        promised: from `certificates`.
        outputs: perturbed, all images of the first perturbation first.
        column: index of the IoU threshold at which objects are looked at.
    """
    reached, precision = promised
    found = detect(scene, outputs)
    kept = matched_log_odds(scene, found, IOUS[column])
    # Scores are float64 sigmoids of float32 log-odds, and τ is real arithmetic.
    lost = (kept < reached[:, column].clamp(max=20) - 1e-5).any(dim=0)
    broken = [f"object {i} at IoU {IOUS[column]:.2f}" for i in torch.nonzero(lost)[:, 0].tolist()]
    for label, (ap50, ap) in average_precisions(scene, found).items():
        least = precision[0][label], float(np.mean([one[label] for one in precision]))
        for name, measured, bound in zip(("AP50", "AP"), (ap50, ap), least, strict=True):
            if measured.min() < bound - 1e-9:
                broken.append(f"{name} of class {label}: {measured.min()} < {bound}")
    return broken
