"""The command line as a user meets it: examples work, mistakes end in one sentence and status 2."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lipdet import __version__
from lipdet.checkpoint import save_detector
from lipdet.cli import main
from lipdet.commands.options import distinct_stems
from lipdet.config import PRESETS, DetectorConfig
from lipdet.detector import build_detector
from lipdet.images.render import rendered
from tests.images.svhn_format import write_digit_struct


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of one call."""
    status = 0
    try:
        main(words)
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of untrained weights: enough for everything but the figures."""
    torch.manual_seed(0)
    config = DetectorConfig()
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_detector(path, build_detector(config), config, {})
    return path


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def coco_file(folder: Path, photograph: Path, box: list[float], category: int = 1) -> Path:
    path = folder / "annotations.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": photograph.name, "width": 90, "height": 60}],
                "annotations": [{"id": 7, "image_id": 1, "category_id": category, "bbox": box}],
                "categories": [{"id": 1, "name": "gauge"}],
            }
        )
    )
    return path


# --- mistakes -------------------------------------------------------------------------------------


def check_mistake(capsys: pytest.CaptureFixture[str], *words: str, names: str) -> None:
    """One sentence on stderr that names the culprit, nothing else, status 2."""
    status, out, err = run(capsys, *words)
    assert status == 2
    assert out == ""
    assert re.fullmatch(r"lipdet: [^\n]+\n", err), err
    assert names in err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], "verb"),
        (["fly"], "fly"),
        (["train", "--preset", "imaginary", "--out", "x"], "imaginary"),
        (["train", "--epochs", "-1", "--out", "x"], "epochs"),
        (["train", "--epochs", "many", "--out", "x"], "epochs"),
        (["train", "preset=naive"], "--preset naive"),
        (["train"], "out"),
        (["train", "--config", "no.yaml", "--out", "x"], "no.yaml"),
        (["train", "--data", "rendered:0", "--out", "x"], "rendered:0"),
        (["train", "--data", "rendered:9", "--weights", "1", "2", "--out", "x"], "--weights"),
        (["train", "--data", "mnist", "--out", "x"], "mnist"),
        (["train", "--resume", "--data", "svhn:nowhere", "--out", "x"], "nowhere"),
        (["eval", "imaginary", "--data", "rendered:1"], "imaginary"),
        (["data", "info", "svhn:nowhere"], "nowhere"),
        (["data", "info", "coco:nowhere.json"], "nowhere.json"),
        (["data", "info", "rendered:3", "--image_size", "0"], "--image_size"),
        (["data", "info", "rendered:3", "--seed", "-1"], "seed"),
        (["eval", "model.onnx", "--data", "rendered:1"], "only detect takes .onnx"),
        (["eval", "naive", "--data", "rendered:1", "--attack", "pgd", "--epsilon", "1e9"], "1e+09"),
        (["export", "naive", "--out", "naive.pt2"], "--format torch-export"),
        (["data", "info", "rendered:99999999999999999999"], "rendered:99999999999999999999"),
        (["data", "render", "--image_size", "100000000", "--out", "x"], "--image_size"),
        (["eval", "naive", "--data", "rendered:1", "--limit", "0"], "--limit"),
        (["eval", "naive", "--data", "rendered:1", "--json", "no/x.json"], "no/x.json"),
        (["lipschitz", "naive", "--plot", "profile.xyz"], "profile.xyz"),
        (["data", "render", "--count", "0", "--out", "x"], "--count"),
        (["data", "render", "--stream", "dev", "--out", "x"], "dev"),
        (["data", "prepare", "rendered:5", "--out", "x"], "rendered:5"),
        (["data", "download", "validation", "--out", "x"], "validation"),
        (["data", "download", "train", "--out", "x", "--base_url", "file:///etc"], "file:///etc"),
    ],
)
def test_mistakes_end_in_one_sentence(
    words: list[str],
    names: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_mistake(capsys, *words, names=names)
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights(capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path) -> None:
    data = weights.read_bytes()
    truncated, corrupt = tmp_path / "truncated.safetensors", tmp_path / "corrupt.safetensors"
    truncated.write_bytes(data[: len(data) // 2])
    corrupt.write_bytes(b"\xff" * 8 + data[8:])
    for path in (truncated, corrupt):
        check_mistake(capsys, "eval", str(path), "--data", "rendered:2", names=path.name)


def test_weights_of_another_architecture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = DetectorConfig()
    wrong = tmp_path / "wrong.safetensors"
    save_detector(wrong, torch.nn.Linear(2, 2), config, {})
    check_mistake(capsys, "eval", str(wrong), "--data", "rendered:2", names="another architecture")


def test_weights_of_an_unknown_architecture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "future.safetensors"
    save_detector(path, torch.nn.Linear(2, 2), DetectorConfig(architecture="transformer"), {})
    check_mistake(capsys, "eval", str(path), "--data", "rendered:2", names="'transformer'")


def test_no_picture(
    capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path, photograph: Path
) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    cut_off = tmp_path / "cut.png"
    cut_off.write_bytes(photograph.read_bytes()[:500])
    for path in (text, cut_off, tmp_path / "missing.png"):
        out = tmp_path / "out"
        check_mistake(capsys, "detect", str(weights), str(path), "--out", str(out), names=path.name)
        assert not out.exists()


def test_places_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path, photograph: Path
) -> None:
    words = ["detect", str(weights), str(photograph), "--out", str(photograph)]
    check_mistake(capsys, *words, names="photo.png")
    words = ["data", "render", "--count", "1", "--out", str(photograph / "pack")]
    check_mistake(capsys, *words, names="photo.png")


@pytest.mark.parametrize("crop", ["1,2,3", "a,b,c,d", "10,10,5,20", "0,0,500,20", "nan,0,9,9"])
def test_bad_crop(
    crop: str, capsys: pytest.CaptureFixture[str], weights: Path, photograph: Path, tmp_path: Path
) -> None:
    words = ["detect", str(weights), str(photograph), "--out", str(tmp_path / "out")]
    check_mistake(capsys, *words, f"--crop={crop}", names="crop")


def test_box_outside_the_picture(
    capsys: pytest.CaptureFixture[str], photograph: Path, tmp_path: Path
) -> None:
    file = coco_file(tmp_path, photograph, [200, 200, 5, 5])
    check_mistake(capsys, "data", "info", f"coco:{file}", names="annotation 7")


def test_unknown_category(
    capsys: pytest.CaptureFixture[str], photograph: Path, tmp_path: Path
) -> None:
    file = coco_file(tmp_path, photograph, [2, 2, 5, 5], category=3)
    check_mistake(capsys, "data", "info", f"coco:{file}", names="category_id")


def test_corrupt_svhn_annotations(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "digitStruct.mat").write_bytes(b"\x89HDF\r\n\x1a\n cut off")
    check_mistake(capsys, "data", "info", f"svhn:{tmp_path}", names="digitStruct.mat")


def test_damaged_pack(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    assert run(capsys, "data", "render", "--count", "2", "--out", str(pack))[0] == 0
    labels = pack / "labels.npy"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x01")
    check_mistake(capsys, "data", "info", str(pack), names="damaged")


def test_existing_output_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["data", "render", "--count", "1", "--out", str(tmp_path)]
    check_mistake(capsys, *words, names="exists already")
    check_mistake(capsys, "train", "--out", str(tmp_path), names="exists already")


def test_classes_of_data_and_detector_must_agree(
    capsys: pytest.CaptureFixture[str], weights: Path, photograph: Path, tmp_path: Path
) -> None:
    file = coco_file(tmp_path, photograph, [2, 2, 5, 5])
    check_mistake(capsys, "eval", str(weights), "--data", f"coco:{file}", names="gauge")


# --- what works -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb",
    [
        "train",
        "eval",
        "detect",
        "demo",
        "data render",
        "data prepare",
        "data download",
        "data info",
    ],
)
def test_help_has_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *verb.split(), "--help")
    assert status == 0
    flat = " ".join(out.split())
    assert f"example: lipdet {verb}" in flat


@pytest.mark.slow
def test_module_and_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lipdet", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"lipdet {__version__}"


def test_print_config_is_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "--out", str(tmp_path / "run"), "--epochs", "3", "--print_config"]
    _, printed, _ = run(capsys, *words)
    (tmp_path / "config.yaml").write_text(printed)
    again = run(capsys, "train", "--config", str(tmp_path / "config.yaml"), "--print_config")
    assert again[1] == printed
    assert "epochs: 3" in printed


def test_print_config_and_help_are_those_of_the_preset(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["train", "--preset", "certified-small", "--out", str(tmp_path), "--print_config"]
    _, printed, _ = run(capsys, *words)
    margin = PRESETS["certified-small"].train.margin
    assert f"margin: {margin}" in printed
    (tmp_path / "config.yaml").write_text("preset: certified-small\n")
    words = ["train", "--config", str(tmp_path / "config.yaml"), "--help"]
    shown = re.search(r"\n  --margin .*?default:\s+([\d.]+)", run(capsys, *words)[1], re.DOTALL)
    assert shown
    assert float(shown[1]) == margin


@pytest.mark.parametrize("verb", ["detect", "attack", "certify"])
def test_pictures_are_not_written_over(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "door-1.png" if verb == "certify" else "door.png"
    pixels, _, _ = rendered("test", 6, size=74)
    for file in {"door.png", name}:
        Image.fromarray(pixels).save(tmp_path / file)
    before = (tmp_path / name).read_bytes()
    words = [verb, "certified-small", *{str(tmp_path / "door.png"), str(tmp_path / name)}]
    words += ["--epsilon", "0.1", "--steps", "1"] if verb == "attack" else ["--crop", "0,0,74,74"]
    status, _, err = run(capsys, *words, "--out", str(tmp_path))
    assert status == 2
    assert f"{name} is one of the pictures" in err
    assert (tmp_path / name).read_bytes() == before


def test_names_of_overlays_are_distinct() -> None:
    given = ["a/photo.png", "b/photo.png", "photo-2.jpg", "photo-2-2.jpg", "other.png"]
    stems = distinct_stems([Path(name) for name in given])
    assert stems == ["photo-1", "photo-2-2-2", "photo-2", "photo-2-2", "other"]


@pytest.mark.slow
def test_a_picture_one_pixel_high(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1)).save(tmp_path / "line.png")
    words = [str(tmp_path / "line.png"), "--out", str(tmp_path / "found")]
    assert "nothing found" in run(capsys, "detect", "naive", *words)[1]


@pytest.mark.slow
def test_train_eval_detect(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photograph: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: ['rendered:24', 'rendered:16']\nweights: [1, 3]\nbatch_size: 8\n")
    folder = tmp_path / "run"
    words = ["train", "--config", str(config), "--epochs", "1", "--out", str(folder)]
    status, out, err = run(capsys, *words)
    assert status == 0, err
    assert str(folder / "best.safetensors") in out
    stored = json.loads((folder / "run.json").read_text())
    assert stored["weights"] == [1, 3]
    assert stored["train"]["batch_size"] == 8

    status, out, _ = run(
        capsys, "eval", str(folder), "--data", "rendered:6", "--limit", "4", "--json", "-"
    )
    result = json.loads(out)
    # The keys that DESIGN fixes, because scripts depend on them.
    assert list(result) == [
        "weights", "parameters", "data", "seed", "versions", "seconds",
        "clean", "attacked", "certified",
    ]  # fmt: skip
    assert set(result["data"]) == {"name", "hash", "images", "objects", "skipped"}
    assert set(result["clean"]) == {"ap50", "ap", "per_class"}
    assert result["data"]["images"] == 4
    assert result["parameters"] == 337_968
    assert result["attacked"] == result["certified"] == []

    status, out, _ = run(
        capsys, "eval", str(folder), "--data", "rendered:4", "--json", str(tmp_path / "r.json")
    )
    assert "AP50" in out
    assert json.loads((tmp_path / "r.json").read_text())["clean"] == result["clean"]

    found = tmp_path / "found"
    words = ["detect", str(folder), str(photograph), str(photograph), "--out", str(found)]
    assert run(capsys, *words, "--crop", "10,5,60,55")[0] == 0
    names = sorted(path.name for path in found.iterdir())
    assert names == ["detections.json", "photo-1.png", "photo-2.png"]
    entry = json.loads((found / "detections.json").read_text())["pictures"][0]
    assert entry["regions"] == [[10, 5, 60, 55]]


@pytest.mark.slow
def test_lipschitz(capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path) -> None:
    plot, json_file = tmp_path / "profile.svg", tmp_path / "profile.json"
    words = ["lipschitz", str(weights), "--data", "rendered:1", "--plot", str(plot)]
    status, out, err = run(capsys, *words, "--json", str(json_file))
    assert status == 0, err
    assert "bound so far" in out
    assert plot.read_text().lstrip().startswith("<?xml")
    result = json.loads(json_file.read_text())
    assert result["observed_on"]["images"] == 1
    for layer in result["layers"]:
        assert 0 < layer["observed"] <= layer["cumulative"]
    assert result["joint"] >= max(result["largest_logit"], result["largest_offset"])


def test_prepare_and_info(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "svhn"
    folder.mkdir()
    Image.new("RGB", (80, 40), "gray").save(folder / "1.png")
    Image.new("RGB", (30, 10), "gray").save(folder / "2.png")
    write_digit_struct(
        folder / "digitStruct.mat",
        {"1.png": [(1, 20, 10, 8, 16), (10, 30, 10, 8, 16)], "2.png": [(3, 0, 0, 30, 5)]},
    )
    pack = tmp_path / "pack"
    status, out, err = run(capsys, "data", "prepare", f"svhn:{folder}", "--out", str(pack))
    assert status == 0, err
    # 2.png is 10 pixels high and its number 30 wide: no square around it fits.
    assert "1 pictures, 2 objects, 1 skipped" in out
    assert "2.png" in out
    info = json.loads(run(capsys, "data", "info", str(pack))[1])
    assert info["per_class"]["0"] == info["per_class"]["1"] == 1


@pytest.mark.slow
def test_interruption_keeps_the_state(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["train", "--data", "rendered:64", "--batch_size", "8", "--epochs", "500"]
    words += ["--validation_share", "0", "--out", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "lipdet", *words], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 120
    while not (folder / "last.safetensors").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "Traceback" not in err
