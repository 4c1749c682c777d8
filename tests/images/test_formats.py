"""One data set in three annotation formats is one data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lipdet.cli import main
from lipdet.images.coco import coco_dict
from lipdet.images.pack import open_pack
from lipdet.images.spec import find_data, read_source
from lipdet.types import Canvas, Framing, Target
from tests.images.writers import voc_xml, yolo_text, yolo_yaml

NAMES = ("gauge", "knob", "valve")
SIZES = ((120, 90), (64, 64), (33, 70))


@pytest.fixture
def specs(tmp_path: Path) -> list[str]:
    """Three pictures, the last without objects, in COCO, YOLO and Pascal VOC form."""
    coco, yolo, voc = tmp_path / "coco", tmp_path / "yolo", tmp_path / "voc"
    for folder in (coco, yolo / "images", yolo / "labels", voc / "JPEGImages", voc / "Annotations"):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    targets: list[Target] = []
    sizes: list[tuple[str, int, int]] = []
    for number, (width, height) in enumerate(SIZES):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for folder in (coco, yolo / "images", voc / "JPEGImages"):
            picture.save(folder / f"{number}.png")
        count = 5 if number < 2 else 0
        corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
        boxes = torch.tensor(corners * [width, height, width, height], dtype=torch.float32)
        targets.append(Target(boxes=boxes, labels=torch.arange(count) % 3))
        sizes.append((f"{number}.png", width, height))
        (yolo / "labels" / f"{number}.txt").write_text(yolo_text(width, height, targets[-1]))
        (voc / "Annotations" / f"{number}.xml").write_text(
            voc_xml(f"{number}.png", width, height, targets[-1], NAMES)
        )
    (yolo / "data.yaml").write_text(yolo_yaml(NAMES))
    (coco / "all.json").write_text(json.dumps(coco_dict(sizes, targets, NAMES)))
    return [f"coco:{coco / 'all.json'}", f"yolo:{yolo}", f"voc:{voc}"]


def test_the_formats_agree(specs: list[str]) -> None:
    coco, *others = [read_source(spec) for spec in specs]
    assert coco.class_names == NAMES
    for source in others:
        assert source.class_names == NAMES
        for picture, expected in zip(source.pictures, coco.pictures, strict=True):
            assert picture.path.name == expected.path.name
            np.testing.assert_allclose(picture.boxes, expected.boxes, atol=1e-4)
            np.testing.assert_array_equal(picture.labels, expected.labels)


def test_prepared_and_opened_packs_are_the_same(
    specs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for spec in specs:
        out = tmp_path / f"pack-{spec.partition(':')[0]}"
        main(["data", "prepare", spec, "--out", str(out), "--image_size", "48"])
        assert "3 pictures, 10 objects, 0 skipped" in capsys.readouterr().out
        # Oracle: what `--data SPEC` means for an evaluation, whole pictures.
        assert open_pack(out).hash == find_data(spec, "test", Framing(Canvas(48, 48))).hash
        main(["data", "info", spec, "--image_size", "48"])
        described = json.loads(capsys.readouterr().out)
        assert described["per_class"] == {"gauge": 4, "knob": 4, "valve": 2}
