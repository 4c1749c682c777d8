"""The public object, and detectors as folders: local ones and a Hub that a test plays."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lipdet import Detector
from lipdet.checkpoint import LoadedDetector, read_tensors, save_detector
from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.errors import InputError
from lipdet.evaluate.chunks import weights_hash
from lipdet.types import Canvas

pytestmark = pytest.mark.slow

FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """Untrained, small and fully 1-Lipschitz."""
    torch.manual_seed(0)
    config = replace(PRESETS["certified-small"].detector, canvas=Canvas(32, 32))
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_detector(file, build_detector(config), config, {"training": {"seed": 3}})
    return Detector.from_pretrained(file)


def result_file(folder: Path, detector: Detector) -> Path:
    """What `lipdet eval` writes of a detector, with made-up figures."""
    result = {
        "weights": "mine",
        "weights_hash": weights_hash(detector.network),
        "parameters": sum(one.numel() for one in detector.network.parameters()),
        "data": {
            "name": "made up",
            "canvas": [32, 32],
            "hash": "0123456789abcdef",
            "images": 5,
            "objects": 9,
        },
        "seed": 0,
        "versions": {},
        "clean": {"ap50": 0.5, "ap": 0.25, "per_class": {}},
        "attacked": [{"epsilon": 0.25, "norm": "l2", "ap50": 0.375, "consistency": {"shown": 1}}],
        "certified": [{"epsilon": 0.25, "ap50": 0.125, "per_class": {}}],
    }
    path = folder / "result.json"
    path.write_text(json.dumps(result))
    return path


def test_a_saved_detector_is_the_same_detector(detector: Detector, tmp_path: Path) -> None:
    detector.save_pretrained(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == FILES
    again = Detector.from_pretrained(tmp_path / "mine")
    before, after = detector.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert again.loaded.info == detector.loaded.info
    # The description is one and the same in both files.
    _, header = read_tensors(tmp_path / "mine" / "model.safetensors")
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == header


def test_the_card_states_units_and_figures(detector: Detector, tmp_path: Path) -> None:
    file = result_file(tmp_path, detector)
    parameters = json.loads(file.read_text())["parameters"]
    row = f"| mine | 32x32 | {parameters:,} | 50.0 | 37.5 | 12.5 |"
    detector.save_pretrained(tmp_path / "mine", [file])
    card = (tmp_path / "mine" / "README.md").read_text()
    for words in (
        "library_name: lipdet",
        "| pixel range | [0, 1]",
        "| norm | L2, over all 3·32·32 values |",
        # By hand: 25.5 / sqrt(3·32·32) = 0.46.
        "ε = 0.1 is 0.46 grey levels at 32x32",
        "| Lipschitz bound of any logit | ",
        "| suppression | among boxes of a class from an IoU of 0.2 on; of a box, classes "
        "within a logit of 0.15 of its best count; at most 20 with a score above 0.2 are shown |",
        "5 pictures of made up",
        row,
    ):
        assert words in card
    # Saved once more, it still has its figures.
    again = Detector.from_pretrained(tmp_path / "mine")
    again.save_pretrained(tmp_path / "copy")
    assert row in (tmp_path / "copy" / "README.md").read_text()
    # One file alone, and files by name, are taken too.
    for results in (file, str(file), [str(file)]):
        detector.save_pretrained(tmp_path / "named", results)
        assert (tmp_path / "named" / "README.md").read_text() == card


def test_figures_of_another_detector_are_refused(detector: Detector, tmp_path: Path) -> None:
    file = result_file(tmp_path, detector)
    other = copy.deepcopy(detector)
    next(other.network.parameters()).data[0] += 1e-3
    with pytest.raises(InputError, match="of mine was measured with other weights"):
        other.save_pretrained(tmp_path / "mine", file)
    assert not (tmp_path / "mine").exists()
    older = json.loads(file.read_text())
    del older["weights_hash"]
    file.write_text(json.dumps(older))
    with pytest.raises(InputError, match="or by an older lipdet"):
        detector.save_pretrained(tmp_path / "mine", file)


def test_a_card_says_nothing_of_weights_that_have_changed(
    detector: Detector, tmp_path: Path
) -> None:
    detector.save_pretrained(tmp_path / "mine", result_file(tmp_path, detector))
    for name in (str(tmp_path / "mine"), "certified-small"):
        changed = Detector.from_pretrained(name)
        changed.save_pretrained(tmp_path / "same")
        card = (tmp_path / "same" / "README.md").read_text()
        assert "|" in card.partition("## Figures")[2]
        next(changed.network.parameters()).data[0] += 1e-3
        changed.save_pretrained(tmp_path / "changed")
        card = (tmp_path / "changed" / "README.md").read_text()
        assert card.endswith("No results of `lipdet eval` were given when this was saved.\n")
        header = json.loads((tmp_path / "changed" / "config.json").read_text())
        assert list(header) == ["detector"]


def test_the_card_says_what_boxes_suppress(detector: Detector, tmp_path: Path) -> None:
    rules = {"nms_iou": 0.45, "class_margin": 0.1, "offset_unit": 0.2}
    config = replace(detector.network.config, most_shown=60, **rules)
    info = {"validation_ap50": 0.5, "rules": {"pictures": 87, "clean_ap50": 0.625}}
    chosen = LoadedDetector("mine", build_detector(config), info)
    Detector(chosen).save_pretrained(tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert (
        "from an IoU of 0.45 on, chosen on 87 held-out pictures; of a box, classes within a logit "
        "of 0.1 of its best count; at most 60 with a" in card
    )
    assert "| offsets | 1 moves a centre by 0.2 sides of a default box, and a side by a f" in card
    # Of the rules that were chosen, not of those by which the epoch was.
    assert "On held-out pictures AP50 was 62.5 %." in card
    header = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert (header["detector"]["nms_iou"], header["rules"]) == (0.45, info["rules"])


def test_a_repository_is_fetched_and_its_weights_alone(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    detector.save_pretrained(tmp_path / "cache")
    asked = []

    def download(repository: str, **options: object) -> str:
        asked.append((repository, options))
        return str(tmp_path / "cache")

    monkeypatch.setattr(hub, "snapshot_download", download)
    fetched = Detector.from_pretrained("owner/name", revision="v1")
    assert fetched.loaded.name == "owner/name"
    patterns = ["model.safetensors", "config.json"]
    assert asked == [("owner/name", {"revision": "v1", "allow_patterns": patterns})]


def test_push_uploads_the_folder(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    made, uploaded = [], []

    class Api:
        def create_repo(self, repository: str, private: bool | None, exist_ok: bool) -> None:
            made.append((repository, private, exist_ok))

        def upload_folder(self, **options: str) -> SimpleNamespace:
            uploaded.append({path.name for path in Path(options["folder_path"]).iterdir()})
            return SimpleNamespace(commit_url=f"https://hub/{options['repo_id']}/commit/1")

    monkeypatch.setattr(hub, "HfApi", Api)
    address = detector.push_to_hub("owner/name", private=True)
    assert address == "https://hub/owner/name/commit/1"
    assert made == [("owner/name", True, True)]
    assert uploaded == [FILES]
