"""Results and inspections with names that would break a careless page.

Those of detectors were never measured; segmenters are tiny, have random weights and are measured.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipdet.certificate.diagnosis import REASONS
from lipdet.checkpoint import LoadedDetector, save_detector
from lipdet.cli import main
from lipdet.config import INK_CLASSES, PRESETS, SegmenterConfig
from lipdet.detector import build_detector
from lipdet.images.prepare import pack_rendered
from lipdet.lipschitz.profile import LayerRow
from lipdet.reading import Detection
from lipdet.report.architecture import Architecture, HeadShape, Stage
from lipdet.report.inspection import Inspection
from lipdet.report.scenes import Scene
from lipdet.segmenter import build_segmenter
from lipdet.types import Canvas

EVIL = '</script><img src="http://evil.example/x" onerror="alert(1)"> & "$x$'
EVIL_CLASS = "<u>7/8</u>~"

ROWS = (
    LayerRow("body.<i>0</i>", "Conv2d", 2.0, 2.0, 1.5, (0,)),
    LayerRow("heads.0.classification", "Conv2d", 1.0, 2.0, None, (0,)),
    LayerRow("heads.0.localisation", "Conv2d", None, 3.0, 0.5, (0,)),
)


def result(weights: str, clean: float, full: bool) -> dict[str, Any]:
    """As of `lipdet eval`; `full` with attacks and certificates at two radii."""
    per_class = {"6": {"ap50": clean, "ap": 0.125}, EVIL_CLASS: {"ap50": None, "ap": None}}
    made: dict[str, Any] = {
        "weights": weights,
        "parameters": 337968,
        "data": {
            "name": "made <up>",
            "canvas": [74, 74],
            "hash": "abc",
            "images": 12,
            "objects": 20,
            "skipped": 0,
        },
        "seed": 0,
        "versions": {"python": "3.11"},
        "seconds": 1.5,
        "clean": {"ap50": clean, "ap": 0.3137, "per_class": per_class},
        "attacked": [],
        "certified": [],
    }
    for epsilon, share in ((0.1, 0.8), (0.25, 0.4)) if full else ():
        consistency = {"shown": 18, "kept": 10, "changed": 3, "vanished": 5, "appeared": 2}
        # By hand: 255 / sqrt(3·74·74) = 1.9895.
        radius = {"epsilon": epsilon, "grey_levels": 1.9895 * epsilon}
        attack = {**radius, "attack": "worst", "norm": "l2", "steps": 50, "restarts": 1}
        figures = {"ap50": clean * share, "ap": 0.2 * share, "recall": 0.5}
        made["attacked"].append({**attack, **figures, "consistency": consistency})
        made["certified"].append(
            {
                **radius,
                "ap50": clean * share / 2,
                "ap": 0.1 * share,
                "recall": 0.35,
                "precision": None,
                "vanish_recall": 0.4,
                "class_recall": 0.45,
                "recall_score": 0.2,
                "rounding": "measured in float32",
                "failed": dict.fromkeys(REASONS, 2) | {"score": 3},
                "per_class": copy.deepcopy(per_class),
                "counts": {name: {"exact": 0.75, "leeway": 0.5} for name in per_class},
                "reading": {"right": 0.625, "steady": share / 2, "certified": share / 4},
            }
        )
    return made


def scene(weights: str) -> Scene:
    picture = np.random.default_rng(0).integers(0, 256, (74, 74, 3), np.uint8)
    box = (10.0, 20.0, 30.0, 60.0)
    sure = Detection("6", 0.9, box, 0.3, (8.0, 18.0, 33.0, 62.0))
    unsure = Detection(EVIL_CLASS, 0.4, box, 0.0)
    return Scene(weights, 0, 0.25, picture, picture, ("6", EVIL_CLASS), (sure, unsure), (unsure,))


def inspection(weights: str, bounded: bool) -> Inspection:
    detector = build_detector(PRESETS["naive"].detector)
    stages = (
        Stage(Canvas(74, 74), 8, {"Conv2d": 2}, 10, False),
        Stage(Canvas(18, 18), 8, {"ReLU": 1}, 0, True),
    )
    architecture = Architecture(
        Canvas(74, 74), stages, (HeadShape(Canvas(18, 18), 8, 4, 11, 40),), 1296, 50
    )
    constants: dict[str, Any] = {
        "largest_logit": 12.3456,
        "largest_offset": 1e9,
        "layers": [row.__dict__ for row in ROWS],
    }
    return Inspection(
        LoadedDetector(weights, detector, {"training": "<script>alert(2)</script>"}),
        {"images_per_second": 1234.5, "batch": 32, "device": "cpu", "threads": 1},
        architecture,
        ROWS if bounded else (),
        constants if bounded else "layer <x> has no rule",
        (scene(weights),),
    )


def results() -> list[dict[str, Any]]:
    """One complete result, and one of a detector that was only measured on clean pictures."""
    return [result("naive", 0.86449, full=True), result(EVIL, 0.5, full=False)]


def inspections() -> list[Inspection]:
    """Of the same detectors."""
    return [inspection("naive", bounded=True), inspection(EVIL, bounded=False)]


def segmenters(folder: Path) -> list[str]:
    """Write the weights of a certified and an ordinary segmenter; return their files."""
    files = []
    for name in ("orthogonal-segmenter", "plain-segmenter"):
        torch.manual_seed(1)
        config = SegmenterConfig(name, INK_CLASSES, Canvas(32, 32))
        network = build_segmenter(config)
        with torch.no_grad():
            for weight in network.head.parameters():
                weight.normal_()
        path = folder / f"<u>{name}.safetensors"
        save_detector(path, network, config, {})
        files.append(str(path))
    return files


def segmentation_page(folder: Path) -> Path:
    """Write the page of these segmenters."""
    pack = pack_rendered(folder / "ink", "test", 3, Canvas(32, 32), seed=0, kind="ink")
    words = ["--data", str(pack.folder), "--epsilon", "0.02", "0.1", "--attack", "pgd", "--quiet"]
    words += ["--steps", "2", "--pictures", "2", "--out", str(folder / "segmenters.html")]
    main(["report", *segmenters(folder), *words])
    return folder / "segmenters.html"
