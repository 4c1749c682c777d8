"""Export a detector to a .pt2 file of `torch.export`, which runs without lipdet, in C++ too."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lipdet.checkpoint import LoadedDetector, write_complete
from lipdet.export.metadata import KEY, describe
from lipdet.export.network import traced
from lipdet.export.verify import check, compare
from lipdet.types import RawOutput


def export_torch(loaded: LoadedDetector, out: Path, images: Tensor) -> dict[str, Any]:
    """Write a detector's raw outputs as a .pt2 file; the metadata is `lipdet.json` in it.

    Args:
        loaded: the detector.
        out: the file; it appears when the check has passed.
        images: (B, 3, S, S) in [0, 1], on which the program must equal the detector.

    Returns:
        The metadata in the file.

    Raises:
        InputError: the program differs from the detector.
    """
    metadata = describe(loaded, None)
    program = traced(loaded.detector)
    # Notes of the tracer that name files of this machine.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    network = torch.export.load(io.BytesIO(_as_bytes(program, metadata))).module()
    metadata["verified"] = compare(loaded.detector, lambda x: RawOutput(*network(x)), images)
    check(metadata["verified"])
    write_complete(out, _as_bytes(program, metadata))
    return metadata


def _as_bytes(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={f"{KEY}.json": json.dumps(metadata)})
    return buffer.getvalue()
