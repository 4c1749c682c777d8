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

# Words that XML or YAML could take for something else; in the order in which VOC sorts them.
NAMES = ("1", "a < b", "cat & dog", "null", "ünï: #")
SIZES = ((120, 90), (33, 70), (64, 64))


@pytest.fixture
def targets() -> list[Target]:
    """What is in three pictures: nothing in the last."""
    rng = np.random.default_rng(0)
    found = []
    for size, count in zip(SIZES, (25, 25, 0), strict=True):
        corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * size
        boxes = torch.tensor(corners.reshape(count, 4), dtype=torch.float32)
        found.append(Target(boxes=boxes, labels=torch.arange(count) % len(NAMES)))
    return found


@pytest.fixture
def specs(tmp_path: Path, targets: list[Target]) -> list[str]:
    """The pictures in COCO, YOLO and Pascal VOC form."""
    coco, yolo, voc = tmp_path / "coco", tmp_path / "yolo", tmp_path / "voc"
    for folder in (coco, yolo / "images", yolo / "labels", voc / "JPEGImages", voc / "Annotations"):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes: list[tuple[str, int, int]] = []
    for number, ((width, height), target) in enumerate(zip(SIZES, targets, strict=True)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for folder in (coco, yolo / "images", voc / "JPEGImages"):
            picture.save(folder / f"{number}.png")
        sizes.append((f"{number}.png", width, height))
        (yolo / "labels" / f"{number}.txt").write_text(yolo_text(width, height, target))
        (voc / "Annotations" / f"{number}.xml").write_text(
            voc_xml(f"{number}.png", width, height, target, NAMES), encoding="utf-8"
        )
    (yolo / "data.yaml").write_text(yolo_yaml(NAMES), encoding="utf-8")
    (coco / "all.json").write_text(json.dumps(coco_dict(sizes, targets, NAMES)))
    return [f"coco:{coco / 'all.json'}", f"yolo:{yolo}", f"voc:{voc}"]


def test_the_formats_agree(specs: list[str], targets: list[Target]) -> None:
    """YOLO and VOC to the last bit; COCO's widths are rounded."""
    for spec, furthest in zip(specs, (1e-4, 0, 0), strict=True):
        source = read_source(spec)
        assert source.class_names == NAMES
        assert [picture.path.name for picture in source.pictures] == ["0.png", "1.png", "2.png"]
        for picture, target in zip(source.pictures, targets, strict=True):
            np.testing.assert_allclose(picture.boxes, target["boxes"], rtol=0, atol=furthest)
            np.testing.assert_array_equal(picture.labels, target["labels"])


def test_prepared_and_opened_packs_are_the_same(
    specs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for spec in specs:
        out = tmp_path / f"pack-{spec.partition(':')[0]}"
        main(["data", "prepare", spec, "--out", str(out), "--image_size", "48"])
        assert "3 pictures, 50 objects, 0 skipped" in capsys.readouterr().out
        # Oracle: what `--data SPEC` means for an evaluation, whole pictures.
        assert open_pack(out).hash == find_data(spec, "test", Framing(Canvas(48, 48))).hash
        main(["data", "info", spec, "--image_size", "48"])
        described = json.loads(capsys.readouterr().out)
        assert described["per_class"] == dict.fromkeys(NAMES, 10)
