"""Clean and attacked AP of a detector that lipdet did not build."""

from __future__ import annotations

import time
from dataclasses import replace

from lipdet.attack import AttackSettings
from lipdet.attack.settings import single_attacks
from lipdet.evaluate.attacked import Campaign, attacked_entry
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.run import check_classes
from lipdet.foreign.protocol import attack, detect, picture
from lipdet.images.pack import Pack
from lipdet.progress import track
from lipdet.results import EvaluationResult
from lipdet.types import Detections
from lipdet.user_module import ForeignDetector
from lipdet.versions import versions


def evaluate_foreign(
    detector: ForeignDetector, pack: Pack, seed: int, campaign: Campaign | None
) -> EvaluationResult:
    """Clean and attacked AP, in the form of `lipdet eval`; nothing is certified.

    Args:
        detector: looked at picture by picture.
        pack: pictures of its size.
        seed: the one that the pack was made with; recorded.
        campaign: the attacks to run, if any.

    Raises:
        InputError: the pack's classes are not the detector's, or it does not follow the protocol.
    """
    if detector.class_names is not None:
        check_classes(detector.name, detector.class_names, pack)
    started = time.monotonic()
    module, classes = detector.module, len(pack.class_names)
    targets = [pack.target(index) for index in range(len(pack))]
    clean = [
        one
        for index in track(range(len(pack)), f"Detecting in {pack.name}")
        for one in detect(module, picture(pack, index), classes)
    ]
    attacked = []
    for epsilon in campaign.epsilons if campaign else ():
        assert campaign is not None
        singles = single_attacks(campaign.attack, replace(campaign.settings, epsilon=epsilon))
        found = [attack_module(detector, pack, one) for one in singles]
        attacked.append(attacked_entry(campaign.attack, singles, found, clean, pack))
    return {
        "weights": detector.name,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "data": pack.describe(),
        "seed": seed,
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 3),
        "clean": average_precision(targets, clean, pack.class_names),
        "attacked": attacked,
        "certified": [],
    }


def attack_module(
    detector: ForeignDetector, pack: Pack, settings: AttackSettings
) -> list[Detections]:
    """Attack every picture of a pack, one by one, and detect in what comes out."""
    module, classes = detector.module, len(pack.class_names)
    found: list[Detections] = []
    label = f"{settings.schedule} {settings.objective} ε={settings.epsilon:g}"
    for index in track(range(len(pack)), label):
        attacked = attack(module, picture(pack, index), [pack.target(index)], settings, [index])
        found += detect(module, attacked, classes)
    return found
