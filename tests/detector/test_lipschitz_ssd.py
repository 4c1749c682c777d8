"""The certified detector: bounds of one, gradients that keep their norm, boxes where cells are."""

from __future__ import annotations

import pytest
import torch

from lipdet.certificate.constants.outputs import output_bounds
from lipdet.config import DetectorConfig
from lipdet.detector.lipschitz_ssd import BODIES, lipschitz_ssd
from lipdet.errors import InputError
from lipdet.layers import OrthonormalConv2d


def small(architecture: str = "orthogonal-ssd", image_size: int = 74) -> DetectorConfig:
    return DetectorConfig(architecture, ("a", "b"), image_size, width=48)


@pytest.mark.parametrize("architecture", BODIES)
def test_every_output_is_1_lipschitz(architecture: str) -> None:
    torch.manual_seed(0)
    detector = lipschitz_ssd(small(architecture, image_size=34)).eval()
    bounds = output_bounds(detector)
    assert max(bounds.features) <= 1 + 1e-5
    assert bounds.logits.max() <= 1 + 1e-5
    assert bounds.offsets.max() <= 1 + 1e-5


def test_gradients_keep_their_norm() -> None:
    # Orthogonal layers and MaxMin pass a gradient on as it is, but for what zero padding cuts off;
    # theory §3 has a spectrally normalised body of this depth below 1e-4.
    torch.manual_seed(0)
    body = lipschitz_ssd(small()).backbone
    images = torch.rand(1, 3, 74, 74, requires_grad=True)
    deepest = body(images)[-1]
    direction = torch.randn_like(deepest)
    deepest.backward(direction)
    assert images.grad is not None
    assert images.grad.norm() > 0.05 * direction.norm()


def test_default_boxes_stand_where_a_cell_looks() -> None:
    boxes = lipschitz_ssd(small()).default_boxes
    # By hand: 74 pixels padded by 3 on each side make 10 cells of 8.
    assert boxes[0].tolist() == pytest.approx([1, 1, 14.5, 27], abs=1e-4)
    assert boxes[-1].tolist() == pytest.approx([73, 73, 34.3, 63], abs=1e-4)
    assert (boxes[:, :2].mean(dim=0) - 37).abs().max() < 1e-4


def test_a_cell_sees_the_pixels_around_its_centre() -> None:
    # Oracle: autograd. The gradient of a cell's features is centred on its default boxes, in an
    # image that is large enough for it not to reach the border.
    torch.manual_seed(1)
    detector = lipschitz_ssd(small(image_size=202))
    images = torch.rand(1, 3, 202, 202, requires_grad=True)
    row, column, cells = 12, 13, 26
    detector.backbone(images)[0][0, :, row, column].sum().backward()
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=(0, 1)) > 0
    rows, columns = torch.nonzero(seen, as_tuple=True)
    middle = [(float(axis.min()) + float(axis.max()) + 1) / 2 for axis in (columns, rows)]
    expected = detector.default_boxes[8 * (row * cells + column), :2].tolist()
    assert middle == pytest.approx(expected, abs=1.0)


def test_offsets_of_one_box_move_in_a_ball() -> None:
    torch.manual_seed(2)
    head = lipschitz_ssd(small()).heads[0].localisation
    assert isinstance(head, OrthonormalConv2d)
    rows = head.weight.detach().flatten(1)
    # Oracle: the definition of orthonormal rows.
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("image_size", "width"), [(30, 48), (75, 48), (74, 46), (74, 49)])
def test_sizes_that_cannot_be_built_are_refused(image_size: int, width: int) -> None:
    with pytest.raises(InputError, match="even"):
        lipschitz_ssd(DetectorConfig("orthogonal-ssd", ("a",), image_size, width))
