"""What computes, in which precision, and what a step takes of it: memory at its peak, and time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from natural2nanoscale.errors import InputError


def select_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one; InputError for a device that torch cannot use.

    Of several CUDA devices each process that torchrun started takes its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # whoever asks for the current one means it
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason}): use auto, cpu or cuda") from error
    return device


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device; from pinned memory, so that nobody waits for what a GPU still has to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself; others emulate it, slower than float32.

    CPUs with AVX512-BF16 do, and those with AMX, which all have it.
    """
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def select_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the frozen U-Net: bfloat16 where the device is made for it, else float32."""
    if precision == "auto":
        precision = "bf16" if native_bfloat16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


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
