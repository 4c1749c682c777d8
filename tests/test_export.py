"""Exported files: what they compute, what they say about themselves, what is refused.

The oracle of what they compute is the detector itself, in eager torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lipdet.boxes import DISPLAY_SELECTION, select_detections
from lipdet.certificate.constants.outputs import output_bounds
from lipdet.certificate.pixels import PixelBounds, bounds_of_pixels, margins_of
from lipdet.checkpoint import LoadedDetector, LoadedSegmenter, load_detector
from lipdet.commands import export
from lipdet.config import PRESETS, DetectorConfig, SegmenterConfig
from lipdet.detector import build_detector
from lipdet.errors import InputError
from lipdet.export.metadata import read_bounds
from lipdet.export.runtime import OnnxNetwork, OnnxSegmenter, load_onnx
from lipdet.export.torch_file import export_torch
from lipdet.export.verify import check, compare, compare_certificates, same_detections
from lipdet.images.crop import cut, full_region, out_of_region
from lipdet.images.pack import Pack
from lipdet.segmenter import build_segmenter
from lipdet.types import Canvas, RawOutput

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from lipdet.export import onnx_file  # noqa: E402
from lipdet.export.onnx_file import DETECTIONS, export_onnx  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("proven_once")]


@pytest.fixture(scope="module")
def images(house_numbers: Pack) -> Tensor:
    return house_numbers.pixels(range(40))


@pytest.fixture(scope="module")
def naive() -> LoadedDetector:
    return load_detector("naive")


@pytest.fixture(scope="module")
def lipschitz() -> LoadedDetector:
    """A small 1-Lipschitz detector with random weights that finds something, and own classes."""
    torch.manual_seed(0)
    # Of 3×3 cells, since filters that reach beyond a map of 4×4 have constants below 1.
    config = replace(
        PRESETS["certified-small"].detector,
        class_names=("gauge", "knob"),
        canvas=Canvas(32, 32),
        head_size=3,
    )
    detector = build_detector(config).eval()
    with torch.no_grad():
        for head in detector.heads:
            head.classification.bias.fill_(-0.2)
    return LoadedDetector("small", detector, {"figures": {"ap50": 0.5}})


@pytest.fixture(scope="module")
def noise() -> Tensor:
    """Pictures for the small detector."""
    return torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(naive: LoadedDetector, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The naive detector with detections, exported once for all tests."""
    path = tmp_path_factory.mktemp("model") / "naive.onnx"
    export_onnx(naive, path, images, detections=True)
    return path


