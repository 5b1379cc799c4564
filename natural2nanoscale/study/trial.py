"""One trial of a study: slices that are drawn, a ControlNet that knows only these, its slices, and its U-Nets."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from natural2nanoscale.data.contact import colored, sheet
from natural2nanoscale.data.folders import PairFolder, evenly_spaced, open_pairs, save_png, write_pairs
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.command import controlnet_config, fitting_crop, read_prompts
from natural2nanoscale.diffusion.sampling import SamplingSettings
from natural2nanoscale.diffusion.saving import load_trained
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.training import MAY_CHANGE, FineTuning, fine_tune
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import RunFolder, generator_for, open_run, permutation_for
from natural2nanoscale.segmentation.batches import check
from natural2nanoscale.segmentation.evaluation import image_matrices, score
from natural2nanoscale.segmentation.mixing import Slices, check_test, load_slices
from natural2nanoscale.segmentation.recipes import augment
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.training import train


def draw_train(out: Path, pool: PairFolder, count: int, seed: int, redraw: int) -> PairFolder:
    """`count` slices of the pool as a pair folder of its own; redraws share none while there are enough.

    The pool is shuffled and dealt out in sets of `count`; when it is used up, it is shuffled and dealt out anew.
    """
    if not (out / "dataset.json").is_file():
        shutil.rmtree(out, ignore_errors=True)  # half written when a study was killed
        rounds, turn = divmod(redraw, len(pool.stems) // count)
        order = permutation_for(len(pool.stems), seed, "slices", rounds)
        chosen = [pool.stems[i] for i in sorted(order[turn * count : (turn + 1) * count])]
        write_pairs(out, pool.info, ((stem, pool.image(stem), pool.mask(stem)) for stem in chosen))
    return open_pairs(out)


def check_study(folders: dict[str, PairFolder], slices: int, budgets: Iterable[Settings]) -> None:
    """Raise InputError for pair folders train, val and test that no study can end on; nothing is written yet."""
    pool = folders["train"]
    if len(pool.stems) < slices:
        raise InputError(f"{pool.path} has {len(pool.stems)} slices, expected at least --slices {slices}")
    check_test(folders["test"], pool.info.classes)
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


def rotated_copies(slices: Slices, count: int, seed: int) -> Slices:
    """`count` rotated slices and masks: copy i is a function of (seed, i), of slice i modulo their number."""
    images, masks = [], []
    for copy in range(count):
        image, mask = slices.images[copy % len(slices)], slices.masks[copy % len(slices)]
        pixels, ids = torch.from_numpy(image).float()[None, None], torch.from_numpy(mask)[None]
        generators = [generator_for(seed, "copy", copy)]
        warped, ids = augment(pixels, ids, "rotation", generators, mask.shape, Settings.angle)
        images.append(warped[0, 0].round().clamp(0, 255).to(torch.uint8).numpy())
        masks.append(ids[0].numpy())
    return Slices(images, masks, slices.classes, count, slices.intensity_window)


def time_generation(scratch: Path, backbone: Backbone, controlnet_run: Path, train: PairFolder) -> dict[str, float]:
    """Seconds per slice, on this machine: synthetic and rotated ones written as pairs of PNGs, rotated in memory.

    Sixteen synthetic and 64 rotated slices are made; ControlNet's training does not count, as in the paper, nor does
    what a call takes before its first slice.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    some = replace(train, stems=train.stems[:8])
    controlnet, backbone = load_trained(controlnet_run, backbone)
    arguments = backbone, controlnet, some, read_prompts(None), sampling_settings(backbone)
    synthesize(scratch / "synthetic", *arguments, per_mask=1)  # warms up
    started = time.perf_counter()
    synthesize(scratch / "synthetic", *arguments, per_mask=1)  # finds nothing to make
    ready = time.perf_counter()
    made = synthesize(scratch / "synthetic", *arguments, per_mask=3)
    seconds = {"synthetic": (time.perf_counter() - ready - (ready - started)) / made}

    slices = load_slices(train)
    started = time.perf_counter()
    copies = rotated_copies(slices, 64, 0)
    seconds["memory"] = (time.perf_counter() - started) / 64
    for i, pair in enumerate(zip(copies.images, copies.masks, strict=True)):
        for kind, pixels in zip(("image", "mask"), pair, strict=True):
            save_png(scratch / f"{kind}_{i:02d}.png", pixels)
    seconds["disk"] = (time.perf_counter() - started) / 64
    shutil.rmtree(scratch)
    return seconds
