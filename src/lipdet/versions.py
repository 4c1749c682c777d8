"""Versions of what a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("lipdet", "torch", "torchvision", "numpy", "pillow", "faster-coco-eval")


def versions() -> dict[str, str]:
    """Name to version of Python and of the packages that determine a figure."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
