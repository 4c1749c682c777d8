"""A segmenter is trained on rendered ink, goes on after an end, and every verb knows it.

The oracle of figures is a plain count of pixels.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor

from lipdet.attack import AttackSettings
from lipdet.attack.pixels import PixelSettings
from lipdet.attack.settings import single_attacks
from lipdet.checkpoint import LAST, is_segmenter, load_detector, load_segmenter, read_tensors
from lipdet.cli import main
from lipdet.errors import InputError
from lipdet.evaluate import segmentation
from lipdet.evaluate.segmentation import confusion, figures, logits_of
from lipdet.images.pack import Pack
from lipdet.images.prepare import pack_rendered
from lipdet.images.source import load_rgb
from lipdet.reading.marks import COLOURS
from lipdet.results import read_results
from lipdet.segmenter import Segmenter
from lipdet.train import Trainer
from lipdet.types import IGNORED, Canvas

SHORT = ["--epochs", "2", "--epoch_pictures", "8", "--batch_size", "4"]
SHORT += ["--threads", "1", "--precision", "float32"]
ATTACK_INK = ["eval", "--data", "rendered-ink:3", "--epsilon", "1", "--attack", "pgd"]


@pytest.fixture(scope="module")
def ink(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("ink") / "pack"
    return pack_rendered(folder, "train", 40, Canvas(32, 32), seed=0, kind="ink")


@pytest.fixture(scope="module")
def run(ink: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of four steps."""
    out = tmp_path_factory.mktemp("runs") / "segment"
    train(ink, out)
    return out


def train(ink: Pack, out: Path, *options: str) -> None:
    # Four steps of AdamW tell classes apart.
    words = ["--preset", "segment", "--data", str(ink.folder), "--image_size", "32"]
    words += ["--optimizer", "adamw", "--learning_rate", "4e-3"]
    main(["train", *words, "--out", str(out), *SHORT, *options])


def picture_of(ink: Pack, folder: Path) -> Path:
    path = folder / "door.png"
    Image.fromarray(np.asarray(ink.images[0])).save(path)
    return path


def test_a_run_says_what_it_is(run: Path) -> None:
    assert is_segmenter(str(run))
    assert not is_segmenter("naive")
    loaded = load_segmenter(str(run))
    assert loaded.segmenter.config.class_names == ("background", "ink")
    assert loaded.info["validation_miou"] > 0
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"validation_miou", "validation_accuracy"} <= set(entries[-1])
    with pytest.raises(InputError, match="is a segmenter, and this is for detectors"):
        load_detector(str(run))
    with pytest.raises(InputError, match="naive is no segmenter"):
        load_segmenter("naive")


