"""The command line as a user meets it: examples work, mistakes end in one sentence and status 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lipdet.checkpoint import LAST, save_detector
from lipdet.cli import VERBS, main
from lipdet.config import PRESETS, DetectorConfig
from lipdet.detector import build_detector
from lipdet.images.render import rendered
from lipdet.train.job import Job, save_job
from lipdet.types import Canvas


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
        (["train", "preset=naive"], "--preset naive"),
        (["train", "--width", "64", "--out", "x"], "naive has a width of its own"),
        (
            ["train", "--preset", "certified", "--width", "40", "--out", "x"],
            "of at least 48, not 40",
        ),
        (["train"], "out"),
        (["train", "--config", "no.yaml", "--out", "x"], "no.yaml"),
        (["train", "--data", "rendered:0", "--out", "x"], "rendered:0"),
        (["train", "--data", "rendered:9", "--weights", "1", "2", "--out", "x"], "--weights"),
        (["train", "--data", "svhn:nowhere", "--out", "x"], "nowhere"),
        (["eval", "imaginary", "--data", "rendered:1"], "imaginary"),
        (["data", "info", "svhn:nowhere"], "nowhere"),
        (["data", "info", "rendered:3", "--image_size", "0"], "image_size"),
        (["eval", "model.onnx", "--data", "rendered:1"], "detect takes .onnx"),
        (["eval", "naive", "--data", "rendered:1", "--attack", "pgd", "--epsilon", "1e9"], "1e+09"),
        (["export", "naive", "--out", "x.pt2", "--format", "onnx"], "--format torch-export"),
        (["export", "naive", "--out", "x.onnx", "--format", "torch-export"], "NAME.pt2"),
        (["eval", "naive", "--data", "rendered:1", "--limit", "0"], "--limit"),
        (["eval", "naive", "--data", "rendered:1", "--json", "no/x.json"], "no/x.json"),
        (["lipschitz", "naive", "--plot", "profile.xyz"], "profile.xyz"),
        (["lipschitz", "naive", "--image_size", "128"], "--image_size is for --audit"),
        (["lipschitz", "--audit", "naive", "--data", "rendered:1"], "--audit MODULE stands alone"),
        (["data", "boxes", "rendered:1", "--plot", "boxes.xyz"], "boxes.xyz"),
        (["data", "render", "--stream", "dev", "--out", "x"], "dev"),
        (["data", "prepare", "rendered:5", "--out", "x"], "rendered:5"),
        (["data", "prepare", "voc:x", "--crops", "8", "--out", "x"], "add --crop jitter"),
        (["data", "prepare", "voc:x", "--seed", "-1", "--out", "x"], "--seed must not be negative"),
        (["data", "render", "--seed", "-1", "--out", "x"], "--seed must not be negative"),
        (["data", "download", "train", "--out", "x", "--base_url", "file:///etc"], "file:///etc"),
        (["attack", "naive", "door.png", "--out", "x"], "--epsilon"),
        (["attack", "naive", "door.png", "--out", "x", "--epsilon", "much"], "much"),
        (["attack", "naive", "none.png", "--out", "x", "--epsilon", "1"], "none.png"),
        (["attack", "naive", "x.png", "--out", "x", "--epsilon", "1", "--steps", "0"], "steps"),
        (["eval", "naive", "--data", "rendered:1", "--attack", "worst"], "--epsilon"),
        (["eval", "naive", "--data", "rendered:1", "--epsilon", "1"], "--attack"),
        (["eval", "naive", "--data", "rendered:1", "--attack", "fgsm", "--epsilon", "1"], "fgsm"),
        (["check-attack", "naive", "--data", "rendered:1", "--plot", "c.xyz"], "c.xyz"),
        (["check-attack", "naive", "--data", "rendered:1", "--objective", "annoy"], "annoy"),
        (["export", "nothing", "--out", "x.onnx"], "There is no detector 'nothing'"),
        (["export", "naive", "--out", "nowhere/x.onnx"], "nowhere/x.onnx cannot be written"),
        (["export", "naive", "--out", "x.pt2", "--format", "tflite"], "tflite"),
        (
            ["export", "naive", "--out", "x.pt2", "--detections"],
            "--detections and --int8 need an .onnx file",
        ),
        pytest.param(
            ["export", "naive", "--out", "x.onnx", "--int8", "rendered:5"],
            "5 pictures; give 100 or more",
            marks=pytest.mark.slow,
        ),
        (["app", "--port", "70000"], "--port must lie between 0 and 65535"),
        (["app", "nonesuch"], "There is no detector 'nonesuch'"),
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


def test_a_verb_imports_no_other() -> None:
    # Torch's export, gradio and training take seconds that a certificate does not need.
    code = (
        "import sys; from lipdet.cli import VERBS, build_parser; build_parser(wanted=['certify']); "
        "print(*(verb for verb in VERBS if f'lipdet.commands.{verb}' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["certify"]


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


@pytest.mark.parametrize("crop", ["1,2,3", "a,b,c,d", "10,10,5,20", "0,0,500,20", "nan,0,9,9"])
def test_bad_crop(
    crop: str, capsys: pytest.CaptureFixture[str], weights: Path, photograph: Path, tmp_path: Path
) -> None:
    words = ["detect", str(weights), str(photograph), "--out", str(tmp_path / "out")]
    check_mistake(capsys, *words, f"--crop={crop}", names="crop")


def test_existing_output_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").touch()
    words = ["data", "render", "--count", "1", "--out", str(tmp_path)]
    check_mistake(capsys, *words, names="exists already")
    check_mistake(capsys, "train", "--out", str(tmp_path), names="exists already")


def test_options_that_a_pack_leaves_no_room_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pack = str(tmp_path / "pack")
    words = ["data", "render", "--count", "2", "--image_size", "48", "--out", pack]
    assert run(capsys, *words)[0] == 0
    for verb in ("info", "boxes"):
        asked = ["data", verb, pack, "--image_size"]
        check_mistake(capsys, *asked, "74", names="holds pictures of 48x48 pixels, not 74x74")
    check_mistake(capsys, "data", "boxes", pack, "--seed", "-1", names="--seed must not be")
    assert json.loads(run(capsys, "data", "info", pack)[1])["canvas"] == [48, 48]
    assert run(capsys, "data", "info", pack, "--image_size", "48x48")[0] == 0


def test_data_and_detector_must_agree(
    capsys: pytest.CaptureFixture[str], weights: Path, photograph: Path, tmp_path: Path
) -> None:
    spec, crops = f"coco:{coco_file(tmp_path, photograph, [2, 2, 5, 5])}", str(tmp_path / "crops")
    for words in (["eval", str(weights)], ["lipschitz", str(weights)], ["check-attack", "naive"]):
        check_mistake(capsys, *words, "--data", spec, names=f"{spec} holds whole pictures")
    assert run(capsys, "data", "prepare", spec, "--crop", "jitter", "--out", crops)[0] == 0
    check_mistake(capsys, "eval", str(weights), "--data", crops, names="gauge")


# --- what works -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "verb", ["detect", "attack", pytest.param("certify", marks=pytest.mark.slow)]
)
def test_pictures_are_not_written_over(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "door.png" if verb == "detect" else "door-1.png"
    pixels, _, _ = rendered("test", 6, size=74)
    for file in {"door.png", name}:
        Image.fromarray(pixels).save(tmp_path / file)
    before = (tmp_path / name).read_bytes()
    words = [verb, "certified-small", *{str(tmp_path / "door.png"), str(tmp_path / name)}]
    words += ["--crop", "0,0,74,74"]
    words += ["--epsilon", "0.1", "--steps", "1"] if verb == "attack" else []
    status, _, err = run(capsys, *words, "--out", str(tmp_path))
    assert status == 2
    assert f"{name} is one of the pictures" in err
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.slow
def test_lipschitz(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = replace(PRESETS["certified-small"].detector, canvas=Canvas(32, 32))
    weights = tmp_path / "small.safetensors"
    save_detector(weights, build_detector(config), config, {})
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


def test_default_boxes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "boxes.png"
    main(["data", "boxes", "rendered:20", "--image_size", "48x96", "--plot", str(figure)])
    told = capsys.readouterr().out
    assert "Default boxes:" in told
    assert "covered" in told
    with Image.open(figure) as drawn:
        assert min(drawn.size) > 300
    main(["data", "boxes", "rendered:20", "--image_size", "48x96", "--scales", "0.5", "0.5"])
    halved = capsys.readouterr().out
    [areas, quarters] = [
        [float(width) * float(height) for width, height in re.findall(r"([\d.]+)×([\d.]+)", text)]
        for text in (told, halved)
    ]
    # By hand: sides half as long.
    assert max(quarters) == pytest.approx(max(areas) / 4, rel=0.1)
    with pytest.raises(SystemExit):
        main(["data", "boxes", "rendered:20", "--scales", "2", "1"])
    assert "--scales must be positive and in order" in capsys.readouterr().err


def test_folders_stand_for_their_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "doors"
    folder.mkdir()
    for index in (2, 1):
        Image.fromarray(rendered("test", index, size=74)[0]).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("none of them")
    whole = ["--crop", "0,0,74,74", "--out", str(tmp_path / "out")]
    main(["detect", "naive", str(folder), *whole])
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["pictures"]
    assert [Path(one["image"]).name for one in found] == ["1.png", "2.png"]
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["detect", "naive", str(tmp_path / "empty"), *whole])
    assert "empty holds no picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("detect", "naive"), "detections.json"),
        (("certify", "certified-small"), "certificates.json"),
        (("attack", "naive", "--epsilon", "0.5", "--steps", "2"), "attack.json"),
    ],
)
def test_a_broken_picture_does_not_take_the_finished_ones_along(
    words: tuple[str, ...],
    file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = tmp_path / "doors", tmp_path / "out"
    folder.mkdir()
    for name in ("1.png", "3.png"):
        Image.fromarray(rendered("test", 0, size=74)[0]).save(folder / name)
    (folder / "2.png").write_bytes(b"no picture")
    verb, detector, *options = words
    status, told, err = run(capsys, verb, detector, str(folder), *options, "--out", str(out))
    assert status == 2
    assert "2.png" in err
    assert "1.png" in told
    entries = json.loads((out / file).read_text())["pictures"]
    assert [Path(entry["image"]).name for entry in entries] == ["1.png", "3.png"]
    assert list(out.glob("1*.png"))
    assert list(out.glob("3*.png"))


def test_a_missing_option_is_named_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    """With the help of the verb itself: `--out`, not `train.out`."""
    for words, missing in (
        (("train",), "--out (see `lipdet train --help`)"),
        (("data", "prepare", "x"), "--out (see `lipdet data prepare --help`)"),
        (("detect",), "<detector>, <images>, --out (see `lipdet detect --help`)"),
    ):
        check_mistake(capsys, *words, names=f"arguments are required: {missing}")
    wrong = ("train", "--out", "x", "--image_size", "5x")
    check_mistake(capsys, *wrong, names="--image_size: Not of type Canvas: give HEIGHTxWIDTH")


def test_a_run_that_is_not_there_cannot_be_resumed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A typing error in the name of a run."""
    out = str(tmp_path / "typo")
    check_mistake(capsys, "train", "--resume", "--out", out, names="holds no run to resume")
    assert not (tmp_path / "typo").exists()


