"""The comparison of all detectors, at a size that says nothing about them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lipdet import reproduce as reproduce_module
from lipdet.checkpoint import weights_file
from lipdet.commands.reproduce import run
from lipdet.config import PRESETS
from lipdet.errors import InputError
from lipdet.evaluate import attacked as attacked_module
from lipdet.evaluate import certified as certified_module
from lipdet.reproduce import QUICK_ROWS, ROWS, Effort, detector_of, reproduce

TINY = Effort(("rendered:68",), epochs=1, pictures=2, steps=1, packaged=True, epsilons=(0.1,))


@pytest.mark.slow
@pytest.mark.usefixtures("proven_once", "small_pages")
def test_rows_are_trained_or_loaded_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = ("certified-small", "certified-small-aol")
    [loaded, trained] = reproduce(tmp_path, presets, "rendered:4", TINY, seed=0)
    assert loaded["weights"] == "certified-small"
    assert trained["weights"] == "certified-small-aol"
    runs = tmp_path / "runs"
    assert [run.name for run in runs.iterdir()] == ["certified-small-aol"]
    for row in (loaded, trained):
        assert row["data"]["images"] == 2
        [attacked], [certified] = row["attacked"], row["certified"]
        assert attacked["attack"] == "worst"
        # theory §6: a certificate bounds every attack from below.
        assert certified["ap50"] <= attacked["ap50"]
        clean, worst = row["working_points"]
        assert (clean["epsilon"], worst["epsilon"]) == (0.0, 0.1)
        low, high = clean["ap50_interval"]
        assert 0 <= low <= high <= 1
    assert json.loads((tmp_path / "results.json").read_text()) == [loaded, trained]
    assert "certified 0.1" in (tmp_path / "table.md").read_text()
    assert "certified-small-aol" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "figures" / "frontier.svg").is_file()

    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("finished pictures are attacked or certified again")

    for name in ("write_page", "write_figures"):
        monkeypatch.setattr(reproduce_module, name, lambda *_: None)
    monkeypatch.setattr(attacked_module, "attack_batch", no_work)
    monkeypatch.setattr(certified_module, "verifier_of", no_work)
    again = reproduce(tmp_path, presets, "rendered:4", TINY, seed=0)
    assert [{**row, "seconds": 0} for row in again] == [
        {**row, "seconds": 0} for row in (loaded, trained)
    ]
    more = dataclasses.replace(TINY, epsilons=(0.1, 0.2))
    with pytest.raises(AssertionError, match="attacked or certified again"):
        reproduce(tmp_path, presets, "rendered:4", more, seed=0)


def test_rows_can_be_detectors(tmp_path: Path) -> None:
    loaded = detector_of("naive-adversarial", tmp_path, TINY, seed=0)
    assert loaded.name == "naive-adversarial"
    file = tmp_path / "mine.safetensors"
    shutil.copy(weights_file("certified-small"), file)
    assert detector_of(str(file), tmp_path, TINY, seed=0).name == "mine"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["naive", "nowhere"], "There is no detector 'nowhere'"),
        (["naive", "certified", "naive"], "Two rows are called naive"),
        (["naive", "mine:detector"], "mine:detector: finished parts"),
        (["naive", "segment"], "segment is a segmenter"),
    ],
)
def test_rows_are_checked_before_any_work(rows: list[str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem):
        run(rows, out=tmp_path / "table")
    assert not (tmp_path / "table" / "rows").exists()


@pytest.mark.parametrize(
    ("given", "problem"),
    [({"data": "nowhere"}, "nowhere"), ({"steps": 0}, "steps"), ({"seed": -1}, "seed")],
)
def test_nothing_is_trained_for_what_cannot_be_measured(
    given: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        run(["certified-small-aol"], **{"data": "rendered:4", "out": tmp_path / "table", **given})
    assert not (tmp_path / "table").exists()


def test_all_rows_are_presets() -> None:
    assert set(ROWS) | set(QUICK_ROWS) <= set(PRESETS)
