"""One trial of a study: slices that are drawn, a ControlNet that knows only these, its slices, and its U-Nets."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs, write_pairs
from natural2nanoscale.device import select_device, select_dtype
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.files import write_json
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.segmentation.unet import UNet
from natural2nanoscale.study.conditions import ROTATION, Condition
from natural2nanoscale.study.presets import Place, Preset
from natural2nanoscale.study.synthetic import make_synthetic, picture_row, time_generation
from natural2nanoscale.study.training_sets import (
    PARTS,
    draw_train,
    draw_validation,
    redraw_root,
    some,
    split_at_random,
)
from natural2nanoscale.study.unets import Cell, plan_cells, pseudo_labels, train_cell


@dataclass(frozen=True)
class Trial:
    """All training sets of one redraw that have the same `count` annotated slices, and so share a ControlNet."""

    preset: Preset
    place: Place
    redraw: int
    split: str
    count: int
    conditions: Sequence[Condition]

    @property
    def folder(self) -> Path:
        return self.place.out / f"redraw-{self.redraw}" / f"{self.split}-{self.count}"

    @property
    def per_mask(self) -> int:
        """Synthetic slices per annotated one."""
        return math.ceil(max(condition.synthetic for condition in self.conditions))

    @property
    def timed(self) -> bool:
        """Whether it has to know how long slices take to make."""
        return any(condition.copies == math.inf for condition in self.conditions)

    def cells(self, timing: dict[str, float]) -> list[Cell]:
        return plan_cells(self.conditions, self.count, self.preset, self.redraw, timing)

    def needs_synthetic(self, cell: Cell) -> bool:
        """Whether a U-Net learns from synthetic slices, is asked what it sees in them, or needs their time."""
        condition = cell.condition
        asked = condition.name == ROTATION or condition.copies == math.inf
        return self.per_mask > 0 and (condition.synthetic > 0 or asked)


def open_trial(trial: Trial) -> dict[str, PairFolder]:
    """Draw the slices of a trial, or find them drawn: "pool", "train", "val" and "test"."""
    preset, redraw = trial.preset, trial.redraw
    root = redraw_root(trial.folder.parent, trial.place.data, preset.phantom, preset.seed, redraw)
    if trial.split == "random":
        root = split_at_random(root, trial.folder.parent / "random", seed_for(preset.seed, "split", redraw))
    folders = {"pool": open_pairs(root / "train"), "test": open_pairs(root / "test")}
    folders["train"] = draw_train(trial.folder / "train", folders["pool"], trial.count, preset.seed, redraw)
    folders["val"] = draw_validation(open_pairs(root / "val"), trial.count, preset.seed, redraw)
    return folders


def carry_out(trial: Trial, cell: Cell | None) -> dict | None:
    """One piece of a study's work: the line of a U-Net or, where `cell` is None, the synthetic slices of a trial.

    A function of its arguments and of what earlier pieces left in the trial's folder.
    """
    if cell is None:
        return synthesize_trial(trial, backbone_of(trial.place.backbone, trial.place.device))
    device, folders = select_device(trial.place.device), open_trial(trial)
    if trial.needs_synthetic(cell):
        folders["synthetic"] = open_pairs(trial.folder / "synthetic")
    slices = {part: load_slices(folders[part]) for part in folders if part != "pool"}
    if cell.condition.pseudo:
        slices["pseudo"] = load_slices(label_pool(trial, cell.seed, device))
    row, model = train_cell(cell, trial.preset, slices, device)
    if cell.condition.name == ROTATION and any(condition.pseudo for condition in trial.conditions):
        label_pool(trial, cell.seed, device, model)
    return row | trial_facts(trial, folders)


def trial_facts(trial: Trial, folders: dict[str, PairFolder]) -> dict:
    """What a comparison of lines must know: which test slices, and how many annotated ones redraws draw from."""
    parts = [folders["pool"].path.parent / part for part in PARTS] if trial.split == "random" else []
    pool = sum(len(open_pairs(part).stems) for part in parts) or len(folders["pool"].stems)
    return {"test": fingerprint(folders["test"])[:12], "pool": pool if trial.place.data else None}


def label_pool(trial: Trial, seed: int, device: torch.device, teacher: UNet | None = None) -> PairFolder:
    """The slices of the pool that were not drawn, labelled by the real + rotation U-Net of the same seed.

    Their own masks stay hidden. They are training slices of the data root, which keeps the gap to held-out ones that
    it was prepared with. Without its weights the `teacher` is trained again.
    """
    out = trial.folder / f"pseudo-{seed}"
    if not (out / "dataset.json").is_file():
        folders = open_trial(trial)
        if teacher is None:
            of_it = next(condition for condition in trial.conditions if condition.name == ROTATION)
            slices = {part: load_slices(folders[part]) for part in PARTS}
            cell = Cell(of_it, trial.count, trial.redraw, seed, next(iter(trial.preset.budgets)))
            teacher = train_cell(cell, trial.preset, slices, device)[1]
        drawn, pool = set(folders["train"].stems), folders["pool"]
        unlabelled = some(pool, [stem for stem in pool.stems if stem not in drawn])
        shutil.rmtree(out, ignore_errors=True)  # half written when a study was killed
        info = replace(pool.info, origin="synthetic", split={"rule": "pseudo-labels", "seed": seed})
        write_pairs(out, info, pseudo_labels(teacher, unlabelled, device))
    return open_pairs(out)


@lru_cache(maxsize=1)
def backbone_of(name: str, device: str) -> Backbone:
    """The backbone of a study, loaded once in every process."""
    from natural2nanoscale.diffusion.backbone import load_backbone

    chosen = select_device(device)
    return load_backbone(name, chosen, select_dtype("auto", chosen))


def synthesize_trial(trial: Trial, backbone: Backbone) -> None:
    """Make the synthetic slices of a trial, a picture of some and, where it is asked for, the time that they take."""
    preset, folder, folders = trial.preset, trial.folder, open_trial(trial)
    budget = preset.controlnet_steps, trial.per_mask, seed_for(preset.seed, "redraw", trial.redraw)
    synthetic = make_synthetic(folder, backbone, folders, *budget, preset.crop)
    if trial.split == "given":
        picture_row(folder.with_suffix(".png"), folders["train"], synthetic)
    file = trial.place.out / "timing.json"
    if trial.timed and trial.redraw == 0 and not file.is_file():  # once: it says how many copies there are
        write_json(file, time_generation(folder / "timing", backbone, folder / "controlnet", folders["train"]))
