"""`lipdet attack`, `lipdet check-attack` and attacks in `lipdet eval`, as a user meets them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lipdet.attack.settings import WORST, AttackSettings
from lipdet.checkpoint import save_detector
from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.evaluate import attack_curves
from lipdet.images.pack import Pack
from lipdet.types import Canvas
from tests.test_cli import run


@pytest.fixture
def picture(doors: Pack, tmp_path: Path) -> Path:
    path = tmp_path / "door.png"
    # Wider than high, so that it has to be letter-boxed.
    Image.fromarray(doors.images[0]).resize((120, 80)).save(path)
    return path


def test_attack_writes_panels_and_json(
    capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    crop = ["--crop", "0,0,120,80"]
    words = ["attack", "naive", str(picture), str(picture), *crop, "--epsilon", "reference-0-1"]
    status, _, err = run(capsys, *words, "--steps", "3", "--out", str(out))
    assert status == 0, err
    assert sorted(path.name for path in out.iterdir()) == [
        "attack.json", "door-1-1.png", "door-2-1.png",
    ]  # fmt: skip
    # Three panels of 74 pixels, four times enlarged, with gaps and a caption.
    with Image.open(out / "door-1-1.png") as panel:
        assert panel.size == (3 * 296 + 2 * 4, 296 + 24)
    result = json.loads((out / "attack.json").read_text())
    assert (result["epsilon"], result["attack"], len(result["objectives"])) == (
        0.5,
        "worst",
        len(WORST),
    )
    [entry] = result["pictures"][0]["regions"]
    assert entry["region"] == [0, 0, 120, 80]
    assert 0.3 < entry["distance"]["l2"] <= 0.5
    assert entry["clean"] != entry["attacked"]


@pytest.mark.slow
def test_check_attack_says_that_a_weak_attack_is_weak(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack_curves, "RADII", (4.0,))
    monkeypatch.setattr(attack_curves, "QUERIES", 2)
    words = ["check-attack", "naive", "--data", "rendered:2", "--steps", "1"]
    files = ["--plot", str(tmp_path / "c.png"), "--json", str(tmp_path / "c.json")]
    status, out, err = run(capsys, *words, *files)
    assert status == 0, err
    assert "too weak" in " ".join(out.split())
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["passed"] is False
    assert len(result["checks"]) == 10
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_eval_reports_attacks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["eval", "naive", "--data", "rendered:2", "--epsilon", "0.5", "reference-0-1"]
    options = ["--attack", "pgd", "--objective", "vanish", "--steps", "2", "--json", "-"]
    status, out, err = run(capsys, *words, *options, "--state", str(tmp_path / "state"))
    assert status == 0, err
    # The same radius under two names counts once.
    [first] = json.loads(out)["attacked"]
    assert (first["objective"], first["norm"], first["epsilon"]) == ("vanish", "l2", 0.5)
    # Clean pictures lie beside.
    names = {path.name for path in (tmp_path / "state").iterdir()}
    assert len(names - {"clean"}) == 1


@pytest.mark.parametrize("verb", ["eval", "attack", "check-attack"])
def test_help_lists_objectives_and_those_tried_by_default(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttackSettings, "objectives", ("demote", "annoy"))
    monkeypatch.setattr(AttackSettings, "unnamed", {"annoy": 0.25, "demote": 0.75})
    words = " ".join(run(capsys, verb, "--help")[1].split())
    assert "one of: demote, annoy;" in words
    assert "share of the steps: annoy 0.25, demote 0.75" in words


@pytest.mark.parametrize(
    ("side", "options", "steps"), [(32, [], 50), (104, [], 100), (104, ["--steps", "2"], 2)]
)
def test_a_large_canvas_is_attacked_with_more_steps(
    side: int, options: list[str], steps: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = replace(PRESETS["certified-small"].detector, canvas=Canvas(side, side))
    weights = tmp_path / "tiny.safetensors"
    save_detector(weights, build_detector(config), config, {})
    words = ["eval", str(weights), "--data", "rendered:1", "--epsilon", "0.5", "--attack", "pgd"]
    status, out, err = run(capsys, *words, "--objective", "vanish", *options, "--json", "-")
    assert status == 0, err
    assert json.loads(out)["attacked"][0]["steps"] == steps
