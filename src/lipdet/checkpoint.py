"""Weights on disk: one safetensors file that carries its own configuration. Never pickle.

Notable choices:
- The file's header holds json: the detector's configuration, how it was trained, its figures.
- Files appear under their name only when complete.
- A DETECTOR is the name of packaged weights, a folder (the best weights of a run, or the weights
  that `Detector.save_pretrained` wrote), a file, `package.module:callable` in the user's code, or a
  YOLO as `ultralytics:FILE`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lipdet.attack.foreign import ForeignDetector
from lipdet.config import NetworkConfig, SegmenterConfig, network_config, stored
from lipdet.detector import ARCHITECTURES, SSD, build_detector
from lipdet.errors import InputError
from lipdet.files import write_complete
from lipdet.progress import console
from lipdet.segmenter import SEGMENTERS, Segmenter, build_segmenter
from lipdet.types import Framing
from lipdet.user_module import load_module, names_module

PACKAGED = Path(__file__).parent / "weights"
BEST = "best.safetensors"
# What a run goes on from.
LAST = "last.safetensors"
# The name that the Hugging Face Hub gives to weights.
MODEL = "model.safetensors"


@dataclass(frozen=True)
class LoadedDetector:
    """A detector in eval mode and what its file says about it.

    Attributes:
        name: as the user gave it.
        detector: with its trained weights.
        info: `detector`, `training`, `figures`, `versions` as stored; empty for code of the user's.
    """

    name: str
    detector: SSD
    info: dict[str, Any]

    @property
    def framing(self) -> Framing:
        """Return how pictures get onto its canvas."""
        return self.detector.config.framing

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its classes in the order of its labels."""
        return self.detector.config.class_names

    @property
    def module(self) -> nn.Module:
        """The detector as a module, as of one that lipdet did not build."""
        return self.detector


@dataclass(frozen=True)
class LoadedSegmenter:
    """A segmenter in eval mode and what its file says about it.

    Attributes:
        name: as the user gave it.
        segmenter: with its trained weights.
        info: `segmenter`, `training`, `figures`, `versions` as stored.
    """

    name: str
    segmenter: Segmenter
    info: dict[str, Any]

    @property
    def framing(self) -> Framing:
        """Return how pictures get onto its canvas."""
        return self.segmenter.framing

    @property
    def module(self) -> nn.Module:
        """The segmenter as a module, as of a detector."""
        return self.segmenter


# Made of lipdet's parts, or not.
AnyDetector = LoadedDetector | ForeignDetector
LoadedNetwork = LoadedDetector | LoadedSegmenter


