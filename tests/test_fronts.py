"""All fronts say the same of the same picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from lipdet import Detector
from lipdet.app.exhibits import Exhibit
from lipdet.app.views import look
from lipdet.checkpoint import load_detector
from lipdet.cli import main
from lipdet.images.crop import full_region
from lipdet.images.pack import Pack
from lipdet.report.scenes import certified_detections

NAME = "certified-small"


def key(label: str, box: Sequence[float]) -> tuple[str, ...]:
    """A detection, whatever the memory layout in which it was computed."""
    return (label, *(f"{value:.2f}" for value in box))


@pytest.mark.slow
def test_all_fronts_say_the_same(
    tmp_path: Path, house_numbers: Pack, capsys: pytest.CaptureFixture[str]
) -> None:
    names = house_numbers.class_names
    index = 1
    picture = Image.fromarray(house_numbers.images[index])
    picture.save(tmp_path / "picture.png")
    crop = f"0,0,{picture.width},{picture.height}"
    given = [NAME, str(tmp_path / "picture.png"), "--crop", crop, "--out", str(tmp_path / "out")]
    main(["certify", *given])
    main(["detect", *given])
    told = capsys.readouterr().out
    [entry] = json.loads((tmp_path / "out" / "certificates.json").read_text())["pictures"]
    [square] = entry["regions"]
    certified = {key(one["label"], one["box"]): one["radius"] for one in square["detections"]}
    assert certified
    assert max(certified.values()) > 0

    detector = load_detector(NAME).detector.eval()
    seen = look(Exhibit(NAME, detector), picture, full_region(*picture.size))
    boxes, labels = seen.found["boxes"].tolist(), seen.found["labels"].tolist()
    rows = zip(labels, boxes, seen.radii, strict=True)
    assert {key(names[label], box): radius for label, box, radius in rows} == certified

    images = house_numbers.pixels([index])
    [scene] = certified_detections(detector, images, 0.1, names)
    assert {key(one.label, one.box): one.radius for one in scene} == certified

    # What is shown must survive more: classes compete for a place.
    [entry] = json.loads((tmp_path / "out" / "detections.json").read_text())["pictures"]
    shown = {key(one["label"], one["box"]): one["radius"] for one in entry["detections"]}
    assert shown.keys() <= certified.keys()
    assert all(radius <= certified[one] for one, radius in shown.items())
    found = Detector.from_pretrained(NAME).certify(picture, crop=(0, 0, *picture.size))
    assert {key(one.label, one.box): one.radius for one in found} == shown
    for radius in [*certified.values(), *shown.values()]:
        assert f"{radius:.3f}" in told
