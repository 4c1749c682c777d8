"""Figures show the numbers they are given, and the network that they are read off."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.report.architecture import describe_architecture, draw_architecture
from lipdet.report.figures import plot_consistency, plot_curves, plot_frontier, plot_reasons
from lipdet.report.lipschitz import plot_profiles
from lipdet.report.style import inline_svg, save_drawing
from tests.report.made_up import ROWS, result, results

CONSISTENCY = ("shown", "kept", "changed", "vanished", "appeared")


def test_curves_hold_the_results() -> None:
    drawing = plot_curves(results())
    assert drawing
    axes = drawing.figure.axes[0]
    above, below, other = axes.lines
    # Clean, then times 0.8 and 0.4 (attacked), and half of those (certified).
    np.testing.assert_allclose(
        above.get_xydata(), np.c_[[0, 0.1, 0.25], np.multiply(0.86449, [1, 0.8, 0.4])]
    )
    np.testing.assert_allclose(
        below.get_xydata(), np.c_[[0.1, 0.25], np.multiply(0.86449, [0.4, 0.2])]
    )
    # Of the second detector only the clean AP50 is known.
    np.testing.assert_allclose(other.get_xydata(), [[0.0, 0.5]])
    [band, empty] = axes.collections
    edges = band.get_paths()[0].vertices
    for corner in ((0.1, 0.4), (0.1, 0.8), (0.25, 0.2), (0.25, 0.4)):
        expected = (corner[0], corner[1] * 0.86449)
        assert np.isclose(edges, expected).all(axis=1).any()
    assert not [path for path in empty.get_paths() if len(path.vertices)]
    # What the eye sees is told as well: 0.86449 × 0.4 is 34.6 percent.
    assert "certified at 0.1: 34.6" in drawing.alternative


def unequal_results() -> list[dict[str, Any]]:
    """No two numbers are equal: one of the wrong detector, radius or field is found out."""
    made = [result(name, clean, full=True) for name, clean in (("naive", 0.9), ("other", 0.8))]
    numbers = itertools.count(101)
    for one in made:
        for entry in (*one["attacked"], *one["certified"]):
            entry["ap50"] = next(numbers) / 1000  # 10.1 percent, 10.2 …
        for entry in one["attacked"]:
            entry["consistency"] = {key: next(numbers) for key in entry["consistency"]}
        for entry in one["certified"]:
            entry["failed"] = {key: next(numbers) for key in entry["failed"]}
        one["data"]["objects"] = 10_000 + next(numbers)
    return made


def test_alternatives_tell_every_number() -> None:
    made = unequal_results()
    for plot in (plot_curves, plot_frontier):
        drawing = plot(made)
        assert drawing
        for one in made:
            told = re.findall(
                r"[\d.]+(?=[,.])", drawing.alternative.split(f"{one['weights']}: ")[1]
            )
            shares = [f"{100 * one['clean']['ap50']:.1f}"]
            shares += [f"{100 * e['ap50']:.1f}" for e in (*one["attacked"], *one["certified"])]
            assert [share for share in told if share in shares] == shares
    drawing = plot_consistency(made)
    assert drawing
    words = "{} shown, {} kept, {} another class, {} vanished, {} appeared"
    for one in made:
        for entry in one["attacked"]:
            counts = [entry["consistency"][key] for key in CONSISTENCY]
            told = f"{one['weights']}, ε {entry['epsilon']:g}: of {words.format(*counts)}"
            assert told in drawing.alternative
    for one in made:
        drawing = plot_reasons(one)
        assert drawing
        for entry in one["certified"]:
            # All objects, less those that fail somewhere.
            certified = one["data"]["objects"] - sum(entry["failed"].values())
            for reason, count in {"certified": certified, **entry["failed"]}.items():
                assert f"{reason} {count}" in drawing.alternative


def test_without_radii_there_is_no_curve() -> None:
    plain = [result("naive", 0.5, full=False)]
    assert plot_curves(plain) is None
    assert plot_frontier(plain) is None
    assert plot_consistency(plain) is None
    assert plot_profiles({"naive": ()}) is None


def test_another_norm_is_no_partner_of_a_certificate() -> None:
    # Certificates are about L2; an L∞ attack of the same radius is far stronger.
    made = result("naive", 0.5, full=True)
    made["attacked"].append({**made["attacked"][0], "norm": "linf", "ap50": 0.0})
    drawing = plot_curves([made])
    assert drawing
    assert drawing.figure.axes[0].lines[0].get_ydata()[1] == pytest.approx(0.4)


def test_profile_follows_the_path_to_the_logits() -> None:
    drawing = plot_profiles({"made up": ROWS, "unbounded": ()})
    assert drawing
    bounds, observed = drawing.figure.axes[0].lines
    np.testing.assert_allclose(bounds.get_ydata(), [2.0, 2.0])
    np.testing.assert_allclose(observed.get_ydata(), [1.5])


def test_files_do_not_depend_on_the_day(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        drawing = plot_profiles({"a $name_": ROWS})
        assert drawing
        save_drawing(drawing, tmp_path / folder)
    for name in ("lipschitz.svg", "lipschitz.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "a $name_" in (tmp_path / "a" / "lipschitz.svg").read_text()


def test_inline_figures_share_no_identity() -> None:
    named = [result("naive", 0.5, full=True)]
    one, other = plot_curves(named), plot_frontier(named)
    assert one
    assert other
    identities = [
        set(re.findall(r'\bid="([^"]+)"', inline_svg(drawing))) for drawing in (one, other)
    ]
    assert identities[0]
    assert not identities[0] & identities[1]
    assert "http" not in inline_svg(one)


class InOnePiece(nn.Module):
    """A backbone that is one module, and gives its maps as a list."""

    def __init__(self, stages: nn.Module) -> None:
        super().__init__()
        self.hidden = [stages]

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.hidden[0](images))


def test_a_backbone_of_one_module_has_no_stages() -> None:
    detector = build_detector(PRESETS["naive"].detector).eval()
    detector.backbone = InOnePiece(detector.backbone)
    found = describe_architecture(detector)
    assert found.stages == ()
    assert len(found.heads) == 4
    assert "1,700 default boxes" in draw_architecture("mine", found).caption


def test_architecture_is_read_off_the_network() -> None:
    detector = build_detector(PRESETS["naive"].detector)
    found = describe_architecture(detector)
    # Maps of `TinierBackbone`: 32×18×18, 32×9×9, 32×4×4 and 16×2×2; 337,968 parameters and 1,700
    # default boxes as published.
    tapped = [(stage.channels, stage.cells.width) for stage in found.stages if stage.tapped]
    assert tapped == [(32, 18), (32, 9), (32, 4), (16, 2)]
    heads = [(head.cells, head.boxes) for head in found.heads]
    assert heads == [((side, side), 4) for side in (18, 9, 4, 2)]
    assert found.default_boxes == 1700
    parts = sum(part.parameters for part in (*found.stages, *found.heads))
    assert parts == found.parameters == 337_968
    # Convolutions of fire8 to fire10 and conv12 in the published model.
    assert sum(stage.layers.get("Conv2d", 0) for stage in found.stages) == 12
    assert detector.training
    words = draw_architecture("naive", found).alternative
    assert "18×18 maps of 32 channels" in words
