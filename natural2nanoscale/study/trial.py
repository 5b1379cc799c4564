"""One trial of a study: slices that are drawn, a ControlNet that knows only these, its slices, and its U-Nets."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs, write_pairs
from natural2nanoscale.data.quality import quality
from natural2nanoscale.device import select_device, select_dtype
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.files import write_json
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.slices import Slices, load_slices
from natural2nanoscale.segmentation.unet import UNet, UNetInfo, load_unet, save_unet
from natural2nanoscale.study.conditions import RECIPES, ROTATION, Condition
from natural2nanoscale.study.presets import Place, Preset
from natural2nanoscale.study.synthetic import (
    deformed_slices,
    draw_synthetic,
    picture_row,
    time_generation,
    train_controlnet,
)
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

    def per_mask(self, recipe: str) -> int:
        """Synthetic slices that a recipe makes per annotated one."""
        return math.ceil(max((one.synthetic for one in self.conditions if one.recipe == recipe), default=0))

    def names(self, recipe: str) -> tuple:
        """What the synthetic slices of a recipe are told by."""
        return self.redraw, self.split, self.count, recipe

    def synthetic(self, recipe: str) -> Path:
        """Folder of the synthetic slices of a recipe."""
        return self.folder / ("synthetic" if recipe == "plain" else "synthetic-" + re.sub(r"\W+", "-", recipe))

    @property
    def labels(self) -> bool:
        """Whether its real + rotation U-Nets are asked what other slices show."""
        return any(one.pseudo or RECIPES[one.recipe].asks for one in self.conditions)

    @property
    def timed(self) -> bool:
        """Whether it has to know how long slices take to make."""
        return any(condition.copies == math.inf for condition in self.conditions)

    def cells(self, timing: dict[str, float]) -> list[Cell]:
        return plan_cells(self.conditions, self.count, self.preset, self.redraw, timing)

    def recipe_of(self, cell: Cell) -> str | None:
        """Of the synthetic slices that a U-Net learns from, is asked what it sees in, or needs the time of."""
        condition = cell.condition
        if condition.synthetic > 0:
            return condition.recipe
        asked = condition.name == ROTATION or condition.copies == math.inf
        first = (one.recipe for one in self.conditions if one.synthetic and not RECIPES[one.recipe].asks)
        return next(first, None) if asked else None


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


def carry_out(trial: Trial, cell: Cell | str) -> dict | None:
    """One piece of a study's work: the line of a U-Net, or the synthetic slices of a recipe.

    A function of its arguments and of what earlier pieces left in the trial's folder.
    """
    if isinstance(cell, str):
        return synthesize_trial(trial, cell, backbone_of(trial.place.backbone, trial.place.device))
    device, folders = select_device(trial.place.device), open_trial(trial)
    recipe = trial.recipe_of(cell)
    if recipe:
        folders["synthetic"] = open_pairs(trial.synthetic(recipe))
    slices = {part: load_slices(folders[part]) for part in folders if part != "pool"}
    if cell.condition.pseudo:
        slices["pseudo"] = load_slices(label_pool(trial, cell.seed, device))
    row, model = train_cell(cell, trial.preset, slices, device)
    if cell.condition.name == ROTATION and trial.labels:
        save_teacher(trial.folder / f"teacher-{cell.seed}", model, slices["train"])
    if cell.condition.synthetic:
        row["quality"] = asdict(quality(folders["pool"], folders["synthetic"]))
    return row | trial_facts(trial, folders)


def trial_facts(trial: Trial, folders: dict[str, PairFolder]) -> dict:
    """What a comparison of lines must know: which test slices, and how many annotated ones redraws draw from."""
    parts = [folders["pool"].path.parent / part for part in PARTS] if trial.split == "random" else []
    pool = sum(len(open_pairs(part).stems) for part in parts) or len(folders["pool"].stems)
    return {"test": fingerprint(folders["test"])[:12], "pool": pool if trial.place.data else None}


def teacher_of(trial: Trial, seed: int, device: torch.device) -> UNet:
    """The real + rotation U-Net of a repetition, which labels what nobody annotated: as it was saved, or trained."""
    out = trial.folder / f"teacher-{seed}"
    if not (out / "config.json").is_file():
        of_it = next(condition for condition in trial.conditions if condition.name == ROTATION)
        folders = open_trial(trial)
        slices = {part: load_slices(folders[part]) for part in PARTS}
        cell = Cell(of_it, trial.count, trial.redraw, seed, next(iter(trial.preset.budgets)))
        save_teacher(out, train_cell(cell, trial.preset, slices, device)[1], slices["train"])
    return load_unet(out, device)[0]


def save_teacher(out: Path, model: UNet, training: Slices) -> None:
    info = UNetInfo(model.width, model.depth, training.classes, training.intensity_window, precision=model.precision)
    save_unet(out, model, info)


def label_pool(trial: Trial, seed: int, device: torch.device) -> PairFolder:
    """The slices of the pool that were not drawn, labelled by the real + rotation U-Net of the same seed.

    Their own masks stay hidden. They are training slices of the data root, which keeps the gap to held-out ones that
    it was prepared with.
    """
    out = trial.folder / f"pseudo-{seed}"
    if not (out / "dataset.json").is_file():
        folders, teacher = open_trial(trial), teacher_of(trial, seed, device)
        shutil.rmtree(out, ignore_errors=True)  # half written when a study was killed
        info = replace(folders["pool"].info, origin="synthetic", split={"rule": "pseudo-labels", "seed": seed})
        write_pairs(out, info, pseudo_labels(teacher, undrawn(folders), device))
    return open_pairs(out)


@lru_cache(maxsize=1)
def backbone_of(name: str, device: str) -> Backbone:
    """The backbone of a study, loaded once in every process."""
    from natural2nanoscale.diffusion.backbone import load_backbone

    chosen = select_device(device)
    return load_backbone(name, chosen, select_dtype("auto", chosen))


def synthesize_trial(trial: Trial, name: str, backbone: Backbone) -> None:
    """Make the synthetic slices of a recipe, a picture of some and, where it is asked for, the time that they take."""
    preset, folder, folders = trial.preset, trial.folder, open_trial(trial)
    recipe, device = RECIPES[name], backbone.device
    sources = label_pool(trial, 0, device) if recipe.masks == "predicted" else folders["train"]
    per_mask = math.ceil(trial.per_mask(name) * trial.count / len(sources.stems))
    out, seed = trial.synthetic(name), seed_for(preset.seed, "redraw", trial.redraw)
    if not recipe.drawn:
        deformed_slices(out, sources, per_mask, seed)
        return
    if recipe.adapted:
        folders["unlabelled"] = undrawn(folders)
    budget = preset.controlnet_steps, seed, preset.crop
    controlnet = train_controlnet(folder / recipe.controlnet, backbone, folders, recipe.adapted, *budget)
    teachers = [teacher_of(trial, 0, device)] if recipe.check else []
    synthetic = draw_synthetic(out, controlnet, backbone, sources, recipe, per_mask, seed, teachers, folders["val"])
    if trial.split == "given":
        picture_row(out.with_suffix(".png"), sources, synthetic)
    file = trial.place.out / "timing.json"
    if trial.timed and trial.redraw == 0 and not file.is_file():  # once: it says how many copies there are
        write_json(file, time_generation(folder / "timing", backbone, folder / "controlnet", folders["train"]))


def undrawn(folders: dict[str, PairFolder]) -> PairFolder:
    """The slices of the pool that were not drawn, whose masks stay hidden."""
    drawn, pool = set(folders["train"].stems), folders["pool"]
    return some(pool, [stem for stem in pool.stems if stem not in drawn])
