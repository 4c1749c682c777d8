"""Detectors of the user's: any module of torchvision's protocol, and an SSD of lipdet's parts.

A torchvision SSDLite with random weights is evaluated and attacked.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lipdet.attack import AttackSettings, attack_torchvision
from lipdet.attack.foreign import ForeignDetector
from lipdet.attack.settings import UNNAMED, WORST
from lipdet.boxes import AP_SELECTION
from lipdet.checkpoint import load_any, save_detector
from lipdet.cli import main
from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.errors import InputError
from lipdet.images.render import rendered
from lipdet.pretrained import Detector
from lipdet.report.audit import audit_module
from lipdet.types import Canvas, Target

MINE = '''
import torch
from torch import nn
from torchvision.models import detection
from lipdet.types import Canvas

from lipdet.attack.attackable import exact
from lipdet.attack.objectives import classification, localisation, scene_of
from lipdet.boxes import AP_SELECTION, select_detections
from lipdet.checkpoint import load_detector
from lipdet.config import DIGITS
from lipdet.detector import SSD


def ssdlite():
    torch.manual_seed(0)
    model = detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=11
    )
    # Small, for the test: the published size is 320.
    model.transform.fixed_size = (64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Random networks would otherwise answer the same to every picture.
            module.running_var.fill_(0.05)
    for weight in model.head.classification_head.parameters():
        # Nor would they be sure enough of anything to show it.
        weight.data *= 30
    return model


class Wrapped(nn.Module):
    """A detector of lipdet's behind torchvision's protocol."""

    class_names = DIGITS

    def __init__(self):
        super().__init__()
        self.inner = load_detector("naive").detector

    def forward(self, images, targets=None):
        raw, decoder = self.inner(torch.stack(images)), self.inner.decoder
        if targets is not None:
            scene = scene_of([{**one, "labels": one["labels"] - 1} for one in targets], decoder)
            return {
                "classification": classification(exact(raw), scene, decoder).sum(),
                "bbox_regression": 2 * localisation(exact(raw), scene, decoder).sum(),
            }
        found = select_detections(raw, decoder, AP_SELECTION)
        return [{**one, "labels": one["labels"] + 1} for one in found]


def nothing():
    return "no module"


class OneBox(nn.Module):
    def __init__(self, threshold):
        super().__init__()


class Body(nn.Module):
    """A backbone of one's own, around another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images)


def same():
    """What the file says, with a body of one's own."""
    made = load_detector("lipschitz.safetensors").detector
    return SSD(
        made.config,
        Body(made.backbone),
        list(made.heads),
        made.default_boxes,
        made.coding,
        made.scores,
        made.normalize,
        made.nms_iou,
    )
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def own(mine: Path) -> Path:
    """A small 1-Lipschitz detector with random weights, and a picture of its size."""
    torch.manual_seed(0)
    config = replace(PRESETS["certified-small"].detector, canvas=Canvas(32, 32))
    save_detector(mine / "lipschitz.safetensors", build_detector(config), config, {})
    Image.fromarray(rendered("test", 1, size=32)[0]).save(mine / "door.png")
    return mine


