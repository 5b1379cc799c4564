"""The synthetic slices of a trial: a ControlNet that knows only its annotated slices, and what it draws from them."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from natural2nanoscale.data.folders import PairFolder, evenly_spaced, open_pairs
from natural2nanoscale.data.sheets import colored, sheet
from natural2nanoscale.diffusion.backbone import Backbone, settle
from natural2nanoscale.diffusion.batches import TrainingData
from natural2nanoscale.diffusion.prompts import read_prompts
from natural2nanoscale.diffusion.saving import load_trained, run_config
from natural2nanoscale.diffusion.settings import MAY_CHANGE, FineTuning, SamplingSettings
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.synthetic_folder import Request
from natural2nanoscale.diffusion.training import fine_tune
from natural2nanoscale.files import save_png
from natural2nanoscale.records import describe
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.schemas import SECONDS
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.study.training_sets import rotated_copies


def read_timing(out: Path) -> dict[str, float]:
    """Seconds per slice as `time_generation` measured them for the study in `out`; empty before."""
    file = out / "timing.json"
    return describe(file, SECONDS, "remove it, and it is measured again") if file.is_file() else {}


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
    data = TrainingData(folders["train"], folders["val"], read_prompts())
    tuning = settle(FineTuning(crop, None, max_weight=None, max_steps=steps, seed=seed, keep=1), backbone)
    total = tuning.total_steps(len(folders["train"].stems))
    third = max(1, total // 3)  # strips at four stages (paper, Figure 4)
    tuning = replace(tuning, sample_every=third, checkpoint_every=min(third, tuning.checkpoint_every))
    checkpoint = RunFolder(out / "controlnet").load_checkpoint()
    begun = checkpoint is not None
    if not begun:  # new, or stopped before its first checkpoint
        shutil.rmtree(out / "controlnet", ignore_errors=True)
    config = run_config(tuning, backbone, data)
    run = open_run(out / "controlnet", config, begun, MAY_CHANGE)
    if not begun or checkpoint.step < total:
        fine_tune(run, backbone, data, tuning, begun)
    controlnet, backbone = load_trained(out / "controlnet", backbone)
    request = Request(data.prompts, sampling_settings(backbone), per_mask, seed, config["learned"])
    synthesize(out / "synthetic", backbone, controlnet, folders["train"], request)
    return open_pairs(out / "synthetic")


def picture_row(path: Path, train_folder: PairFolder, synthetic: PairFolder, count: int = 3) -> None:
    """real | mask | synthetic for a few of the masks (the paper's Figure 5)."""
    rows = []
    for stem in evenly_spaced(train_folder.stems, count):
        mask = colored(train_folder.mask(stem), train_folder.info.classes)
        rows.append([train_folder.image(stem), mask, synthetic.image(f"{stem}_s000")])
    sheet(rows, path, ["real", "mask", "synthetic"])


def time_generation(scratch: Path, backbone: Backbone, controlnet_run: Path, train: PairFolder) -> dict[str, float]:
    """Seconds per slice, on this machine: synthetic and rotated ones written as pairs of PNGs, rotated in memory.

    Sixteen synthetic and 64 rotated slices are made; ControlNet's training does not count, as in the paper, nor does
    what a call takes before its first slice.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    some = replace(train, stems=train.stems[:8])
    controlnet, backbone = load_trained(controlnet_run, backbone)
    out, one = scratch / "synthetic", Request(read_prompts(), sampling_settings(backbone))
    synthesize(out, backbone, controlnet, some, one)  # warms up
    started = time.perf_counter()
    synthesize(out, backbone, controlnet, some, one)  # finds nothing to make
    ready = time.perf_counter()
    made = synthesize(out, backbone, controlnet, some, replace(one, per_mask=3))
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
