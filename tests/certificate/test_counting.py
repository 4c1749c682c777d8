"""Certified counts and readings against adversaries, wrong certificates, attacks, and by hand.

The oracle is what the detector shows of perturbed outputs: NMS, top-k, and one box for each place.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lipdet.attack import AttackSettings, attack_unlabelled
from lipdet.boxes import Selection, SigmoidScores
from lipdet.boxes.coding import corners
from lipdet.boxes.scores import logit
from lipdet.boxes.select import Decoder, left_to_right, one_per_place
from lipdet.certificate import counting
from lipdet.certificate.counting import Counts, certified_counts, reading_radii
from lipdet.certificate.geometry.box_range import BoxRange, centers_and_sides
from lipdet.certificate.geometry.iou_bounds import min_covered_of_pairs, min_iou_of_pairs
from lipdet.certificate.radius import TOLERANCE
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector.forward import raw_output
from lipdet.images.pack import Pack
from lipdet.types import Canvas, Detections, RawOutput, Target
from tests.certificate.adversaries import perturbed
from tests.certificate.scenes import (
    CODING,
    Scene,
    clipped,
    detect,
    output_constants,
    random_scene,
)

PERTURBED = 100
SCENES = 40


def _at(scene: Scene, epsilon: float) -> Counts:
    radius = torch.full((len(scene.targets),), epsilon, dtype=torch.float64)
    return counting.certified_counts(scene.verifier, scene.raw, radius)


def _broken(scene: Scene, promised: Counts, outputs: RawOutput) -> list[str]:
    """What of a scene's counts and readings does not hold for some outputs (count · B, …)."""
    found = [one_per_place(one) for one in detect(scene, outputs)]
    clean = [left_to_right(one_per_place(one)) for one in detect(scene, scene.raw)]
    broken = []
    for index, one in enumerate(found):
        image = index % len(clean)
        count = torch.bincount(one["labels"], minlength=scene.classes)
        if (count < promised.least[image]).any():
            broken.append(f"fewer in image {image}")
        if (count > promised.most[image]).any():
            broken.append(f"more in image {image}")
        if promised.steady[image] and not torch.equal(left_to_right(one), clean[image]):
            broken.append(f"image {image} reads otherwise")
    return broken


@pytest.mark.slow
def test_counts_and_readings_hold_for_every_perturbed_output() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SCENES):
        scene = random_scene(seed)
        promised = _at(scene, scene.epsilon)
        assert (promised.least <= promised.most).all(), seed
        assert _broken(scene, promised, perturbed(scene, PERTURBED, seed)) == [], seed
        if scene.epsilon * float(scene.verifier.bounds.logits.max()) > 0.1:
            shown = promised.least.sum(dim=1)
            seen["counted"] += int((promised.least > 0).sum())
            seen["open"] += int((promised.least < promised.most).sum())
            seen["read"] += int((promised.steady & (shown > 0)).sum())
            seen["several read"] += int((promised.steady & (shown > 1)).sum())
    # Without this, the test could not fail.
    assert all(seen[name] > 2 for name in ("counted", "open", "read", "several read")), seen


def _still(boxes: BoxRange) -> BoxRange:
    middle = (boxes.low + boxes.high) / 2
    return BoxRange(middle, middle)


def _mutate(monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str) -> None:
    source = inspect.getsource(getattr(counting, name))
    assert right in source
    namespace = {**vars(counting), "_still": _still}
    exec(f"from __future__ import annotations\n{source.replace(right, wrong)}", namespace)
    # What it calls is looked up in the module, so that other patches hold.
    monkeypatch.setattr(counting, name, namespace[name])


