from __future__ import annotations

import pytest

from lipdet.config import DIGIT_CROP
from lipdet.images.pack import Pack
from lipdet.images.prepare import pack_rendered


@pytest.fixture(scope="package")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Four rendered pictures on which the naive detector finds everything."""
    return pack_rendered(tmp_path_factory.mktemp("packs") / "doors", "test", 4, DIGIT_CROP, seed=0)