def measured(*words: str) -> dict[str, Any]:
    """What `lipdet eval` writes, but for what says whose it is, and times."""
    main(["eval", *words, "--json", "result.json", "--quiet"])
    result: dict[str, Any] = json.loads(Path("result.json").read_text())
    whose = "weights", "weights_hash", "seconds"
    return {key: value for key, value in result.items() if key not in whose}


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which a call ends."""
    with pytest.raises(SystemExit) as stop:
        main([*words, "--quiet"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error


@pytest.mark.slow
def test_a_module_is_evaluated_and_attacked_as_the_detector_that_it_wraps(mine: Path) -> None:
    attack = ["--epsilon", "0.25", "--attack", "pgd", "--steps", "2", "--objective", "multibox"]
    # Oracle: the same network as lipdet's own, whose decoding and losses the module calls.
    for options in (attack, [*attack[:-1], "localisation"]):
        words = ["--data", "rendered:3", *options]
        assert measured("mine:Wrapped", *words) == measured("naive", *words)
    picture = Image.fromarray(rendered("test", 0)[0])
    picture.save("door.png")
    for name in ("mine:Wrapped", "naive"):
        crop = ["--crop", f"0,0,{picture.width},{picture.height}"]
        main(["attack", name, "door.png", *crop, *attack, "--out", name[:5], "--quiet"])
    [wrapped], [naive] = (
        json.loads(Path(folder, "attack.json").read_text())["pictures"][0]["regions"]
        for folder in ("mine:", "naive")
    )
    assert naive["clean"], "nothing is shown, so nothing is attacked"
    for key in ("clean", "attacked"):
        ours, theirs = (one[key] for one in (naive, wrapped))
        assert [one["label"] for one in theirs] == [one["label"] for one in ours]
        for one, other in zip(ours, theirs, strict=True):
            assert other["score"] == pytest.approx(one["score"], abs=1e-4)
            assert other["box"] == pytest.approx(one["box"], abs=1e-2)
    assert Path("mine:", "door-1.png").is_file()


@pytest.mark.slow
def test_what_a_module_detects_can_be_attacked_and_hurts_more_than_its_loss(mine: Path) -> None:
    attack = ["--data", "rendered:4", "--epsilon", "0.5", "--attack", "pgd", "--steps", "20"]
    detected = measured("mine:Wrapped", *attack)["attacked"][0]
    loss = measured("mine:Wrapped", *attack, "--objective", "multibox")["attacked"][0]
    assert set(detected["objectives"]) == set(UNNAMED)
    # Measured on a trained SSD of torchvision: 16 points (docs/attacks.md).
    assert detected["ap50"] < loss["ap50"] - 0.05


@pytest.mark.slow
def test_ssdlite_is_evaluated_and_attacked(mine: Path) -> None:
    options = ["--data", "rendered:2", "--epsilon", "0", "1", "--attack", "worst", "--steps", "1"]
    found, ours = measured("mine:ssdlite", *options), measured("naive", *options)
    assert found["data"]["hash"] == ours["data"]["hash"]
    # The fields of docs/json.md are those of lipdet's detectors.
    assert set(found) == set(ours)
    for entry, own in zip(found["attacked"], ours["attacked"], strict=True):
        assert set(entry) == set(own)
        assert set(entry["objectives"]) == set(WORST)
        # By construction.
        every = [entry["composite"], *entry["objectives"].values()]
        assert all(entry[key] == min(one[key] for one in every) for key in ("ap50", "recall"))
    nothing, _ = found["attacked"]
    # A radius of 0 changes nothing.
    assert nothing["ap50"] == found["clean"]["ap50"]
    fates = nothing["consistency"]
    assert fates["kept"] == fates["shown"] > 0

    Image.fromarray(rendered("test", 0)[0]).save("door.png")
    attack = ["--epsilon", "1", "--steps", "1", "--out", "attacked", "--quiet"]
    main(["attack", "mine:ssdlite", "door.png", *attack])
    written = json.loads(Path("attacked", "attack.json").read_text())
    [[square]] = [one["regions"] for one in written["pictures"]]
    assert 0 < square["distance"]["l2"] <= 1 + 1e-5
    # It has no class names: its own numbers stand for them.
    assert {one["label"] for one in square["clean"]} <= set(map(str, range(1, 11)))


@pytest.mark.slow
@pytest.mark.usefixtures("proven_once")
def test_an_ssd_of_ones_own_is_certified_like_the_same_from_a_file(own: Path) -> None:
    attack = ["--epsilon", "0.02", "--attack", "pgd", "--steps", "1", "--certify"]
    words = ["--data", "rendered:2", *attack]
    # Oracle: the same network, built by lipdet from its file.
    found, from_file = measured("mine:same", *words), measured("lipschitz.safetensors", *words)
    assert found == from_file
    look = ["door.png", "--crop", "0,0,32,32", "--quiet"]
    for verb, file in (("certify", "certificates.json"), ("detect", "detections.json")):
        for detector, out in (("mine:same", "mine"), ("lipschitz.safetensors", "theirs")):
            main([verb, detector, *look, "--out", out])
        mine, theirs = (json.loads(Path(out, file).read_text()) for out in ("mine", "theirs"))
        assert mine["pictures"] == theirs["pictures"]
        [picture] = mine["pictures"]
        found = picture["regions"][0]["detections"] if verb == "certify" else picture["detections"]
        assert any(one["radius"] > 0 for one in found), "nothing is certified, nothing compared"


def test_what_a_module_cannot_do_is_one_sentence(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "rendered:1"]
    for words in (
        ["certify", "mine:Wrapped", "door.png", "--out", "found"],
        ["detect", "mine:Wrapped", "door.png", "--out", "found"],
        ["export", "mine:Wrapped", "--out", "mine.onnx"],
        ["check-attack", "mine:Wrapped", *data],
        ["lipschitz", "mine:Wrapped"],
    ):
        error = refusal(capsys, *words)
        for part in ("mine.Wrapped and no lipdet.detector.SSD", "or use eval, attack, report"):
            assert part in error
    for words in (["--certify", "--epsilon", "0.1"], ["--float64"]):
        error = refusal(capsys, "eval", "mine:Wrapped", *data, *words)
        assert "leave out --certify and --float64, or build" in error
    for verb in (["eval"], ["report", "--out", "page.html"]):
        error = refusal(capsys, *verb, "mine:Wrapped", *data, "--state", "state")
        assert "leave out --state" in error


def test_an_ssd_of_ones_own_is_not_saved_without_its_code(own: Path) -> None:
    detector = Detector.from_pretrained("mine:same")
    assert detector.framing.canvas == (32, 32)
    with pytest.raises(InputError, match="state_dict"):
        detector.save_pretrained("shared")
    assert not Path("shared").exists()


class Protocol(nn.Module):
    """Answers what it is told to."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: list[torch.Tensor]) -> list[object]:
        return [self.answer for _ in images]


