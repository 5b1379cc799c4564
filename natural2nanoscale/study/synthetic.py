"""The synthetic slices of a trial: a ControlNet that knows only its annotated slices, and what it draws from them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from natural2nanoscale.data.folders import PairFolder, evenly_spaced, fingerprint, open_pairs, write_pairs
from natural2nanoscale.data.sheets import colored, sheet
from natural2nanoscale.diffusion.backbone import Backbone, settle, weights_hash
from natural2nanoscale.diffusion.batches import TrainingData, WithoutMasks
from natural2nanoscale.diffusion.request import Request
from natural2nanoscale.diffusion.saving import ADAPTED, load_trained, run_config
from natural2nanoscale.diffusion.settings import MAY_CHANGE, FineTuning, SamplingSettings, read_prompts
from natural2nanoscale.diffusion.shapes import Shapes
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.training import adapt, fine_tune
from natural2nanoscale.files import save_png
from natural2nanoscale.locks import locked
from natural2nanoscale.records import describe, read_config
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.schemas import SECONDS
from natural2nanoscale.segmentation.labelling import slice_check
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.segmentation.unet import UNet
from natural2nanoscale.study.conditions import ADAPTATION, Recipe
from natural2nanoscale.study.training_sets import rotated_copies

AGREEMENT = 0.5  # of a slice with its mask, below which it is drawn again, where a recipe checks them


def read_timing(out: Path) -> dict[str, float]:
    """Seconds per slice as `time_generation` measured them for the study in `out`; empty before."""
    file = out / "timing.json"
    return describe(file, SECONDS, "remove it, and it is measured again") if file.is_file() else {}


def sampling_settings(backbone: Backbone) -> SamplingSettings:
    """The defaults, with what the backbone recommends."""
    return SamplingSettings(strength=backbone.recommended.strength, start=backbone.recommended.start)


def train_controlnet(
    out: Path,
    backbone: Backbone,
    folders: dict[str, PairFolder],
    adapted: bool,
    steps: int | None,
    seed: int,
    crop: tuple[int, int] | None,
) -> Path:
    """Fine-tune a ControlNet on folders["train"] in the run folder `out`, or go on there.

    steps: None takes the paper's 600 epochs. adapted: the backbone, before, in ADAPTATION times as many, to these and
    to folders["unlabelled"], whose masks are not looked at.
    """
    data = TrainingData(folders["train"], folders["val"], read_prompts())
    tuning = settle(FineTuning(crop, None, max_weight=None, max_steps=steps, seed=seed, keep=1), backbone)
    total = tuning.total_steps(len(folders["train"].stems))
    tuning = replace(tuning, adapt=ADAPTATION * total * adapted)
    third = max(1, total // 3)  # strips at four stages (paper, Figure 4)
    tuning = replace(tuning, sample_every=third, checkpoint_every=min(third, tuning.checkpoint_every))
    checkpoint, before = (RunFolder(folder).load_checkpoint() for folder in (out, out / ADAPTED))
    if not checkpoint and not before:  # new, or stopped before its first checkpoint
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):  # recipes share it: another process may be the next to ask
        config = run_config(tuning, backbone, data)
        run = open_run(out, config, (out / "config.json").is_file(), MAY_CHANGE)
        if not checkpoint or checkpoint.step < total:
            if adapted:
                images = WithoutMasks.of(folders["train"], folders["unlabelled"])
                backbone = adapt(run, backbone, images, data, replace(tuning, sample_every=total))
            fine_tune(run, backbone, data, tuning, bool(checkpoint))
    return out


def draw_synthetic(
    out: Path,
    controlnet_run: Path,
    backbone: Backbone,
    source: PairFolder,
    recipe: Recipe,
    per_mask: int,
    seed: int,
    teachers: Sequence[UNet],
    val: PairFolder,
) -> PairFolder:
    """Draw slices from the masks of `source`, as the recipe has it, or go on with it; `teachers` check them, with the
    validation slices `val` as their measure, where it asks for that."""
    controlnet, backbone = load_trained(controlnet_run, backbone)
    settings = replace(sampling_settings(backbone), detail=recipe.detail)
    if recipe.start is not None:
        settings = replace(settings, start=recipe.start)
    learned = read_config(controlnet_run)["learned"]
    masks = "same" if recipe.masks == "predicted" else recipe.masks
    request, check = Request(read_prompts(), settings, per_mask, seed, learned, masks=masks), None
    if recipe.check:
        said = {"unet": weights_hash(*teachers), "reference": fingerprint(val), "agreement": AGREEMENT}
        request, check = replace(request, filter=said), slice_check(teachers, val)
    synthesize(out, backbone, controlnet, source, request, check=check)
    return open_pairs(out)


def deformed_slices(out: Path, source: PairFolder, per_mask: int, seed: int) -> PairFolder:
    """The real slices of `source` under the deformations that `draw_synthetic` draws masks with, as they are."""
    if not (out / "dataset.json").is_file():
        shutil.rmtree(out, ignore_errors=True)  # half written when a study was killed
        shapes = Shapes(source, "deformed", seed, SamplingSettings())
        info = replace(source.info, split={"rule": "deformed", "seed": seed})
        copies = [(stem, i) for stem in source.stems for i in range(per_mask)]
        pairs = ((f"{stem}_s{i:03d}", shapes.image(stem, i), shapes.mask(stem, i)) for stem, i in copies)
        write_pairs(out, info, pairs)
    return open_pairs(out)


def picture_row(path: Path, source: PairFolder, synthetic: PairFolder, count: int = 3) -> None:
    """real | mask | synthetic for a few synthetic slices, each beside its source's slice (the paper's Figure 5)."""
    rows = []
    for stem in evenly_spaced([stem for stem in synthetic.stems if stem.endswith("_s000")] or synthetic.stems, count):
        mask = colored(synthetic.mask(stem), source.info.classes)
        rows.append([source.image(stem.rpartition("_s")[0]), mask, synthetic.image(stem)])
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
