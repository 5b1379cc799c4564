"""A run folder: config, log, checkpoints of registered state, and resume; and the signals that end a run in order.

    RUN/config.json                 arguments, data fingerprints, versions, git commit
    RUN/log.jsonl                   one line per logged step
    RUN/checkpoints/step-000500/    state.safetensors, state.json, the model, and manifest.json written last

JSON and safetensors only: nothing here reads or writes a pickle.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from natural2nanoscale.errors import InputError
from natural2nanoscale.files import (
    append_lines,
    holds_nothing,
    new_folder,
    read_lines,
    sha256,
    write_json,
    write_lines,
)


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (ddof 1); the latter is None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


# -------------------------------------------------------------------------------------------- signals


class Interrupted(KeyboardInterrupt):
    """A loop stopped on request after it had saved; the message says how to go on."""


class StopSignal:
    """Within it the first Ctrl-C or SIGTERM only sets `requested`; a second one interrupts at once."""

    def __enter__(self) -> StopSignal:
        self.requested = False
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------- run folders


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: `step` counts optimiser steps; `tensors` are on the CPU; `path` holds the model."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict
    path: Path


class RunFolder:
    """One training's folder on disk."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def log(self, row: dict) -> None:
        """Append one line to log.jsonl."""
        append_lines(self.path / "log.jsonl", [row])

    def read_log(self) -> list[dict]:
        """All whole lines of log.jsonl; a line cut off by a kill is left out."""
        return read_lines(self.path / "log.jsonl")

    def save_checkpoint(
        self,
        step: int,
        tensors: dict[str, torch.Tensor],
        state: dict,
        save_model: Callable[[Path], None] | None = None,
        name: str | None = None,
        keep: int = 1,
    ) -> Path:
        """Write checkpoints/step-<step> (or checkpoints/<name>) whole or not at all; return its path.

        `save_model` writes the model into the folder that it is given. Of the step-* checkpoints the newest
        `keep` stay, and older ones go once this one stands; a named checkpoint replaces only its namesake.
        """
        target = self.path / "checkpoints" / (name or f"step-{step:06d}")
        with new_folder(target) as folder:
            cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(cpu, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps({"step": step, "state": state}), encoding="utf-8")
            if save_model is not None:
                save_model(folder)
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            hashes = {str(file.relative_to(folder)): sha256(file) for file in files}
            (folder / "manifest.json").write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        if name is None:  # later ones that stand here are damaged: the run went on from an earlier one
            others = sorted(path for path in target.parent.glob("step-*") if path != target)
            older = [path for path in others if path < target]
            for path in others:
                if path not in older[max(0, len(older) - keep + 1) :]:
                    shutil.rmtree(path)
        return target

    def load_checkpoint(self, name: str | None = None) -> Checkpoint | None:
        """The newest whole step-* checkpoint (or the one called `name`); None when there is none.

        A damaged one is passed over with a printed line. InputError when all that exist are damaged.
        """
        parent = self.path / "checkpoints"
        if name is not None:
            candidates = [path for path in (parent / name, parent / f".old-{name}") if path.is_dir()]
        else:
            candidates = sorted((p for p in parent.glob("step-*") if p.is_dir()), reverse=True)
        for path in candidates:
            damage = _damage(path)
            if damage:
                print(f"{path} is passed over: {damage}")
                continue
            saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(saved["step"], load_file(path / "state.safetensors"), saved["state"], path)
        if candidates:
            raise InputError(f"every checkpoint in {parent} is damaged or still being written: none can be loaded")
        return None

    def drop_log_after(self, step: int) -> None:
        """Forget log lines of steps later than `step`: a resumed log has each step once."""
        rows = [row for row in self.read_log() if row.get("step", 0) <= step]
        write_lines(self.path / "log.jsonl", rows)


def open_run(out: Path, config: dict, resume: bool, may_change: Sequence[str] = ()) -> RunFolder:
    """Start a run folder, or reopen it to resume.

    `config` is JSON: {"kind": ..., "settings": {...}, "data": {...}}. On resume every entry must be as it
    was, except the settings named in `may_change` (lengths and intervals).
    Raises InputError for a non-empty folder without resume, for nothing to resume and for a changed entry.
    """
    out = Path(out)
    file = out / "config.json"
    config = json.loads(json.dumps(config))  # as it will be read back: tuples become lists
    if resume:
        old = read_config(out)
        if not old:
            raise InputError(f"--resume finds no run in {out}: start it without --resume, or name its folder")
        for part in sorted((set(config) | set(old)) - {"environments", "arguments"}):
            before, now = old.get(part), config.get(part)
            if not isinstance(before, dict) or not isinstance(now, dict):
                before, now = {part: before}, {part: now}
            for key in sorted(set(before) | set(now)):
                if before.get(key) != now.get(key) and key not in may_change:
                    raise InputError(
                        f"{out} goes on as it began, but {key} was {before.get(key)} and is now {now.get(key)}: "
                        "give the old value, or name another folder with --out"
                    )
    elif file.is_file():
        raise InputError(f"{out} already exists: go on with --resume, or name another folder with --out")
    elif not holds_nothing(out):
        raise InputError(f"{out} already exists and holds no run: name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    environments = [environment()]  # of the beginning, then each other one in which the run went on
    if resume:
        environments = [known for known in old.get("environments", []) if known != environments[0]] + environments
    write_json(file, config | {"environments": environments})
    return RunFolder(out)


def read_config(folder: Path) -> dict:
    """config.json of a folder; {} where there is none, InputError where it is not readable."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): name another folder, or restore the file") from error
    return config


def environment() -> dict:
    """Versions of what the numbers depend on, and the git commit where there is one."""
    names = ("natural2nanoscale", "torch", "diffusers", "transformers", "numpy", "pillow")
    versions: dict[str, str | None] = {}
    for package in names:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    return {"versions": versions, "git_commit": commit, "threads": torch.get_num_threads()}


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


def _damage(path: Path) -> str | None:
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
