"""COCO AP against pycocotools on many small random data sets."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.attack_the_certificate import matched_scores
from lipdet.attack.damage import damage
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.bootstrap import ap50, rankings
from lipdet.evaluate.ranking import false_positives_per_image
from lipdet.types import Detections, Objects, Target, ignored_of

CLASSES = ("a", "b", "c")


def target(*objects: tuple[int, list[float]]) -> Target:
    return Target(
        boxes=torch.tensor([box for _, box in objects]).reshape(-1, 4).float(),
        labels=torch.tensor([label for label, _ in objects], dtype=torch.int64),
    )


def found(*objects: tuple[int, list[float], float]) -> Detections:
    return Detections(
        boxes=torch.tensor([box for _, box, _ in objects]).reshape(-1, 4).float(),
        labels=torch.tensor([label for label, *_ in objects], dtype=torch.int64),
        scores=torch.tensor([score for *_, score in objects], dtype=torch.float64),
    )


def pycocotools_ap(
    targets: list[Target], detections: list[Detections]
) -> tuple[float, float, dict[str, tuple[float, float] | None]]:
    """AP50, AP and both for each class, -1 where pycocotools has none."""
    annotations = [
        {
            "image_id": image,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": crowd,
        }
        for image, one in enumerate(targets)
        for crowd, part in enumerate((one, ignored_of(one)))
        for (x1, y1, x2, y2), label in zip(
            part["boxes"].tolist(), part["labels"].tolist(), strict=True
        )
    ]
    results = [
        {
            "image_id": image,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for image, one in enumerate(detections)
        for (x1, y1, x2, y2), label, score in zip(
            *(one[key].tolist() for key in ("boxes", "labels", "scores")),  # type: ignore[literal-required]
            strict=True,
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(targets))],
            "annotations": [{"id": k + 1, **entry} for k, entry in enumerate(annotations)],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results) if results else COCO(), "bbox")
        evaluation.params.imgIds = list(range(len(targets)))
        evaluation.params.catIds = list(range(1, len(CLASSES) + 1))
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    per_class = {
        name: (mean(precision[0, :, k]), mean(precision[:, :, k])) for k, name in enumerate(CLASSES)
    }
    return mean(precision[0]), mean(precision), per_class


def random_case(seed: int) -> tuple[list[Target], list[Detections]]:
    """Up to six images; detections are moved objects, wrong classes and noise, with ties."""
    rng = np.random.default_rng(seed)
    used = rng.choice(3, rng.integers(1, 4), replace=False)
    targets, detections = [], []
    for _ in range(rng.integers(1, 7)):
        first = rng.uniform(0, 50, (rng.integers(0, 6), 2))
        boxes = np.concatenate([first, first + rng.uniform(4, 24, first.shape)], axis=1)
        labels = rng.choice(used, len(boxes))
        targets.append(
            target(*((int(k), box.tolist()) for k, box in zip(labels, boxes, strict=True)))
        )
        copies = np.repeat(np.arange(len(boxes)), rng.integers(0, 4, len(boxes)))
        moved = boxes[copies] + rng.normal(0, rng.choice([0.3, 2, 6]), (len(copies), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        wrong = rng.random(len(copies)) < 0.2
        found_labels = np.where(wrong, rng.integers(0, 3, len(copies)), labels[copies])
        stray = rng.uniform(0, 50, (rng.integers(0, 3), 2))
        all_boxes = np.concatenate([moved, np.concatenate([stray, stray + 9], axis=1)])
        all_labels = np.concatenate([found_labels, rng.integers(0, 3, len(stray))])
        # Coarse scores, so that some are equal.
        scores = np.sort(rng.integers(1, 12, len(all_boxes)) / 12)[::-1]
        entries = zip(all_labels, all_boxes, scores, strict=True)
        detections.append(found(*((int(k), b.tolist(), float(s)) for k, b, s in entries)))
    return targets, detections


def assert_equals_pycocotools(targets: list[Target], detections: list[Detections]) -> None:
    measured = average_precision(targets, detections, CLASSES)
    ap50, ap, per_class = pycocotools_ap(targets, detections)
    # Where pycocotools says -1 (no object at all), the means are 0 and the classes None.
    assert measured["ap50"] == pytest.approx(max(ap50, 0), abs=1e-9)
    assert measured["ap"] == pytest.approx(max(ap, 0), abs=1e-9)
    for name, (class_ap50, class_ap) in per_class.items():
        entry = measured["per_class"][name]
        if class_ap50 == -1:
            assert (entry["ap50"], entry["ap"]) == (None, None)
        else:
            assert entry["ap50"] == pytest.approx(class_ap50, abs=1e-9)
            assert entry["ap"] == pytest.approx(class_ap, abs=1e-9)


@pytest.mark.parametrize("block", range(8))
def test_random_data_sets_equal_pycocotools(block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        targets, detections = random_case(seed)
        # Oracle: pycocotools on the same boxes.
        assert_equals_pycocotools(targets, detections)


def with_crowds(targets: list[Target], seed: int) -> list[Target]:
    """Add up to three areas of any class to each image, anywhere."""
    rng = np.random.default_rng([seed, 1])
    result = []
    for one in targets:
        first = rng.uniform(0, 40, (rng.integers(0, 4), 2))
        boxes = np.concatenate([first, first + rng.uniform(10, 40, first.shape)], axis=1)
        areas = Objects(
            boxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(rng.integers(0, 3, len(boxes))),
        )
        result.append(Target(**one, ignored=areas))
    return result


@pytest.mark.parametrize("block", range(4))
def test_random_data_sets_with_crowds_equal_pycocotools(block: int) -> None:
    """AP with crowds is that of pycocotools."""
    changed = 0
    for seed in range(10 * block, 10 * block + 10):
        plain, detections = random_case(seed)
        targets = with_crowds(plain, seed)
        # Oracle: pycocotools on the same boxes.
        assert_equals_pycocotools(targets, detections)
        # So does the AP50 of which intervals are made.
        once = np.ones(len(targets), np.int64)
        its = ap50(rankings(targets, detections, 3), once)
        assert its == pytest.approx(max(pycocotools_ap(targets, detections)[0], 0), abs=1e-9)
        changed += its != ap50(rankings(plain, detections, 3), once)
    assert changed


def test_a_hit_on_a_crowd_is_neither_right_nor_wrong() -> None:
    """Two objects, one a crowd; detections on both, on the crowd at 0.9."""
    crowd = Objects(boxes=torch.tensor([FAR]), labels=torch.tensor([0]))
    targets = [Target(**target((0, BOX)), ignored=crowd)]
    detections = [found((0, FAR, 0.9), (0, BOX, 0.8))]
    assert average_precision(targets, detections, CLASSES)["ap50"] == pytest.approx(1)
    assert_equals_pycocotools(targets, detections)
    assert [one.tolist() for one in matched_scores(targets, detections, CLASSES, 0.5)] == [[0.8]]
    assert false_positives_per_image(targets, detections, 1.0) == 0
    assert damage(detections[0], targets[0]) == -0.8


def test_the_random_data_sets_hold_what_they_should() -> None:
    cases = [random_case(seed) for seed in range(80)]
    images = [(t, d) for case in cases for t, d in zip(*case, strict=True)]
    empty = [(t, d) for t, d in images if not len(t["labels"])]
    assert any(len(d["labels"]) for _, d in empty)
    assert any(not len(d["labels"]) for _, d in empty)
    assert any(not len(d["labels"]) for t, d in images if len(t["labels"]))
    present = [{int(k) for t in targets for k in t["labels"]} for targets, _ in cases]
    assert {1, 2, 3} <= {len(labels) for labels in present}
    values = [average_precision(*case, CLASSES)["ap"] for case in cases[:30]]
    assert min(values) < 0.2 < 0.6 < max(values)


BOX = [10.0, 10, 30, 30]
FAR = [40.0, 40, 60, 60]


@pytest.mark.parametrize(
    ("targets", "detections"),
    [
        ([target()], [found()]),
        ([target(), target()], [found((0, BOX, 0.9)), found()]),
        ([target((0, BOX))], [found()]),
        ([target((0, BOX)), target()], [found((0, BOX, 0.5)), found((0, BOX, 0.9))]),
        ([target((0, BOX))], [found((1, BOX, 0.9))]),
        ([target((0, BOX)), target((1, FAR))], [found((0, BOX, 0.9)), found((1, FAR, 0.8))]),
        ([target((2, BOX), (2, FAR))], [found((2, BOX, 0.9), (2, BOX, 0.8), (2, FAR, 0.7))]),
    ],
)
def test_edges_equal_pycocotools(targets: list[Target], detections: list[Detections]) -> None:
    assert_equals_pycocotools(targets, detections)


def test_scores_that_float32_cannot_tell_apart() -> None:
    """Log-odds of 30 for the true one and of 18 for the false: AP is 1, not 1/2."""
    high, low = torch.tensor([30.0, 18.0]).double().sigmoid().tolist()
    assert torch.tensor(high).float() == torch.tensor(low).float() == 1
    measured = average_precision(
        [target(), target((0, BOX))], [found((0, BOX, low)), found((0, BOX, high))], CLASSES
    )
    assert measured["ap50"] == pytest.approx(1)


def test_a_hundred_detections_of_a_class_count() -> None:
    # The true one ranks 101st: COCO does not see it. As the 100th it has precision 1/100.
    for before, expected in ((100, 0.0), (99, 0.01)):
        wrong = [(0, FAR, 0.9)] * before
        measured = average_precision([target((0, BOX))], [found(*wrong, (0, BOX, 0.1))], CLASSES)
        assert measured["ap50"] == pytest.approx(expected)
