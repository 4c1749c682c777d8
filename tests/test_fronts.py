"""All fronts say the same of the same picture, and `eval --certify` of a few."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipdet import Detector
from lipdet.app.exhibits import Exhibit, look
from lipdet.checkpoint import load_detector
from lipdet.cli import main
from lipdet.errors import InputError
from lipdet.evaluate.certified import certified_results
from lipdet.images.crop import full_region
from lipdet.images.pack import Pack
from lipdet.reading.detections import radius_text
from lipdet.reading.marks import CERTIFICATE_SIDE
from lipdet.report.scenes import certified_detections

NAME = "certified-small"


def key(label: str, box: Sequence[float]) -> tuple[str, ...]:
    """A detection, whatever the memory layout in which it was computed."""
    return (label, *(f"{value:.2f}" for value in box))


@pytest.mark.slow
@pytest.mark.usefixtures("proven_once")
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
    with Image.open(tmp_path / "out" / "picture-1.png") as drawn:
        assert drawn.width == CERTIFICATE_SIDE
    main(["detect", *given])
    main(["attack", *given, "--epsilon", "0.1", "--attack", "pgd", "--steps", "1"])
    told = capsys.readouterr().out
    [entry] = json.loads((tmp_path / "out" / "certificates.json").read_text())["pictures"]
    [square] = entry["regions"]
    certified = {key(one["label"], one["box"]): one["radius"] for one in square["detections"]}
    sure = [one for one in square["detections"] if one["radius"] > 0]
    assert sure, "nothing is certified, so nothing is tested"
    for one in sure:
        (left, top, right, bottom), reach = one["box"], one["reach"]
        # The box itself is among those that may remain.
        assert reach[0] <= left <= right <= reach[2]
        assert reach[1] <= top <= bottom <= reach[3]
    [entry] = json.loads((tmp_path / "out" / "attack.json").read_text())["pictures"]
    [region] = entry["regions"]
    assert region["region"] == square["region"]
    assert {key(one["label"], one["box"]) for one in region["clean"]} == certified.keys()

    detector = load_detector(NAME).detector.eval()
    seen = look(
        Exhibit(NAME, detector), picture, full_region(*picture.size, detector.config.canvas)
    )
    assert {key(one.label, one.box): one.radius for one in seen.view.detections} == certified
    for one, row in zip(seen.view.detections, square["detections"], strict=True):
        assert one.reach == (row["reach"] and pytest.approx(row["reach"], abs=0.01))

    pixels = house_numbers.images[index : index + 1]
    [scene] = certified_detections(detector, pixels, 0.1, names)
    assert {key(one.label, one.box): one.radius for one in scene} == certified
    for one, other in zip(seen.at(0.1), scene, strict=True):
        assert one.reach == (other.reach and pytest.approx(other.reach, abs=0.01))

    # What is shown must survive more: classes compete for a place.
    [entry] = json.loads((tmp_path / "out" / "detections.json").read_text())["pictures"]
    shown = {key(one["label"], one["box"]): one["radius"] for one in entry["detections"]}
    assert shown.keys() <= certified.keys()
    assert all(radius <= certified[one] for one, radius in shown.items())
    public, whole = Detector.from_pretrained(NAME), (0, 0, *picture.size)
    found = public.certify(tmp_path / "picture.png", whole)
    assert {key(one.label, one.box): one.radius for one in found} == shown
    assert all((one.reach is not None) == bool(one.radius) for one in found)
    assert [asdict(replace(one, reach=None)) for one in found] == [
        {**one, "box": tuple(one["box"]), "reach": None} for one in entry["detections"]
    ]
    assert public.detect(picture, whole) == [replace(one, radius=None, reach=None) for one in found]
    tally = public.tally(tmp_path / "picture.png", 0.1, whole)
    assert tally.as_dict() == {key: square[key] for key in ("reading", "counts")}
    assert list(tally.labels) == [one.label for one in sorted(found, key=lambda one: one.box[0])]
    for name, count in tally.counts[0.1].items():
        assert count.least <= count.found <= count.most
        assert count.found == tally.labels.count(name)
    assert tally.words in told
    with pytest.raises(InputError, match="give crop="):
        public.tally(tmp_path / "picture.png", 0.1)
    for radius in [*certified.values(), *shown.values()]:
        assert radius_text(radius) in told


@pytest.mark.slow
def test_eval_shows_every_table_and_writes_every_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    options = ["--data", "rendered:2", "--certify", "--epsilon", "0", "0.1", "--json", str(file)]
    main(["eval", "certified-small", *options])
    text = capsys.readouterr().out
    for title in (
        *("perturbation, percent, at least", "Certified, by class", "condition that fails"),
        "Labels from left to right",
    ):
        assert title in " ".join(text.split())
    result = json.loads(file.read_text())
    none, some = result["certified"]
    # theory §6: what is certified at ε = 0 is a lower bound of clean AP, and more perturbation
    # certifies no more; weaker promises hold at least as often; every object is counted once.
    assert none["ap50"] <= result["clean"]["ap50"]
    for key in ("ap50", "ap", "recall", "vanish_recall", "class_recall"):
        assert some[key] <= none[key]
    assert none["reading"]["right"] == some["reading"]["right"]
    assert some["reading"]["steady"] <= none["reading"]["steady"]
    for entry in (none, some):
        reading = entry["reading"]
        assert reading["certified"] <= min(reading["right"], reading["steady"])
        assert set(entry["counts"]) == set(entry["per_class"])
        for count in entry["counts"].values():
            # A number that can change has a leeway of 1 at least.
            assert count["leeway"] >= 1 - count["exact"]
        assert entry["recall"] <= entry["vanish_recall"]
        assert entry["recall"] <= entry["class_recall"]
        objects = result["data"]["objects"]
        assert sum(entry["failed"].values()) == round(objects * (1 - entry["recall"]))
        assert set(entry["per_class"]) == set(result["clean"]["per_class"])


@pytest.mark.slow
@pytest.mark.usefixtures("proven_once")
def test_a_picture_with_a_crowd_is_left_out_of_readings(house_numbers: Pack) -> None:
    """Nobody says whether a crowd was to be read."""
    detector, pack = load_detector(NAME).detector, house_numbers.head(3)

    def reading(crowds: set[int]) -> dict[str, float]:
        areas = [[index, 0, 0, 0, 20, 20] for index in sorted(crowds)]
        ignored = np.array(areas, np.float64).reshape(-1, 6)
        _, [entry] = certified_results(detector, replace(pack, ignored=ignored), [0.1])
        return {**entry.get("reading", {})}  # type: ignore[dict-item]

    [first, second] = [reading({0, 1, 2} - {index}) for index in (0, 1)]
    both = reading({2})
    assert first
    # By hand: shares of the pictures that are left.
    assert both == {name: (first[name] + second[name]) / 2 for name in first}
    assert reading({0, 1, 2}) == {}
