"""Memory of a process that trains."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COMPILERS = 4  # processes of a worker that compile kernels; torch would start one for each core, up to 32
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step instead of giving it back to the kernel.

    Otherwise each step maps every large tensor anew and clears its pages at first touch, which takes a third of the
    time of a step of 16,000 tokens at width 768. Does nothing where malloc is not glibc's.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)


def peak_memory(device: torch.device) -> float:
    """Bytes that this process has on a GPU at most since the last call; on a CPU those that it has now."""
    if device.type == "cuda":
        import torch

        peak = float(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # not Linux
        return 0.0
    return float(pages * resource.getpagesize())