def test_a_run_that_is_resumed_ends_with_the_same_weights(
    ink: Pack, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Trainer.load

    def interrupted(trainer: Trainer, epoch: int, index: int) -> tuple[Tensor, object]:
        if trainer.state.step == 2:
            raise KeyboardInterrupt
        return load(trainer, epoch, index)

    monkeypatch.setattr(Trainer, "load", interrupted)
    with pytest.raises(SystemExit):
        train(ink, tmp_path / "again")
    monkeypatch.undo()
    train(ink, tmp_path / "again", "--resume")
    (expected, _), (found, _) = (read_tensors(one / LAST) for one in (run, tmp_path / "again"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_eval_says_what_is_certified_attacked_and_clean(
    ink: Pack, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run), "--data", str(ink.folder), "--limit", "6", "--steps", "3"]
    words += ["--epsilon", "0.05", "0.5", "--certify", "--attack", "worst"]
    file = tmp_path / "result.json"
    main([*words, "--json", str(file)])
    assert "certified" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert len(result["certified"]) == len(result["attacked"]) == 2
    for certified, attacked in zip(result["certified"], result["attacked"], strict=True):
        assert max(certified["single"], certified["joint"]) <= certified["accuracy"]
        assert certified["accuracy"] <= attacked["accuracy"] <= result["clean"]["accuracy"]
        assert attacked["flipped"] <= certified["flipped"]
        for name, entry in certified["per_class"].items():
            assert entry["iou"] <= attacked["per_class"][name]["iou"]
            assert entry["false_negatives"] >= 1 - attacked["per_class"][name]["recall"] - 1e-9
    share = float((ink.head(6).masks == 0).mean())  # type: ignore[union-attr]
    assert result["constant"]["accuracy"] == pytest.approx(max(share, 1 - share))
    with pytest.raises(InputError, match="is of a segmenter"):
        read_results([file])


def test_certificates_and_clean_figures_share_a_pass(
    ink: Pack, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, pack, seen = load_segmenter(str(run)), ink.head(6), []

    def counted(segmenter: Segmenter, images: Tensor) -> Tensor:
        seen.append(len(images))
        return logits_of(segmenter, images)

    monkeypatch.setattr(segmentation, "logits_of", counted)
    found = segmentation.evaluate_segmenter(loaded, pack, 0, certify=[0.1, 0.2])
    assert sum(seen) == 6
    assert segmentation.evaluate_segmenter(loaded, pack, 0)["clean"] == found["clean"]


def test_a_packaged_segmenter_is_used_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = tmp_path / "grey.png", tmp_path / "found"
    Image.new("RGB", (300, 200), (120, 90, 80)).save(picture)
    main(["certify", "segment", str(picture), "--epsilon", "0.1", "--out", str(out)])
    result = json.loads((out / "certificates.json").read_text())
    assert (result["weights"], result["canvas"]) == ("segment", [256, 256])
    assert "of 65,536 pixels" in capsys.readouterr().out
    # Detectors' verbs say what it is.
    with pytest.raises(SystemExit):
        main(["check-attack", "segment", "--data", "rendered:3"])
    assert "segment is a segmenter" in capsys.readouterr().err


def test_detect_shows_classes(
    ink: Pack, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = picture_of(ink, tmp_path), tmp_path / "found"
    main(["detect", str(run), str(path), "--out", str(out)])
    [entry] = json.loads((out / "detections.json").read_text())["pictures"]
    predicted = logits_of(load_segmenter(str(run)).segmenter, ink.pixels([0])).argmax(dim=1)
    assert entry["pixels"]["ink"] == int(predicted.sum())
    assert f"{100 * entry['pixels']['ink'] / 1024:.1f} % ink" in capsys.readouterr().out
    overlay = load_rgb(out / "door.png")
    # Eight times as large, above one line of a legend, which no background has.
    assert overlay.size == (256, 256 + 22)
    assert (overlay.getpixel((12, 267)) == ImageColor.getrgb(COLOURS[0])) == bool(predicted.any())


def test_lipschitz_bounds_layers_as_certificates_do(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "constants.json"
    main(["lipschitz", str(run), "--data", "rendered:1", "--json", str(file)])
    found = json.loads(file.read_text())
    *body, head = found["layers"]
    # A split enlarges nothing, and the head reads the whole body.
    assert body[-1]["cumulative"] == pytest.approx(1, abs=1e-4)
    assert head["observed"] <= head["cumulative"] <= found["joint"]
    # For every size, and for the canvas, where kernels are bounded in another way.
    assert found["pixels"]["joint"] == pytest.approx(found["joint"], rel=1e-4)


def test_certify_draws_radii_and_counts_what_can_flip(
    ink: Pack, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = picture_of(ink, tmp_path), tmp_path / "found"
    main(["certify", str(run), str(path), "--epsilon", "0.05", "--out", str(out)])
    assert "of 1,024 pixels" in capsys.readouterr().out
    [entry] = json.loads((out / "certificates.json").read_text())["pictures"]
    assert sum(entry["pixels"].values()) == 32 * 32
    [certified] = entry["certified"]
    assert certified["together"] <= certified["alone"] <= 32 * 32
    overlay = load_rgb(out / "door-radii.png")
    assert overlay.height == 256
    assert overlay.width > overlay.height + 50  # the colour bar
    assert load_rgb(out / "door-classes.png").size == (256, 256 + 22)


@pytest.mark.parametrize("verb", ["detect", "certify", "attack"])
def test_a_broken_picture_does_not_take_the_finished_one_along(
    ink: Pack, run: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, broken, out = picture_of(ink, tmp_path), tmp_path / "late.png", tmp_path / "found"
    broken.write_bytes(path.read_bytes()[:60])
    words = ["--epsilon", "0.1", "--steps", "1"] if verb == "attack" else []
    with pytest.raises(SystemExit, match="2"):
        main([verb, str(run), str(path), str(broken), *words, "--out", str(out)])
    assert "late.png" in capsys.readouterr().err
    [file] = out.glob("*.json")
    assert [Path(one["image"]).name for one in json.loads(file.read_text())["pictures"]] == [
        "door.png"
    ]


def test_attack_changes_what_is_seen_within_the_radius(
    ink: Pack, run: Path, tmp_path: Path
) -> None:
    path, out = picture_of(ink, tmp_path), tmp_path / "attacked"
    words = ["attack", str(run), str(path), "--epsilon", "2", "--attack", "pgd", "--steps", "5"]
    main([*words, "--out", str(out)])
    result = json.loads((out / "attack.json").read_text())
    assert result["objectives"] == ["flip"]
    [entry] = result["pictures"]
    assert 0 < entry["distance"]["l2"] <= 2
    assert (result["norm"], result["steps"]) == ("l2", 5)
    assert entry["flipped"] > 0
    # Two panels of 256 pixels with a caption, a gap between them, and a line of a legend.
    assert load_rgb(out / "door.png").size == (2 * 256 + 4, 24 + 256 + 22)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "--data", "rendered:3"), "has no masks"),
        (("eval", "--data", "rendered-ink:3", "--float64"), "leave out --float64"),
        (("eval", "--data", "rendered-ink:3", "--device", "cpu"), "leave out --device"),
        (("eval", "--data", "rendered-ink:3", "--epsilon", "1"), "--epsilon needs --certify"),
        ((*ATTACK_INK, "--certify", "--norm", "linf"), "Certificates hold for L2"),
        (("certify", "door.png", "--out", "found", "--iou", "0.7"), "leave out --iou"),
        (
            (*ATTACK_INK, "--objective", "vanish"),
            "'vanish' is unknown; choose one of: flip, margin, cross-entropy",
        ),
        (("detect", "door.png", "--out", "found", "--score", "0.5"), "leave out --score"),
        (("check-attack", "--data", "rendered:3"), "is a segmenter, and this is for detectors"),
    ],
)
def test_what_a_segmenter_cannot_do(
    run: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        main([words[0], str(run), *words[1:]])
    assert status.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "rendered:40"), "has no masks"),
        (("--adversarial_epsilon", "1"), "is for detectors"),
        (("--offset_unit", "0.2"), "has no boxes"),
        (("--head_size", "5"), "has no boxes"),
        (("--width", "50"), "needs a width of at least 48 that 8 divides, not 50"),
    ],
)
def test_trainings_that_a_segmenter_cannot_have(
    ink: Pack,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        train(ink, tmp_path / "run", *options)
    assert message in capsys.readouterr().err


def test_figures_are_counts_of_pixels() -> None:
    mask = torch.tensor([[[0, 0, 1, 1, 1, IGNORED]]], dtype=torch.uint8)
    shown = torch.tensor([[[0, 1, 1, 1, 0, 1]]])
    logits = torch.nn.functional.one_hot(shown, 3).permute(0, 3, 1, 2).float()
    counts = confusion(logits, mask)
    assert counts.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    found = figures(counts, ("a", "b", "c"))
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["per_class"]["b"]["iou"] == pytest.approx(2 / 4)
    assert found["per_class"]["b"]["recall"] == pytest.approx(2 / 3)
    assert found["per_class"]["c"]["iou"] is None
    assert found["miou"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_the_worst_of_attacks_on_pixels_tries_every_objective_with_all_steps() -> None:
    settings = PixelSettings(0.5, steps=7)
    [single] = single_attacks("apgd", settings)
    assert (single.objective, single.schedule, single.steps) == ("flip", "apgd", 7)
    assert {(one.objective, one.steps) for one in single_attacks("worst", settings)} == {
        ("flip", 7),
        ("margin", 7),
        ("cross-entropy", 7),
    }


def test_objectives_of_pixels_are_none_of_boxes() -> None:
    with pytest.raises(InputError, match="'flip' is unknown; choose one of: demote, mislabel"):
        AttackSettings(0.5, "flip")