def foreign(answer: object, classes: int) -> ForeignDetector:
    return ForeignDetector("own", Protocol(answer), 8, tuple("abc"[:classes]))


def test_what_breaks_the_protocol_is_one_sentence(mine: Path) -> None:
    for spec, words in (
        ("nowhere:build", "cannot be imported"),
        ("mine:missing", "cannot be imported"),
        ("mine:nothing", "returned str"),
        ("mine:OneBox", "without arguments .*threshold"),
        ("mine", "package.module:callable, or one of"),
    ):
        with pytest.raises(InputError, match=words):
            load_any(spec)
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match="a dictionary with the tensors"):
        foreign(torch.zeros(3), 2).detect(images, AP_SELECTION)
    found = {
        "boxes": torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.25, 0.75]),
    }
    with pytest.raises(InputError, match="labels from 1 to 2; with 1 classes"):
        foreign(found, 1).detect(images, AP_SELECTION)
    # Labels count from 1 there and from 0 here, and the best comes first.
    [one] = foreign(found, 2).detect(images, AP_SELECTION)
    assert one["labels"].tolist() == [1, 0]
    assert one["scores"].tolist() == [0.75, 0.25]
    with pytest.raises(InputError, match="does not accept inputs"):
        audit_module(nn.Sequential(nn.Conv2d(4, 1, 1)), Canvas(8, 8))


class Returning(nn.Module):
    """Finds one object of class 1, as given."""

    def __init__(self, box: list[float], score: float) -> None:
        super().__init__()
        self.found = {
            "boxes": torch.tensor([box]),
            "labels": torch.tensor([1]),
            "scores": torch.tensor([score]),
        }

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self.found for _ in images]


