"""The attacks try to break what the certificate promises, on a trained detector.

The oracle is the attack, judged by the metric's own matcher: it knows the detector's gradients and,
in the aims of benchmarks/attack_the_certificate.py, how the certificate argues. That script runs
the same at any size. Everything that is certified in float32 is attacked in float64 too, and the
other way round.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.attack_the_certificate import (
    Promise,
    attack_promise,
    gradient_source,
    promises,
)
from lipdet.attack import AttackSettings
from lipdet.boxes import AP_SELECTION
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector, packaged_names
from lipdet.commands.eval import run
from lipdet.detector import SSD
from lipdet.detector.forward import raw_output
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign, attacked_results
from lipdet.evaluate.certified import certified_results
from lipdet.images.pack import Pack
from lipdet.types import Target

pytestmark = pytest.mark.slow

NAME = "certified-small"
IMAGES = 3
STEPS = 8
# Above it, what is certified would be of no use; below, a step of an attack is mere rounding.
SMALLEST_RADIUS = 0.01


class Certified(NamedTuple):
    """A detector in one precision, and what is certified from its outputs."""

    detector: SSD
    source: SSD
    verifier: Verifier
    promises: list[Promise]


class Pictures(NamedTuple):
    images: Tensor
    targets: list[Target]
    names: tuple[str, ...]


@pytest.fixture(scope="module")
def shown(house_numbers: Pack) -> Pictures:
    images = house_numbers.pixels(range(IMAGES))
    targets = [house_numbers.target(index) for index in range(IMAGES)]
    return Pictures(images, targets, house_numbers.class_names)


def _certified(shown: Pictures, dtype: torch.dtype) -> Certified:
    if NAME not in packaged_names():
        pytest.skip(f"the packaged weights {NAME} are not here")
    detector = load_detector(NAME).detector.eval().to(dtype)
    verifier = verifier_of(detector, AP_SELECTION, shown.images)
    found = promises(verifier, raw_output(detector, shown.images), shown.targets)
    found = [promise for promise in found if promise.radius > SMALLEST_RADIUS]
    return Certified(detector, gradient_source(detector), verifier, found)


@pytest.fixture(scope="module")
def single(shown: Pictures) -> Certified:
    return _certified(shown, torch.float32)


@pytest.fixture(scope="module")
def double(shown: Pictures) -> Certified:
    return _certified(shown, torch.float64)


def _lost(
    found: list[Promise], against: Certified, shown: Pictures, share: float
) -> list[tuple[Promise, list[str]]]:
    """Promises that attacks on a detector broke, and by which aims."""
    damages = [
        attack_promise(
            against.detector,
            against.source,
            shown.images[promise.image, None].to(against.detector.default_boxes),
            shown.targets[promise.image],
            promise,
            share * promise.radius,
            shown.names,
            STEPS,
        )
        for promise in found
    ]
    # Rounding is a part of what moves at small radii.
    assert all(damage.moved <= 1.01 for damage in damages)
    pairs = zip(found, damages, strict=True)
    return [(promise, damage.lost) for promise, damage in pairs if damage.lost]


def test_there_is_something_to_break(single: Certified, double: Certified) -> None:
    # Otherwise the tests below could not fail.
    assert len(single.promises) >= 3
    assert len(double.promises) >= 3


def test_no_attack_breaks_an_object_within_its_radius(single: Certified, shown: Pictures) -> None:
    assert _lost(single.promises, single, shown, 0.99) == []


def test_attacks_break_what_constants_three_times_too_small_would_certify(
    single: Certified, shown: Pictures
) -> None:
    """Radii are inverse to the constants: the attacks above have teeth."""
    assert _lost(single.promises, single, shown, 3.0)


def test_certified_in_float32_holds_in_float64(
    single: Certified, double: Certified, shown: Pictures
) -> None:
    assert _lost(single.promises, double, shown, 0.999) == []


def test_certified_in_float64_holds_in_float32(
    single: Certified, double: Certified, shown: Pictures
) -> None:
    assert _lost(double.promises, single, shown, 0.999) == []


def test_precision_decides_what_is_said_about_rounding(
    single: Certified, double: Certified
) -> None:
    assert single.verifier.rounding_known == "measured in float32"
    assert double.verifier.rounding_known == "proven in float64"


def test_certified_ap_is_at_most_the_attacked_one(single: Certified, house_numbers: Pack) -> None:
    pack, epsilons = house_numbers.head(2), (0.02, 0.1)
    clean, certified = certified_results(single.detector, pack, epsilons)
    campaign = Campaign("worst", epsilons, AttackSettings(epsilons[0], steps=3))
    attacked = attacked_results(single.detector, pack, campaign, clean)
    assert certified[0]["ap50"] > 0.05
    assert certified[0]["rounding"] == "measured in float32"
    for least, seen in zip(certified, attacked, strict=True):
        assert seen["attack"] == "worst"
        assert least["ap50"] <= seen["ap50"] + 1e-9
        assert least["ap"] <= seen["ap"] + 1e-9


def test_attacks_of_the_command_line_run_in_float32() -> None:
    with pytest.raises(InputError, match="--float64"):
        run("naive", "rendered:1", epsilon=["0.1"], attack="worst", float64=True)
