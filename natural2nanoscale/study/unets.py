"""The U-Nets of a study: each is a cell of its tables, a function of its settings, and one line of the log."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.evaluation import image_matrices, score
from natural2nanoscale.segmentation.inference import predict_mask
from natural2nanoscale.segmentation.schedule import plan_steps
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices, combine
from natural2nanoscale.segmentation.training import train
from natural2nanoscale.segmentation.unet import UNet
from natural2nanoscale.study.conditions import IN_MEMORY, RECIPES, ROTATION, Condition
from natural2nanoscale.study.presets import Preset

KEY = ("experiment", "condition", "split", "slices", "size", "redraw", "seed", "budget")  # a cell's, in its log line
JUDGED = 8  # synthetic slices per mask, at most, that the U-Nets trained on real ones label


@dataclass(frozen=True)
class Cell:
    """One U-Net: its training set and budget, and of which repetition it is."""

    condition: Condition
    slices: int  # annotated ones
    redraw: int
    seed: int
    budget: str

    @property
    def size(self) -> int | None:
        """Slices in the training set; None while it is not known how many copies the time yields."""
        condition = self.condition
        if condition.copies == math.inf:
            return None
        return sum(condition.counts(self.slices)) + condition.pseudo + self.slices * condition.real

    @property
    def key(self) -> tuple:
        """The values of KEY."""
        condition = self.condition
        named = (condition.experiment, condition.name, condition.split, self.slices, self.size)
        return (*named, self.redraw, self.seed, self.budget)

    @property
    def training(self) -> tuple:
        """What is trained, whoever asks for it and under whatever name: equal ones are trained once."""
        condition = replace(self.condition, experiment="", name="", budget="", slices=None)
        return (condition, self.slices, self.redraw, self.seed, self.budget)


def plan_cells(conditions: Sequence[Condition], count: int, preset: Preset, redraw: int, timing: dict) -> list[Cell]:
    """The cells that learn from the same `count` annotated slices; `timing`: seconds per slice, empty if not measured.

    The copies that a time yields are counted once it is known.
    """
    cells = []
    for member in conditions:
        condition = member
        if member.copies == math.inf and timing:
            made = min(affordable(member, count, preset, timing), preset.most_copies)
            condition = replace(member, copies=made / count)
        budget = member.budget or next(iter(preset.budgets))
        cells += [Cell(condition, count, redraw, seed, budget) for seed in range(preset.seeds)]
    return cells


def affordable(condition: Condition, count: int, preset: Preset, timing: dict) -> int:
    """Rotated copies that can be made in the time of the synthetic slices of the largest ratio."""
    seconds = timing["memory" if condition.name == IN_MEMORY else "disk"]
    return int(max(preset.ratios) * count * timing["synthetic"] / seconds)


def train_cell(cell: Cell, preset: Preset, slices: Mapping[str, Slices], device: torch.device) -> tuple[dict, UNet]:
    """Train the U-Net of a cell and score it: its line of the log, a function of these arguments but for `seconds`.

    slices: "train" (the annotated ones), "val", "test" and, where they are asked for, "synthetic" and "pseudo".
    """
    began, condition = time.monotonic(), cell.condition
    judged = None
    if condition.name == ROTATION and "synthetic" in slices:  # do they show what their masks say?
        most = min(JUDGED, len(slices["synthetic"]) // cell.slices)
        judged = combine(None, slices["synthetic"], most, cell.slices)
    real = slices["train"] if condition.real else None
    made = slices["synthetic"] if condition.synthetic else None
    share = condition.synthetic
    if RECIPES[condition.recipe].check:  # some may have been rejected
        share = min(share, len(made) / cell.slices)
    training = combine(real, made, share, cell.slices)
    if condition.pseudo:
        training = combine(training, slices["pseudo"], condition.pseudo / len(training))
    settings = unet_settings(cell, preset, training)
    label = f"U-Net {cell.seed}, {condition.name}"
    row = dict(zip(KEY, cell.key, strict=True)) | {"ratio": condition.copies + condition.synthetic}
    scores, model = score_unet(training, slices["val"], slices["test"], settings, device, judged, label)
    return row | scores | {"seconds": round(time.monotonic() - began, 1)}, model


def pseudo_labels(model: UNet, unlabelled: PairFolder, device: torch.device) -> Iterator[tuple]:
    """(stem, image, mask) of slices whose own masks are not opened: the masks are the network's answers."""
    for stem in unlabelled.stems:
        image = unlabelled.image(stem)
        yield stem, image, predict_mask([model], torch.from_numpy(image)[None].to(device))[0].cpu().numpy()


def unet_settings(cell: Cell, preset: Preset, training: Slices) -> Settings:
    """The budget's settings, with the same seed for every condition of a repetition."""
    condition, budget = cell.condition, preset.budgets[cell.budget]
    mixed = condition.real and (condition.synthetic > 0 or condition.pseudo > 0) and not condition.finetune
    copies, _ = condition.counts(training.real)
    settings = replace(
        budget,
        augment="rotation" if copies else condition.augment,
        angle=condition.angle,
        enlarge_to=training.real + copies if copies else None,
        balance=budget.balance if mixed else None,
        seed=seed_for(preset.seed, cell.redraw, "unet", cell.seed),
    )
    if condition.finetune:
        settings = replace(settings, finetune_after=plan_steps(len(training), settings)[1] // 2)
    return settings


def score_unet(
    training: Slices,
    validation: Slices,
    test: Slices,
    settings: Settings,
    device: torch.device,
    synthetic: Slices | None = None,
    label: str | None = None,
) -> tuple[dict, UNet]:
    """Train one U-Net and score it on the test slices: the facts of a log line, and the network.

    `synthetic`: slices to be labelled as well; do they show what their masks say? `label` stands on the progress bar.
    """
    trained = train(training, validation, settings, device, label=label)
    matrices = image_matrices(trained.model, test, device)
    scores = score(matrices, range(len(test)))
    row = {"val_slices": len(validation), "validation": trained.best["val_miou"], "steps": trained.steps}
    row["curve"] = [[look["step"], look["val_miou"]] for look in trained.rows]
    row["precision"] = trained.model.precision
    row["unconverged"] = still_improves(trained.rows, settings.select_by)
    row |= {key: scores[key] for key in ("miou", "iou", "confusion")}
    if synthetic is not None:
        row["synthetic_iou"] = score(image_matrices(trained.model, synthetic, device), range(len(synthetic)))["iou"]
    return row | {"images": matrices.tolist()}, trained.model


def still_improves(rows: list[dict], select_by: str) -> bool:
    """Whether the last validation is the best, by more than 0.5 points of mIoU or 0.5 % of the loss: then the training
    was too short to tell what it could become."""
    scores = [row["val_miou"] if select_by == "miou" else -row["val_loss"] for row in rows]
    if len(scores) < 2:
        return True
    before = max(scores[:-1])
    return scores[-1] - before > 0.005 * (1 if select_by == "miou" else -before)
