"""What a training step takes, measured instead of predicted: memory at its peak, and time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

try:
    import resource
except ImportError:  # Windows, which does not count this way
    resource = None


@dataclass(frozen=True)
class Cost:
    """Of one call: `peak` in bytes, as `peak_bytes` counts them, and seconds."""

    peak: int | None
    seconds: float


def measure(step: Callable[[], object], device: torch.device) -> Cost:
    """Call `step` twice: the peak of both, and the time of the second call, for which the first one warms up."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return Cost(peak_bytes(device), seconds)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that was in use at once, in bytes; None where the system does not tell.

    With CUDA that of all tensors on the device, by its own counter: what the allocator wastes and the driver takes
    comes on top. Else the largest resident set of this process since its start: with the interpreter, its libraries
    and whatever took more before, such as weights that were being read; no step can need more than it says.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gigabytes(peak: int | None) -> str:
    """For people: "1.1 GB"."""
    return "an unknown amount of memory" if peak is None else f"{peak / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """For people: "40 s", "12 min" or "5.3 h"."""
    for length, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds:.0f} s"
