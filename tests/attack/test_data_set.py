"""AP under attack over a data set: the worst is the lowest, and interrupted work goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lipdet.attack import AttackSettings, Outcome
from lipdet.attack.settings import WORST
from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.errors import InputError
from lipdet.evaluate import attacked
from lipdet.evaluate.attacked import Campaign, attack_pack, attacked_results
from lipdet.evaluate.run import evaluate
from lipdet.images.pack import Pack

SETTINGS = AttackSettings(1.0, "mislabel", steps=2)


@pytest.fixture(scope="module")
def naive() -> LoadedDetector:
    return load_detector("naive")


def test_worst_is_at_most_every_single_objective(naive: LoadedDetector, doors: Pack) -> None:
    pack = doors.head(3)
    campaign = Campaign("worst", (1.0,), SETTINGS)
    result = evaluate(naive, pack, seed=0, campaign=campaign)
    [entry] = result["attacked"]
    # The keys that DESIGN fixes for the json.
    assert {"epsilon", "attack", "steps", "restarts", "ap50", "ap", "recall"} <= set(entry)
    assert (entry["attack"], entry["epsilon"], entry["steps"]) == ("worst", 1.0, 2)
    assert set(entry["objectives"]) == set(WORST)
    for figure in ("ap50", "ap", "recall"):
        for single in [entry["composite"], *entry["objectives"].values()]:
            assert entry[figure] <= single[figure]
    assert entry["ap50"] < result["clean"]["ap50"]


def test_no_radius_no_harm(naive: LoadedDetector, doors: Pack) -> None:
    # At radius 0 the attacked pictures are the clean ones.
    pack = doors.head(2)
    result = evaluate(naive, pack, 0, Campaign("apgd", (0.0,), SETTINGS))
    [entry] = result["attacked"]
    assert entry["ap50"] == pytest.approx(result["clean"]["ap50"], abs=1e-6)
    assert entry["objective"] == "mislabel"


def test_interrupted_work_goes_on_where_it_stopped(
    naive: LoadedDetector, doors: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, detector = doors.head(3), naive.detector
    whole = attack_pack(detector, pack, SETTINGS)
    monkeypatch.setattr(attacked, "CHUNK", 1)
    calls: list[int] = []
    real = attacked.attack_and_detect

    def counted(*args: object, **kwargs: object) -> Outcome:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(attacked, "attack_and_detect", counted)
    with pytest.raises(KeyboardInterrupt):
        attack_pack(detector, pack, SETTINGS, tmp_path)
    [folder] = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 2
    resumed = attack_pack(detector, pack, SETTINGS, tmp_path)
    assert len(calls) == 4
    assert resumed.damage == pytest.approx(whole.damage, abs=1e-2)
    # A second time everything is there; with other settings nothing is.
    assert attack_pack(detector, pack, SETTINGS, tmp_path).damage == resumed.damage
    assert len(calls) == 4
    attack_pack(detector, pack.head(1), replace(SETTINGS, seed=1), tmp_path)
    assert len(calls) == 5


def test_damaged_and_misplaced_state(naive: LoadedDetector, doors: Pack, tmp_path: Path) -> None:
    pack = doors.head(1)
    campaign = Campaign("pgd", (0.5,), SETTINGS, tmp_path / "state")
    attacked_results(naive.detector, pack, campaign)
    [file] = (tmp_path / "state").glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match=file.name):
        attacked_results(naive.detector, pack, campaign)
    blocked = tmp_path / "blocked"
    blocked.touch()
    with pytest.raises((InputError, NotADirectoryError)):
        attack_pack(naive.detector, pack, SETTINGS, blocked)
