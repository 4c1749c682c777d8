"""AP under attack over a data set: the worst is the lowest, and interrupted work goes on."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lipdet
from lipdet.attack import AttackSettings
from lipdet.attack.settings import UNNAMED, WORST, AttackName
from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.errors import InputError
from lipdet.evaluate import attacked
from lipdet.evaluate.attacked import Campaign, attack_pack
from lipdet.evaluate.chunks import FILES, FOLDERS, State, code, source_hash
from lipdet.evaluate.run import evaluate
from lipdet.images.pack import Pack
from lipdet.types import Detections, Target

SETTINGS = AttackSettings(1.0, "mislabel", steps=2)


@pytest.fixture(scope="module")
def naive() -> LoadedDetector:
    return load_detector("naive")


@pytest.mark.parametrize("place", [*FILES, *FOLDERS, "certificate/geometry"])
def test_a_change_of_code_changes_the_keys(tmp_path: Path, place: str) -> None:
    package = tmp_path / "lipdet"
    shutil.copytree(Path(lipdet.__file__).parent, package, ignore=shutil.ignore_patterns("weights"))
    before = source_hash(package)
    assert before == code()["code"]
    changed = package / place
    changed = changed if changed.is_file() else next(changed.glob("[a-z]*.py"))
    changed.write_text(changed.read_text() + "\n")
    assert source_hash(package) != before


@pytest.mark.parametrize(("attack", "objectives"), [("worst", WORST), ("pgd", UNNAMED)])
def test_of_several_objectives_the_lowest_counts(
    naive: LoadedDetector, doors: Pack, attack: AttackName, objectives: Mapping[str, float]
) -> None:
    pack = doors.head(3)
    campaign = Campaign(attack, (1.0,), replace(SETTINGS, steps=6))
    result = evaluate(naive, pack, seed=0, campaign=campaign)
    [entry] = result["attacked"]
    # The keys that docs/json.md lists.
    assert {"epsilon", "attack", "steps", "restarts", "ap50", "ap", "recall"} <= set(entry)
    assert (entry["attack"], entry["epsilon"], entry["steps"]) == (attack, 1.0, 6)
    assert set(entry["objectives"]) == set(objectives)
    for figure in ("ap50", "ap", "recall"):
        for single in [entry["composite"], *entry["objectives"].values()]:
            assert entry[figure] <= single[figure]
    assert entry["ap50"] < result["clean"]["ap50"]


def test_interrupted_work_goes_on_where_it_stopped(
    naive: LoadedDetector, doors: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, detector = doors.head(3), naive.detector
    whole = attack_pack(detector, pack, SETTINGS)
    state = State.of(tmp_path, detector)
    monkeypatch.setattr(attacked, "CHUNK", 1)
    calls: list[int] = []
    real = attacked.attack_batch

    def counted(*args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(attacked, "attack_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        attack_pack(detector, pack, SETTINGS, state)
    [folder] = (tmp_path / "attacks").iterdir()
    assert len(list(folder.iterdir())) == 2
    resumed = attack_pack(detector, pack, SETTINGS, state)
    assert len(calls) == 4
    for one, other in zip(resumed, whole, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-2, rtol=0)
    # A second time everything is there; with other settings nothing is.
    again = attack_pack(detector, pack, SETTINGS, state)
    assert all(map(torch.equal, *([one["boxes"] for one in found] for found in (again, resumed))))
    assert len(calls) == 4
    attack_pack(detector, pack.head(1), replace(SETTINGS, seed=1), state)
    assert len(calls) == 5


def test_damaged_and_misplaced_state(naive: LoadedDetector, doors: Pack, tmp_path: Path) -> None:
    pack = doors.head(1)
    state = State.of(tmp_path / "state", naive.detector)
    attack_pack(naive.detector, pack, SETTINGS, state)
    [file] = (tmp_path / "state").glob("*/*/*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match=file.name):
        attack_pack(naive.detector, pack, SETTINGS, state)
    blocked = tmp_path / "blocked"
    blocked.touch()
    with pytest.raises((InputError, NotADirectoryError)):
        attack_pack(naive.detector, pack, SETTINGS, replace(state, folder=blocked))


def test_the_worst_of_a_picture_is_chosen_by_what_lowers_ap(doors: Pack) -> None:
    # By hand: one attack hides the object of a picture, the other adds a false positive that ranks
    # before it. Which does more harm depends on the other pictures; the lower AP50 counts.
    pack = doors.head(2)
    hidden, invented = [], []
    for target in map(pack.target, range(2)):
        count = len(target["labels"])
        true = Detections(
            boxes=target["boxes"], labels=target["labels"], scores=torch.full((count,), 0.6)
        )
        none = Detections(boxes=torch.zeros(0, 4), labels=true["labels"][:0], scores=torch.zeros(0))
        corner = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).expand(count, 4)
        more = Detections(
            boxes=torch.cat([corner, true["boxes"]]),
            labels=true["labels"].repeat(2),
            scores=torch.cat([torch.full((count,), 0.9), true["scores"]]),
        )
        hidden.append(none)
        invented.append(more)
    both = attacked.worst([hidden, invented], pack)
    assert attacked.measure(both, pack)["ap50"] == 0.0


def test_what_pictures_choose_is_nearly_the_worst_of_all_choices(doors: Pack) -> None:
    """The oracle tries every choice of one of two results for each picture."""
    generator = torch.Generator().manual_seed(0)

    def ap50(found: list[Detections]) -> float:
        return attacked.measure(found, doors)["ap50"]

    excess, gained = [], []
    for _ in range(12):
        candidates = [
            [_some_right(doors.target(index), generator) for index in range(len(doors))]
            for _ in range(2)
        ]
        lowest = min(
            ap50([candidates[which][index] for index, which in enumerate(choice)])
            for choice in itertools.product((0, 1), repeat=len(doors))
        )
        chosen = ap50(attacked.worst(candidates, doors))
        excess.append(chosen - lowest)
        gained.append(min(map(ap50, candidates)) - chosen)
    assert min(*excess, *gained) >= 0
    assert sum(excess) < sum(gained) / 4


def _some_right(target: Target, generator: torch.Generator) -> Detections:
    """Most of the objects, and three false detections of the first one's class."""
    seen = torch.rand(len(target["labels"]), generator=generator) < 0.7
    corner = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).expand(3, 4)
    boxes = torch.cat([target["boxes"][seen], corner])
    labels = torch.cat([target["labels"][seen], target["labels"][:1].expand(3)])
    scores, order = torch.rand(len(labels), generator=generator).sort(descending=True)
    return Detections(boxes=boxes[order], labels=labels[order], scores=scores)