@pytest.mark.parametrize(
    ("box", "score", "words"),
    [
        ([1.0, 1, 9, 9], float("nan"), "scores that are not in"),
        ([1.0, 1, 9, 9], 3.0, "scores that are not in"),
        ([1.0, 1, float("inf"), 9], 0.5, "infinite or turned round"),
        ([9.0, 1, 1, 9], 0.5, "infinite or turned round"),
        ([0.1, 0.1, 0.5, 0.9], 0.5, "in pixels of the picture"),
    ],
)
def test_what_a_module_returns_against_the_contract_is_named(
    box: list[float], score: float, words: str
) -> None:
    """Scores NaN or above 1, boxes infinite, flipped or shares."""
    detector = ForeignDetector.of("mine", Returning(box, score))
    with pytest.raises(InputError, match=words):
        detector.detect(torch.zeros(1, 3, 16, 16), AP_SELECTION)


def test_the_size_of_a_module_is_one_or_two_whole_numbers() -> None:
    module: Any = Protocol({})
    for size in (np.int64(24), (24, 24), np.array([24, 24])):
        module.image_size = size
        assert ForeignDetector.of("mine", module).framing.canvas == (24, 24)
    for wrong in ("74", 74.5, (1, 2, 3), None, 0, (24, -1)):
        module.image_size = wrong
        with pytest.raises(InputError, match="image_size of mine must be a whole number, or"):
            ForeignDetector.of("mine", module)


