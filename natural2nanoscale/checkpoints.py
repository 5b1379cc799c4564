"""What a checkpoint holds, registered once by name; when one is due, what is wrong with one, what a run may change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from natural2nanoscale.errors import InputError
from natural2nanoscale.files import in_words, sha256
from natural2nanoscale.finite import files_not_finite
from natural2nanoscale.records import inside, read_json, reason
from natural2nanoscale.schemas import HASHES, STATE

MANIFEST = "manifest.json"


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
        """Bring back what `tensors` and `counts` were; what the checkpoint does not know stays as it is.

        InputError, and nothing changed, for a checkpoint whose counts and tensors are of other kinds and shapes.
        """
        counts, here = {"step": checkpoint.step} | checkpoint.state, self.tensors()
        optimizers = [value for value in self.parts.values() if isinstance(value, torch.optim.Optimizer)]
        shapes = {name: value.shape for name, value in here.items()}
        for i, parameter in enumerate(p for one in optimizers for p in parameters_of(one)):  # before its first step
            shapes |= {f"optimizer.{i}.{moment}": parameter.shape for moment in ("exp_avg", "exp_avg_sq")}
            shapes[f"optimizer.{i}.step"] = torch.Size()
        wrong = [name for name, value in counts.items() if type(value) is not type(getattr(self.counts, name, None))]
        wrong += [name for name, value in checkpoint.tensors.items() if value.shape != shapes.get(name)]
        if wrong:
            raise InputError(
                f"{checkpoint.path} is of another kind of training, its {wrong[0]} is not of this one: start again in "
                "another folder, or go on with the program that wrote it"
            )
        for name, value in counts.items():
            setattr(self.counts, name, value)
        with torch.no_grad():
            for name, value in checkpoint.tensors.items():
                if name in here and not name.startswith("optimizer."):
                    here[name].copy_(value)
        for optimizer in optimizers:
            load_optimizer_tensors(optimizer, checkpoint.tensors)


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


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Of all its groups, in the order in which its state counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat tensors, named optimizer.<parameter>.<entry>."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": torch.as_tensor(value) for i, one in state.items() for key, value in one.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Bring back what `optimizer_tensors` gave; other names are left alone.

    Moments take the memory format of their parameters: the same arithmetic as if the run had never stopped.
    """
    parameters, state = parameters_of(optimizer), {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def step_of(checkpoint: Path) -> int:
    """The optimiser step in the name of a checkpoint's folder."""
    return int(checkpoint.name.rpartition("-")[2])


def disk_need(checkpoint: int, keep: int) -> str:
    """For the plan: the room that checkpoints of so many bytes take, `keep` of them and the one being written."""
    return f"{in_words(checkpoint)} per checkpoint, {in_words((keep + 1) * checkpoint)} while the next one is written"


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: all files of its manifest and no others are there, each has its
    hash, what they say is of its form, and all numbers are finite."""
    try:
        hashes = read_json(path / MANIFEST, HASHES)
        files = {inside(path, name): name for name in hashes}
        for file, name in files.items():
            if not file.is_file() or sha256(file) != hashes[name]:
                return f"{name} is missing or does not match its hash"
        known = {*files, path / MANIFEST}
        strange = [file for file in path.rglob("*") if not file.is_dir() and file not in known]
        if strange:
            return f"{strange[0].relative_to(path)} does not belong to it"
        read_json(path / "state.json", STATE)
        return files_not_finite(path)
    except (OSError, ValueError, SafetensorError) as error:
        return f"its manifest or another file cannot be read ({reason(error)})"


FREE = {"environments", "arguments", "slices", "learned", "hub_revision"}  # may differ, or are looked at by themselves


def refuse_changes(out: Path, old: dict, config: dict, may_change: Sequence[str], serves: str) -> None:
    """Raise InputError for the first entry of a resumed run's config that is not as it was."""
    listed = old.get("slices", {})  # runs of older versions have no such lists
    for part, before in listed.items():
        changes = slice_changes(before, config.get("slices", {}).get(part, {}))
        if changes:
            raise InputError(
                f"{out} goes on with the slices it began with, but in {part}/ {changes}: bring the old ones back, "
                f"or {serves}"
            )
    for part in sorted((set(config) | set(old)) - FREE):
        before, now = old.get(part), config.get(part)
        if not isinstance(before, dict) or not isinstance(now, dict):
            before, now = {part: before}, {part: now}
        for key in sorted((set(before) | set(now)) - set(may_change)):
            was, remedy = f"{key} was {before.get(key)} and is now {now.get(key)}", "give the old value"
            if part == "data" and key in listed:  # the slices are the same
                was, remedy = f"the classes in {key}/dataset.json are not as before", "bring the old ones back"
            if before.get(key) != now.get(key):
                raise InputError(f"{out} goes on as it began, but {was}: {remedy}, or name another folder with --out")


def slice_changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What became of slices, given the digest of every stem, in words; empty when nothing did."""
    kinds = {
        "added": [stem for stem in now if stem not in before],
        "removed": [stem for stem in before if stem not in now],
        "changed": [stem for stem in before if now.get(stem, before[stem]) != before[stem]],
    }
    told = []
    for kind, stems in kinds.items():
        names = ", ".join(stems[:5]) + ", ..." * (len(stems) > 5)
        told += [f"{len(stems)} {'was' if len(stems) == 1 else 'were'} {kind} ({names})"] if stems else []
    return ", ".join(told)
