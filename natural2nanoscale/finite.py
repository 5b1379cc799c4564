"""Numbers that went bad: found before they are kept, and steps that would bring them in are not made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from natural2nanoscale.errors import InputError

MOST_IN_A_ROW = 5  # steps without a finite gradient, after which a training is lost


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors, all on one device, that hold NaN or infinity; it is waited for once."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    # one number each, without a copy: where the extremes are finite, so is what lies between
    flags = [torch.isfinite(torch.stack(tensor.detach().aminmax())).all() for tensor in floats.values()]
    good = torch.stack(flags).tolist() if flags else []
    return [name for name, fine in zip(floats, good, strict=True) if not fine]


def refuse_not_finite(tensors: Mapping[str, torch.Tensor], where: object, remedy: str) -> None:
    """Raise InputError unless all numbers are finite; `where` is whose they are."""
    bad = not_finite(tensors)
    if bad:
        raise InputError(f"{where}: {len(bad)} of {len(tensors)} tensors are not finite, such as {bad[0]}: {remedy}")


def files_not_finite(folder: Path) -> str | None:
    """What is wrong with the numbers in the safetensors files of a folder, None where they are finite."""
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                if not_finite({name: opened.get_tensor(name)}):
                    return f"{name} in {file.relative_to(folder)} is not finite"
    return None


class SkippedSteps:
    """Steps that are not made because their gradient is not finite: weights and moments stay as they were.

    The optimiser, a fused one, is told on the device, which nobody waits for. `counts` (3,) float32, to be registered
    with the checkpoint's state: how many in a row just now, in the longest row, and in all.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer, self.counts = optimizer, torch.zeros(3, device=device)

    def guard(self, norm: torch.Tensor) -> None:
        """To be called between backward and step with the gradient's norm, which all processes have in common."""
        bad = (~norm.isfinite()).float()
        self.optimizer.found_inf = bad  # what a GradScaler would set
        row = (self.counts[0] + 1) * bad
        self.counts.copy_(torch.stack([row, torch.maximum(self.counts[1], row), self.counts[2] + bad]))

    def refuse_too_many(self, step: int, run: object, saving: bool = False) -> None:
        """InputError after MOST_IN_A_ROW in a row, the same in all processes. A GPU is asked every 20 steps only, as
        this waits for it, and before its state is saved."""
        if self.counts.device.type != "cpu" and step % 20 and not saving:
            return
        longest = int(self.counts[1])
        if longest >= MOST_IN_A_ROW:
            raise InputError(
                f"the gradient of {run} was not finite {longest} times in a row by step {step}: the run stops with "
                "what it last saved; start again with a lower --lr, or in float32 (--precision)"
            )


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Of all gradients together, a scalar on the device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def add_finite(total: torch.Tensor, addend: torch.Tensor) -> None:
    """Add to `total`, in place, unless the addend (1-D) has a number that is not finite."""
    total += torch.where(addend.isfinite().all(), addend, torch.zeros_like(addend))
