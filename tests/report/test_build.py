"""A report sets side by side what can be, and refuses the rest with one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lipdet.attack import AttackSettings
from lipdet.checkpoint import LoadedDetector, load_detector, save_detector
from lipdet.cli import main
from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign
from lipdet.images.pack import Pack
from lipdet.report.build import build_report
from lipdet.results import read_results
from lipdet.types import Canvas, Framing
from tests.report.made_up import result


def test_results_are_read_from_one_or_several_per_file(tmp_path: Path) -> None:
    one, two = result("a", 0.5, full=False), result("b", 0.25, full=True)
    (tmp_path / "one.json").write_text(json.dumps(one))
    (tmp_path / "both.json").write_text(json.dumps([one, two]))
    assert read_results([tmp_path / "one.json", tmp_path / "both.json"]) == [one, one, two]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is no json"),
        ("3", "holds no result"),
        ('{"weights": "naive"}', "lacks attacked, certified, clean, data, parameters"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=words):
        read_results([file])


def refused(
    pack: Pack,
    detectors: Sequence[LoadedDetector],
    known: Sequence[dict[str, Any]],
    campaign: Campaign | None = None,
) -> None:
    framing = detectors[0].framing
    build_report(detectors, {framing: pack}, 0, campaign, known, {framing: [0]}, None)


def test_results_of_other_pictures_are_refused(house_numbers: Pack) -> None:
    # The made-up result has the hash "abc".
    with pytest.raises(InputError, match="naive was measured on 12 pictures of made <up>"):
        refused(house_numbers, [load_detector("naive")], [result("naive", 0.5, full=False)])


def test_names_must_tell_detectors_apart(house_numbers: Pack) -> None:
    naive = load_detector("naive")
    with pytest.raises(InputError, match="once only"):
        refused(house_numbers, [naive, naive], ())
    with pytest.raises(InputError, match="results of other, which is none of the detectors: naive"):
        refused(house_numbers, [naive], [result("other", 0.5, full=False)])
    with pytest.raises(InputError, match="several results of naive"):
        refused(house_numbers, [naive], [result("naive", 0.5, full=False)] * 2)


def test_results_that_lack_a_radius_are_refused(house_numbers: Pack) -> None:
    campaign = Campaign("worst", (0.1, 0.5), AttackSettings(0.1))
    naive, known = load_detector("naive"), result("naive", 0.5, full=True)
    with pytest.raises(InputError, match=r"nothing of ε = 0\.5: .* their radii \(0\.1, 0\.25\)"):
        refused(house_numbers, [naive], [known], campaign)


@pytest.mark.slow
@pytest.mark.usefixtures("proven_once", "small_pages")
def test_detectors_of_different_canvases_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    framings = {"crops": Framing(Canvas(32, 32)), "whole": Framing(Canvas(40, 72), whole=True)}
    files = []
    for name, framing in framings.items():
        config = replace(
            PRESETS["certified-small"].detector, canvas=framing.canvas, whole=framing.whole
        )
        torch.manual_seed(0)
        files.append(Path(f"{name}.safetensors"))
        save_detector(files[-1], build_detector(config), config, {})
    page = tmp_path / "report.html"
    options = ["--data", "rendered:3", "--epsilon", "0.1", "--attack", "pgd", "--steps", "1"]
    main(["report", *map(str, files), *options, "--pictures", "2", "--out", str(page)])
    text = page.read_text()
    [document] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    document = json.loads(document)
    # Oracle: each evaluated alone, in its own framing.
    for file, one in zip(files, document["results"], strict=True):
        alone = tmp_path / "alone.json"
        main(["eval", str(file), *options, "--certify", "--json", str(alone)])
        expected = json.loads(alone.read_text())
        assert {**one, "seconds": 0} == {**expected, "seconds": 0}
    sizes = [one["data"]["canvas"] for one in document["results"]]
    assert sizes == [[32, 32], [40, 72]]
    pictures = [[scene["picture"] for scene in one["pictures"]] for one in document["detectors"]]
    assert pictures == [[0, 1], [0, 1]]
    # By hand: 25.5 / sqrt(3·32·32) = 0.46 and 25.5 / sqrt(3·40·72) = 0.27.
    assert "ε = 0.1 (grey levels: 0.46 at 32x32, 0.27 at 40x72)" in text
    assert "in its own framing" in text
    assert "whole.safetensors at 40x72" in text  # in the legend of the curves
