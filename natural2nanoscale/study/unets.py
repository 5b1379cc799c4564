"""The U-Nets of a study: each is a cell of its tables, a function of its settings, and one line of the log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.evaluation import image_matrices, score
from natural2nanoscale.segmentation.labelling import labelled
from natural2nanoscale.segmentation.monitor import Trained
from natural2nanoscale.segmentation.schedule import plan_steps
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices, combine, load_slices
from natural2nanoscale.segmentation.training import train
from natural2nanoscale.segmentation.unet import UNet, UNetInfo, load_unet, save_unet
from natural2nanoscale.study.conditions import RECIPES, Condition
from natural2nanoscale.study.training_sets import Pairs, made_once, open_trial, undrawn
from natural2nanoscale.study.trial import KEY, Cell, Trial

JUDGED = 8  # synthetic slices per mask, at most, that the U-Nets trained on real ones label


def train_cell(cell: Cell, slices: Mapping[str, Slices], device: torch.device) -> tuple[dict, UNet]:
    """Train the U-Net of a cell and score it: its line of the log, a function of these arguments but for `seconds`.

    slices: "train" (the annotated ones), "val", "test" and, where they are asked for, "synthetic" and "pseudo".
    """
    began, condition, trial = time.monotonic(), cell.condition, cell.trial
    budget, label = trial.preset.budgets[cell.budget], f"U-Net {cell.seed}, {condition.name}"
    seed = seed_for(trial.preset.seed, trial.redraw, "unet", cell.seed)  # the same for all conditions of a repetition
    trained = train_on(condition, slices, budget, seed, device, label)
    matrices = image_matrices(trained.model, slices["test"], device)
    scores = score(matrices, range(len(matrices)))
    row = dict(zip(KEY, cell.key, strict=True)) | {"ratio": condition.ratio}
    row |= {"val_slices": len(slices["val"]), "validation": trained.best["val_miou"], "steps": trained.steps}
    row["curve"] = [[look["step"], look["val_miou"]] for look in trained.rows]
    row["precision"] = trained.model.precision
    row["unconverged"] = still_improves(trained.rows, budget.select_by)
    row |= {key: scores[key] for key in ("miou", "iou", "confusion")}
    if condition.is_asked and "synthetic" in slices:  # do they show what their masks say?
        made, count = slices["synthetic"], len(slices["train"])
        judged = combine(None, made, min(JUDGED, len(made) // count), count)
        row["synthetic_iou"] = score(image_matrices(trained.model, judged, device), range(len(judged)))["iou"]
    row |= {"images": matrices.tolist(), "seconds": round(time.monotonic() - began, 1)}
    return row, trained.model


def train_on(
    condition: Condition, slices: Mapping[str, Slices], budget: Settings, seed: int, device: torch.device, label: str
) -> Trained:
    """Train a U-Net on what a condition makes of `slices`, those of `train_cell` but for "test"."""
    training = training_set(condition, slices)
    return train(training, slices["val"], unet_settings(condition, budget, training, seed), device, label=label)


def training_set(condition: Condition, slices: Mapping[str, Slices]) -> Slices:
    count = len(slices["train"])
    made, share = slices["synthetic"] if condition.synthetic else None, condition.synthetic
    if RECIPES[condition.recipe].check:  # some may have been rejected
        share = min(share, len(made) / count)
    training = combine(slices["train"] if condition.real else None, made, share, count)
    if condition.pseudo:
        training = combine(training, slices["pseudo"], condition.pseudo / len(training))
    return training


def unet_settings(condition: Condition, budget: Settings, training: Slices, seed: int) -> Settings:
    """The budget's settings for a condition and its training set."""
    mixed = condition.real and (condition.synthetic > 0 or condition.pseudo > 0) and not condition.finetune
    copies, _ = condition.counts(training.real)
    settings = replace(
        budget,
        augment="rotation" if copies else condition.augment,
        angle=condition.angle,
        enlarge_to=training.real + copies if copies else None,
        balance=budget.balance if mixed else None,
        seed=seed,
    )
    if condition.finetune:
        settings = replace(settings, finetune_after=plan_steps(len(training), settings)[1] // 2)
    return settings


def still_improves(rows: list[dict], select_by: str) -> bool:
    """Whether the last validation is the best, by more than 0.5 points of mIoU or 0.5 % of the loss: then the training
    was too short to tell what it could become."""
    scores = [row["val_miou"] if select_by == "miou" else -row["val_loss"] for row in rows]
    if len(scores) < 2:
        return True
    before = max(scores[:-1])
    return scores[-1] - before > 0.005 * (1 if select_by == "miou" else -before)


# ----------------------------------------------------------------------- a U-Net of the real slices as a teacher


def teacher_folder(trial: Trial, teacher: Condition, seed: int) -> Path:
    """Where the U-Net of `Condition.teacher` is kept."""
    return trial.folder / f"teacher-{teacher.augment}-{seed}"


def teacher_of(trial: Trial, teacher: Condition, seed: int, device: torch.device) -> UNet:
    """The U-Net of `Condition.teacher` in a repetition, which labels what nobody annotated: as it was saved, or
    trained."""
    out = teacher_folder(trial, teacher, seed)
    if not (out / "config.json").is_file():
        folders = open_trial(trial)
        slices = {part: load_slices(folders[part]) for part in ("train", "val", "test")}
        save_teacher(out, train_cell(Cell(trial, teacher, seed), slices, device)[1], slices["train"])
    return load_unet(out, device)[0]


def save_teacher(out: Path, model: UNet, training: Slices) -> None:
    info = UNetInfo(model.width, model.depth, training.classes, training.intensity_window, precision=model.precision)
    save_unet(out, model, info)


def label_pool(trial: Trial, teacher: Condition, seed: int, device: torch.device) -> PairFolder:
    """The slices of the pool that were not drawn, labelled by the U-Net of `Condition.teacher` of the same seed.

    Their own masks stay hidden. They are training slices of the data root, which keeps the gap to held-out ones that
    it was prepared with.
    """

    out = trial.folder / f"pseudo-{teacher.augment}-{seed}"

    def pairs() -> Pairs:
        folders, model = open_trial(trial), teacher_of(trial, teacher, seed, device)
        info = replace(folders["pool"].info, origin="synthetic", split={"rule": "pseudo-labels", "seed": seed})
        images = ((stem, folders["pool"].image(stem)) for stem in undrawn(folders).stems)
        return info, labelled([model], images, out)

    return made_once(out, pairs)