def packaged_names() -> list[str]:
    """List the names of the weights that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.safetensors"))


def weights_file(spec: str) -> Path:
    """Return the file that a DETECTOR means.

    Raises:
        InputError: there is no such weights file.
    """
    path = Path(spec)
    if path.suffix in (".onnx", ".pt2"):
        raise InputError(
            f"{spec}: of exported files detect takes .onnx, and other commands none; name weights."
        )
    if spec and path.is_dir():
        for name in (BEST, MODEL):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{spec} is no finished run (it has no {BEST} and no {MODEL}).")
    if path.is_file():
        return path
    if spec in packaged_names():
        return PACKAGED / f"{spec}.safetensors"
    raise InputError(
        f"There is no detector {spec!r}; give a run folder, a weights file, "
        f"package.module:callable, or one of: {', '.join(packaged_names())}."
    )


def load_network(spec: str) -> AnyDetector | LoadedSegmenter:
    """Return what a DETECTOR means: a detector, made of lipdet's parts or not, or a segmenter.

    Raises:
        InputError: missing, damaged, or weights of another architecture.
    """
    if not names_module(spec):
        return _load_weights(spec)
    module = load_module(spec)
    if isinstance(module, SSD):
        return LoadedDetector(spec, module, {})
    return ForeignDetector.of(spec, module)


def load_any(spec: str) -> AnyDetector:
    """Return what a DETECTOR means, made of lipdet's parts or not.

    Raises:
        InputError: as `load_detector`, but for a module that is no `SSD`.
    """
    loaded = load_network(spec)
    if isinstance(loaded, LoadedSegmenter):
        raise _no_detector(spec)
    return loaded


def load_own(spec: str) -> LoadedNetwork:
    """Build the network that a weights file describes, or the detector of a callable of the user's.

    Args:
        spec: a DETECTOR; see the module's first lines.

    Raises:
        InputError: missing, damaged, weights of another architecture, or a module that is no `SSD`.
    """
    loaded = load_network(spec)
    if isinstance(loaded, ForeignDetector):
        kind = type(loaded.module)
        raise InputError(
            f"{spec} is a {kind.__module__}.{kind.__qualname__} and no lipdet.detector.SSD, so how "
            "it gets from raw output to boxes is not known here: build it from lipdet's parts "
            "(docs/your-own-detector.md), or use eval, attack, report or lipschitz --audit, which "
            "take any detector."
        )
    return loaded


def load_detector(spec: str) -> LoadedDetector:
    """Build a detector, as `load_own` does.

    Raises:
        InputError: as `load_own`, or it is a segmenter.
    """
    loaded = load_own(spec)
    if isinstance(loaded, LoadedSegmenter):
        raise _no_detector(spec)
    return loaded


def _no_detector(spec: str) -> InputError:
    return InputError(
        f"{spec} is a segmenter, and this is for detectors: give it to detect, certify, eval, "
        "attack, report, lipschitz or export (docs/segmentation.md)."
    )


def certifiable(loaded: AnyDetector) -> SSD:
    """Return a detector whose way from raw output to boxes certificates can follow.

    Raises:
        InputError: it is another.
    """
    if isinstance(loaded, ForeignDetector):
        raise InputError(
            f"{loaded.name} is no lipdet.detector.SSD, and a certificate follows the decoding of "
            "boxes that lipdet does itself: leave out --certify and --float64, or build the "
            "detector from lipdet's parts (docs/your-own-detector.md)."
        )
    return loaded.detector


def is_segmenter(spec: str) -> bool:
    """Return whether a DETECTOR is a weights file that says that it is of a segmenter.

    Raises:
        InputError: there is no such weights file, or it is damaged.
    """
    # Of an exported model, the runtime says what it is of.
    is_weights = not names_module(spec) and not spec.endswith(".onnx")
    return is_weights and "segmenter" in read_info(weights_file(spec))


def load_segmenter(spec: str) -> LoadedSegmenter:
    """Build the segmenter that a weights file describes.

    Raises:
        InputError: missing, damaged, or weights of a detector.
    """
    loaded = None if names_module(spec) else _load_weights(spec)
    if not isinstance(loaded, LoadedSegmenter):
        raise InputError(f"{spec} is no segmenter; train one with --preset segment.")
    return loaded


def _load_weights(spec: str) -> LoadedNetwork:
    path = weights_file(spec)
    tensors, info = read_tensors(path)
    if path.name == BEST:
        _tell_unfinished(path.parent)
    try:
        config = network_config(info)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not describe a lipdet detector ({error}).") from None
    known = SEGMENTERS if isinstance(config, SegmenterConfig) else ARCHITECTURES
    if config.architecture not in known:
        raise InputError(
            f"{path} needs the architecture {config.architecture!r}, which this version of lipdet "
            f"does not have; it has: {', '.join(known)}."
        )
    with _plain_tensors():
        if isinstance(config, SegmenterConfig):
            segmenter = build_segmenter(config)
            load_state(segmenter, tensors, path)
            return LoadedSegmenter(spec, segmenter.eval(), info)
        detector = build_detector(config)
        load_state(detector, tensors, path)
        return LoadedDetector(spec, detector.eval(), info)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Make float32 tensors on the CPU that any mode can use, whatever the caller has chosen."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(usual)


def _tell_unfinished(run: Path) -> None:
    """Log that the training of a run folder has steps left: its weights are not the last word."""
    if not (run / LAST).is_file():
        return
    info = read_info(run / LAST)
    if info["step"] < info.get("steps", 0):
        console.log(
            f"{run} has been trained for {info['step']:,} of {info['steps']:,} steps; go on with: "
            f"lipdet train --resume --out {run}"
        )


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict strictly, or say that the file is damaged or of another architecture."""
    own = module.state_dict()
    broken = [
        name
        for name, tensor in tensors.items()
        if not tensor.isfinite().all()
        or (name in own and tensor.is_floating_point() != own[name].is_floating_point())
    ]
    if broken:
        raise InputError(f"{path} holds values that are no numbers, in {', '.join(broken)}.")
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError:
        raise InputError(
            f"{path} holds weights of another architecture than its configuration says."
        ) from None


def save_detector(path: Path, detector: nn.Module, config: NetworkConfig, info: Any) -> None:
    """Write a network's weights with its configuration and `info` (plain values)."""
    state = {name: tensor.detach().cpu() for name, tensor in detector.state_dict().items()}
    write_tensors(path, state, {**info, **stored(config)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write tensors and json to one safetensors file, atomically."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_complete(path, save(contiguous, metadata={"lipdet": json.dumps(info)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        InputError: the file is missing, truncated, or not ours.
    """
    with _opened(path) as (file, info):
        return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118


def read_info(path: Path) -> dict[str, Any]:
    """Read the json of what `write_tensors` wrote; raises as `read_tensors`."""
    with _opened(path) as (_, info):
        return info


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads((file.metadata() or {})["lipdet"])
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no readable safetensors file ({error}).") from None
    except (KeyError, ValueError, RecursionError):
        raise InputError(f"{path} was not written by lipdet (it has no lipdet header).") from None
