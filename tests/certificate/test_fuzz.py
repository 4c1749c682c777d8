"""Certificates against adversaries, through the detector's own NMS and the real matcher.

The oracle is what the pipeline does with perturbed outputs: select_detections and faster-coco-eval.
LIPDET_FUZZ_SCENES sets the number of random scenes; the bar is 2,000 (with `-s`, it says how many
objects were certified in them).
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lipdet.boxes.scores import SigmoidScores
from lipdet.certificate import certified_ap
from lipdet.certificate.conditions import candidates, clique_cover
from tests.certificate.adversaries import perturbed
from tests.certificate.census import CASES, census
from tests.certificate.directed import SATURATED
from tests.certificate.mutants import IN_DIRECTED_SCENES, IN_RANDOM_SCENES, apply
from tests.certificate.promises import broken_promises, certificates, violations
from tests.certificate.scenes import Scene, random_scene

# Of each scene, 100 extreme outputs and 100 random ones.
SCENES = int(os.environ.get("LIPDET_FUZZ_SCENES", "50"))
PERTURBED = 200
MOST_SCENES = 200


@pytest.mark.slow
def test_what_is_certified_holds_for_every_perturbed_output() -> None:
    numbers: set[int] = set()

    @seed(0)
    @settings(
        max_examples=SCENES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(number=st.integers(0, 10**6))
    def all_promises_are_kept(number: int) -> None:
        numbers.add(number)
        assert violations(random_scene(number), PERTURBED, number) == []

    all_promises_are_kept()
    # No two of hypothesis' choices were the same scene.
    assert len(numbers) == SCENES
    if SCENES > 100:
        print(f"\n{census(numbers)}")


@pytest.mark.slow
def test_covers_of_several_blocks_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    # Scenes have fewer candidates than one block of the usual size.
    monkeypatch.setattr(clique_cover, "BLOCK", 3)
    monkeypatch.setattr(certified_ap, "BLOCK", 3)
    blocks = 0
    for number in range(30):
        scene = random_scene(number)
        candidates = scene.verifier.candidates(scene.raw, scene.epsilon)
        blocks += bool(len(candidates.group)) and int(torch.bincount(candidates.group).max()) > 6
        assert violations(scene, PERTURBED // 4, number) == []
    assert blocks > 5


@pytest.mark.slow
def test_scenes_contain_every_case_and_certify_something() -> None:
    # Without this, the test above could not fail.
    found = census(range(100))
    assert {name for name in CASES if found[name] < 2} == set()
    assert found["objects certified at 0.5"] > 50
    assert found["objects certified at 0.75"] > 20
    assert found["scenes with certified AP"] > 33


def test_half_of_the_perturbed_outputs_are_extreme() -> None:
    free = next(scene for scene in map(random_scene, range(9)) if _moves_freely(scene))
    outputs = perturbed(free, PERTURBED, 0)
    step = free.epsilon * free.verifier.bounds.logits
    images = len(free.targets)
    changes = outputs.logits.reshape(-1, images, *step.shape) - free.raw.logits
    at_end = ((changes.abs() - step).abs() < 1e-5).flatten(1).all(dim=1)
    assert at_end[: PERTURBED // 2].all()
    assert not at_end[PERTURBED // 2 :].all()
    assert (changes.abs() <= step + 1e-5).all()
    moved = outputs.offsets.reshape(-1, images, *free.raw.offsets.shape[1:]) - free.raw.offsets
    assert (moved.abs() <= free.epsilon * free.verifier.bounds.offsets + 1e-5).all()


def _moves_freely(scene: Scene) -> bool:
    return scene.rows is None and scene.epsilon * float(scene.verifier.bounds.logits.max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_RANDOM_SCENES)
def test_random_scenes_catch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, mutation = IN_RANDOM_SCENES[name]
    for number in range(first, first + MOST_SCENES):
        scene = random_scene(number)
        right = certificates(scene)
        with monkeypatch.context() as patch:
            apply(patch, [mutation])
            wrong = certificates(scene)
            if torch.equal(wrong[0], right[0]) and wrong[1] == right[1]:
                continue
            if violations(scene, PERTURBED, number):
                return
    pytest.fail(f"no scene shows that a certificate is wrong with {name}")


@pytest.mark.parametrize("name", IN_DIRECTED_SCENES)
def test_directed_scenes_catch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ties are ties only without the slack that covers float32.
    monkeypatch.setattr(candidates, "_ROUNDING", 0.0)
    monkeypatch.setattr(certified_ap, "RANKING_SLACK", 0.0)
    (scene, outputs), mutant = IN_DIRECTED_SCENES[name]
    assert broken_promises(scene, certificates(scene), outputs) == []
    apply(monkeypatch, mutant)
    assert broken_promises(scene, certificates(scene), outputs)


def test_ranking_on_float32_sigmoids_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, outputs = SATURATED
    promised = certificates(scene)
    assert promised[0][0, 0] > 20
    assert broken_promises(scene, promised, outputs) == []
    ranked = lambda self, logits: torch.sigmoid(logits.float()).logit()  # noqa: E731
    monkeypatch.setattr(SigmoidScores, "log_odds", ranked)
    assert "object 0 at IoU 0.50" in broken_promises(scene, promised, outputs)
