"""Detectors that are ready for the page, with what is proven about their outputs.

Notable choices:
- A detector is frozen once and shared by all visitors; nothing that they do changes it.
- Its Lipschitz bounds take seconds and are the same for every picture: they are made once, by
  whoever needs them first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lipdet.boxes import DISPLAY_SELECTION
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.evaluate.attacked import prepare


class Exhibit:
    """One detector on show.

    Attributes:
        name: as it was asked for.
        detector: frozen, in eval mode.
        class_names: in the order of the labels.
        size: side of its square input in pixels.
    """

    def __init__(self, name: str, detector: SSD) -> None:
        self.name = name
        self.detector = prepare(detector)
        self.class_names = detector.config.class_names
        self.size = detector.config.image_size
        self._lock = threading.Lock()
        self._bounded: Verifier | UnknownLipschitz | None = None
        # Constructed weights are made in the first pass; later ones only read them.
        with torch.no_grad():
            self.detector(torch.zeros(1, 3, self.size, self.size))

    def verifier(self) -> Verifier:
        """Return what certificates of shown detections need.

        Raises:
            UnknownLipschitz: a layer has no bound; the message names it.
        """
        with self._lock:
            if self._bounded is None:
                try:
                    self._bounded = verifier_of(self.detector, DISPLAY_SELECTION)
                except UnknownLipschitz as unknown:
                    self._bounded = unknown
        if isinstance(self._bounded, UnknownLipschitz):
            raise self._bounded
        return self._bounded


def load_exhibits(specs: list[str]) -> dict[str, Exhibit]:
    """Detectors by name, each once.

    Raises:
        InputError: one cannot be loaded.
    """
    return {spec: Exhibit(spec, load_detector(spec).detector) for spec in dict.fromkeys(specs)}


@contextmanager
def bounding(exhibits: dict[str, Exhibit]) -> Iterator[None]:
    """Make all bounds while visitors look around, until the block ends."""
    ending = threading.Event()

    def bound() -> None:
        for exhibit in exhibits.values():
            if ending.is_set():
                return
            try:
                exhibit.verifier()
            except UnknownLipschitz:
                continue  # said where the detector is shown

    thread = threading.Thread(target=bound)
    thread.start()
    try:
        yield
    finally:
        # Python would abort if it ended while another thread computes in torch.
        ending.set()
        thread.join()
