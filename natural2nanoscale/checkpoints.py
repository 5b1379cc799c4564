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

    counts: an object whose attributes are numbers or other JSON, `step` among them. parts: modules, optimisers of
    Adam's kind, tensors, and dicts of tensors by name. What is restored is copied into the tensors that are there: they
    keep device and memory format, and so the arithmetic is that of a run that never stopped.
    """

    def __init__(self, counts: object, **parts: torch.nn.Module | torch.optim.Optimizer | torch.Tensor | dict):
        self.counts, self.parts = counts, parts

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, named <part>.<name>, the state of an optimiser <part>.<parameter>.<name>."""
        named = {}
        for part, value in self.parts.items():
            if isinstance(value, torch.optim.Optimizer):
                state = value.state_dict()["state"]  # of the parameters in the order of their groups
                named |= {f"{part}.{i}.{key}": tensor for i, of in state.items() for key, tensor in of.items()}
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
        for part in self.parts.values():
            if isinstance(part, torch.optim.Optimizer):
                begin(part)
        counts, here = {"step": checkpoint.step} | checkpoint.state, self.tensors()
        wrong = [name for name, value in counts.items() if type(value) is not type(getattr(self.counts, name, None))]
        shapes = {name: value.shape for name, value in here.items()}
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
                here[name].copy_(value)


def begin(optimizer: torch.optim.Optimizer) -> None:
    """Give an Adam the state of zeros that it else makes in its first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                step = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
                optimizer.state[parameter] = {"step": step} | moments


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
