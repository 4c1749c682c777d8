"""Evaluating a detector on a pack, with detectors whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipdet.attack import AttackSettings
from lipdet.boxes import AP_SELECTION, BoxCoding, SoftmaxScores
from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.config import DIGIT_CROP, DetectorConfig
from lipdet.detector import SSD, build_detector
from lipdet.detector import forward as forward_module
from lipdet.detector.forward import Network, detect_images, forward
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.chunks import State
from lipdet.evaluate.run import detect_pack, evaluate
from lipdet.images.pack import Pack, PackedPicture, write_pack
from lipdet.results import AveragePrecision
from lipdet.types import RawOutput

CONFIG = DetectorConfig()
BOX = np.array([[20, 20, 44, 52]], np.float32)


class Reader(SSD):
    """Finds one box, of the class that the first pixel's red value names; none at 255."""

    def __init__(self) -> None:
        boxes = torch.tensor([[32.0, 36, 24, 32]])
        super().__init__(CONFIG, nn.Identity(), [], boxes, BoxCoding(), SoftmaxScores())

    def forward(self, images: Tensor) -> RawOutput:
        labels = (images[:, 0, 0, 0] * 255).round().long()
        logits = torch.full((len(images), 1, 11), -9.0)
        index = torch.where(labels == 255, 0, labels + 1)
        logits[torch.arange(len(images)), 0, index] = 9
        return RawOutput(logits, torch.zeros(len(images), 1, 4))


def pack_of(folder: Path, shown: list[int], true: list[int | None], **other: Any) -> Pack:
    pictures = [
        PackedPicture(
            np.full((74, 74, 3), pixel, np.uint8),
            BOX if label is not None else BOX[:0],
            np.array([label] if label is not None else [], np.int64),
            index,
        )
        for index, (pixel, label) in enumerate(zip(shown, true, strict=True))
    ]
    settings = {"class_names": CONFIG.class_names, "provenance": {"name": "by hand"}, **other}
    return write_pack(folder, pictures, len(pictures), DIGIT_CROP, **settings)


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    # 130 pictures are three batches; each fifth holds nothing and nothing is found there.
    shown = [255 if index % 5 == 4 else index % 10 for index in range(130)]
    return pack_of(tmp_path / "pack", shown, [None if k == 255 else k for k in shown])


def ap_of(detector: Network, pack: Pack) -> AveragePrecision:
    found = detect_pack(detector, pack, range(len(pack)), AP_SELECTION)
    targets = [pack.target(index) for index in range(len(pack))]
    return average_precision(targets, found, pack.class_names)


def test_a_detector_that_is_always_right(pack: Pack) -> None:
    measured = ap_of(Reader(), pack)
    assert measured["ap"] == pytest.approx(1)
    # 4 and 9 occur at each fifth picture only, which holds nothing.
    assert {name for name, entry in measured["per_class"].items() if entry["ap"] is None} == {
        "4",
        "9",
    }


def test_detections_come_in_the_order_asked_for(pack: Pack) -> None:
    found = detect_pack(Reader(), pack, [3, 4, 129, 0, 125], AP_SELECTION)
    assert [one["labels"].tolist() for one in found] == [[3], [], [], [0], [5]]
    torch.testing.assert_close(found[0]["boxes"], torch.from_numpy(BOX))
    assert detect_pack(Reader(), pack, [], AP_SELECTION) == []


@pytest.mark.parametrize("training", [True, False])
def test_detecting_uses_eval_mode_and_restores_the_mode(training: bool) -> None:
    detector = build_detector(CONFIG).train(training)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    detect_images(detector, torch.zeros(2, 3, 74, 74), AP_SELECTION)
    assert all(module.training is training for module in detector.modules())
    # Batch statistics would have moved in training mode.
    assert all(torch.equal(before[name], now) for name, now in detector.state_dict().items())


def test_evaluation_says_all_that_is_needed_to_repeat_it(pack: Pack) -> None:
    result = evaluate(LoadedDetector("reader", Reader(), {}), pack, seed=7)
    # The keys that docs/json.md lists.
    assert list(result) == [
        *("weights", "weights_hash", "parameters", "data", "seed", "versions", "device"),
        "seconds",
        *("clean", "attacked", "certified"),
    ]
    assert (result["weights"], result["seed"], result["parameters"]) == ("reader", 7, 0)
    assert result["data"] == {
        "name": "by hand",
        "hash": pack.hash,
        "canvas": [74, 74],
        "images": 130,
        "objects": 104,
        "skipped": 0,
    }
    assert result["clean"]["ap50"] == pytest.approx(1)
    assert (result["attacked"], result["certified"]) == ([], [])
    assert "torch" in result["versions"]


def test_other_classes_are_refused(tmp_path: Path) -> None:
    pack = pack_of(tmp_path / "pack", [0], [0], class_names=("cat", "dog"))
    with pytest.raises(InputError, match="has the classes cat, dog; cat, dog is none of 0, 1"):
        evaluate(LoadedDetector("reader", Reader(), {}), pack, seed=0)


def test_each_picture_passes_the_network_once_for_each_answer(house_numbers: Pack) -> None:
    loaded = load_detector("certified-small")
    pack, seen = house_numbers.head(3), []
    settings = AttackSettings(0.1, steps=2)
    loaded.detector.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    evaluate(loaded, pack, seed=0)
    assert sum(seen) == 3
    seen.clear()
    # Of an attack: what it starts from, each step, and what it ends with; then the clean pictures.
    evaluate(loaded, pack, seed=0, campaign=Campaign("pgd", (0.1,), settings, "demote"))
    assert sum(seen) == 3 * (1 + 1 + 2 + 1)


@pytest.mark.usefixtures("proven_once")
def test_certificates_and_clean_ap_share_a_pass(
    house_numbers: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, pack = load_detector("certified-small"), house_numbers.head(3)
    seen, state = [], State.of(tmp_path, loaded.detector)

    def counted(network: Network, images: Tensor) -> RawOutput:
        seen.append(len(images))
        return forward(network, images)

    # A hook would change the network, and nothing be certified. Rounding is measured elsewhere.
    monkeypatch.setattr(forward_module, "forward", counted)
    found = evaluate(loaded, pack, seed=0, certify=[0.1, 0.2], state=state)
    assert sum(seen) == 3
    assert evaluate(loaded, pack, seed=0)["clean"] == found["clean"]
    seen.clear()
    again = evaluate(loaded, pack, seed=0, certify=[0.1, 0.2], state=state)
    assert not seen
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_classes_are_matched_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same names in another order; some only, which is said."""
    shown: list[int | None] = [1, 2, 3, 2]
    plain = pack_of(tmp_path / "plain", [1, 2, 3, 2], shown)
    names = ("3", "1", "2")
    labels = [names.index(str(label)) for label in shown]
    other = pack_of(tmp_path / "other", [1, 2, 3, 2], labels, class_names=names)
    loaded = LoadedDetector("reader", Reader(), {})
    expected, found = (evaluate(loaded, pack, 0)["clean"] for pack in (plain, other))
    assert found == expected
    assert "does not have the classes 0, 4, 5, 6, 7, 8, 9" in " ".join(
        capsys.readouterr().err.split()
    )
    renamed = other.in_classes(CONFIG.class_names)
    assert renamed.hash != other.hash
    # The same numbers under other names are other objects.
    swapped = replace(other, meta={**other.meta, "class_names": list(other.class_names[::-1])})
    assert swapped.in_classes(CONFIG.class_names).hash not in (renamed.hash, other.hash)
