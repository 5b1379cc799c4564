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
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from natural2nanoscale.checkpoints import MANIFEST, Checkpoint, State, damage_of, refuse_changes, step_of
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import (
    append_lines,
    clear,
    holds_nothing,
    json_text,
    make_folder,
    new_folder,
    sha256,
    write_json,
    write_lines,
)
from natural2nanoscale.finite import files_not_finite
from natural2nanoscale.locks import hold
from natural2nanoscale.records import read_config, read_json, read_lines
from natural2nanoscale.schemas import LOG_ROW, STATE


class RunFolder:
    """One training's folder on disk; `within` is the run that it is a part of.

    A resumed run's config.json is written anew with the first thing that is written: who is refused before
    that leaves the folder as it was.
    """

    def __init__(self, path: Path, within: RunFolder | None = None):
        self.path, self.within = Path(path), within
        self.config: dict | None = None  # still to be written

    def settle(self) -> None:
        """Write what config.json is to say."""
        if self.within:
            self.within.settle()
        if self.config is not None:
            write_json(self.path / "config.json", self.config)
            self.config = None

    def log(self, row: dict) -> None:
        """Append one line to log.jsonl."""
        self.settle()
        append_lines(self.path / "log.jsonl", [row])

    def read_log(self) -> list[dict]:
        """All whole lines of log.jsonl; a line cut off by a kill is left out."""
        return read_lines(self.path / "log.jsonl")

    def save(
        self, state: State, save_model: Callable[[Path], None] | None = None, name: str | None = None, keep: int = 2
    ) -> Path:
        """Write what is registered as checkpoints/step-<step> (or <name>), whole or not at all; return its path.

        `save_model` writes the model into the folder that it is given. Of the step-* checkpoints the newest
        `keep` stay, and older ones go once this one stands; a named checkpoint replaces only its namesake.
        InputError, and the older ones stay, where a number that was to be saved is not finite.
        """
        self.settle()
        counts = dict(vars(state.counts))
        step = counts.pop("step")
        target = make_folder(self.path / "checkpoints") / (name or f"step-{step:06d}")
        for path in target.parent.glob(".*.tmp"):  # half written when a run was killed
            clear(path)
        cpu = {key: value.detach().cpu().contiguous() for key, value in state.tensors().items()}
        standing = self.checkpoints()
        known = sum(file.lstat().st_size for file in standing[0].rglob("*")) if standing and name is None else 0
        with new_folder(target, max(known, sum(value.nbytes for value in cpu.values()))) as folder:
            save_file(cpu, folder / "state.safetensors")
            (folder / "state.json").write_text(json_text({"step": step, "state": counts}), encoding="utf-8")
            if save_model is not None:
                save_model(folder)
            bad = files_not_finite(folder)
            if bad:
                stands = f"{standing[0].name} stands" if standing else "none was saved before"
                raise InputError(
                    f"{self.path} holds numbers that are not finite by step {step} ({bad}), so this checkpoint is not "
                    f"saved, {stands}: start again with a lower --lr"
                )
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
            (folder / MANIFEST).write_text(json_text(hashes), encoding="utf-8")
        if name is None:  # later ones that stand here are damaged: the run went on from an earlier one
            whole = [path for path in self.checkpoints() if path.name.startswith("step-") and step_of(path) <= step]
            for path in set(self.checkpoints()) - set(whole[:keep]):
                shutil.rmtree(path)
        return target

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
            if path != candidates[0]:
                print(f"{path} is taken")
            saved = read_json(path / "state.json", STATE)
            return Checkpoint(saved["step"], load_file(path / "state.safetensors"), saved["state"], path)
        if candidates:
            raise InputError(
                f"every checkpoint in {parent} is damaged ({damage}): bring a whole one back from a copy, or "
                + (f"remove {parent}, and --resume begins at step 0" if name is None else "name another one")
            )
        return None

    def drop_log_after(self, step: int, schema: dict = LOG_ROW, remedy: str | None = None) -> None:
        """Forget log lines of steps later than `step`: a resumed log has each step once.

        Damaged lines go as well or, with a `remedy`, are an InputError that names it.
        """
        rows = read_lines(self.path / "log.jsonl", schema, remedy)
        self.settle()
        write_lines(self.path / "log.jsonl", [row for row in rows if row.get("step", 0) <= step])


def open_run(
    out: Path,
    config: dict,
    resume: bool,
    may_change: Sequence[str] = (),
    serves: str = "name another folder with --out",
) -> RunFolder:
    """Start a run folder, or reopen it to resume; no other process may, until this one ends or releases its locks.

    `config` is JSON: {"kind": ..., "settings": {...}, "data": {...}, "slices": {...}}. On resume every entry must
    be as it was, except the settings named in `may_change` (lengths and intervals). `slices` holds for each part the
    digest of every stem, so that changed slices can be named; `serves` is what then can be done.
    Raises InputError for a non-empty folder without resume, for nothing to resume and for a changed entry.
    """
    out = Path(out)
    config = json.loads(json.dumps(config))  # as it will be read back: tuples become lists
    environments = [environment()]  # of the beginning, then each other one in which the run went on
    if resume:
        refuse_no_run(out)
        hold(out)
        old = read_config(out)
        refuse_changes(out, old, config, may_change, serves)
        environments = [known for known in old.get("environments", []) if known != environments[0]] + environments
    else:
        refuse_begun(out)
        out.mkdir(parents=True, exist_ok=True)
        hold(out)
        refuse_begun(out)  # by somebody else, just now
    run = RunFolder(out)
    run.config = config | {"environments": environments}
    if not resume:
        run.settle()
    return run


def refuse_begun(out: Path) -> None:
    """Raise InputError where a new run cannot begin."""
    if (out / "config.json").is_file():
        raise InputError(f"{out} already exists: go on with --resume, or name another folder with --out")
    if not holds_nothing(out):
        raise InputError(f"{out} already exists and holds no run: name another folder with --out")


def refuse_no_run(out: Path) -> None:
    """Raise InputError where there is nothing to resume."""
    if not (out / "config.json").is_file():
        raise InputError(f"--resume finds no run in {out}: start it without --resume, or name its folder")


def environment() -> dict:
    """Versions of what the numbers depend on, and the git commit where there is one."""
    versions: dict[str, str | None] = {}
    for package in ("natural2nanoscale", "torch", "diffusers", "transformers", "numpy", "pillow"):
        versions[package] = None
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    commit = None
    with suppress(OSError, subprocess.TimeoutExpired):
        # of this package's own repository: one that it is merely installed in does not know the file
        for command in ("ls-files --error-unmatch runs.py", "rev-parse HEAD"):
            git = ["git", "-C", str(Path(__file__).parent), *command.split()]
            done = subprocess.run(git, capture_output=True, text=True, timeout=5)
            if done.returncode:
                break
            commit = done.stdout.strip()
    return {"versions": versions, "git_commit": commit, "threads": torch.get_num_threads()}
