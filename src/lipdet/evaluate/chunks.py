"""One pass over a data set in chunks of pictures: computed in any process, kept in one file each.

Notable choices:
- A chunk is the same pictures whoever computes it, so that its result is the same, bit for bit.
- The number of a chunk says which process computes it, and its file is found by its first picture:
  none is lost or counted twice, whatever ends when, and another number of processes may go on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lipdet import distributed
from lipdet.attack.attackable import Attackable
from lipdet.checkpoint import read_tensors, write_tensors
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.hardware import keep_freed_memory
from lipdet.images.pack import Pack
from lipdet.progress import track
from lipdet.segmenter import Segmenter
from lipdet.types import Detections
from lipdet.versions import versions

Tensors = dict[str, Tensor]
Result = TypeVar("Result")
# Files and folders whose code decides results.
FILES = ("norms.py", "types.py")
FOLDERS = ("attack", "boxes", "certificate", "detector", "evaluate", "layers", "lipschitz")


@dataclass(frozen=True)
class Pass(Generic[Result]):
    """One pass over the pictures of a data set.

    Attributes:
        label: what is done, for the progress bar.
        pictures: how many there are.
        size: pictures per chunk.
        compute: indices of a chunk's pictures to its result.
        to_tensors: a result to what its file holds.
        from_tensors: the way back.
        folder: where finished chunks are kept and looked for; None keeps none.
    """

    label: str
    pictures: int
    size: int
    compute: Callable[[range], Result]
    to_tensors: Callable[[Result], Tensors]
    from_tensors: Callable[[Tensors], Result]
    folder: Path | None = None

    def share(self) -> None:
        """Compute this process's chunks, as far as they are not there yet."""
        keep_freed_memory()
        own = self._chunks()[distributed.rank() :: distributed.size()]
        for chunk in track(own, self.label):
            if not self._file(chunk).is_file():
                self._result(chunk)

    def results(self) -> list[Result]:
        """Return the results of all chunks, in order; what is not there yet is computed."""
        keep_freed_memory()
        return [self._result(chunk) for chunk in track(self._chunks(), self.label)]

    def _chunks(self) -> list[range]:
        return [
            range(start, min(start + self.size, self.pictures))
            for start in range(0, self.pictures, self.size)
        ]

    def _file(self, chunk: range) -> Path:
        assert self.folder is not None
        return self.folder / f"{chunk.start:08d}.safetensors"

    def _result(self, chunk: range) -> Result:
        file = self._file(chunk) if self.folder else None
        return kept(file, lambda: self.compute(chunk), self.to_tensors, self.from_tensors)


def kept(
    file: Path | None,
    compute: Callable[[], Result],
    to_tensors: Callable[[Result], Tensors],
    from_tensors: Callable[[Tensors], Result],
) -> Result:
    """Return what a file keeps of an earlier run, or compute it and keep it there.

    Args:
        file: in a folder of `State.of_pass`; None keeps nothing.
        compute: makes the result.
        to_tensors: a result to what its file holds.
        from_tensors: the way back.

    Raises:
        InputError: the file is of something else.
    """
    if file is None:
        return compute()
    info = {"part": f"{file.parent.name}/{file.name}"}
    if file.is_file():
        tensors, found = read_tensors(file)
        if found != info:
            raise InputError(f"{file} is of something else: delete it, and it is made again.")
        return from_tensors(tensors)
    result = compute()
    _make_folder(file.parent)
    write_tensors(file, to_tensors(result), info)
    return result


def detections_to_tensors(found: Sequence[Detections]) -> Tensors:
    """Return detections of several pictures, one after the other, and how many each has."""
    return {
        "boxes": torch.cat([one["boxes"] for one in found]),
        "labels": torch.cat([one["labels"] for one in found]),
        "scores": torch.cat([one["scores"] for one in found]),
        "counts": torch.tensor([len(one["labels"]) for one in found]),
    }


def detections_from_tensors(tensors: Tensors) -> list[Detections]:
    """Return what `detections_to_tensors` was given."""
    columns = (
        torch.split(tensors[name], tensors["counts"].tolist())
        for name in ("boxes", "labels", "scores")
    )
    return [
        Detections(boxes=boxes, labels=labels, scores=scores)
        for boxes, labels, scores in zip(*columns, strict=True)
    ]


def detecting_pass(
    label: str,
    pictures: int,
    size: int,
    compute: Callable[[range], list[Detections]],
    folder: Path | None,
) -> Pass[list[Detections]]:
    """Make a pass whose results are detections; the arguments are those of `Pass`."""
    codec = detections_to_tensors, detections_from_tensors
    return Pass(label, pictures, size, compute, *codec, folder)


def in_order(chunks: Sequence[list[Detections]]) -> list[Detections]:
    """Join the detections of all chunks, picture by picture."""
    return [one for chunk in chunks for one in chunk]


@dataclass(frozen=True)
class State:
    """The folder in which finished chunks of one detector are kept and looked for.

    Attributes:
        folder: of all passes.
        detector: what results depend on of the detector as it was then.
    """

    folder: Path
    detector: str

    @classmethod
    def of(cls, folder: Path | None, detector: SSD | Attackable) -> State | None:
        """Return the state of a detector as it is now.

        None without a folder, and for a detector that lipdet did not build: a hash of its weights
        says nothing of its code.
        """
        if folder is None or not isinstance(detector, SSD):
            return None
        boxes = detector.default_boxes
        # A GPU sums in another order than a CPU, so where it computes counts, too.
        return cls(folder, f"{weights_hash(detector)} {boxes.device.type} {boxes.dtype}")

    def of_pass(self, kind: str, pack: Pack, **settings: object) -> Path:
        """Return the folder of one pass, named by a hash of everything that determines it.

        Args:
            kind: of pass.
            pack: the pictures.
            settings: what else results depend on besides the code, as plain values.
        """
        parts = {"detector": self.detector, "data": pack.hash, **settings, **code()}
        text = json.dumps(parts, sort_keys=True)
        return self.folder / kind / hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_hash(network: SSD | Segmenter) -> str:
    """Hash what a network computes: its weights, buffers, layers and what decodes outputs.

    It is the same on every device, and in float64.
    """
    parts: list[object] = [network.config, network]
    if isinstance(network, SSD):
        parts += [network.coding, network.scores, network.nms_iou]
    digest = hashlib.sha256(repr(parts).encode())
    # `default_boxes` are a buffer that no state dict has.
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu()
        digest.update(name.encode())
        digest.update((tensor.float() if tensor.is_floating_point() else tensor).numpy().tobytes())
    return digest.hexdigest()


@cache
def code() -> dict[str, str | dict[str, str]]:
    """Name what computes: versions and a hash of the source. No other's results are taken over."""
    return {"code": source_hash(Path(__file__).parent.parent), "versions": versions()}


def source_hash(package: Path) -> str:
    """Return a hash of all source that results depend on."""
    digest = hashlib.sha256()
    folders = [sorted((package / folder).rglob("*.py")) for folder in FOLDERS]
    for file in itertools.chain([package / name for name in FILES], *folders):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder} is a file; the state needs a folder.") from None
