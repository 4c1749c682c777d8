"""The `--data SPEC`: what each form means, what is cached, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lipdet.config import DIGIT_CROP
from lipdet.errors import InputError
from lipdet.images import spec
from lipdet.images.pack import Pack
from lipdet.images.prepare import Crop, pack_rendered, pack_source
from lipdet.images.spec import cache_folder, find_data, open_data, read_source
from lipdet.types import Canvas, Framing
from tests.images.svhn_format import write_digit_struct

CROP = Framing(DIGIT_CROP)
WHOLE = Framing(DIGIT_CROP, whole=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIPDET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packs"


@pytest.fixture
def svhn_folder(tmp_path: Path) -> Path:
    """Three noisy pictures in the official layout."""
    folder = tmp_path / "svhn"
    folder.mkdir()
    rng = np.random.default_rng(0)
    annotations = {}
    for number in (1, 2, 3):
        noise = rng.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        annotations[f"{number}.png"] = [(number, 20, 10, 8, 16), (10, 30, 10, 8, 16)]
    write_digit_struct(folder / "digitStruct.mat", annotations)
    return folder


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 20), (9, 9, 9)).save(tmp_path / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 5, 6]}
    root = {
        "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}],
        "annotations": [box],
        "categories": [{"id": 1, "name": "meter"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(root))
    return tmp_path / "all.json"


def test_rendered() -> None:
    test, *others = (
        open_data("rendered:3", "test", CROP),
        open_data("rendered:3", "train", CROP),
        open_data("rendered:3", "validation", CROP),
        open_data("rendered:3", "test", CROP, seed=1),
    )
    assert [len(pack) for pack in (test, *others)] == [3, 3, 3, 3]
    assert len({test.hash, *(pack.hash for pack in others)}) == 4
    assert open_data("rendered:5", "test", CROP).head(3).labels.tolist() == test.labels.tolist()
    assert open_data("rendered:3", "test", Framing(Canvas(32, 32))).images.shape == (3, 32, 32, 3)

    # Whole pictures are scenes that fill the canvas, some of them without a number.
    scenes = open_data("rendered:30", "test", Framing(Canvas(40, 80), whole=True))
    assert (scenes.whole, scenes.images.shape) == (True, (30, 40, 80, 3))
    assert 0 < sum(len(scenes.target(index)["labels"]) == 0 for index in range(30)) < 15


def test_svhn(svhn_folder: Path) -> None:
    test = open_data(f"svhn:{svhn_folder}", "test", CROP)
    # Eight jittered crops of each picture for training, otherwise one reference crop.
    assert test.pictures.tolist() == [0, 1, 2]
    assert open_data(f"svhn:{svhn_folder}", "validation", CROP).hash == test.hash
    assert test.meta["crop"] == "reference"
    assert test.target(2)["labels"].tolist() == [3, 0]
    train = open_data(f"svhn:{svhn_folder}", "train", CROP)
    assert train.pictures.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert train.meta["crop"] == "jitter"


@pytest.mark.parametrize("purpose", ["train", "test"])
def test_coco(coco_file: Path, purpose: spec.Purpose) -> None:
    pack = open_data(f"coco:{coco_file}", purpose, Framing(Canvas(60, 60), whole=True))
    assert pack.class_names == ("meter",)
    # By hand: 30 × 20 in a square of 30 that begins 5 above, twice as large.
    assert pack.target(0)["boxes"].tolist() == [[6, 18, 16, 30]]


def test_a_pack(tmp_path: Path) -> None:
    pack = pack_rendered(tmp_path / "own", "test", 3, DIGIT_CROP, seed=9)
    assert open_data(str(tmp_path / "own"), "train", CROP).hash == pack.hash


@pytest.mark.parametrize("form", ["rendered:2", "svhn", "coco"])
def test_the_second_call_reads_the_cache(
    form: str,
    svhn_folder: Path,
    coco_file: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = {"svhn": f"svhn:{svhn_folder}", "coco": f"coco:{coco_file}"}.get(form, form)
    framing = WHOLE if form == "coco" else CROP
    first = open_data(data, "test", framing)
    assert first.folder.parent == cache
    monkeypatch.delattr(spec, "pack_rendered")
    monkeypatch.delattr(spec, "pack_source")
    again = open_data(data, "test", framing)
    assert (again.folder, again.hash) == (first.folder, first.hash)
    for other in ((data, "test", Framing(Canvas(37, 37)), 0), (data, "test", framing, 1)):
        with pytest.raises(NameError):
            open_data(*other)  # type: ignore[arg-type]


def test_a_change_of_a_picture_makes_a_new_pack(svhn_folder: Path) -> None:
    before = open_data(f"svhn:{svhn_folder}", "test", CROP)
    Image.new("RGB", (60, 40), (0, 255, 0)).save(svhn_folder / "2.png")
    after = open_data(f"svhn:{svhn_folder}", "test", CROP)
    assert after.folder != before.folder
    assert (after.images[1] == (0, 255, 0)).all()


def test_a_pack_has_the_name_and_the_remarks_of_its_own_file(coco_file: Path) -> None:
    first = open_data(f"coco:{coco_file}", "test", WHOLE)
    root = json.loads(coco_file.read_text())
    other = coco_file.rename(coco_file.with_name("other.json"))
    assert "other.json" in open_data(f"coco:{other}", "test", WHOLE).name
    root["annotations"].append({**root["annotations"][0], "id": 2, "bbox": [3, 4, 0, 6]})
    coco_file.write_text(json.dumps(root))
    second = open_data(f"coco:{coco_file}", "test", WHOLE)
    assert [len(pack.meta["skipped"]) for pack in (first, second)] == [0, 1]


def test_a_pack_that_another_process_finishes_first_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slower(folder: Path, *choices: Any) -> Pack:
        pack_rendered(folder, *choices)
        return pack_rendered(folder, *choices)

    monkeypatch.setattr(spec, "pack_rendered", slower)
    assert len(open_data("rendered:2", "test", CROP)) == 2


def test_a_damaged_pack_in_the_cache_is_named() -> None:
    pack = open_data("rendered:2", "test", CROP)
    file = pack.folder / "labels.npy"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=f"{pack.folder} is a damaged pack .* remove it"):
        open_data("rendered:2", "test", CROP)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LIPDET_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "lipdet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "lipdet"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("", "is not understood"),
        ("nothing-here", "nothing-here.*is not understood or does not exist"),
        ("rendered:0", "rendered:0.*between 1 and"),
        ("rendered:1.5", "rendered:1.5.*between 1 and"),
        ("svhn:", "is not understood"),
        ("imagenet:/data", "imagenet:/data.*is not understood"),
        ("svhn:/nothing/here", "/nothing/here: no such folder"),
        ("coco:/nothing/here.json", "/nothing/here.json: no such file"),
        ("yolo:/nothing/here", "/nothing/here: no such folder"),
        ("voc:/nothing/here", "/nothing/here does not exist"),
        ("voc:.", r"\. holds no Annotations/"),
        ("/proc/self", "is no pack"),
    ],
)
def test_bad_specs(bad: str, words: str, cache: Path) -> None:
    with pytest.raises(InputError, match=words):
        open_data(bad, "test", CROP)
    assert not cache.exists()


def test_a_pack_of_another_size_is_refused(tmp_path: Path) -> None:
    pack_rendered(tmp_path / "own", "test", 2, Canvas(32, 32), seed=0)
    with pytest.raises(InputError, match="32x32 pixels, the detector takes 74x74"):
        open_data(str(tmp_path / "own"), "test", CROP)


@pytest.mark.parametrize(
    ("crop", "framing", "words"),
    [
        ("full", CROP, r"own holds whole pictures, but .* looks at crops .* --crop reference"),
        (
            "reference",
            WHOLE,
            r"own holds crops around objects, but .* whole pictures; .* --crop full",
        ),
        ("jitter", WHOLE, r"own holds crops around objects, but .* whole pictures; .* --crop full"),
    ],
)
def test_pictures_framed_otherwise_are_refused(
    crop: Crop, framing: Framing, words: str, svhn_folder: Path, tmp_path: Path
) -> None:
    source = read_source(f"svhn:{svhn_folder}")
    folder = tmp_path / "own"
    pack = pack_source(source, folder, crop, DIGIT_CROP, seed=0)
    with pytest.raises(InputError, match=words):
        open_data(str(folder), "test", framing)
    # The other kind of detector takes them, one that does not say which it is, and a training.
    other = Framing(DIGIT_CROP, not framing.whole)
    unknown = Framing(DIGIT_CROP, whole=None)
    assert open_data(str(folder), "test", other).hash == pack.hash
    assert open_data(str(folder), "test", unknown).hash == pack.hash
    assert find_data(str(folder), "train", framing).hash == pack.hash


@pytest.mark.parametrize("framing", [CROP, WHOLE])
def test_rendered_pictures_are_for_every_detector(framing: Framing) -> None:
    assert len(open_data("rendered:2", "test", framing)) == 2
