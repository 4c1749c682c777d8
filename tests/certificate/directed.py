"""Scenes made so that one mistake in a certificate shows: what moves, and how it does harm.

Boxes are told by their corners; default boxes are the boxes themselves, so that offsets of 0 leave
them in place and an offset of 1 moves a centre by a tenth of the side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from lipdet.boxes import Selection
from lipdet.boxes.scores import SigmoidScores
from lipdet.boxes.select import Decoder
from lipdet.certificate.geometry.box_range import centers_and_sides
from lipdet.certificate.verifier import Verifier
from lipdet.types import Canvas, Objects, RawOutput, Target
from tests.certificate.scenes import CODING, PairwiseTable, Scene, output_constants

Box = tuple[float, float, float, float]


class Attacked(NamedTuple):
    """A scene of a few images and the outputs that an adversary chooses in it."""

    scene: Scene
    outputs: RawOutput


def _scene(
    objects: Sequence[Box],
    boxes: Sequence[Box],
    logits: Sequence[float],
    attacked: Sequence[float] | None = None,
    moves: Sequence[float] | None = None,
    shift: float = 0.0,
    nms_iou: float = 0.3,
    constants: Sequence[float] | None = None,
    difference: float | None = None,
    push: float | None = None,
    together: float | None = None,
    top_k: int = 100,
    temperature: float = 1.0,
    areas: Sequence[Box] = (),
) -> Attacked:
    """One class, ε is 1; t_x of box i has the constant moves[i].

    Args:
        objects: what is there.
        boxes: of the anchors.
        logits: of the anchors.
        attacked: the logits that the adversary chooses, the same if not given.
        moves: constants of t_x, 0 for all if not given.
        shift: the t_x that the adversary chooses for the last anchor.
        nms_iou: η.
        constants: of the logits, 1 for all if not given.
        difference: constant of the difference of any two logits, if known.
        push: by how much t_x of the last anchor moves as its logit's lead grows by 1, if known.
        together: constant of all logits together, if known.
        top_k: detections of an image.
        temperature: of the scores.
        areas: that are not judged.
    """
    default, count = centers_and_sides(torch.tensor(boxes)), len(boxes)
    offsets = torch.zeros(1, count, 4)
    of_offsets = torch.zeros(count, 4)
    if moves is not None:
        of_offsets[:, 0] = torch.tensor(moves)
    verifier = Verifier(
        output_constants(torch.tensor(constants or [1.0] * count)[:, None], of_offsets),
        Decoder(default, CODING, SigmoidScores(temperature), Canvas(32, 32), nms_iou),
        Selection(0.01, top_k),
        collective=together and torch.tensor([together]).double(),  # type: ignore[arg-type]
        pairwise=difference and _differences(count, difference, push),  # type: ignore[arg-type]
    )
    there, ignored = (
        Objects(
            boxes=torch.tensor(some).reshape(-1, 4),
            labels=torch.zeros(len(some), dtype=torch.int64),
        )
        for some in (objects, areas)
    )
    targets = [Target(**there, ignored=ignored)]
    raw = RawOutput(torch.tensor(logits).reshape(1, count, 1), offsets)
    moved = offsets.clone()
    moved[0, -1, 0] = shift
    chosen = RawOutput(torch.tensor(attacked or logits).reshape(1, count, 1), moved)
    return Attacked(Scene(raw, targets, verifier, 1.0), chosen)


def _differences(count: int, constant: float, push: float | None) -> PairwiseTable:
    table = torch.full((1, count, count), constant).double()
    if push is None:
        return PairwiseTable(table)
    pushes = torch.zeros(1, count, count, 4).double()
    pushes[0, :, -1, 0] = push
    return PairwiseTable(table, pushes)


def _two_images(first: Attacked, second: Attacked) -> Attacked:
    """Two scenes with the same boxes and settings as one."""
    raws, outputs = (
        RawOutput(*(torch.cat(parts) for parts in zip(*both, strict=True)))
        for both in ((first.scene.raw, second.scene.raw), (first.outputs, second.outputs))
    )
    targets = [*first.scene.targets, *second.scene.targets]
    return Attacked(replace(first.scene, raw=raws, targets=targets), outputs)


# The only box can move from the first object to the second, which then has it.
STRAYS = _scene(
    objects=[(4, 4, 14, 14), (7, 4, 17, 14)],
    boxes=[(4, 4, 14, 14)],
    logits=[3.0],
    moves=[2.0],
    shift=2.0,
)
# The rival at its best equals the other at its worst, and comes first.
TIED_RIVALS = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(8, 4, 18, 14), (4, 4, 14, 14)],
    logits=[0.0, 2.0],
    attacked=[1.0, 1.0],
)
# A false detection at its best equals the true one at its worst, and comes first.
TIED_DETECTIONS = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(18, 18, 28, 28), (4, 4, 14, 14)],
    logits=[0.0, 2.0],
    attacked=[1.0, 1.0],
)
# Overlap is 0.47 with the middles aligned, and 0.40 at either end of what can move.
INNER_OVERLAP = _scene(
    objects=[(8, 8, 24, 24)],
    boxes=[(12.25, 8, 19.75, 24), (8, 8, 24, 24)],
    logits=[1.5, 2.0],
    attacked=[2.0, 1.25],
    moves=[0.0, 3.125],
    nms_iou=0.45,
)
# Aligned, the box is nearer to the second object; at either end, to the first.
INNER_MATCH = _scene(
    objects=[(8, 8, 24, 24), (9.5, 8, 22.5, 24)],
    boxes=[(9, 8, 23, 24)],
    logits=[3.0],
    moves=[3 / 1.4],
)
# As clipped, the box is nearer to the second object (0.83 to 0.80); before, to the first.
AT_THE_BORDER = _scene(
    objects=[(0, 8, 15, 24), (0, 8, 10, 24)],
    boxes=[(-4, 8, 12, 24)],
    logits=[3.0],
)
# The middle one of three overlaps both others, which do not overlap: two can be kept.
HUB = _scene(
    objects=[(4, 4, 12, 12)],
    boxes=[(6, 20, 14, 28), (2, 20, 10, 28), (10, 20, 18, 28), (4, 4, 12, 12)],
    logits=[2.0, 1.5, 1.5, 1.0],
    attacked=[1.0, 2.5, 2.5, 0.0],
)
# Recall 2/3: 67 of 101 recalls are reached, less than two thirds.
TWO_OF_THREE = _scene(
    objects=[(2, 2, 10, 10), (20, 2, 28, 10), (2, 20, 10, 28)],
    boxes=[(2, 2, 10, 10), (20, 2, 28, 10)],
    logits=[3.0, 3.0],
)
# Log-odds of 30 and 20: the same in float32 sigmoids, and the rival comes first.
SATURATED = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(8, 4, 18, 14), (4, 4, 14, 14)],
    logits=[20.0, 30.0],
)
# Logits with the rows (0.6, 0.8) and (1, 0): their difference moves by up to √0.8, and the image
# moves along it. The rival comes first.
PASSED_TOGETHER = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(8, 4, 18, 14), (4, 4, 14, 14)],
    logits=[1.5, 2.0],
    attacked=[1.5 + 1 / 5**0.5, 2.0 - 1 / 5**0.5],
    difference=0.8**0.5,
)
# The rival's logit has the row (1, 0) and its t_x the row (3.5, 0): it comes first only if it has
# moved by 2.8, and then up to 3.5, which is off the object.
PUSHED_OFF = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(4, 4, 14, 14), (4, 4, 14, 14)],
    logits=[2.0, 1.2],
    attacked=[2.0, 2.2],
    moves=[0.0, 3.5],
    shift=3.5,
    constants=[0.0, 1.0],
    difference=1.0,
    push=3.5,
)
# With t_x in the row (0, 4.6): 0.65 of a perturbation lifts the rival, and 0.75 moves it off.
LIFTED_AND_MOVED = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(4, 4, 14, 14), (4, 4, 14, 14)],
    logits=[2.0, 1.4],
    attacked=[2.0, 2.05],
    moves=[0.0, 4.6],
    shift=3.45,
    constants=[0.0, 1.0],
    difference=1.0,
    push=0.0,
)
# Logits with the rows (0, 1) and (0.2, 0): the false one rises by 0.95 of 1, and comes first.
RAISED_TOGETHER = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(18, 18, 28, 28), (4, 4, 14, 14)],
    logits=[2.2, 3.0],
    attacked=[3.15, 3.0],
    constants=[1.0, 0.2],
    together=1.0,
)
# Of three cliques two are counted, and both objects of the first image claim one. Its only
# detection can be the false one, which comes before the certified one of the second image.
THREE_BOXES = [(2.0, 2.0, 10.0, 10.0), (20.0, 2.0, 28.0, 10.0), (2.0, 20.0, 10.0, 28.0)]
PUSHED_OUT = _two_images(
    _scene(
        objects=THREE_BOXES[:2],
        boxes=THREE_BOXES,
        logits=[3.0, 3.0, 3.0],
        attacked=[2.0, 2.0, 4.0],
        top_k=1,
    ),
    _scene(
        objects=THREE_BOXES[:1],
        boxes=THREE_BOXES,
        logits=[3.0, -9.0, -9.0],
        attacked=[2.0, -9.0, -9.0],
        top_k=1,
    ),
)

# The second box can move out of the area around it.
LEAVES_ITS_AREA = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(4, 4, 14, 14), (18, 18, 28, 28)],
    logits=[2.0, 4.0],
    moves=[0.0, 8.0],
    shift=-8.0,
    areas=[(17, 17, 29, 29)],
)
# Of two cliques that are counted in the second image both lie in areas, and the third is put out.
_FOUR = [(4, 4, 14, 14), (18, 4, 28, 14), (4, 18, 14, 28), (18, 18, 28, 28)]
BEYOND_ITS_AREAS = _two_images(
    _scene([_FOUR[0]], _FOUR, [2.0, -9, -9, -9], top_k=1),
    _scene([], _FOUR, [-9.0, 3, 3, 2.5], [-9.0, 2, 2, 3.5], top_k=1, areas=_FOUR[1:3]),
)
