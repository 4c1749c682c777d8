"""Pictures of 8 bits and tensors in [0, 1] are the same values in another layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipdet.images.tensors import to_tensor, to_uint8


@pytest.mark.parametrize("shape", [(4, 7, 3), (2, 4, 7, 3)])
def test_there_and_back(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels.flags.writeable = False  # as pillow's are
    images = to_tensor(pixels)
    assert images.dtype == torch.float32
    assert float(images[..., 2, 3, 1].flatten()[-1]) == np.float32(
        pixels[..., 3, 1, 2].flat[-1] / 255
    )
    np.testing.assert_array_equal(to_uint8(images), pixels)


def test_a_list_is_a_batch_and_what_lies_outside_is_clipped() -> None:
    black, white = np.zeros((1, 2, 3), np.uint8), np.full((1, 2, 3), 255, np.uint8)
    batch = to_tensor([black, white])
    np.testing.assert_array_equal(to_uint8(3 * batch - 1), np.stack([black, white]))
