"""lipdet: object detectors whose detections are provably stable."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipdet.pretrained import Detector as Detector

# Threads that spin while they wait for each other take many times as long where others work on the
# same cores. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0"
__all__ = ["Detector"]


def __getattr__(name: str) -> object:
    """Import `Detector`, and torch with it, when it is asked for."""
    if name == "Detector":
        from lipdet.pretrained import Detector

        return Detector
    raise AttributeError(f"module 'lipdet' has no attribute {name!r}")
