"""One trial of a study: slices that are drawn, a ControlNet that knows only these, its slices, and its U-Nets."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from natural2nanoscale.data.folders import PairFolder, evenly_spaced, fingerprint, open_pairs
from natural2nanoscale.data.sheets import colored, sheet
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.command import controlnet_config, fitting_crop, read_prompts
from natural2nanoscale.diffusion.saving import load_trained
from natural2nanoscale.diffusion.settings import MAY_CHANGE, FineTuning, SamplingSettings
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.training import fine_tune
from natural2nanoscale.files import save_png, write_json
from natural2nanoscale.records import describe
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.schemas import SECONDS
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.study.conditions import Condition
from natural2nanoscale.study.presets import Preset
from natural2nanoscale.study.training_sets import PARTS, draw_train, redraw_root, rotated_copies, split_at_random
from natural2nanoscale.study.unets import KEY, plan_cells, train_cell


@dataclass(frozen=True)
class Trial:
    """All training sets of one redraw that have the same `count` annotated slices, and so share a ControlNet."""

    preset: Preset
    redraw: int
    split: str
    count: int
    conditions: Sequence[Condition]


def run_trial(run: RunFolder, trial: Trial, backbone: Backbone, data: Path | None) -> None:
    """Train and score every U-Net of a trial; those in the log are passed over.

    A cell that another experiment has trained already is copied under this one's name.
    """
    preset, redraw = trial.preset, trial.redraw
    folder = run.path / f"redraw-{redraw}" / f"{trial.split}-{trial.count}"
    plan = trial.conditions, trial.count, preset, redraw
    done = {tuple(row[key] for key in KEY): row for row in run.read_log()}
    if all(cell.key in done for cell in plan_cells(*plan, read_timing(run))):
        return

    # the slices: annotated, synthetic
    root = redraw_root(folder.parent, data, preset.phantom, preset.seed, redraw)
    pooled = PARTS if trial.split == "random" else ("train",)
    pool = sum(len(open_pairs(root / part).stems) for part in pooled) if data else None
    if trial.split == "random":
        root = split_at_random(root, folder.parent / "random", seed_for(preset.seed, "split", redraw))
    folders = {part: open_pairs(root / part) for part in ("val", "test")}
    folders["train"] = draw_train(folder / "train", open_pairs(root / "train"), trial.count, preset.seed, redraw)
    per_mask = math.ceil(max(condition.synthetic for condition in trial.conditions))
    if per_mask:
        budget = preset.controlnet_steps, per_mask, seed_for(preset.seed, "redraw", redraw)
        folders["synthetic"] = make_synthetic(folder, backbone, folders, *budget, preset.crop)
        if trial.split == "given":
            picture_row(folder.with_suffix(".png"), folders["train"], folders["synthetic"])
        if any(condition.copies == math.inf for condition in trial.conditions) and not read_timing(run):
            timing = time_generation(folder / "timing", backbone, folder / "controlnet", folders["train"])
            write_json(run.path / "timing.json", timing)
    slices = {part: load_slices(opened) for part, opened in folders.items()}
    # what a comparison of lines must know: the test slices, and how many annotated slices redraws have to draw from
    facts = {"test": fingerprint(folders["test"])[:12], "pool": pool}

    # the U-Nets
    for cell in plan_cells(*plan, read_timing(run)):
        if cell.key in done:
            continue
        same = next((old for key, old in done.items() if key[1:] == cell.key[1:]), None)
        if same is None:
            row = train_cell(cell, preset, slices, backbone.device) | facts
        else:
            row = same | {"experiment": cell.condition.experiment}
        done[cell.key] = row
        run.log(row)


def read_timing(run: RunFolder) -> dict[str, float]:
    """Seconds per slice as `time_generation` measured them for this run; empty before."""
    file = run.path / "timing.json"
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
