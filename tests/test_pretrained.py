"""`lipdet.Detector`: what it takes, one picture or several, and what a threshold means."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from benchmarks.attack_the_certificate import gradient_source
from lipdet import Detector
from lipdet.boxes import DISPLAY_SELECTION, select_detections
from lipdet.checkpoint import LoadedDetector, save_detector
from lipdet.cli import main
from lipdet.config import PRESETS
from lipdet.detector import SSD, build_detector
from lipdet.errors import InputError
from lipdet.images.render import rendered
from lipdet.reading import Detection, shown_above
from lipdet.reading.search import one_per_place
from lipdet.types import Canvas

CANVAS = Canvas(40, 72)
# Some of what the small detector finds in noise has a higher score, some has not.
SCORE, LOWER_SCORE = 0.9, 0.2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, small and fully 1-Lipschitz, of whole pictures; it finds something everywhere."""
    small = PRESETS["certified-small"].detector
    config = replace(small, canvas=CANVAS, whole=True, head_size=3)
    torch.manual_seed(0)
    network = build_detector(config)
    nn.init.constant_(network.heads[0].classification.bias, -1.2)
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_detector(file, network, config, {"training": {}})
    return file


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return Detector.from_pretrained(weights)


def noise(seed: int, height: int = CANVAS.height, width: int = CANVAS.width) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(108, 148, (height, width, 3), np.uint8)


