"""The demonstration, small: its first sentence is what was measured, and its pictures tell it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from lipdet import demo
from lipdet.attack import AttackSettings
from lipdet.attack.settings import UNNAMED
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.report.table import finding
from lipdet.types import Detections, Target


@pytest.mark.slow
@pytest.mark.usefixtures("proven_once", "small_pages")
def test_the_page_begins_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DATA", "rendered:2")
    monkeypatch.setattr(demo, "SHOWN", 1)
    monkeypatch.setattr(demo, "SCENES", range(1))
    # Tested by itself, and slow.
    monkeypatch.setattr(demo, "write_figures", lambda *_: [])
    monkeypatch.setattr(demo, "CERTIFIED", "certified-small")
    monkeypatch.setattr(demo, "EPSILONS", (0.05, 0.1))
    monkeypatch.setattr(demo, "AttackSettings", functools.partial(AttackSettings, steps=5))
    demo.demo(tmp_path, seed=0)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["weights"] for one in results] == ["naive", "certified-small"]
    for entry in results[0]["attacked"]:
        assert (set(entry["objectives"]), entry["steps"]) == (set(UNNAMED), 5)
    page = (tmp_path / "index.html").read_text()
    # The larger radius first, before any other figure.
    first = page.index(finding(results, 0.1))
    assert first < page.index(finding(results, 0.05)) < page.index("Detectors side by side</h2>")
    assert "naive was trained on 240,000 crops" in page
    assert "Nothing was trained here" in page
    names = {path.name for path in (tmp_path / "photographs").iterdir()}
    assert names == {"0.png", "0-certified.png"}


def test_reading_is_all_objects_and_nothing_else() -> None:
    box = torch.tensor([[0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 9.0]])
    target = Target(boxes=box, labels=torch.tensor([1, 2]))
    scores = torch.tensor([0.9, 0.8])
    right = Detections(boxes=box, labels=target["labels"], scores=scores)
    assert demo._reads(right, target, DISPLAY_SELECTION)
    for labels in ([2, 2], [1, 3]):
        assert not demo._reads({**right, "labels": torch.tensor(labels)}, target, DISPLAY_SELECTION)  # type: ignore[typeddict-item]
    # Below the score at which it would be shown, a wrong one does not count, nor does a right one.
    assert not demo._reads({**right, "scores": torch.tensor([0.9, 0.1])}, target, DISPLAY_SELECTION)  # type: ignore[typeddict-item]
    more = Detections(
        boxes=torch.cat([box, box[:1] + 40]),
        labels=torch.tensor([1, 2, 3]),
        scores=torch.tensor([0.9, 0.8, 0.1]),
    )
    assert demo._reads(more, target, DISPLAY_SELECTION)
    assert not demo._reads(
        {**more, "scores": torch.tensor([0.9, 0.8, 0.7])}, target, DISPLAY_SELECTION
    )  # type: ignore[typeddict-item]
