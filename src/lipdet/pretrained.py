"""`lipdet.Detector`: load a detector, use it on pictures, save it, share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from lipdet import hub
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import LoadedDetector, load_detector, packaged_names
from lipdet.detector import SSD
from lipdet.images.crop import Region
from lipdet.images.source import load_rgb
from lipdet.lipschitz.state import kept_by
from lipdet.reading import Detection, Reading, certified_reading, read
from lipdet.results import read_results
from lipdet.types import Framing

Picture = Image.Image | Path | str


class Detector:
    """A trained detector.

    Attributes:
        loaded: the network, its name, and what its file says about it.
    """

    def __init__(self, loaded: LoadedDetector) -> None:
        self.loaded = loaded
        self._bounded: tuple[object, Verifier] | None = None

    @classmethod
    def from_pretrained(cls, source: Path | str, revision: str | None = None) -> Detector:
        """Load a detector.

        Args:
            source: the name of packaged weights, a run folder, a weights file, a folder that
                `save_pretrained` wrote, `package.module:callable` that returns an `SSD`, or the
                id `owner/name` of a repository on the Hub. What exists here comes first.
            revision: branch, tag or commit of the repository.

        Raises:
            InputError: there is no such detector, or its file is damaged.
        """
        name = str(source)
        here = Path(source).exists() or name in packaged_names()
        if here or not hub.is_repository(name):
            return cls(load_detector(name))
        fetched = load_detector(str(hub.fetch(name, revision)))
        return cls(replace(fetched, name=name))

    @property
    def network(self) -> SSD:
        """The network: images (B, 3, H, W) in [0, 1] to raw output."""
        return self.loaded.detector

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's labels."""
        return self.network.config.class_names

    @property
    def framing(self) -> Framing:
        """Height and width of what the network sees, and whether that is a whole picture."""
        return self.loaded.framing

    def detect(self, picture: Picture, crop: Sequence[float] | None = None) -> list[Detection]:
        """Find objects in a picture, best first.

        Args:
            picture: of any size, or its file.
            crop: left, top, right, bottom in pixels: look only there, in one pass. Without it a
                detector of crops searches the picture for rows of small objects, as house
                numbers are.

        Raises:
            InputError: the file is no picture, or the crop reaches outside it.
        """
        return list(self._read(picture, crop).detections)

    def certify(self, picture: Picture, crop: Sequence[float] | None = None) -> list[Detection]:
        """Like `detect`, and say how much perturbation leaves each detection what is shown.

        Raises:
            UnknownLipschitz: a layer of the network has no bound.
            InputError: as in `detect`.
        """
        reading = self._read(picture, crop)
        if not reading.views:
            return []
        return list(certified_reading(reading, self._verifier).detections)

    def save_pretrained(self, folder: Path | str, results: Sequence[Path] = ()) -> None:
        """Write weights (safetensors), config.json and a model card.

        Args:
            folder: made if need be.
            results: json files of `lipdet eval`, whose figures the card shows.
        """
        hub.write_folder(self.loaded, Path(folder), read_results(results))

    def push_to_hub(
        self, repository: str, results: Sequence[Path] = (), private: bool | None = None
    ) -> str:
        """Upload what `save_pretrained` writes and return the address of the commit.

        Args:
            repository: `owner/name`; made if need be.
            results: as in `save_pretrained`.
            private: of a new repository.

        Raises:
            InputError: huggingface_hub is not installed, or the Hub refuses.
        """
        return hub.push(self.loaded, repository, read_results(results), private)

    @property
    def _verifier(self) -> Verifier:
        """What certificates need, made anew when the network has changed.

        All that it keeps is looked at: hooks, the code of functions and classes, and the values of
        weights, since `parameter.data` changes without a trace.
        """
        state = kept_by(self.network)
        if self._bounded is None or self._bounded[0] != state:
            self._bounded = state, verifier_of(self.network, DISPLAY_SELECTION)
        return self._bounded[1]

    def _read(self, picture: Picture, crop: Sequence[float] | None) -> Reading:
        if isinstance(picture, Image.Image):
            image = picture.convert("RGB")
        else:
            image = load_rgb(Path(picture))
        return read(self.network, self.class_names, image, None if crop is None else Region(*crop))
