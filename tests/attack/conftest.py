from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lipdet.images.pack import Pack
from lipdet.images.prepare import pack_rendered


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Small batches, many times: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Four rendered pictures on which the naive detector finds everything."""
    return pack_rendered(tmp_path_factory.mktemp("packs") / "doors", "test", 4, 74, seed=0)
