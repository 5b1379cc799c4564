"""What every study is made of: drawn slices, synthetic slices of a ControlNet that knows only these, scored U-Nets."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PairFolder, evenly_spaced, open_pairs, write_pairs
from natural2nanoscale.data.roots import digests_of, learned_from_folder, refuse_unfit
from natural2nanoscale.data.sheets import colored, sheet
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.command import controlnet_config, fitting_crop, read_prompts
from natural2nanoscale.diffusion.saving import load_trained
from natural2nanoscale.diffusion.settings import MAY_CHANGE, FineTuning, SamplingSettings
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.training import fine_tune
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.seeds import permutation_for
from natural2nanoscale.segmentation.batches import check
from natural2nanoscale.segmentation.evaluation import image_matrices, score
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices, load_slices
from natural2nanoscale.segmentation.training import train


def draw_train(out: Path, pool: PairFolder, count: int, seed: int, redraw: int) -> PairFolder:
    """`count` slices of the pool as a pair folder of their own: fewer slices of one redraw are among its more."""
    if not (out / "dataset.json").is_file():
        shutil.rmtree(out, ignore_errors=True)  # half written when a study was killed
        order = permutation_for(len(pool.stems), seed, "slices", redraw)
        chosen = [pool.stems[i] for i in sorted(order[:count])]
        info = replace(pool.info, digests=digests_of(pool))
        write_pairs(out, info, ((stem, pool.image(stem), pool.mask(stem)) for stem in chosen))
    return open_pairs(out)


def check_study(folders: dict[str, PairFolder], slices: int, budgets: Iterable[Settings]) -> None:
    """Raise InputError for pair folders train, val and test that no study can end on; nothing is written yet."""
    pool = folders["train"]
    if len(pool.stems) < slices:
        raise InputError(f"{pool.path} has {len(pool.stems)} slices, expected at least --slices {slices}")
    refuse_unfit([learned_from_folder(pool)], [folders["val"], folders["test"]])
    training, validation = load_slices(pool), load_slices(folders["val"])
    for settings in budgets:
        check(training, validation, replace(settings, balance=None))


def sampling_settings(backbone: Backbone) -> SamplingSettings:
    """The defaults, with what the backbone recommends."""
    return SamplingSettings(strength=backbone.recommended.strength, start=backbone.recommended.start)


def make_synthetic(
    out: Path,
    backbone: Backbone,
    folders: dict[str, PairFolder],
    steps: int | None,
    per_mask: int,
    seed: int,
    crop: tuple[int, int] | None,
) -> PairFolder:
    """Fine-tune a ControlNet on folders["train"] and draw new slices from their masks, or go on with both.

    `steps` None takes the paper's 600 epochs.
    """
    prompts = read_prompts(None)
    tuning = FineTuning(
        crop=fitting_crop(crop or backbone.recommended.crop, backbone),
        learning_rate=backbone.recommended.learning_rate,
        max_weight=backbone.recommended.max_weight,
        max_steps=steps,
        seed=seed,
        keep=1,
    )
    total = tuning.total_steps(len(folders["train"].stems))
    third = max(1, total // 3)  # strips at four stages (paper, Figure 4)
    tuning = replace(tuning, sample_every=third, checkpoint_every=min(third, tuning.checkpoint_every))
    checkpoint = RunFolder(out / "controlnet").load_checkpoint()
    begun = checkpoint is not None
    if not begun:  # new, or stopped before its first checkpoint
        shutil.rmtree(out / "controlnet", ignore_errors=True)
    config = controlnet_config(tuning, backbone, prompts, folders["train"], folders["val"])
    run = open_run(out / "controlnet", config, begun, MAY_CHANGE)
    if not begun or checkpoint.step < total:
        fine_tune(run, backbone, folders["train"], folders["val"], prompts, tuning, begun)
    controlnet, backbone = load_trained(out / "controlnet", backbone)
    synthesize(
        out / "synthetic",
        backbone,
        controlnet,
        folders["train"],
        prompts,
        sampling_settings(backbone),
        per_mask,
        seed=seed,
        learned=config["learned"],
    )
    return open_pairs(out / "synthetic")


def score_unet(
    training: Slices,
    validation: Slices,
    test: Slices,
    settings: Settings,
    device: torch.device,
    synthetic: Slices | None = None,
    label: str | None = None,
) -> dict:
    """Train one U-Net and score it on the test slices: the facts of a log line.

    `synthetic`: slices to be labelled as well; do they show what their masks say? `label` stands on the progress bar.
    """
    trained = train(training, validation, settings, device, label=label)
    matrices = image_matrices(trained.model, test, device)
    scores = score(matrices, range(len(test)))
    row = {"validation": trained.best["val_miou"], "steps": trained.steps}
    row["unconverged"] = still_improves(trained.rows, settings.select_by)
    row |= {key: scores[key] for key in ("miou", "iou", "confusion")}
    if synthetic is not None:
        row["synthetic_iou"] = score(image_matrices(trained.model, synthetic, device), range(len(synthetic)))["iou"]
    return row | {"images": matrices.tolist()}


def still_improves(rows: list[dict], select_by: str) -> bool:
    """Whether the last validation is the best, by more than 0.5 points of mIoU or 0.5 % of the loss: then the training
    was too short to tell what it could become."""
    scores = [row["val_miou"] if select_by == "miou" else -row["val_loss"] for row in rows]
    if len(scores) < 2:
        return True
    before = max(scores[:-1])
    return scores[-1] - before > 0.005 * (1 if select_by == "miou" else -before)


def picture_row(path: Path, train_folder: PairFolder, synthetic: PairFolder, count: int = 3) -> None:
    """real | mask | synthetic for a few of the masks (the paper's Figure 5)."""
    rows = []
    for stem in evenly_spaced(train_folder.stems, count):
        mask = colored(train_folder.mask(stem), train_folder.info.classes)
        rows.append([train_folder.image(stem), mask, synthetic.image(f"{stem}_s000")])
    sheet(rows, path, ["real", "mask", "synthetic"])
