"""Scenes in which certificates are put to the test.

A scene holds the raw outputs of a few images, constants of these outputs, and objects. All numbers
are multiples of 1/8 where that matters, so that ties are exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.boxes import BoxCoding, Selection, select_detections
from lipdet.boxes.scores import Scores, SigmoidScores, SoftmaxScores
from lipdet.boxes.select import Decoder
from lipdet.certificate.constants.joint_outputs import Lift
from lipdet.certificate.constants.outputs import OutputBounds
from lipdet.certificate.verifier import Verifier
from lipdet.types import Canvas, Detections, RawOutput, Target

CANVAS = Canvas(28, 34)


def clipped(boxes: Tensor, canvas: Canvas = CANVAS) -> Tensor:
    """Boxes (..., 4) xyxy inside an image."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor(canvas.limits))


def iou_of(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) xyxy, one by one, as plainly as it can be; 0 where it is 0/0."""
    overlap = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    both = overlap.clamp_min(0).prod(dim=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(dim=-1) for box in (a, b)]
    return (both / (areas[0] + areas[1] - both)).nan_to_num(0)


CODING = BoxCoding()
# What a certificate may stumble over; a good third of the scenes has one of them.
ODDITIES = (
    *("flat object", "twin objects", "object beyond the border"),
    *("flat boxes", "thin boxes", "no candidate", "equal scores"),
)


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
    """Stands in for `PairwiseLogits`: constants of differences from a table (C, A, A).

    Args:
        table: of constants.
        push: (C, A, A, 4) what the offsets of the second do as its lead grows by 1, if known.
    """

    def __init__(self, table: Tensor, push: Tensor | None = None) -> None:
        self.table, self.push = table, push

    def constants(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        return self.table[labels, a, b]

    def yielding(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        return torch.full((len(a),), torch.inf if self.push is None else 0.0).double()

    def lifts(self, a: Tensor, b: Tensor, labels: Tensor) -> Lift:
        constants = self.constants(a, b, labels)
        if self.push is None:
            return Lift(constants + torch.inf, torch.zeros(len(a), 4).double())
        return Lift(constants, self.push[labels, a, b])


def pairwise_table(logits: Tensor, offsets: Tensor) -> PairwiseTable:
    """Of outputs that are linear, (A, C, hidden) and (A, 4, hidden)."""
    per_class = logits.transpose(0, 1)
    lead = per_class[:, None] - per_class[:, :, None]
    lengths = lead.norm(dim=-1)
    push = torch.einsum("cabh,boh->cabo", lead, offsets)
    return PairwiseTable(lengths, push / lengths.square().clamp(min=1e-20).unsqueeze(-1))


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
    _make_odd(np.random.default_rng((seed, 1)), targets, default, logits)
    margin = float(np.random.default_rng((seed, 3)).choice([0.25, 1.0, np.inf, np.inf]))
    scores: Scores = SoftmaxScores() if softmax else SigmoidScores(1.0, margin)
    floor, nms_iou = float(rng.choice([0.01, 0.2])), float(rng.choice([0.3, 0.5]))
    selection = Selection(floor, top_k=int(rng.choice([1, 2, 3, 100, 100])))
    decoder = Decoder(torch.from_numpy(default).float(), CODING, scores, CANVAS, nms_iou)
    raw = RawOutput(torch.from_numpy(logits).float(), torch.from_numpy(offsets).float())
    epsilon = float(rng.choice([0, 0.5, 1.0, 1.0]))
    if rng.random() < 0.4 and not softmax:
        close = np.random.default_rng((seed, 2))
        return _linear(rng, close, raw, targets, decoder, selection, epsilon)
    bounds = output_constants(
        torch.from_numpy(
            rng.choice([0.0, 0.25, 0.5, 1.0, 2.0], (1, 1))
            * rng.choice([0.5, 1.0], (anchors, classes + softmax))
        ),
        torch.from_numpy(rng.choice([0.0, 0.1, 0.5, 2.0], (1, 1)) * rng.random((anchors, 4))),
    )
    return Scene(raw, targets, Verifier(bounds, decoder, selection), epsilon)


def _make_odd(
    rng: np.random.Generator,
    targets: list[Target],
    default: NDArray[np.float64],
    logits: NDArray[np.float64],
) -> None:
    """Put one of the ODDITIES into some scenes, in place."""
    if rng.random() > 0.4:
        return
    oddity, image = rng.choice(ODDITIES), int(rng.integers(len(targets)))
    target, some = targets[image], rng.random(len(default)) < 0.3
    first = target["boxes"][:1]
    if oddity == "flat object":
        _add_object(target, torch.tensor([[8.0, 8, 8, 20]]))
    elif oddity == "twin objects":
        _add_object(target, first)
    elif oddity == "object beyond the border":
        _add_object(target, first.where(torch.arange(4) > 0, -3.0))
    elif oddity == "flat boxes":  # Clipping leaves a line of them.
        default[some, 0] = -20.0
    elif oddity == "thin boxes":
        default[some, 2] = 1e-3
    elif oddity == "no candidate":
        logits[image, :, :] = -30.0
        logits[image, :, : logits.shape[2] - 2] = 30.0  # The background of a softmax.
    else:
        logits[image] = 0.25


def _add_object(target: Target, box: Tensor) -> None:
    target["boxes"] = torch.cat([target["boxes"], box])
    target["labels"] = torch.cat([target["labels"], torch.zeros(len(box), dtype=torch.int64)])


def _linear(
    rng: np.random.Generator,
    close: np.random.Generator,
    raw: RawOutput,
    targets: list[Target],
    decoder: Decoder,
    selection: Selection,
    epsilon: float,
) -> Scene:
    """Outputs that depend on a hidden image of few values, so that they cannot move freely.

    In half of these scenes, as `close` decides, a rival is close behind a certifier.
    """
    (_, anchors, classes), hidden = raw.logits.shape, int(rng.choice([2, 4, 12]))
    weights = torch.from_numpy(rng.normal(size=(anchors, classes + 4, hidden)))
    shared = torch.from_numpy(rng.normal(size=(1, classes + 4, hidden)))
    weights = (weights + rng.choice([0.0, 1.0, 3.0]) * shared) / hidden**0.5
    scale = torch.tensor([rng.choice([0.2, 0.6])] * classes + [rng.choice([0.0, 0.3])] * 4)
    weights = weights * scale[:, None]
    if close.random() < 0.5:
        raw, decoder = _close_behind(close, raw, targets, decoder, weights, epsilon)
    logits = weights[:, :classes]
    verifier = Verifier(
        output_constants(
            logits.norm(dim=2),
            weights[:, classes:].norm(dim=2),
            torch.linalg.matrix_norm(weights[:, classes:], 2),
        ),
        decoder,
        selection,
        collective=torch.linalg.matrix_norm(logits.transpose(0, 1), 2),
        pairwise=pairwise_table(logits, weights[:, classes:]),  # type: ignore[arg-type]
        contrasts=torch.cdist(logits, logits),
    )
    return Scene(raw, targets, verifier, epsilon, weights)


def _close_behind(
    rng: np.random.Generator,
    raw: RawOutput,
    targets: list[Target],
    decoder: Decoder,
    weights: Tensor,
    epsilon: float,
) -> tuple[RawOutput, Decoder]:
    """Put the first default box on an object, and the second a little off with a lower score.

    It takes part of a perturbation to lift the second above the first, and part to move it off.
    """
    images = [image for image, target in enumerate(targets) if len(target["labels"])]
    if not images or len(weights) < 2:
        return raw, decoder
    image = int(rng.choice(images))
    box, label = (targets[image][key][0] for key in ("boxes", "labels"))
    sides = box[2:] - box[:2]
    if (sides <= 0).any():
        return raw, decoder
    default = decoder.default_boxes.clone()
    default[:2] = torch.cat([(box[:2] + box[2:]) / 2, sides])
    default[1, 0] += float(rng.uniform(0.1, 0.3)) * sides[0]
    logits, offsets = raw.logits.clone(), raw.offsets.clone()
    offsets[image, :2] = 0.0
    logits[image, :, label] -= 4.0
    logits[image, 0, label] = 2.0
    reach = epsilon * float((weights[1, label] - weights[0, label]).norm())
    logits[image, 1, label] = 2.0 - float(rng.uniform(0.2, 1.0)) * reach
    weights[0, -4:] *= 0.2
    weights[1, -4:] *= (
        2.0 / weights[1, -4:].norm().clamp(min=1e-9) * float(rng.choice([0.5, 1.0, 2.0]))
    )
    return RawOutput(logits, offsets), decoder._replace(default_boxes=default)


def _objects(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Boxes inside the image, often beside each other, overlapping, or at the border."""
    sides = rng.choice([4.0, 6, 9, 14], (count, 2))
    size = np.array([CANVAS.width, CANVAS.height])
    corner = rng.integers(0, size - 14, (1, 2)) + rng.choice([0.0, 2, 5, 12]) * rng.random(
        (count, 2)
    )
    corner = np.where(rng.random((count, 2)) < 0.15, 0.0, corner)
    corner = np.where(rng.random((count, 2)) < 0.15, size - sides, corner)
    corner = corner.round(1).clip(0, size - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def output_constants(
    logits: Tensor, offsets: Tensor, offsets_joint: Tensor | None = None
) -> OutputBounds:
    """Constants of single outputs, (A, K) and (A, 4), and of the four offsets together (A,)."""
    logits, offsets = logits.double(), offsets.double()
    joint = offsets.norm(dim=1) if offsets_joint is None else offsets_joint
    return OutputBounds((1.0,), (slice(0, len(logits)),), logits, offsets, joint, 1.0)


def detect(scene: Scene, raw: RawOutput) -> list[Detections]:
    """The detector's own decoding."""
    return select_detections(raw, scene.verifier.decoder, scene.verifier.selection)
