"""What a checkpoint holds, registered once by name; when the next one is due, and what is wrong with one on disk."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from natural2nanoscale.files import in_words, sha256


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: `step` counts optimiser steps; `tensors` are on the CPU; `path` holds the model."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict
    path: Path


class State:
    """What a checkpoint holds, registered once by name.

    counts: an object whose attributes are numbers or other JSON, `step` among them. parts: modules, optimisers,
    tensors, and dicts of tensors by name. What is restored is copied into the tensors that are there: they keep
    device and memory format, and so the arithmetic is that of a run that never stopped.
    """

    def __init__(self, counts: object, **parts: torch.nn.Module | torch.optim.Optimizer | torch.Tensor | dict):
        self.counts, self.parts = counts, parts

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, named <part>.<name>."""
        named = {}
        for part, value in self.parts.items():
            if isinstance(value, torch.optim.Optimizer):
                named |= optimizer_tensors(value)
            elif isinstance(value, torch.Tensor):
                named[part] = value
            else:
                entries = value.state_dict() if isinstance(value, torch.nn.Module) else value
                named |= {f"{part}.{name}": tensor for name, tensor in entries.items()}
        return named

    def restore(self, checkpoint: Checkpoint) -> None:
        """Bring back what `tensors` and `counts` were; what the checkpoint does not know stays as it is."""
        for name, value in ({"step": checkpoint.step} | checkpoint.state).items():
            setattr(self.counts, name, value)
        here = self.tensors()
        with torch.no_grad():
            for name, value in checkpoint.tensors.items():
                if name in here and not name.startswith("optimizer."):
                    here[name].copy_(value)
        for value in self.parts.values():
            if isinstance(value, torch.optim.Optimizer):
                load_optimizer_tensors(value, checkpoint.tensors)


class SavingTimer:
    """Says when a checkpoint is due by the clock: the first of a run after a minute, then `minutes` after the last.

    With 0 minutes never.
    """

    FIRST = 60.0  # seconds

    def __init__(self, minutes: float, first: bool):
        self.seconds = 60 * minutes
        self.wait = min(self.FIRST, self.seconds) if first else self.seconds
        self.last = time.monotonic()

    def due(self) -> bool:
        return self.seconds > 0 and time.monotonic() - self.last >= self.wait

    def saved(self) -> None:
        self.last, self.wait = time.monotonic(), self.seconds


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat tensors, named optimizer.<parameter>.<entry>."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Bring back what `optimizer_tensors` gave; other names are left alone.

    Moments take the memory format of their parameters: the same arithmetic as if the run had never stopped.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            if value.shape == parameters[int(index)].shape:
                value = torch.empty_like(parameters[int(index)], dtype=value.dtype).copy_(value)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def step_of(checkpoint: Path) -> int:
    """The optimiser step in the name of a checkpoint's folder."""
    return int(checkpoint.name.rpartition("-")[2])


def disk_need(checkpoint: int, keep: int) -> str:
    """For the plan: the room that checkpoints of so many bytes take, `keep` of them and the one being written."""
    return f"{in_words(checkpoint)} per checkpoint, {in_words((keep + 1) * checkpoint)} while the next one is written"


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file of the manifest has its hash."""
    try:
        hashes = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    for name, expected in hashes.items():
        file = path / name
        if not file.is_file() or sha256(file) != expected:
            return f"{name} is missing or does not match its hash"
    return None