def by_hand(
    boxes: Sequence[tuple[float, ...]],
    logits: Sequence[Sequence[float]],
    moves: float = 0.0,
    top_k: int = 20,
    epsilon: float = 1.0,
) -> Scene:
    """One image of 40×40 pixels; IoU above 0.3 suppresses, and the floor is a score of 0.2.

    Args:
        boxes: x1, y1, x2, y2 of each default box.
        logits: of each, one for each class.
        moves: by how many pixels times ε centres move along x.
        top_k: detections of an image.
        epsilon: by so much logits move.
    """
    default = centers_and_sides(torch.tensor(boxes))
    offsets = torch.zeros(len(boxes), 4)
    # An offset of 1 moves a centre by a tenth of the side.
    offsets[:, 0] = 10 * moves / default[:, 2]
    raw = torch.tensor(logits)[None]
    verifier = Verifier(
        output_constants(torch.ones(raw.shape[1:]), offsets),
        Decoder(default, CODING, SigmoidScores(1.0), Canvas(40, 40), 0.3),
        Selection(0.2, top_k),
    )
    target = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Scene(RawOutput(raw, torch.zeros(1, len(boxes), 4)), [target], verifier, epsilon)


FLOOR = logit(0.2)
LEFT, RIGHT = (4.0, 4.0, 14.0, 14.0), (16.0, 4.0, 26.0, 14.0)
BELOW_RIGHT = (16.0, 24.0, 26.0, 34.0)
NONE = -50.0
# Three in a row, of which neighbours overlap by 0.32 and cover each other by 0.48.
ROW = [(4.0, 4.0, 14.0, 14.0), (9.2, 4.0, 19.2, 14.0), (14.4, 4.0, 24.4, 14.0)]
CROSSING = by_hand([LEFT, BELOW_RIGHT], [[9.0, NONE], [NONE, 9.0]], moves=1.0, epsilon=7.0)
BOXES = "candidates.boxes.boxes,"
STILL = "_still(candidates.boxes.boxes),"
# Each takes away what the proof needs: a function, what stands in it, what stands there instead;
# before them the first random scene in which it is caught, others follow where one has changed, or
# a scene made for it.
MUTANTS: dict[str, tuple[int | Scene, str, str, str]] = {
    "rivals left out": (
        26,
        "kept_for_certain",
        "~take(gone, rival))",
        "take(gone, rival) & False)",
    ),
    # The middle one can come first, and leaves out both.
    "one detection counted twice": (
        *(by_hand(ROW, [[2.0], [1.0], [2.0]]), "_distinct"),
        *("(successors & taken).any()", "False"),
    ),
    # The first can come first, and leaves out the one that excludes the last.
    "excluded by the certifier alone": (
        *(by_hand(ROW, [[1.0], [2.0], [-0.5]]), "_never_beside"),
        *("index_fill(0, pair[~sure], True)", "clone()"),
    ),
    "overlaps as they are": (99, "_never_both", BOXES, STILL),
    "shares as they are": (32, "_compete", BOXES, STILL),
    "what may be cut off": (2, "_put_out", "reaching <= top_k", "reaching > -1"),
    "other classes never win a place": (
        *(by_hand([LEFT], [[2.0, 1.0]]), "_distinct"),
        *("(beats & ~kept & ~hidden).any()", "not (kept & ~hidden).any()"),
    ),
    "excluded by one successor": (94, "_distinct", ".all(axis=0)", ".any(axis=0)"),
    "nothing else is shown": (
        *(0, "_distinct"),
        *("np.flatnonzero(~hidden & ~settled)", "members[:0]"),
    ),
    "all others hidden": (
        *(0, "_distinct"),
        *("hidden |= excluded & ~successors", "hidden |= ~kept"),
    ),
    "order taken for granted": (CROSSING, "in_one_order", "return bool", "return True or bool"),
    "edges as they are": (
        *(CROSSING, "surely_shown"),
        *(f"corner_range({BOXES}", f"corner_range({STILL}"),
    ),
    "no room for what may appear": (
        *(by_hand([LEFT, RIGHT], [[2.0], [-2.0]]), "certified_counts"),
        *("alone + cover", "alone + 0 * cover"),
    ),
    "top-k shared with itself": (
        *(by_hand([LEFT, RIGHT], [[3.0], [3.0]], top_k=3), "certified_counts"),
        *("top_k - others", "top_k - others - least"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_scenes_catch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *mutant = MUTANTS[name]
    scenes = map(random_scene, range(first, first + 100)) if isinstance(first, int) else [first]
    for number, scene in enumerate(scenes):
        right = _at(scene, scene.epsilon)
        assert _broken(scene, right, perturbed(scene, PERTURBED, number)) == []
        with monkeypatch.context() as patch:
            _mutate(patch, *mutant)
            wrong = _at(scene, scene.epsilon)
        if all(map(torch.equal, wrong, right)):
            continue
        if _broken(scene, wrong, perturbed(scene, PERTURBED, number)):
            return
    pytest.fail(f"no scene shows that a count is wrong with {name}")


def _radius(scene: Scene) -> float:
    [radius] = reading_radii(scene.verifier, scene.raw).tolist()
    return float(radius)


def test_a_reading_ends_where_a_score_reaches_the_floor() -> None:
    scene = by_hand([LEFT, RIGHT], [[3.0, NONE], [NONE, 2.0]])
    assert _radius(scene) == pytest.approx(2 - FLOOR, abs=2 * TOLERANCE)
    # What falls below may be missing; nothing else can appear.
    counts = _at(scene, 2.1 - FLOOR)
    assert (counts.least.tolist(), counts.most.tolist()) == ([[1, 0]], [[1, 1]])


def test_a_reading_ends_where_left_edges_meet() -> None:
    # Edges at 4 and 16, which come nearer by 1 pixel each, in rows that never overlap.
    scene = by_hand([LEFT, BELOW_RIGHT], [[9.0, NONE], [NONE, 9.0]], moves=1.0)
    assert _radius(scene) == pytest.approx(6, abs=2 * TOLERANCE)
    counts = _at(scene, 7.0)
    assert not counts.steady.item()
    assert counts.least.tolist() == counts.most.tolist() == [[1, 1]]
    # Of one class it does not matter which comes first.
    alike = by_hand([LEFT, BELOW_RIGHT], [[9.0], [9.0]], moves=1.0)
    assert _at(alike, 7.0).steady.item()


def test_a_reading_ends_where_one_can_cover_half_of_the_other() -> None:
    # Side by side, 2 pixels apart: 7 pixels together make an overlap of 5 out of 10.
    scene = by_hand([LEFT, RIGHT], [[9.0, NONE], [NONE, 9.0]], moves=1.0)
    assert _radius(scene) == pytest.approx(3.5, abs=0.01)
    # If the first surely scores more, it is there in any case.
    first = by_hand([LEFT, RIGHT], [[9.0, NONE], [NONE, 0.0]], moves=1.0)
    counts = _at(first, 3.7)
    assert (counts.least.tolist(), counts.most.tolist()) == ([[1, 0]], [[1, 1]])


def test_classes_of_one_box_are_one_detection() -> None:
    # Which of the two is shown may change, but never both are: one of each at most, and no other.
    counts = _at(by_hand([LEFT], [[2.0, 1.0]]), 0.4)
    assert (counts.least.tolist(), counts.most.tolist()) == ([[1, 0]], [[1, 0]])
    counts = _at(by_hand([LEFT], [[2.0, 1.0]]), 0.6)
    assert (counts.least.tolist(), counts.most.tolist()) == ([[0, 0]], [[1, 1]])


def test_what_surely_suppresses_each_other_is_one_detection() -> None:
    near = (5.0, 4.0, 15.0, 14.0)
    counts = _at(by_hand([LEFT, near], [[2.0], [2.0]]), 1.0)
    assert counts.least.tolist() == counts.most.tolist() == [[1]]
    # Overlaps of neighbours are 0.54 and those of ends 0.25: one may be kept, or both ends.
    third, end = (7.0, 4.0, 17.0, 14.0), (10.0, 4.0, 20.0, 14.0)
    counts = _at(by_hand([LEFT, third, end], [[2.0], [2.5], [2.0]]), 1.0)
    assert (counts.least.tolist(), counts.most.tolist()) == ([[1]], [[2]])


def test_no_more_are_put_out_than_top_k() -> None:
    boxes, low = [LEFT, RIGHT, BELOW_RIGHT], [[0.0], [-2.0], [-2.0]]
    for top_k, most in ((20, 3), (2, 2), (1, 1)):
        counts = _at(by_hand(boxes, low, top_k=top_k), 1.0)
        assert counts.most.tolist() == [[most]]


def test_nothing_is_read_where_nothing_can_appear() -> None:
    scene = by_hand([LEFT], [[-4.0, -5.0]])
    assert _radius(scene) == pytest.approx(4 + FLOOR, abs=2 * TOLERANCE)
    counts = _at(scene, 3.0)
    assert (counts.least.tolist(), counts.most.tolist()) == ([[0, 0]], [[1, 0]])


def _labels(found: Sequence[Detections]) -> list[list[int]]:
    return [left_to_right(one_per_place(one)).tolist() for one in found]


@pytest.mark.slow
def test_no_attack_changes_what_is_read_or_counted(house_numbers: Pack) -> None:
    detector = load_detector("certified-small").detector.eval()
    images = house_numbers.pixels(range(16))
    verifier = verifier_of(detector, detector.display)
    raw = raw_output(detector, images)
    radii = reading_radii(verifier, raw)
    chosen = [index for index, radius in enumerate(radii.tolist()) if 0.02 < radius < 5][:3]
    changed = Counter[float]()
    for index in chosen:
        single = RawOutput(*(part[index, None] for part in raw))
        # Beyond the radius the same attacks succeed.
        for share in (0.99, 20.0):
            epsilon = share * float(radii[index])
            counts = certified_counts(verifier, single, torch.tensor([epsilon]).double())
            for objective in ("demote", "mislabel", "vanish", "fabricate"):
                settings = [AttackSettings(epsilon, objective, steps=8)]
                before, after = attack_unlabelled(detector, images[index, None], settings)
                [labels], [attacked] = _labels(before.detections), _labels(after.detections)
                number = torch.bincount(torch.tensor(attacked, dtype=torch.int64), minlength=10)
                assert ((counts.least <= number) & (number <= counts.most)).all()
                changed[share] += labels != attacked
    assert changed[0.99] == 0
    assert changed[20.0] > 2


def test_least_share_that_boxes_cover() -> None:
    generator = torch.Generator().manual_seed(0)
    count, canvas = 300, Canvas(28, 34)
    low = torch.rand(count, 4, generator=generator).double() * torch.tensor([34, 28, 12, 12])
    boxes = BoxRange(low, low + torch.rand(count, 4, generator=generator) * 5)
    # Pairs that are near each other.
    moved = torch.rand(count, 4, generator=generator)
    near = BoxRange(*(end + moved for end in boxes))
    both = BoxRange(*(torch.cat(ends) for ends in zip(boxes, near, strict=True)))
    first = torch.arange(count)
    bound = min_covered_of_pairs(both, first, first + count, canvas)
    seen = torch.full_like(bound, torch.inf)
    for index in range(600):
        place = torch.rand(2 * count, 4, generator=generator, dtype=torch.float64)
        place = place.round() if index % 2 else place
        at = both.low + place * (both.high - both.low)
        seen = torch.minimum(seen, _share(at[:count], at[count:], canvas))
    assert (bound <= seen + 1e-9).all()
    assert (bound > 0.05).sum() > 50
    assert (seen - bound)[seen > 0.05].median() < 0.1
    assert (min_iou_of_pairs(both, first, first + count, canvas) <= bound + 1e-9).all()


def _share(a: Tensor, b: Tensor, canvas: Canvas) -> Tensor:
    """The overlap as a share of the smaller box, of boxes cx, cy, w, h clipped to the canvas."""
    a, b = clipped(corners(a), canvas), clipped(corners(b), canvas)
    sides = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    areas = [(box[:, 2:] - box[:, :2]).prod(dim=1) for box in (a, b)]
    return sides.clamp(min=0).prod(dim=1) / torch.minimum(*areas).clamp(min=1e-9)
