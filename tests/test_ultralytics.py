"""YOLO of ultralytics, with random weights; its own predictor and losses are the oracles."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lipdet.attack.foreign import ForeignDetector
from lipdet.boxes import AP_SELECTION
from lipdet.checkpoint import load_any
from lipdet.cli import main
from lipdet.errors import InputError
from lipdet.ultralytics_yolo import load_yolo

NEEDED = "the package ultralytics and the libGL that OpenCV loads are needed"
CLASSES = ("disc", "ring", "bar")
SIDE = 64


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    # Its settings file.
    os.environ.setdefault("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    # Other tests in this process open pictures as Pillow does.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", Image.open)
        with warnings.catch_warnings(action="ignore"):
            name = "ultralytics.nn.tasks"
            found = pytest.importorskip(name, reason=NEEDED, exc_type=ImportError)
        yield found


def pictures(count: int) -> Tensor:
    """Blocks of colour (count, 3, SIDE, SIDE), of 8 bits."""
    cells = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return (cells.repeat_interleave(8, 2).repeat_interleave(8, 3) * 255).round() / 255


def write_weights(tasks: Any, model: str, file: Path) -> Path:
    """Write a small YOLO of three classes that looks at the picture and is sure of what it sees."""
    torch.manual_seed(0)
    network = tasks.DetectionModel(model, nc=len(CLASSES), verbose=False)
    network.names = dict(enumerate(CLASSES))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Statistics of pictures; random networks would otherwise answer the same to each.
            module.momentum = 1.0
    network(torch.cat([pictures(32), pictures(32).roll(1, 2), pictures(32).roll(2, 2)]))
    head = network.model[-1]
    for branch in (head.one2many, head.one2one) if network.end2end else (head.one2many,):
        for level in branch["cls_head"]:
            level[-1].weight.data *= 3
            # One class alone, so that its predictor, which takes a box's best, finds the same.
            level[-1].bias.data = torch.tensor([-20.0, 0.0, -20.0])
    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, file)
    return file


@pytest.fixture(scope="module", params=["yolo11n.yaml", "yolo26n.yaml"])
def weights(
    request: pytest.FixtureRequest, tasks: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """With NMS, and without it."""
    return write_weights(tasks, request.param, tmp_path_factory.mktemp("yolo") / "own.pt")


@pytest.fixture
def data(tmp_path: Path, picture: Tensor) -> str:
    """Two pictures with an object each, as COCO."""
    pixels = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    images, annotations = [], []
    for number in (1, 2):
        Image.fromarray(np.roll(pixels, number, 0)).save(tmp_path / f"{number}.png")
        size = {"width": SIDE, "height": SIDE}
        images.append({"id": number, "file_name": f"{number}.png", **size})
        box = {"bbox": [8, 8, 24, 24], "category_id": number, "area": 576, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    root = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(root))
    return f"coco:{tmp_path / 'data.json'}"


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return pictures(1)[0]


@pytest.mark.filterwarnings("ignore")
def test_detections_are_those_of_its_own_predictor(weights: Path, picture: Tensor) -> None:
    import ultralytics

    yolo = load_yolo(str(weights))
    assert (yolo.image_size, yolo.class_names) == (SIDE, list(CLASSES))
    [found] = yolo([picture])
    array = (picture.permute(1, 2, 0) * 255).round().byte().numpy()[..., ::-1]
    options = {"imgsz": SIDE, "conf": 0.001, "iou": 0.7, "max_det": 300, "verbose": False}
    [expected] = ultralytics.YOLO(str(weights)).predict(np.ascontiguousarray(array), **options)
    corners = expected.boxes.xyxy
    area = ((corners[:, 2:] - corners[:, :2]) > 0).all(1)
    assert 1 < area.sum() == len(found["scores"])
    # It folds normalisation into the kernels, which rounds anew.
    torch.testing.assert_close(found["scores"], expected.boxes.conf[area], atol=1e-4, rtol=0)
    torch.testing.assert_close(found["boxes"], corners[area], atol=0.05, rtol=0)
    assert torch.equal(found["labels"] - 1, expected.boxes.cls[area].long())


@pytest.mark.parametrize(("size", "rounded"), [(SIDE - 10, SIDE), ([SIDE - 31, 96], [SIDE, 96])])
def test_sides_are_rounded_up_and_names_may_be_a_list(
    tasks: Any, tmp_path: Path, size: object, rounded: object
) -> None:
    """Strides of 32 pixels."""
    model = tasks.DetectionModel("yolo11n.yaml", nc=len(CLASSES), verbose=False)
    model.names = list(CLASSES)
    torch.save({"model": model, "train_args": {"imgsz": size}}, tmp_path / "older.pt")
    loaded = load_any(f"ultralytics:{tmp_path / 'older.pt'}")
    assert isinstance(loaded, ForeignDetector)
    assert loaded.class_names == CLASSES
    assert loaded.module.image_size == rounded
    assert len(loaded.detect(torch.rand(1, 3, *loaded.framing.canvas), AP_SELECTION)) == 1


def test_losses_are_its_own_in_eval_mode_and_reach_the_picture(
    weights: Path, picture: Tensor
) -> None:
    yolo = load_yolo(str(weights))
    statistics = {name: one.clone() for name, one in yolo.named_buffers()}
    targets = {"boxes": torch.tensor([[8.0, 16, 40, 32]]), "labels": torch.tensor([3])}
    # The box by hand: its middle and its size, in shares of the picture.
    batch = {
        "img": picture[None],
        "batch_idx": torch.zeros(1),
        "cls": torch.tensor([2.0]),
        "bboxes": torch.tensor([[24 / 64, 24 / 64, 32 / 64, 16 / 64]]),
    }
    expected = yolo.model.loss(batch)[0].sum()
    image = picture.clone().requires_grad_()
    # As attacks do: all in training mode, but for what counts statistics.
    losses = yolo.train()([image], [targets])
    assert set(losses) == {"classification", "box_regression"}
    torch.testing.assert_close(sum(losses.values()), expected)
    (slope,) = torch.autograd.grad(losses["box_regression"], image)
    assert slope.isfinite().all()
    assert slope.abs().max() > 0
    assert all(torch.equal(one, statistics[name]) for name, one in yolo.named_buffers())
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert yolo([picture], [nothing])["box_regression"] == 0


@pytest.mark.slow
def test_it_is_evaluated_attacked_and_audited(weights: Path, data: str, tmp_path: Path) -> None:
    spec, file = f"ultralytics:{weights}", tmp_path / "result.json"
    attack = ["--epsilon", "0", "2", "--attack", "pgd", "--steps", "3", "--json", str(file)]
    main(["eval", spec, "--data", data, *attack, "--quiet"])
    result = json.loads(file.read_text())
    nothing, far = result["attacked"]
    assert result["versions"]["ultralytics"]
    # A radius of 0 changes nothing.
    assert nothing["ap50"] == result["clean"]["ap50"]
    assert far["consistency"]["kept"] < nothing["consistency"]["kept"]
    picture = str(tmp_path / "1.png")
    main(["attack", spec, picture, *attack[:1], "1", *attack[3:7], "--out", str(tmp_path / "out")])
    [shown] = json.loads((tmp_path / "out" / "attack.json").read_text())["pictures"]
    assert {one["label"] for one in shown["regions"][0]["clean"]} == {CLASSES[1]}
    main(["lipschitz", "--audit", spec, "--json", str(file), "--quiet"])
    audit = json.loads(file.read_text())
    # Attention, and the factors of the layers before it.
    assert {one["kind"] for one in audit["findings"] if one["factor"] is None} == {"matmul"}
    assert {"Conv2d", "SiLU", "cat"} <= {one["kind"] for one in audit["findings"]}


@pytest.mark.slow
def test_a_model_of_its_own_with_random_weights(tasks: Any, data: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    attack = ["--epsilon", "0.5", "--attack", "pgd", "--steps", "1", "--limit", "1"]
    main(["eval", "ultralytics:yolo11n.yaml", "--data", data, *attack, "--json", str(file)])
    result = json.loads(file.read_text())
    assert result["data"]["canvas"] == [640, 640]
    assert [one["ap50"] for one in (result["clean"], *result["attacked"])] == [0, 0]


class Mischief:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("done"),)


def test_a_pickle_runs_nothing(tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Mischief()}, "bad.pt")
    Path("worse.pt").write_bytes(pickle.dumps({"model": Mischief()}, protocol=2))
    for file in ("bad.pt", "worse.pt"):
        with pytest.raises(InputError, match="without running code"):
            load_any(f"ultralytics:{file}")
    assert not Path("done").exists()
    # Both would, where pickles are trusted.
    torch.load("bad.pt", weights_only=False)
    assert Path("done").exists()


def test_what_is_no_yolo_is_one_sentence(
    tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.yaml").write_text("nc: 3\n")
    torch.save({"model": torch.nn.Identity()}, "other.pt")
    torch.save(torch.nn.Linear(1, 1).state_dict(), "state.pt")
    torch.save({"model": torch.nn.Linear(1, 1).state_dict()}, "states.pt")
    torch.save([1], "list.pt")
    for file, words in (
        ("state.pt", "stores no model, at most weights"),
        ("states.pt", "stores no model, at most weights"),
        ("list.pt", "stores no model, at most weights"),
        ("missing.pt", "nothing is downloaded"),
        ("https://example.org/a.yaml", "nothing is downloaded"),
        ("yolo11n", "name a .pt or .yaml file"),
        ("odd.yaml", "describes no model"),
        ("nowhere.yaml", "describes no model"),
        ("other.pt", "holds Identity, no YOLO"),
        ("yolo11n-seg.yaml", "no YOLO that detects boxes"),
    ):
        with pytest.raises(InputError, match=words):
            load_any(f"ultralytics:{file}")


def test_pillow_is_as_it_was(weights: Path) -> None:
    """It replaces `Image.open`, and would install packages where a picture cannot be opened."""
    code = (
        "import os, sys; from PIL import Image; opens = Image.open\n"
        "from lipdet.ultralytics_yolo import load_yolo; load_yolo(sys.argv[1])\n"
        "assert Image.open is opens and os.environ['YOLO_AUTOINSTALL'] == 'false'"
    )
    environment = {key: one for key, one in os.environ.items() if key != "YOLO_AUTOINSTALL"}
    subprocess.run([sys.executable, "-c", code, str(weights)], check=True, env=environment)


def test_without_the_package_a_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", None)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(SystemExit) as ended:
        main(["eval", "ultralytics:yolo11n.yaml", "--data", "rendered:1"])
    assert ended.value.code == 2
    assert "pip install ultralytics (its licence is AGPL-3.0)." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "ultralytics:a.pt", "--data", "rendered:1", "--state", "state"])
    assert "leave out --state" in capsys.readouterr().err