@pytest.mark.parametrize("place", ["def build():\n    ", ""])
def test_errors_of_files_in_own_code_are_said_to_come_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Weights that cannot be downloaded, in an import or a call."""
    name = f"offline{len(place)}"
    text = f"from urllib.error import URLError\n{place}raise URLError('no network')\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"{name}:build, your code, failed with: .*no network"):
        load_any(f"{name}:build")


ONE = {"boxes": torch.ones(1, 4), "labels": torch.ones(1), "scores": torch.full((1,), 0.5)}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"boxes": torch.ones(2, 4)}, r"shapes \(2, 4\), \(1,\), \(1,\); of N detections"),
        ({"boxes": torch.ones(0, 4)}, "shapes"),
        ({"boxes": torch.ones(1, 5)}, "shapes"),
        ({"scores": torch.ones(2)}, "shapes"),
        ({"labels": torch.ones(1, 1)}, "shapes"),
        ({"labels": torch.tensor(1)}, "shapes"),
        ({key: torch.zeros(0) for key in ONE}, "shapes"),
        ({"boxes": [[1, 1, 1, 1]]}, "not {'boxes': 'list', 'labels': 'Tensor'"),
        ({"labels": torch.tensor([1.5])}, "the label 1.5, no whole number"),
        ({"labels": torch.tensor([float("nan")])}, "the label nan, no whole number"),
    ],
)
def test_what_does_not_belong_together_is_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"mine .*{words}"):
        ForeignDetector.of("mine", Protocol({**ONE, **wrong})).detect(PICTURE, AP_SELECTION)


class Doing(nn.Module):
    """Does what it is told to with its images."""

    def __init__(self, do: Callable[..., object]) -> None:
        super().__init__()
        self.do = do
        self.weight = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, images: list[torch.Tensor], *targets: object) -> object:
        return self.do(self, images, *targets)


PICTURE = torch.full((1, 3, 16, 16), 0.5)
TARGET = Target(boxes=torch.tensor([[1.0, 1, 9, 9]]), labels=torch.tensor([1]))


@pytest.mark.parametrize(
    ("answer", "words"), [(ONE, "not {'boxes'"), ([], "list of 0"), ((ONE, ONE), "a tuple of 2")]
)
def test_the_results_are_a_list_with_one_for_each_picture(answer: object, words: str) -> None:
    detector = ForeignDetector.of("mine", Doing(lambda *_: answer))
    with pytest.raises(InputError, match=f"mine must return a list .*{words}"):
        detector.detect(PICTURE, AP_SELECTION)


def _in_place(self: nn.Module, images: list[torch.Tensor]) -> object:
    """Normalise as much code does, with labels as it has them."""
    score = images[0].sub_(0.25).mul(self.weight.view(3, 1, 1)).mean().sigmoid()
    return [{"boxes": TARGET["boxes"], "labels": torch.ones(1), "scores": score[None]}]


def test_images_may_be_changed_and_labels_be_floats() -> None:
    module, images = Doing(_in_place), PICTURE.clone()
    [found] = ForeignDetector.of("mine", module).detect(images, AP_SELECTION)
    assert found["labels"].dtype == torch.int64
    for objective in ("demote", "vanish"):
        settings = AttackSettings(0.5, objective, steps=20)
        attacked = attack_torchvision(module, images, [TARGET], settings)
        # By hand: all weights are alike and positive, so the worst is to darken all alike.
        assert (images - attacked).sum() >= 0.99 * 0.5 * images.numel() ** 0.5
    assert torch.equal(images, PICTURE)


def test_shares_are_refused_over_the_border_too_and_tiny_boxes_are_not() -> None:
    def boxes(*rows: list[float]) -> object:
        found = torch.tensor(rows).view(-1, 1, 4)
        return lambda _, images: [{**ONE, "boxes": found[int(images[0].max())]}]

    speck, other = [-0.05, 0.1, 1.02, 0.7], [1.0, 1, 9, 9]
    black, white = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    with pytest.raises(InputError, match=r"mine returned .*in pixels of the picture"):
        ForeignDetector.of("mine", Doing(boxes(speck))).detect(black, AP_SELECTION)
    # Another picture shows that these are pixels, and so does one seen before.
    detector = ForeignDetector.of("mine", Doing(boxes(speck, other)))
    assert len(detector.detect(torch.cat([black, white]), AP_SELECTION)) == 2
    assert len(detector.detect(black, AP_SELECTION)) == 1


@pytest.mark.parametrize("names", [list(range(10)), {0: "cat"}, {"cat": 0}, "cat", 3])
def test_class_names_are_strings(names: object) -> None:
    module: Any = Protocol({})
    module.class_names = names
    with pytest.raises(InputError, match=r"class_names of mine must be a list of strings, not"):
        ForeignDetector.of("mine", module)


def test_half_precision_is_named() -> None:
    def detect(self: nn.Module, images: list[torch.Tensor]) -> object:
        return nn.functional.conv2d(images[0][None], self.weight.view(1, 3, 1, 1))

    with pytest.raises(InputError, match=r"mine has weights in torch.float16 .*module.float\(\)"):
        ForeignDetector.of("mine", Doing(detect).half()).detect(PICTURE, AP_SELECTION)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (
            lambda _, images, targets: [ONE],
            "it must return a dictionary of tensors, not a list of 1",
        ),
        (lambda _, images, targets: {}, "it must return a dictionary of tensors, not {}"),
        (lambda _, images: [ONE], "it fails with pictures and their boxes and labels .*positional"),
        (
            lambda _, images, targets: {"loss": torch.ones(())},
            "its losses cannot be differentiated",
        ),
        (
            lambda _, images, targets: [][0],
            "it fails with pictures and their boxes and labels .*range",
        ),
        (lambda self, images, targets: self.none, "it fails .*none"),
    ],
)
def test_without_losses_the_reason_is_in_the_words_of_the_protocol(
    losses: Callable[..., object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = ForeignDetector.of("mine", Doing(losses))
    assert not detector.can_raise("multibox")
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(f"mine has no losses to raise: in training mode {words}", said)


def test_losses_by_other_names_are_said() -> None:
    module = Doing(lambda _, images, targets: {"loss": images[0].sum()})
    settings = AttackSettings(0.5, "localisation", steps=1)
    with pytest.raises(InputError, match=r"tensors with regression or box_reg in their names, not"):
        attack_torchvision(module, PICTURE, [TARGET], settings)


def test_an_objective_of_raw_outputs_is_refused() -> None:
    detector = foreign({}, 1)
    with pytest.raises(InputError, match=r"heatmap reads the raw outputs.*demote.*multibox"):
        detector.raising("heatmap").__enter__()
