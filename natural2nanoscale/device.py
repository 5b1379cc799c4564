"""What computes, and in which precision."""

from __future__ import annotations

import os

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
