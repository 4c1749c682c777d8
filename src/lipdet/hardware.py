"""What the machine offers to trainings and measurements: device, precision, memory settings."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

import torch

from lipdet.errors import InputError

# Constructed weights are built in float64 where the detector is, which Apple's GPUs (mps) lack.
DeviceName = Literal["cpu", "cuda"]


def chosen_device(name: DeviceName | None = None) -> torch.device:
    """Return the device of a name; of none, the GPU if there is one, else the CPU.

    Raises:
        InputError: there is no GPU.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise InputError("There is no GPU that torch can use: leave out --device.")
    return torch.device(name or ("cuda" if found else "cpu"))


def measuring_device(name: DeviceName | None = None, float64: bool = False) -> torch.device:
    """Return `chosen_device`, set to compute in float32 as such, and in float64 always the CPU.

    On GPUs of today float32 is otherwise rounded to the 10 bits of TF32 in convolutions. That
    float64 is proven (theory §5.3) holds for kernels of sums, which cuDNN's need not be.

    Raises:
        InputError: there is no GPU, or one is asked for in float64.
    """
    if float64:
        if name == "cuda":
            raise InputError("What is proven of float64 holds on the CPU: leave out --device cuda.")
        return torch.device("cpu")
    device = chosen_device(name)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether the hardware computes bf16 rather than emulates it, so that it saves time."""
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
