"""What may stand side by side is chosen by held-out pictures: the right rules, stored and kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lipdet.boxes import BoxCoding, Decoder, SigmoidScores
from lipdet.checkpoint import BEST, load_detector, read_info, read_tensors, write_tensors
from lipdet.cli import main
from lipdet.config import PRESETS, TrainConfig, as_plain
from lipdet.detector import build_detector
from lipdet.detector.one_map import OFFSET_UNIT
from lipdet.evaluate.run import evaluate
from lipdet.evaluate.selection import (
    EPSILONS,
    SHRINKING,
    Choice,
    HeldOut,
    Rules,
    best_rules,
    certified_count,
    in_turn,
)
from lipdet.images.batches import Part
from lipdet.images.pack import Pack, PackedPicture, write_pack
from lipdet.report.table import rules_table
from lipdet.train import tasks, train
from lipdet.train.job import Job, load_job
from lipdet.types import Canvas, RawOutput, Target

CANVAS = Canvas(60, 60)
OWN = Rules(0.3, 3.0, 0.1)
NOTHING = -9.0
Corners = tuple[float, float, float, float]


def chosen(
    pictures: list[tuple[dict[Corners, list[float]], list[tuple[Corners, int]]]], classes: int
) -> Choice:
    """What is chosen for pictures of (logits of each box that is found, the objects)."""
    places = list(dict.fromkeys(box for found, _ in pictures for box in found))
    corners = torch.tensor(places)
    sides = corners[:, 2:] - corners[:, :2]
    default = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, sides], dim=1)
    logits = torch.tensor(
        [[found.get(box, [NOTHING] * classes) for box in places] for found, _ in pictures]
    )
    targets = [
        Target(
            boxes=torch.tensor([box for box, _ in objects]),
            labels=torch.tensor([label for _, label in objects]),
        )
        for _, objects in pictures
    ]
    raw = RawOutput(logits, torch.zeros(len(pictures), len(places), 4))
    decoder = Decoder(default, BoxCoding(), SigmoidScores(1.0, OWN.class_margin), CANVAS, 0.3)
    return best_rules(decoder, HeldOut(raw, targets, ("a", "b")[:classes]), None)


def test_neighbours_that_touch_are_left_side_by_side() -> None:
    # By hand: 20 wide and 9.6 apart, so their IoU is 10.4 / 29.6 = 0.351.
    left, right = (0.0, 0.0, 20.0, 20.0), (9.6, 0.0, 29.6, 20.0)
    choice = chosen([({left: [4.0], right: [3.0]}, [(left, 0), (right, 0)])], classes=1)
    assert choice.rules == OWN._replace(nms_iou=0.45)
    assert choice.figures == (1.0, ())
    # By COCO's definition: recall 1/2 at precision 1 fills 51 of 101 recall points.
    assert choice.own_rules == OWN
    assert choice.own_figures.clean == pytest.approx(51 / 101)


def test_doubles_are_suppressed() -> None:
    # By hand: the double is 12 to the right, so the IoU is 8 / 32 = 0.25.
    true, double, other = (0.0, 0.0, 20.0, 20.0), (12.0, 0.0, 32.0, 20.0), (40.0, 40.0, 60.0, 60.0)
    found = {true: [4.0], double: [3.0], other: [2.0]}
    choice = chosen([(found, [(true, 0), (other, 0)])], classes=1)
    assert choice.rules == OWN._replace(nms_iou=0.2)
    assert choice.figures.clean == 1.0
    # By COCO's definition: 51 points at precision 1, and 50 at 2/3.
    assert choice.own_figures.clean == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_classes_compete_by_the_margin_that_is_best() -> None:
    first, second, third = [(x, x, x + 15.0, x + 15.0) for x in (0.0, 20.0, 40.0)]
    # The first box's second class is wrong by 1.5, the second's is right and 0.5 behind.
    found = {first: [4.0, 2.5], second: [3.0, 2.5], third: [NOTHING, 1.0]}
    choice = chosen([(found, [(first, 0), (second, 1), (third, 1)])], classes=2)
    assert choice.rules == OWN._replace(class_margin=1.0)
    assert choice.figures.clean > choice.own_figures.clean


def test_what_nothing_speaks_against_stays() -> None:
    box = (0.0, 0.0, 20.0, 20.0)
    choice = chosen([({box: [4.0, -4.0]}, [(box, 0)])], classes=2)
    assert choice.rules == choice.own_rules == OWN
    assert choice.figures == choice.own_figures


def test_what_is_shown_has_the_best_f1() -> None:
    true, false, low = (0.0, 0.0, 20.0, 20.0), (40.0, 40.0, 60.0, 60.0), (40.0, 0.0, 60.0, 20.0)
    # By hand, scores of 0.73, 0.27 and 0.31: what is false lies below what is right.
    objects = [(true, 0), (low, 0)]
    choice = chosen([({true: [1.0], false: [-1.0], low: [-0.8]}, objects)], classes=1)
    assert (choice.shown_above, choice.f1) == (0.3, 1.0)
    # One of two is found: F1 is 2 / (1 + 2), and 2 / (2 + 2) where what is false is shown as well.
    choice = chosen([({true: [1.0], false: [-1.0]}, objects)], classes=1)
    assert (choice.shown_above, choice.f1) == (0.3, pytest.approx(2 / 3))
    # Where no score is better than another, the lowest.
    choice = chosen([({true: [1.0]}, objects)], classes=1)
    assert (choice.shown_above, choice.f1) == (0.2, pytest.approx(2 / 3))
    assert rules_table(choice.as_dict()).caption == "Shown is what scores above 0.2: F1 66.7."


def test_which_pictures_count(tmp_path: Path) -> None:
    packs = [squares(tmp_path / name, count, seed=0) for name, count in (("a", 4), ("b", 2))]
    parts = [Part(pack, np.arange(len(pack))) for pack in packs]
    assert [(parts.index(part), index) for part, index in in_turn(parts)] == [
        *((0, 0), (1, 0), (0, 1), (1, 1)),
        *((0, 2), (0, 3)),
    ]

    def count(*objects: int) -> int:
        boxes = [torch.zeros(number, 4) for number in objects]
        return certified_count([Target(boxes=b, labels=torch.zeros(len(b))) for b in boxes])

    # By hand: at most 64 pictures, with at most 150 objects, but one in any case.
    assert count(*[2] * 100) == 64
    assert count(*[30] * 10) == 5
    assert count(0, 0, 151, 0) == 2
    assert count(151) == 1


def squares(folder: Path, count: int, seed: int) -> Pack:
    """Squares of 12 pixels on black, all red or all blue, two or three in a picture of 32.

    The first two overlap by an IoU of 6 / 18.
    """
    rng, pictures = np.random.default_rng(seed), []
    for number in range(count):
        image = np.zeros((32, 32, 3), np.uint8)
        corners = np.array([(2, 2), (8, 2), (2, 18), (18, 18)])
        corners = corners[np.sort(rng.permutation(4)[: 2 + number % 2])]
        labels = np.full(len(corners), rng.integers(2))
        for place, (x, y) in enumerate(corners):
            image[y : y + 12, x : x + 12, 2 * labels[0]] = 255 - 120 * (place % 2)
        boxes = np.hstack([corners, corners + 12]).astype(np.float32)
        pictures.append(PackedPicture(image, boxes, labels, number))
    return write_pack(folder, pictures, count, Canvas(32, 32), ("red", "blue"), {"name": "squares"})


def words(data: tuple[Pack, Pack], preset: str, out: Path) -> list[str]:
    training, held_out = data
    return [
        *("train", "--preset", preset, "--image_size", "32", "--out", str(out)),
        *("--data", str(training.folder), "--validation", str(held_out.folder)),
        *("--epochs", "12", "--batch_size", "16", "--validate_every", "12", "--threads", "1"),
        *("--precision", "float32", "--learning_rate", "0.01", "--warmup", "0.3"),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pack, Pack]:
    folder = tmp_path_factory.mktemp("packs")
    return squares(folder / "training", 64, seed=1), squares(folder / "held-out", 48, seed=2)


@pytest.fixture(scope="module", params=["certified-small", "plain"])
def run(
    request: pytest.FixtureRequest,
    data: tuple[Pack, Pack],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("run") / str(request.param)
    main(words(data, request.param, out))
    return out


@pytest.mark.slow
def test_the_weights_keep_what_was_chosen(run: Path, data: tuple[Pack, Pack]) -> None:
    best = load_detector(str(run))
    rules, certifies = best.info["rules"], run.name != "plain"
    assert rules["pictures"] == 48
    assert rules["certified_pictures"] == (48 if certifies else 0)
    assert best.detector.nms_iou == best.detector.config.nms_iou == rules["nms_iou"]
    assert best.detector.config.class_margin == rules["class_margin"]
    assert best.detector.config.offset_unit == rules["offset_unit"]
    assert best.detector.display.score_floor == rules["shown_above"]
    # What the run was asked for is as before, and says what the rules before the choice are.
    asked = load_job(run).detector
    assert (asked.nms_iou, asked.class_margin) == (None, None)
    architecture = build_detector(asked).eval()
    architecture.load_state_dict(best.detector.state_dict())
    # Oracle: the evaluation of both detectors, by themselves.
    for detector, expected in ((best.detector, rules), (architecture, rules["own"])):
        loaded = type(best)(best.name, detector, {})
        found = evaluate(loaded, data[1], 0, certify=EPSILONS if certifies else ())
        assert found["clean"]["ap50"] == expected["clean_ap50"]
        assert [
            {"epsilon": one["epsilon"], "ap50": one["ap50"]} for one in found["certified"]
        ] == expected["certified_ap50"]
    assert rules["clean_ap50"] > 0.3
    assert not certifies or rules["certified_ap50"][0]["ap50"] > 0.01


@pytest.mark.slow
def test_boxes_move_as_far_as_is_best(run: Path, data: tuple[Pack, Pack]) -> None:
    best = load_detector(str(run))
    rules, own = best.info["rules"], OFFSET_UNIT
    assert rules["own"]["offset_unit"] == own

    def mean(unit: float) -> float:
        detector = build_detector(replace(best.detector.config, offset_unit=unit)).eval()
        detector.load_state_dict(best.detector.state_dict())
        found = evaluate(type(best)(best.name, detector, {}), data[1], 0, certify=EPSILONS)
        return round(np.mean([one["ap50"] for one in (found["clean"], *found["certified"])]), 3)

    # Of an ordinary detector nothing is certified that could gain. Oracle: the evaluation of each.
    units = [own, *(round(own * factor, 4) for factor in SHRINKING)]
    assert rules["offset_unit"] == (max(units, key=mean) if run.name != "plain" else own)


@pytest.mark.slow
def test_a_finished_run_does_not_choose_again(
    run: Path,
    data: tuple[Pack, Pack],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (run / BEST).read_bytes()
    monkeypatch.delattr(tasks, "choose_rules")
    main([*words(data, run.name, run), "--resume"])
    assert (run / BEST).read_bytes() == before
    # But it says what was chosen.
    rules = read_info(run / BEST)["rules"]
    [row] = [line for line in capsys.readouterr().out.splitlines() if " chosen " in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    certified = [one["ap50"] for one in rules["certified_ap50"]]
    assert cells[1:4] == [f"{rules[key]:.4g}" for key in Rules._fields]
    assert cells[4:] == [f"{100 * ap:.1f}" for ap in (rules["clean_ap50"], *certified)]


@pytest.mark.slow
def test_a_choice_that_was_interrupted_is_made_up_for(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    job, again = load_job(run), tmp_path / "again"
    shutil.copytree(run, again)
    # The best weights as the last epoch leaves them.
    tensors, info = read_tensors(again / BEST)
    del info["rules"]
    write_tensors(again / BEST, tensors, {**info, "detector": as_plain(job.detector)})
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "choose_rules", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(job, again, resume=True)
    # Long lines are wrapped, wherever that is.
    assert f"Goonwith:lipdettrain--resume--out{again}" in "".join(capsys.readouterr().err.split())
    train(job, again, resume=True)
    # Oracle: the run that was not interrupted.
    assert (again / BEST).read_bytes() == (run / BEST).read_bytes()


@pytest.mark.slow
def test_too_few_objects_choose_nothing(data: tuple[Pack, Pack], tmp_path: Path) -> None:
    few = squares(tmp_path / "few", 8, seed=3)
    main([*words((data[0], few), "plain", tmp_path / "run"), "--epochs", "1"])
    info = read_tensors(tmp_path / "run" / BEST)[1]
    assert "rules" not in info
    assert info["detector"]["nms_iou"] is None


@pytest.mark.slow
def test_rules_that_the_job_gives_are_kept(data: tuple[Pack, Pack], tmp_path: Path) -> None:
    training, held_out = (str(pack.folder) for pack in data)
    detector = replace(PRESETS["plain"].detector, canvas=Canvas(32, 32), nms_iou=0.5)
    settings = TrainConfig(epochs=1, batch_size=16, threads=1)
    train(Job("plain", detector, settings, (training,), (), (held_out,)), tmp_path / "run")
    assert "rules" not in load_detector(str(tmp_path / "run")).info
    assert load_detector(str(tmp_path / "run")).detector.nms_iou == 0.5


def test_as_many_boxes_are_shown_as_the_most_crowded_picture_needs(tmp_path: Path) -> None:
    image, box = np.zeros((32, 32, 3), np.uint8), np.array([[4, 4, 16, 16]], np.float32)
    pictures = [
        PackedPicture(image, box.repeat(count, 0), np.zeros(count, np.int64), number)
        for number, count in enumerate([3, 15, 0, 2])
    ]
    folder, out = tmp_path / "crowded", tmp_path / "run"
    write_pack(folder, pictures, 4, Canvas(32, 32), ("cell",), {"name": "crowded"})
    options = ["train", "--preset", "plain", "--image_size", "32", "--data", str(folder)]
    options += ["--validation_share", "0", "--epochs", "1", "--batch_size", "4", "--threads", "1"]
    main([*options, "--out", str(out)])
    # By hand: twice the 15 objects of the second picture.
    assert json.loads((out / "run.json").read_text())["detector"]["most_shown"] == 30
    assert load_detector(str(out)).detector.display.top_k == 30
    main([*options, "--out", str(out), "--resume"])
