"""The Lipschitz profile and its figure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from lipdet.certificate import lipschitz_bound
from lipdet.certificate.constants.outputs import detector_profile, output_bounds, propagate_detector
from lipdet.layers import fold
from lipdet.lipschitz import layer_profile, propagate
from lipdet.report.lipschitz import plot_profile
from tests.certificate.detectors import small_detector


@pytest.mark.slow
def test_rows_follow_the_paths_to_the_heads() -> None:
    detector = small_detector()
    rows = detector_profile(propagate_detector(detector))
    assert [(row.name, row.kind, row.heads) for row in rows] == [
        ("normalize", "mul", (0, 1)),
        ("backbone.first.0", "Conv2d + BatchNorm2d", (0, 1)),
        ("backbone.first.2", "ReLU", (0, 1)),
        ("backbone.second.0", "Conv2d", (1,)),
        ("backbone.second.1", "MaxMin", (1,)),
        ("heads.0.classification.0", "Conv2d + BatchNorm2d", (0,)),
        ("heads.0.localisation.0", "Conv2d + BatchNorm2d", (0,)),
        ("heads.1.classification", "Conv2d", (1,)),
        ("heads.1.localisation", "Conv2d", (1,)),
    ]
    assert all(row.observed is None for row in rows)
    assert rows[0].constant == pytest.approx(2.0)
    # On a chain the constants multiply to the cumulative one.
    products = [math.prod(float(row.constant or 0) for row in rows[: n + 1]) for n in range(5)]
    assert products == pytest.approx([row.cumulative for row in rows[:5]])
    bounds = output_bounds(detector)
    assert (rows[2].cumulative, rows[4].cumulative) == pytest.approx(bounds.features)
    assert math.hypot(*(row.cumulative for row in rows[5:])) == pytest.approx(bounds.joint)


@pytest.mark.slow
def test_observed_values_are_close_lower_bounds_of_the_jacobian_norm() -> None:
    detector = small_detector()
    images = torch.rand(2, 3, 8, 8)
    rows = detector_profile(propagate_detector(detector), images)
    for row in rows:
        assert row.observed is not None
        assert 0 < row.observed <= row.cumulative * (1 + 1e-5)  # float32
    assert rows[0].observed == pytest.approx(2.0)
    # Oracle: SVD of the dense Jacobian of the first level at each image.
    plain = fold(detector)

    def features(image: Tensor) -> Tensor:
        return plain.backbone(plain.normalize(image))[0].flatten()  # type: ignore[operator]

    exact = max(
        float(torch.linalg.matrix_norm(jacobian(features, image[None]).flatten(1), 2))
        for image in images
    )
    assert 0.8 * exact <= (rows[2].observed or 0.0) <= exact * (1 + 1e-5)


def test_any_network_has_a_profile() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    rows = layer_profile(propagate(network, (5,)))
    assert [(row.name, row.kind) for row in rows] == [
        ("0", "Linear"),
        ("1", "ReLU"),
        ("2", "Linear"),
    ]
    assert {row.heads for row in rows} == {()}
    first, _, last = (row.constant for row in rows)
    # Oracle: SVD of the two matrices.
    norms = [float(torch.linalg.matrix_norm(network[i].weight.detach(), 2)) for i in (0, 2)]
    assert [first, last] == pytest.approx(norms, rel=1e-6)
    assert rows[-1].cumulative == pytest.approx(lipschitz_bound(network, (5,)))
    observed = layer_profile(propagate(network, (5,)), torch.randn(3, 5))
    assert observed[0].observed == pytest.approx(norms[0], rel=0.05)


def test_numbers_beside_the_axis_are_no_formulas(tmp_path: Path) -> None:
    file = tmp_path / "profile.svg"
    plot_profile(detector_profile(propagate_detector(small_detector())), file)
    assert "Lipschitz constant" in file.read_text()
    assert "$" not in file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("with_images", [True, False])
def test_figure(tmp_path: Path, with_images: bool) -> None:
    images = torch.rand(1, 3, 8, 8) if with_images else None
    rows = detector_profile(propagate_detector(small_detector()), images)
    file = tmp_path / "profile.png"
    plot_profile(rows, file)
    with Image.open(file) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20) or []}
    assert (0x00, 0x72, 0xB2) in colours
    assert ((0xD5, 0x5E, 0x00) in colours) == with_images
