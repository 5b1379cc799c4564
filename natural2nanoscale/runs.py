"""A run folder: config, log, checkpoints of registered state, and resume.

    RUN/config.json                 arguments, data fingerprints, versions, git commit
    RUN/log.jsonl                   one line per logged step
    RUN/checkpoints/step-000500/    state.safetensors, state.json, the model, and manifest.json written last

JSON and safetensors only: nothing here reads or writes a pickle.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from natural2nanoscale.checkpoints import Checkpoint, State, damage_of, step_of
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import (
    append_lines,
    holds_nothing,
    new_folder,
    read_config,
    read_lines,
    sha256,
    write_json,
    write_lines,
)


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
        for path in target.parent.glob(".*.tmp"):  # half written when a run was killed
            shutil.rmtree(path)
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        newest = next(iter(self.checkpoints()), None)
        known = sum(file.stat().st_size for file in newest.rglob("*")) if newest and name is None else 0
        with new_folder(target, max(known, sum(value.nbytes for value in cpu.values()))) as folder:
            save_file(cpu, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps({"step": step, "state": state}), encoding="utf-8")
            if save_model is not None:
                save_model(folder)
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            hashes = {str(file.relative_to(folder)): sha256(file) for file in files}
            (folder / "manifest.json").write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        if name is None:  # later ones that stand here are damaged: the run went on from an earlier one
            whole = [path for path in self.checkpoints() if path.name.startswith("step-") and step_of(path) <= step]
            for path in set(self.checkpoints()) - set(whole[:keep]):
                shutil.rmtree(path)
        return target

    def save(
        self, state: State, save_model: Callable[[Path], None] | None = None, name: str | None = None, keep: int = 1
    ) -> Path:
        """`save_checkpoint` of what is registered."""
        counts = dict(vars(state.counts))
        return self.save_checkpoint(counts.pop("step"), state.tensors(), counts, save_model, name, keep)

    def restore(self, state: State, name: str | None = None) -> Checkpoint | None:
        """`load_checkpoint` into what is registered; None, and nothing changed, where no checkpoint was completed."""
        checkpoint = self.load_checkpoint(name)
        if checkpoint:
            state.restore(checkpoint)
        return checkpoint

    def checkpoints(self) -> list[Path]:
        """The step-* checkpoints that were completed, newest first, damaged or not."""
        found = [p for p in (self.path / "checkpoints").glob("*step-*") if re.fullmatch(r"(\.old-)?step-\d+", p.name)]
        return sorted(found, key=lambda path: (step_of(path), path.name.startswith("step-")), reverse=True)

    def tell_beginning(self) -> None:
        """Say so where a resumed run has nothing to go on from: it was stopped before its first checkpoint."""
        if not self.checkpoints():
            print(f"no checkpoint was ever completed in {self.path}: it begins at step 0")

    def load_checkpoint(self, name: str | None = None) -> Checkpoint | None:
        """The newest whole step-* checkpoint (or the one called `name`); None when there is none.

        A damaged one is passed over with a printed line. InputError when all that exist are damaged.
        """
        parent, candidates = self.path / "checkpoints", self.checkpoints()
        if name is not None:
            candidates = [path for path in (parent / name, parent / f".old-{name}") if path.is_dir()]
        for path in candidates:
            damage = damage_of(path)
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


def open_run(
    out: Path,
    config: dict,
    resume: bool,
    may_change: Sequence[str] = (),
    serves: str = "name another folder with --out",
) -> RunFolder:
    """Start a run folder, or reopen it to resume.

    `config` is JSON: {"kind": ..., "settings": {...}, "data": {...}, "slices": {...}}. On resume every entry must
    be as it was, except the settings named in `may_change` (lengths and intervals). `slices` holds for each part the
    digest of every stem, so that changed slices can be named; `serves` is what then can be done.
    Raises InputError for a non-empty folder without resume, for nothing to resume and for a changed entry.
    """
    out = Path(out)
    file = out / "config.json"
    config = json.loads(json.dumps(config))  # as it will be read back: tuples become lists
    if resume:
        refuse_no_run(out)
        old = read_config(out)
        refuse_changes(out, old, config, may_change, serves)
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


def refuse_changes(out: Path, old: dict, config: dict, may_change: Sequence[str], serves: str) -> None:
    """Raise InputError for the first entry of a resumed run's config that is not as it was."""
    listed = old.get("slices", {})  # runs of older versions have no such lists
    for part in listed:
        changes = slice_changes(listed[part], config.get("slices", {}).get(part, {}))
        if changes:
            raise InputError(
                f"{out} goes on with the slices it began with, but in {part}/ {changes}: bring the old ones back, "
                f"or {serves}"
            )
    for part in sorted((set(config) | set(old)) - {"environments", "arguments", "slices", "learned"}):
        before, now = old.get(part), config.get(part)
        if not isinstance(before, dict) or not isinstance(now, dict):
            before, now = {part: before}, {part: now}
        for key in sorted(set(before) | set(now)):
            if before.get(key) == now.get(key) or key in may_change:
                continue
            if part == "data" and key in listed:  # the slices are the same
                raise InputError(
                    f"{out} goes on as it began, but the classes in {key}/dataset.json are not as before: bring the "
                    "old ones back, or name another folder with --out"
                )
            raise InputError(
                f"{out} goes on as it began, but {key} was {before.get(key)} and is now {now.get(key)}: "
                "give the old value, or name another folder with --out"
            )


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
        if stems:
            told.append(f"{len(stems)} {'was' if len(stems) == 1 else 'were'} {kind} ({names})")
    return ", ".join(told)


def refuse_no_run(out: Path) -> None:
    """Raise InputError where there is nothing to resume."""
    if not (out / "config.json").is_file():
        raise InputError(f"--resume finds no run in {out}: start it without --resume, or name its folder")


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
