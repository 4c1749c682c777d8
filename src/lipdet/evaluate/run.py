"""Evaluate a detector on a pack: the json that `lipdet eval` writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from lipdet.attack import detect
from lipdet.attack.attackable import Attackable, attackable
from lipdet.attack.foreign import ForeignDetector
from lipdet.boxes import AP_SELECTION, Selection
from lipdet.checkpoint import AnyDetector, LoadedDetector, certifiable
from lipdet.detector import SSD
from lipdet.detector.forward import BATCH_SIZE, Network, detect_images
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign, attacked_results
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.certified import certified_results
from lipdet.evaluate.chunks import Pass, State, detecting_pass, in_order, weights_hash
from lipdet.images.pack import Pack
from lipdet.progress import console, track
from lipdet.results import EvaluationResult
from lipdet.types import Detections
from lipdet.versions import versions


def evaluate(
    loaded: AnyDetector,
    pack: Pack,
    seed: int,
    campaign: Campaign | None = None,
    certify: Sequence[float] = (),
    state: State | None = None,
) -> EvaluationResult:
    """Measure AP, clean, under attack and certified; record all that is needed to repeat it.

    Args:
        loaded: a detector; one that lipdet did not build cannot be certified.
        pack: pictures of the detector's input size.
        seed: the one that the pack was made with; recorded.
        campaign: the attacks to run, if any.
        certify: L2 radii at which to certify, if any.
        state: where finished parts are kept and looked for.

    Returns:
        The json object that docs/json.md describes; AP values are fractions.

    Raises:
        InputError: the pack has classes that the detector has not, or it cannot be certified.
    """
    pack = in_classes_of(loaded, pack)
    detector = detector_for(loaded, pack)
    if not pack.describe()["objects"]:
        raise InputError(f"{pack.name} has no objects, so there is no AP.")
    started = time.monotonic()
    if certify:
        found, certified = certified_results(certifiable(loaded), pack, certify, state)
    else:
        found, certified = in_order(clean_pass(detector, pack, state).results()), []
    targets = [pack.target(index) for index in range(len(pack))]
    clean = average_precision(targets, found, pack.class_names)
    attacked = attacked_results(detector, pack, campaign, found, state) if campaign else []
    return {
        "weights": loaded.name,
        "weights_hash": weights_hash(detector) if isinstance(detector, SSD) else None,
        "parameters": sum(parameter.numel() for parameter in loaded.module.parameters()),
        "data": pack.describe(),
        "seed": seed,
        "versions": versions(),
        "device": attackable(detector).device.type,
        "seconds": round(time.monotonic() - started, 3),
        "clean": clean,
        "attacked": attacked,
        "certified": certified,
    }


def in_classes_of(loaded: AnyDetector, pack: Pack) -> Pack:
    """Return pictures with the detector's labels, by the names of the classes.

    Raises:
        InputError: the pictures have other classes.
    """
    if loaded.class_names is None:
        return pack
    renamed = pack.in_classes(loaded.class_names)
    if missing := [name for name in loaded.class_names if name not in pack.class_names]:
        console.log(f"{pack.name} does not have the classes {', '.join(missing)}.")
    return renamed


def detector_for(loaded: AnyDetector, pack: Pack) -> SSD | ForeignDetector:
    """Return what looks at the pictures; one that does not name its classes has theirs."""
    if isinstance(loaded, LoadedDetector):
        return loaded.detector
    return replace(loaded, class_names=pack.class_names)


def clean_pass(
    detector: SSD | Attackable, pack: Pack, state: State | None
) -> Pass[list[Detections]]:
    """Make the pass over the pack that clean AP sums up where nothing is certified."""

    def compute(chunk: range) -> list[Detections]:
        return detect(detector, pack.pixels(chunk), AP_SELECTION)

    folder = state.of_pass("clean", pack) if state else None
    label = f"Detecting in {pack.name}"
    return detecting_pass(label, len(pack), BATCH_SIZE, compute, folder)


def detect_pack(
    detector: Network, pack: Pack, indices: Sequence[int], selection: Selection
) -> list[Detections]:
    """Return detections on pictures of a pack, in eval mode, on the detector's device."""
    return [
        found
        for start in track(range(0, len(indices), BATCH_SIZE), f"Detecting in {pack.name}")
        for found in detect_images(
            detector, pack.pixels(indices[start : start + BATCH_SIZE]), selection
        )
    ]