def test_a_run_that_is_done_goes_on_as_a_new_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """More epochs after the end are refused with the way that works."""
    naive = PRESETS["naive"]
    done = replace(naive.train, epochs=2, validate_every=1, augment=())
    save_job(Job("naive", naive.detector, done, ("rendered",)), tmp_path)
    words = ("train", "--resume", "--epochs", "3", "--out", str(tmp_path))
    check_mistake(capsys, *words, names=f"--start_from {tmp_path}")


@pytest.mark.parametrize(
    ("words", "size"),
    [
        # By hand: 10,000 × 500 × 500 × 3 bytes, and as many of 800 × 800.
        (("data", "render", "--count", "10000", "--image_size", "500"), "take 7.5 GB, but"),
        (("train", "--preset", "certified", "--image_size", "800"), "take 19.2 GB, but"),
    ],
)
def test_what_does_not_fit_on_the_disk_is_refused_before_the_first_byte(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    size: str,
) -> None:
    """The size is said, and nothing is left."""
    monkeypatch.setenv("LIPDET_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    check_mistake(capsys, *words, "--out", str(tmp_path / "new"), names=size)
    assert not [path for path in tmp_path.rglob("*") if path.name != "packs"]


# --- completion -----------------------------------------------------------------------------------

# What bash does at the tab key, after the script was sourced as from its folder of completions.
ASK = """source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$(complete -p lipdet | sed 's/.*-F \\([^ ]*\\).*/\\1/') lipdet "${COMP_WORDS[COMP_CWORD]}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["cert"], ["certify"]),
        (["certify", "--eps"], ["--epsilon"]),
        (["data", "download", "--o"], ["--out"]),
        (["train", "--preset", "naive-"], ["naive-adversarial"]),
    ],
)
def test_bash_completes_verbs_options_and_choices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], wanted: list[str]
) -> None:
    pytest.importorskip("shtab", reason="shtab is not installed")
    status, script, _ = run(capsys, "--print_completion", "bash")
    assert status == 0
    (tmp_path / "lipdet").write_text(script)
    command = ["bash", "-c", ASK, "bash", str(tmp_path / "lipdet"), "lipdet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == wanted


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_every_verb(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    pytest.importorskip("shtab", reason="shtab is not installed")
    _, script, _ = run(capsys, "--print_completion", shell)
    assert all(verb in script for verb in VERBS)
    assert "--epsilon" in script or "-l epsilon" in script


def test_help_imports_no_verb() -> None:
    code = "import sys, lipdet.cli; lipdet.cli.build_parser(wanted=())\n"
    code += (
        "print([name for name in sys.modules if name == 'shtab' or name == 'lipdet.commands.eval'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- ends -----------------------------------------------------------------------------------------


def test_a_training_that_is_terminated_says_so_by_its_status(tmp_path: Path) -> None:
    """Slow to start, because only a process of its own can be ended: 143 is 128 + SIGTERM."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "lipdet", "train", "--data", "rendered:16", "--batch_size"]
    command += ["4", "--epochs", "10000", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        for _ in range(600):
            if (out / LAST).exists():
                break
            time.sleep(0.1)
        job.terminate()
        _, said = job.communicate(timeout=120)
    assert job.returncode == 143
    assert (out / LAST).exists()
    assert said.endswith("lipdet: Interrupted; finished work and checkpoints are kept.\n")
    # A pipe gets no column of source lines beside what is logged.
    assert not re.search(r"\w+\.py:\d+", said)


def test_training_data_without_any_object_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photograph: Path
) -> None:
    """Pictures alone teach nothing."""
    path = coco_file(tmp_path, photograph, [1, 1, 20, 20])
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "annotations": []}))
    words = ["train", "--data", f"coco:{path}", "--batch_size", "1", "--out", str(tmp_path / "run")]
    check_mistake(capsys, *words, names="no object")
    assert not (tmp_path / "run").exists()
