"""`lipdet certify`, `detect` and `eval --certify` say the same of the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lipdet.cli import main
from lipdet.images.render import rendered
from lipdet.reading.marks import CERTIFICATE_SIDE


@pytest.mark.slow
def test_certify_draws_boxes_and_writes_radii(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, _, _ = rendered("test", 6, size=74)
    Image.fromarray(pixels).save(tmp_path / "door.png")
    look = [str(tmp_path / "door.png"), "--crop", "0,0,74,74"]
    main(["certify", "certified-small", *look, "--out", str(tmp_path / "certified")])
    assert "ε 0." in capsys.readouterr().out
    written = json.loads((tmp_path / "certified" / "certificates.json").read_text())
    [region] = written["pictures"][0]["regions"]
    sure = [one for one in region["detections"] if one["radius"] > 0]
    assert sure, "nothing is certified, so nothing is tested"
    for one in sure:
        left, top, right, bottom = one["box"]
        reach = one["reach"]
        # The box itself is among those that may remain.
        assert reach[0] <= left <= right <= reach[2]
        assert reach[1] <= top <= bottom <= reach[3]
    with Image.open(tmp_path / "certified" / "door-1.png") as drawn:
        assert drawn.width == CERTIFICATE_SIDE
    # Oracle: the other command, which finds its detections on its own and promises more of fewer.
    main(["detect", "certified-small", *look, "--out", str(tmp_path / "detected")])
    found = json.loads((tmp_path / "detected" / "detections.json").read_text())
    shown = found["pictures"][0]["detections"]
    assert max(one["radius"] for one in shown) > 0
    for one in shown:
        [alike] = [
            other
            for other in region["detections"]
            if other["label"] == one["label"] and other["box"] == pytest.approx(one["box"], abs=0.1)
        ]
        assert one["radius"] <= alike["radius"]


@pytest.mark.slow
def test_eval_shows_every_table_and_writes_every_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    options = ["--data", "rendered:4", "--certify", "--epsilon", "0", "0.1", "--json", str(file)]
    main(["eval", "certified-small", *options])
    text = capsys.readouterr().out
    for title in ("perturbation, percent, at least", "Certified, by class", "condition that fails"):
        assert title in " ".join(text.split())
    result = json.loads(file.read_text())
    none, some = result["certified"]
    # theory §6: what is certified at ε = 0 is a lower bound of clean AP, and more perturbation
    # certifies no more; weaker promises hold at least as often; every object is counted once.
    assert none["ap50"] <= result["clean"]["ap50"]
    for key in ("ap50", "ap", "recall", "vanish_recall", "class_recall"):
        assert some[key] <= none[key]
    for entry in (none, some):
        assert entry["recall"] <= entry["vanish_recall"]
        assert entry["recall"] <= entry["class_recall"]
        objects = result["data"]["objects"]
        assert sum(entry["failed"].values()) == round(objects * (1 - entry["recall"]))
        assert set(entry["per_class"]) == set(result["clean"]["per_class"])