def same(found: list[Detection], expected: list[Detection]) -> bool:
    """Whether they are the same up to the rounding of another batch."""
    assert [one.label for one in found] == [one.label for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.box == pytest.approx(other.box, abs=1e-3)
        assert one.score == pytest.approx(other.score, abs=1e-5)
    return True


def test_a_picture_is_the_same_whatever_holds_it(detector: Detector, tmp_path: Path) -> None:
    pixels = noise(0)
    file, picture = tmp_path / "noise.png", Image.fromarray(pixels)
    picture.save(file)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    # Oracle: the network itself on these pixels, which fill its canvas.
    [raw] = select_detections(
        detector.network(tensor[None]), detector.network.decoder, DISPLAY_SELECTION
    )
    shown = one_per_place(raw)
    expected = [
        Detection(detector.class_names[label], score, tuple(box))
        for label, score, box in zip(
            shown["labels"].tolist(), shown["scores"].tolist(), shown["boxes"].tolist(), strict=True
        )
    ]
    assert len(expected) > 3
    for given in (file, str(file), picture, pixels, tensor, tensor.double().requires_grad_()):
        assert same(detector.detect(given), expected)
    grey, thin = Image.fromarray(pixels[..., 0]), np.asfortranarray(pixels)
    assert same(detector.detect(grey), detector.detect(np.stack([pixels[..., 0]] * 3, axis=2)))
    assert same(detector.detect(thin), expected)


@pytest.mark.slow
def test_several_pictures_are_read_as_each_alone(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipdet.pretrained.BATCH_SIZE", 2)
    pictures = [noise(seed, 30 + 20 * seed, 90 - 10 * seed) for seed in range(5)]
    several = detector.detect(pictures)
    assert len(several) == 5
    assert all(
        same(found, detector.detect(one)) for found, one in zip(several, pictures, strict=True)
    )
    certified = detector.certify(tuple(pictures[:3]), crop=(5, 5, 30, 20))
    for found, picture in zip(certified, pictures, strict=False):
        alone = detector.certify(picture, crop=(5, 5, 30, 20))
        assert same(found, alone)
        assert [one.radius for one in found] == pytest.approx([x.radius for x in alone], abs=2e-3)
    assert any(one.radius for found in certified for one in found)
    assert detector.detect([]) == detector.certify([]) == []


def test_a_threshold_leaves_what_is_above_it(detector: Detector) -> None:
    picture = noise(1)
    every = detector.detect(picture)
    # Oracle: NMS goes from the best down, so a lower floor changes nothing above a higher one.
    above = [one for one in every if one.score > SCORE]
    assert 0 < len(above) < len(every)
    assert detector.detect(picture, score=SCORE) == above
    assert len(detector.detect(picture, score=0.01)) >= len(every)


def lowered(network: SSD, image: Tensor, one: Detection, epsilon: float) -> Tensor:
    """Change an image by at most ε so that the scores on which a detection stands fall."""
    label = network.config.class_names.index(one.label)
    boxes = network.decoder.boxes(network(image[None]).offsets)[0]
    near = box_iou(boxes, torch.tensor([one.box]))[:, 0] >= 0.5
    moved = image.clone()
    for _ in range(30):
        moved.requires_grad_()
        scores = network.scores.log_odds(network(moved[None]).logits)[0, near, label]
        [slope] = torch.autograd.grad(torch.logsumexp(5 * scores, 0), moved)
        change = moved.detach() - slope / slope.norm() * epsilon / 5 - image
        moved = image + change * min(1.0, epsilon / float(change.norm()))
    return moved


def remains(network: SSD, image: Tensor, one: Detection, score: float) -> bool:
    """Whether a detection of the class with half of the box is still found above a threshold."""
    with torch.no_grad():
        [found] = select_detections(
            network(image[None]), network.decoder, shown_above(network, score)
        )
    own = found["labels"] == network.config.class_names.index(one.label)
    return bool((box_iou(found["boxes"][own], torch.tensor([one.box])) >= 0.5).any())


@pytest.mark.slow
def test_what_is_certified_stays_above_the_threshold() -> None:
    trained = Detector.from_pretrained("certified-small")
    # Of this picture the threshold ends the radii, and no rival does.
    pixels, _, _ = rendered("test", 5)
    image = torch.tensor(pixels).permute(2, 0, 1) / 255
    whole = (0, 0, image.shape[2], image.shape[1])
    lower = {one.box: one for one in trained.certify(pixels, whole, score=LOWER_SCORE)}
    found = [one for one in trained.certify(pixels, whole, score=SCORE) if one.radius]
    assert found
    network = gradient_source(trained.network)
    for one in found:
        # Oracle: gradients. Within the radius they fail, within that of a lower threshold they
        # bring the detection below this one.
        own, of_lower = one.radius, lower[one.box].radius
        assert own is not None
        assert of_lower is not None
        assert remains(network, lowered(network, image, one, 0.99 * own), one, SCORE)
        assert own < of_lower
        assert not remains(network, lowered(network, image, one, of_lower), one, SCORE)


@pytest.mark.slow
def test_the_command_line_has_the_same_threshold(
    detector: Detector, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "noise.png"
    Image.fromarray(noise(3)).save(file)
    given = [str(weights), str(file), "--score", str(SCORE), "--out", str(tmp_path / "out")]
    main(["detect", *given])
    main(["certify", *given])
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert written["score"] == SCORE
    expected = detector.certify(file, score=SCORE)
    [entry] = written["pictures"]
    assert [one.radius for one in expected] == [row["radius"] for row in entry["detections"]]
    assert [one.score for one in expected] == [row["score"] for row in entry["detections"]]
    [entry] = json.loads((tmp_path / "out" / "certificates.json").read_text())["pictures"]
    assert min(row["score"] for one in entry["regions"] for row in one["detections"]) > SCORE


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (None, "NoneType"),
        (b"photo.png", "bytes"),
        (noise(0).astype(np.float32), "float32"),
        (noise(0)[..., 0], r"\(40, 72\) of uint8"),
        (noise(0)[:0], r"\(0, 72, 3\)"),
        (torch.zeros(40, 72, 3), r"\(40, 72, 3\)"),
        (torch.zeros(3, 40, 72, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 40, 72, device="meta"), "Tensor"),
        (torch.zeros(3, 40, 72).to_sparse(), "Tensor"),
        (torch.full((3, 40, 72), 1.5), "values from 1.5 to 1.5"),
        (torch.full((3, 40, 72), torch.nan), "values from nan"),
        (Image.new("F", (9, 9)), "32 bits"),
        (Image.new("RGB", (0, 9)), "0×9 pixels"),
        ([noise(0), 7], "int"),
    ],
)
def test_no_picture(detector: Detector, picture: Any, words: str) -> None:
    for method in (detector.detect, detector.certify):
        with pytest.raises(InputError, match=words) as told:
            method(picture)
        assert str(told.value).count(". ") == 0, "one sentence"


@pytest.mark.parametrize("epsilon", [None, "x", [0.1], -1.0, float("nan")])
def test_no_radius(detector: Detector, epsilon: Any) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(InputError, match=r"must be a (finite )?number"):
        detector.tally(picture, epsilon, (0, 0, 32, 32))


@pytest.mark.parametrize("score", [0, 1, -0.5, 2, float("nan"), "0.5"])
def test_no_threshold(detector: Detector, score: Any) -> None:
    for method in (detector.detect, detector.certify):
        with pytest.raises(InputError, match="between 0 and 1"):
            method(noise(0), score=score)


@pytest.mark.parametrize(
    "crop", [(0, 0, 74), "0,0,74,74", "0074", 5, (0, 0, "a", 9), (0, 0, 9, 9, 9)]
)
def test_no_crop(detector: Detector, crop: Any) -> None:
    for method in (detector.detect, detector.certify):
        with pytest.raises(InputError, match="A crop is four numbers"):
            method(noise(0), crop=crop)


def test_a_detector_says_what_it_is(detector: Detector, weights: Path) -> None:
    count = sum(parameter.numel() for parameter in detector.network.parameters())
    assert repr(detector) == (
        f"Detector({str(weights)!r}: orthogonal-ssd, classes 0, 1, 2, 3, 4, … (10), "
        f"whole pictures of 40x72 pixels, {count:,} parameters)"
    )
    own = Detector(LoadedDetector("mine:build", detector.network, {}))
    assert repr(own).startswith("Detector('mine:build': code of yours, classes 0, ")


def test_a_name_is_loaded_not_wrapped() -> None:
    wrapped: Any = "certified"
    with pytest.raises(InputError, match="not made of 'certified': names, files"):
        Detector(wrapped)


def test_a_detection_says_what_is_known_of_it() -> None:
    one = Detection("7", 0.98765, (1.0, 2.04, 30.0, 40.26))
    assert repr(one) == "Detection('7', score 0.988, box (1.0, 2.0, 30.0, 40.3))"
    known = replace(one, radius=0.25, reach=(0.0, 0.0, 32.0, 44.0))
    assert repr(known).endswith("), radius 0.250, reach (0.0, 0.0, 32.0, 44.0))")


def test_threads_share_a_network_in_training_mode() -> None:
    detector = Detector.from_pretrained("naive")
    picture = Image.fromarray(rendered("test", 1)[0])
    crop = (0, 0, *picture.size)
    expected = detector.detect(picture, crop)
    detector.network.train()
    before = {name: one.clone() for name, one in detector.network.named_buffers()}
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: detector.detect(picture, crop), range(30)))
    assert expected
    assert all(same(one, expected) for one in found)
    # Batch statistics would have been taken up by BatchNorm.
    assert all(torch.equal(before[name], one) for name, one in detector.network.named_buffers())
    assert all(module.training for module in detector.network.modules())


def test_a_detector_is_pickled_after_it_has_certified(detector: Detector) -> None:
    certified = detector.certify(noise(0))
    again = pickle.loads(pickle.dumps(detector))
    assert same(again.certify(noise(0)), certified)


@pytest.mark.parametrize("meanwhile", [torch.inference_mode, lambda: torch.device("meta")])
def test_weights_are_loaded_alike_in_any_mode(
    weights: Path, detector: Detector, meanwhile: Callable[[], AbstractContextManager[object]]
) -> None:
    with meanwhile():
        loaded = Detector.from_pretrained(weights)
    assert same(loaded.certify(noise(0)), detector.certify(noise(0)))


def test_weights_are_float32_whatever_the_default_is(weights: Path, detector: Detector) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert same(Detector.from_pretrained(weights).detect(noise(0)), detector.detect(noise(0)))
    finally:
        torch.set_default_dtype(torch.float32)
