"""The comparison of all detectors, at a size that says nothing about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipdet import reproduce as module
from lipdet.config import PRESETS
from lipdet.reproduce import EPSILONS, QUICK_ROWS, ROWS, Effort, reproduce

TINY = Effort(("rendered:128",), epochs=1, pictures=2, steps=1, packaged=True)


def test_rows_are_trained_or_loaded_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EPSILONS", EPSILONS[:1])
    presets = ("certified-small", "sll-l2-small")
    [loaded, trained] = reproduce(tmp_path, presets, "rendered:4", TINY, seed=0)
    assert loaded["weights"] == "certified-small"
    assert trained["weights"] == str(tmp_path / "runs" / "sll-l2-small")
    for row in (loaded, trained):
        assert row["data"]["images"] == 2
        [attacked], [certified] = row["attacked"], row["certified"]
        assert attacked["attack"] == "worst"
        # THEORY §6: a certificate bounds every attack from below.
        assert certified["ap50"] <= attacked["ap50"]
        clean, worst = row["working_points"]
        assert (clean["epsilon"], worst["epsilon"]) == (0.0, EPSILONS[0])
        low, high = clean["ap50_interval"]
        assert 0 <= low <= high <= 1
    assert json.loads((tmp_path / "results.json").read_text()) == [loaded, trained]
    assert "certified 0.1" in (tmp_path / "table.md").read_text()

    def no_work(*_: object) -> None:
        raise AssertionError("a finished row is measured again")

    monkeypatch.setattr(module, "measured", no_work)
    assert reproduce(tmp_path, presets, "rendered:4", TINY, seed=0) == [loaded, trained]


def test_all_rows_are_presets() -> None:
    assert set(ROWS) | set(QUICK_ROWS) <= set(PRESETS)
