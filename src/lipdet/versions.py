"""Versions of what a result depends on."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version

PACKAGES = ("lipdet", "torch", "numpy", "pillow", "faster-coco-eval")


def versions() -> dict[str, str]:
    """Name to version of Python and of the packages that determine a figure."""
    # A detector of the user's may be its.
    used = (*PACKAGES, *sorted({"torchvision", "ultralytics"} & sys.modules.keys()))
    return {"python": platform.python_version(), **{name: version(name) for name in used}}
