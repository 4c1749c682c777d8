"""What the machine offers to trainings and attacks: device, precision, memory settings."""

from __future__ import annotations

import ctypes
import sys

import torch


def training_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed by the hardware rather than emulated, so that it saves time."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    avx512, amx = torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()
    return bool(avx512 or amx)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the system at every step.

    Each step of a training, and each chunk of an evaluation, frees and asks for the same hundreds
    of megabytes; without this, glibc maps and clears the pages each time. Does nothing where there
    is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold, largest = -1, -3, 32 << 20
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, largest)
