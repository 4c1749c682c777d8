"""A torchvision SSDLite with random weights through attack, audit and report."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lipdet.checkpoint import load_any
from lipdet.cli import main
from lipdet.errors import InputError
from lipdet.foreign.protocol import audit_module, detect

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "your-own-detector.md"
MINE = """
import torch
from torch import nn
from torchvision.models import detection


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
    return model


def nothing():
    return "no module"
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


def test_ssdlite_goes_through_attack_audit_and_report(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = ["--epsilon", "1", "--attack", "pgd", "--steps", "3", "--pictures", "1"]
    main(["report", "mine:ssdlite", "--data", "rendered:2", *attack, "--out", "page.html"])
    page = (mine / "page.html").read_text()
    stored = re.search(r'id="data">(.*)</script>', page, re.DOTALL)
    assert stored
    document = json.loads(stored[1].replace("\\u003c", "<"))
    [result] = document["results"]
    assert result["weights"] == "mine:ssdlite"
    assert result["data"]["images"] == 2
    assert result["certified"] == []
    [entry] = result["attacked"]
    assert (entry["epsilon"], entry["norm"], entry["steps"]) == (1.0, "l2", 3)
    # Every shown detection has exactly one fate.
    fates = entry["consistency"]
    assert fates["shown"] == fates["kept"] + fates["changed"] + fates["vanished"]
    for words in ("Nothing is certified here", "Hardswish", "has no Lipschitz bound"):
        assert words in page
    # The audit: MobileNetV3's gates and activations have no constant; its std normalisation has,
    # by hand 1/0.5 = 2 (this model's own transform).
    findings = document["audit"]["findings"]
    assert document["audit"]["bound"] is None
    missing = {one["kind"] for one in findings if one["factor"] is None}
    assert {"Hardswish", "Hardsigmoid", "mul"} <= missing
    [pixels] = [one for one in findings if one["kind"] == "truediv"]
    assert pixels["factor"] == pytest.approx(2.0)
    assert "pixels are scaled" in pixels["cause"]
    assert "mine:ssdlite" in capsys.readouterr().out


def test_the_audit_has_a_sentence_a_table_and_json(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "small.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.MaxPool2d(3, 2))\n"
    )
    main(["lipschitz", "--audit", "small:build", "--image_size", "9", "--json", "audit.json"])
    text = " ".join(capsys.readouterr().out.split())
    sys.modules.pop("small", None)
    assert "small:build: bound 2, the product of the factors below and 1 of layers" in text
    assert "windows at" in text
    written = json.loads((mine / "audit.json").read_text())
    # By hand: √(⌈3/2⌉²).
    assert (written["bound"], written["input_shape"]) == (pytest.approx(2.0), [3, 9, 9])
    assert [one["kind"] for one in written["findings"]] == ["MaxPool2d"]


class Protocol(nn.Module):
    """Answers what it is told to."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: list[torch.Tensor]) -> list[object]:
        return [self.answer for _ in images]


def test_what_breaks_the_protocol_is_one_sentence(mine: Path) -> None:
    for spec, words in (
        ("nowhere:build", "cannot be imported"),
        ("mine:missing", "cannot be imported"),
        ("mine:nothing", "returned str"),
        ("mine", "package.module:callable, or one of"),
    ):
        with pytest.raises(InputError, match=words):
            load_any(spec)
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match="a dictionary with the tensors"):
        detect(Protocol(torch.zeros(3)), images, 2)
    found = {
        "boxes": torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.25, 0.75]),
    }
    with pytest.raises(InputError, match="labels from 1 to 2; with 1 classes"):
        detect(Protocol(found), images, 1)
    # Labels count from 1 there and from 0 here, and the best comes first.
    [one] = detect(Protocol(found), images, 2)
    assert one["labels"].tolist() == [1, 0]
    assert one["scores"].tolist() == [0.75, 0.25]
    with pytest.raises(InputError, match="does not accept inputs"):
        audit_module(nn.Sequential(nn.Conv2d(4, 1, 1)), 8)


def test_the_example_of_the_documentation_works(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [example] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (mine / "mine.py").write_text(example)
    commands = [
        line.split()[1:]
        for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
        for line in block.splitlines()
        # The others take longer, and tests above and in tests/certificate do what they do.
        if "onebox" in line
    ]
    assert [words[0] for words in commands] == ["report", "lipschitz", "lipschitz"]
    for words in commands:
        main([word.replace("rendered:8", "rendered:2") for word in words])
    found = json.loads((mine / "audit.json").read_text())
    # By hand: 3×3 windows at stride 2.
    pools = [one["factor"] for one in found["findings"] if one["kind"] == "MaxPool2d"]
    assert pools == [pytest.approx(2.0)]
    page = (mine / "onebox.html").read_text()
    for words in ("Nothing is certified here", "DisjointMaxPool2d", "0.5"):
        assert words in page
    capsys.readouterr()