@pytest.fixture(scope="module")
def small(
    lipschitz: LoadedDetector, noise: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    export_onnx(lipschitz, path, noise[:3])
    return path


def close(found: RawOutput, expected: RawOutput) -> None:
    """The bar: 1e-5, of the largest output where that is above 1."""
    for ours, theirs in zip(expected, found, strict=True):
        scale = max(1.0, float(ours.abs().max()))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def test_onnx_equals_torch(naive: LoadedDetector, model: Path, images: Tensor) -> None:
    network = OnnxNetwork(model.read_bytes())
    expected = naive.detector(images)
    close(network(images), expected)
    for batch in (1, 3):
        found = network(images[:batch])
        assert found.logits.shape == (batch, 1700, 11)
        close(found, RawOutput(*(output[:batch] for output in expected)))


@torch.no_grad()
def test_a_folded_lipschitz_detector_equals_torch(
    lipschitz: LoadedDetector, small: Path, noise: Tensor
) -> None:
    loaded = load_onnx(small)
    assert loaded.class_names == ("gauge", "knob")
    close(loaded(noise), lipschitz.detector(noise))
    # The constructed weights are gone: nothing but a feed-forward network is left.
    operators = {node.op_type for node in onnx.load(small).graph.node}
    moving = {"Pad", "SpaceToDepth", "Split", "Transpose", "Reshape", "Concat"}
    assert operators <= {"Conv", "Relu", "Add", "Sub", *moving}


def test_detections_of_the_model_are_those_of_lipdet(
    naive: LoadedDetector, model: Path, images: Tensor
) -> None:
    network = OnnxNetwork(model.read_bytes())
    boxes, labels, scores = network.run(images, DETECTIONS)
    assert (boxes.shape, labels.shape, scores.shape) == ((40, 20, 4), (40, 20), (40, 20))
    with torch.no_grad():
        expected = select_detections(
            naive.detector(images), naive.detector.decoder, DISPLAY_SELECTION
        )
    for index, one in enumerate(expected):
        count = len(one["labels"])
        assert labels[index].tolist() == [*one["labels"].tolist(), *[-1] * (20 - count)]
        torch.testing.assert_close(boxes[index, :count], one["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(scores[index, :count].double(), one["scores"], rtol=0, atol=1e-5)
        assert not boxes[index, count:].any()
        assert not scores[index, count:].any()
    assert sum(len(one["labels"]) for one in expected) > 40


def test_what_a_file_says_about_itself(model: Path) -> None:
    metadata = OnnxNetwork(model.read_bytes()).metadata
    assert metadata["detector"]["class_names"] == list("0123456789")
    assert metadata["input"]["shape"] == ["batch", 3, 74, 74]
    assert (metadata["input"]["range"], metadata["precision"]) == ([0, 1], "float32")
    assert metadata["selection"] == {"score_floor": 0.2, "top_k": 20}
    assert metadata["verified"]["pictures"] == metadata["verified"]["same_detections"] == 40
    assert metadata["verified"]["detections"] > 40
    # The exporter's notes would name this machine's files.
    assert str(Path(__file__).parents[1]).encode() not in model.read_bytes()


def test_the_constants_in_a_file(lipschitz: LoadedDetector, small: Path) -> None:
    metadata = OnnxNetwork(small.read_bytes()).metadata
    assert metadata["figures"] == {"ap50": 0.5}
    # Oracle: the bounds of the detector itself.
    bounds = output_bounds(lipschitz.detector)
    assert metadata["certificate"]["joint"] == bounds.joint
    assert [entry["features"] for entry in metadata["certificate"]["maps"]] == [*bounds.features]
    largest = max(entry["largest_logit"] for entry in metadata["certificate"]["maps"])
    assert largest == float(bounds.logits.max())


def test_int8(
    lipschitz: LoadedDetector,
    small: Path,
    noise: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The float32 model is there already.
    monkeypatch.setattr(onnx_file, "onnx_model", lambda *_: onnx.load(small))
    out = tmp_path / "small.onnx"
    metadata = export_onnx(lipschitz, out, noise[:8], calibration=noise[8:])
    assert metadata["precision"] == "int8"
    assert metadata["int8"]["calibrated_on"] == 32
    for checked in ("certificate", "verified"):
        assert metadata[checked]["covers"].startswith("the float32 network")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in onnx.load(out).graph.node}
    # Oracle: the difference, measured once more in one batch.
    network = OnnxNetwork(out.read_bytes())
    assert network.metadata == metadata
    with torch.no_grad():
        difference = (network(noise[:8]).logits - lipschitz.detector(noise[:8]).logits).abs()
    stated = metadata["int8"]["logits"]["largest_difference"]
    assert float(difference.max()) == pytest.approx(stated, rel=1e-3)
    # Rounding to a 256th of ranges of a few units, in two dozen layers: not nothing, not much.
    assert 1e-4 < stated < 1


def test_it_is_said_how_many_detections_were_compared(
    naive: LoadedDetector, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").touch()
    # Where all logits are equal, no class has a score above 0.2.
    raw, none = (torch.zeros(2, 1700, 11), torch.zeros(2, 1700, 4)), torch.full((2, 20), -1)
    outputs = (*raw, torch.zeros(2, 20, 4), none, torch.zeros(2, 20))
    found = same_detections(outputs, naive.detector.decoder, DISPLAY_SELECTION)
    assert found == {"same_detections": 2, "detections": 0}
    for count in (0, 7):
        verified = {"pictures": 2, **found, "detections": count}
        export._print(tmp_path / "x.onnx", {"verified": verified})
        told = capsys.readouterr()
        assert ("on 2 of them, 7 detections in all" in " ".join(told.out.split())) == (count == 7)
        assert ("so no detections were compared" in " ".join(told.err.split())) == (count == 0)


def test_torch_export(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = build_detector(DetectorConfig("sll-spectral", width=8)).eval()
    out = tmp_path / "small.pt2"
    metadata = export_torch(LoadedDetector("small", detector, {}), out, images[:9])
    stored = {"lipdet.json": ""}
    network = torch.export.load(out, extra_files=stored).module()
    assert json.loads(stored["lipdet.json"]) == metadata
    with torch.no_grad():
        for batch in (1, 5):
            expected = detector(images[:batch])
            close(RawOutput(*network(images[:batch])), expected)
    assert str(Path(__file__).parents[1]).encode() not in out.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt2"]


def test_a_wrong_network_is_refused(naive: LoadedDetector, images: Tensor) -> None:
    def shifted(batch: Tensor) -> RawOutput:
        raw: RawOutput = naive.detector(batch)
        return RawOutput(raw.logits, raw.offsets + 2e-4)

    few = images[:9]
    check(compare(naive.detector, naive.detector, few))
    with pytest.raises(InputError, match=r"offsets differ by up to 0\.0002 .* nothing"):
        check(compare(naive.detector, shifted, few))
    nothing = compare(
        naive.detector, lambda x: RawOutput(*(o * torch.nan for o in shifted(x))), few
    )
    with pytest.raises(InputError, match="logits differ"):
        check(nothing)


def test_certificates_of_the_exported_outputs(
    lipschitz: LoadedDetector, small: Path, noise: Tensor
) -> None:
    """Random weights, but constants of 1: detections are certified from either's outputs."""
    network, detector, images = OnnxNetwork(small.read_bytes()), lipschitz.detector, noise[:3]
    [maps] = network.metadata["certificate"]["maps"]
    assert maps["largest_logit"] == pytest.approx(1, abs=1e-4)
    found = compare_certificates(detector, network, images, epsilon=0.01)
    assert found is not None
    assert found["agree"] == found["detections"] > found["certified"] > 0
    # Outputs that are off by more than certificates allow are noticed.
    other = compare_certificates(
        detector, lambda x: RawOutput(network(x).logits - 3, network(x).offsets), images, 0.01
    )
    assert other is not None
    assert other["agree"] == other["detections"] - found["certified"]


# Before the scripts of docs/export.md: importing torch or lipdet fails.
BLOCKED = 'import sys; sys.modules["torch"] = sys.modules["lipdet"] = None\n'


def script_of_the_page(name: str) -> str:
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    [script] = re.findall(rf"```python\n(# {name}.*?)```", page, re.DOTALL)
    return str(script)


def segmenter(architecture: str) -> LoadedSegmenter:
    """Of three classes with random filters, on a canvas that its stride does not divide."""
    torch.manual_seed(0)
    names = ("a", "b", "c")
    config = SegmenterConfig(architecture, names, Canvas(30, 38))
    built = build_segmenter(config).eval()
    with torch.no_grad():
        for weight in built.head.parameters():
            weight.normal_()
    return LoadedSegmenter("small", built, {})


def test_radii_are_computed_from_an_exported_segmenter_alone(tmp_path: Path) -> None:
    loaded, canvas = segmenter("orthogonal-segmenter"), Canvas(30, 38)
    images = torch.rand(9, 3, *canvas, generator=torch.Generator().manual_seed(0))
    out = tmp_path / "small.onnx"
    metadata = export_onnx(loaded, out, images)
    # The certificates of the file are those of the segmenter, with more room for rounding.
    bounds, known = bounds_of_pixels(loaded.segmenter, images[:8]), read_bounds(metadata)
    assert isinstance(known, PixelBounds)
    assert torch.equal(known.pairwise, bounds.pairwise)
    assert (known.joint, known.contrasts) == (bounds.joint, bounds.contrasts)
    off = metadata["verified"]["logits"]["largest_difference"]
    assert known.rounding == pytest.approx(bounds.rounding + off)
    certified = metadata["verified"]["certificates"]
    assert 0 < certified["certified"] < certified["pixels"] == 9 * 30 * 38
    assert certified["agree"] >= certified["pixels"] - 1
    # The page's own script, on its own; the oracle is the certificate in torch.
    # A picture of another shape is letter-boxed.
    numbers = np.random.default_rng(0).integers(0, 256, (30, 61, 3), dtype=np.uint8)
    picture = Image.fromarray(numbers)
    picture.save(tmp_path / "p.png")
    pixels = torch.tensor(cut(picture, full_region(61, 30, canvas), canvas))
    script = script_of_the_page("radii.py") + "np.save(sys.argv[3], radii)\n"
    words = [sys.executable, "-c", BLOCKED + script, str(out), str(tmp_path / "p.png")]
    done = subprocess.run([*words, str(tmp_path / "r.npy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "keep their class" in done.stdout
    with torch.no_grad():
        [logits] = loaded.segmenter(pixels.permute(2, 0, 1)[None].float() / 255)
    expected = margins_of(logits, loaded.segmenter, known).radius
    np.testing.assert_allclose(np.load(tmp_path / "r.npy"), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"lipdet exported \(it is of a segmenter"):
        load_onnx(out)
    with pytest.raises(InputError, match="leave out --detections"):
        export_onnx(loaded, out, images, detections=True)


def test_an_ordinary_segmenter_is_exported_without_certificates(tmp_path: Path) -> None:
    loaded = segmenter("plain-segmenter")
    images = torch.rand(9, 3, 30, 38, generator=torch.Generator().manual_seed(0))
    metadata = export_torch(loaded, tmp_path / "plain.pt2", images)
    assert "BatchNorm2d, which has no bound" in metadata["certificate"]["unknown"]
    assert metadata["verified"]["certificates"] is None
    network = torch.export.load(tmp_path / "plain.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(network(images), loaded.segmenter(images))
    metadata = export_onnx(loaded, tmp_path / "plain.onnx", images)
    model = OnnxSegmenter((tmp_path / "plain.onnx").read_bytes())
    assert model.metadata == metadata
    torch.testing.assert_close(model(images), loaded.segmenter(images), rtol=0, atol=1e-5)


def test_a_model_runs_without_torch(
    naive: LoadedDetector, model: Path, house_numbers: Pack, images: Tensor, tmp_path: Path
) -> None:
    Image.fromarray(np.asarray(house_numbers.images[3])).save(tmp_path / "p.png")
    script = script_of_the_page("use.py")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + script, str(model), str(tmp_path / "p.png")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        raw = naive.detector(images[3:4])
    [expected] = select_detections(raw, naive.detector.decoder, DISPLAY_SELECTION)
    found = [line.split()[0] for line in done.stdout.splitlines()]
    assert found == [str(label) for label in expected["labels"].tolist()]


def test_a_wide_picture_is_letter_boxed_as_lipdet_does(
    naive: LoadedDetector, model: Path, house_numbers: Pack, tmp_path: Path
) -> None:
    number = np.asarray(house_numbers.images[3])
    wide = Image.fromarray(np.pad(number, ((0, 0), (20, 21), (0, 0)), "edge"))
    wide.save(tmp_path / "p.png")
    words = [BLOCKED + script_of_the_page("use.py"), str(model), str(tmp_path / "p.png")]
    done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    canvas = naive.detector.config.canvas
    region = full_region(*wide.size, canvas)
    pixels = torch.tensor(cut(wide, region, canvas)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        raw = naive.detector(pixels)
    [expected] = select_detections(raw, naive.detector.decoder, DISPLAY_SELECTION)
    found = [json.loads(line.split(maxsplit=2)[2]) for line in done.stdout.splitlines()]
    assert found
    places = out_of_region(expected["boxes"].numpy(), region, canvas)
    np.testing.assert_allclose(found, places, atol=0.1)


def test_bad_models_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.onnx: no such file"):
        load_onnx(tmp_path / "no.onnx")
    file = tmp_path / "x.onnx"
    content = model.read_bytes()
    stranger: Any = onnx.load(model)
    del stranger.metadata_props[:]
    for bad in (b"", b"text", content[: len(content) // 2], stranger.SerializeToString()):
        file.write_bytes(bad)
        with pytest.raises(
            InputError, match=r"x\.onnx is no detector that lipdet exported"
        ) as error:
            load_onnx(file)
        assert "\n" not in str(error.value)
