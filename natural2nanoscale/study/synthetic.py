"""The synthetic slices of a trial: a ControlNet that knows only its annotated slices, and what it draws from them."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PairFolder, evenly_spaced, fingerprint, open_pairs
from natural2nanoscale.data.sheets import colored, sheet
from natural2nanoscale.device import select_device, select_dtype
from natural2nanoscale.diffusion.backbone import Backbone, load_backbone, settle, weights_hash
from natural2nanoscale.diffusion.batches import TrainingData, WithoutMasks
from natural2nanoscale.diffusion.request import Request
from natural2nanoscale.diffusion.saving import load_trained, run_config
from natural2nanoscale.diffusion.settings import MAY_CHANGE, FineTuning, SamplingSettings, read_prompts
from natural2nanoscale.diffusion.shapes import Shapes
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.training import adapt, fine_tune
from natural2nanoscale.draws import sample_seeds
from natural2nanoscale.files import save_png, write_json
from natural2nanoscale.locks import locked
from natural2nanoscale.records import read_config
from natural2nanoscale.runs import open_run
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.augmentation import augment
from natural2nanoscale.segmentation.labelling import slice_check
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices, load_slices
from natural2nanoscale.study.conditions import ADAPTATION
from natural2nanoscale.study.presets import Place
from natural2nanoscale.study.training_sets import Pairs, made_once, open_trial, undrawn
from natural2nanoscale.study.trial import Drawing
from natural2nanoscale.study.unets import label_pool, teacher_of

AGREEMENT = 0.5  # of a slice with its mask, below which it is drawn again, where a recipe checks them


@lru_cache(maxsize=1)
def backbone_of(place: Place) -> Backbone:
    """The backbone of a study, loaded once in every process."""
    device = select_device(place.device)
    return load_backbone(place.backbone, device, select_dtype("auto", device))


def sampling_settings(backbone: Backbone) -> SamplingSettings:
    """The defaults, with what the backbone recommends."""
    return SamplingSettings(strength=backbone.recommended.strength, start=backbone.recommended.start)


def make_synthetic(drawing: Drawing) -> None:
    """Make the synthetic slices of a recipe, a picture of some and, where it is asked for, the time that they take."""
    trial, recipe, folders = drawing.trial, drawing.recipe, open_trial(drawing.trial)
    seed = seed_for(trial.preset.seed, "redraw", trial.redraw)
    if not recipe.drawn:
        made_once(drawing.folder, lambda: deformed_slices(folders["train"], drawing, seed))
        return
    backbone = backbone_of(trial.place)
    source = folders["train"]
    if recipe.masks == "predicted":
        source = label_pool(trial, drawing.teacher, 0, backbone.device)
    train_controlnet(drawing, backbone, folders, seed)
    draw_synthetic(drawing, backbone, source, folders["val"], seed)
    if trial.split == "given":
        picture_row(drawing.folder.with_suffix(".png"), source, open_pairs(drawing.folder))
    file = trial.place.out / "timing.json"
    timed = any(condition.timed for condition in trial.conditions)
    if timed and trial.redraw == 0 and not file.is_file():  # once: it says how many copies there are
        write_json(file, time_generation(trial.folder / "timing", backbone, drawing.controlnet, folders["train"]))


def train_controlnet(drawing: Drawing, backbone: Backbone, folders: dict[str, PairFolder], seed: int) -> None:
    """Fine-tune the ControlNet of a recipe on the annotated slices, or go on with it.

    Where the recipe adapts the backbone, that comes before, in ADAPTATION times as many steps, on these slices and on
    the undrawn ones, whose masks are not looked at.
    """
    out, preset, slices = drawing.controlnet, drawing.trial.preset, folders["train"]
    data = TrainingData(slices, folders["val"], read_prompts())
    tuning = FineTuning(preset.crop, None, max_weight=None, max_steps=preset.controlnet_steps, seed=seed, keep=1)
    tuning = settle(tuning, backbone)
    total = tuning.total_steps(len(slices.stems))
    third = max(1, total // 3)  # strips at four stages (paper, Figure 4)
    adapt_steps = ADAPTATION * total * drawing.recipe.adapted
    every = min(third, tuning.checkpoint_every)
    tuning = replace(tuning, adapt=adapt_steps, sample_every=third, checkpoint_every=every)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):  # recipes share it: another process may be the next to ask
        run = open_run(out, run_config(tuning, backbone, data), (out / "config.json").is_file(), MAY_CHANGE)
        checkpoint = run.load_checkpoint()
        if not checkpoint or checkpoint.step < total:
            if drawing.recipe.adapted:
                images = WithoutMasks.of(slices, undrawn(folders))
                backbone = adapt(run, backbone, images, data, replace(tuning, sample_every=total))
            fine_tune(run, backbone, data, tuning, resume=True)


def draw_synthetic(drawing: Drawing, backbone: Backbone, source: PairFolder, val: PairFolder, seed: int) -> None:
    """Draw slices from the masks of `source`, as the recipe has it, or go on with it. Where it checks them, that is by
    the teacher, with the validation slices as its measure."""
    trial, recipe, check = drawing.trial, drawing.recipe, None
    controlnet, backbone = load_trained(drawing.controlnet, backbone)
    settings = replace(sampling_settings(backbone), detail=recipe.detail, keep=recipe.keep)
    learned, masks = read_config(drawing.controlnet)["learned"], "same" if recipe.masks == "predicted" else recipe.masks
    request = Request(read_prompts(), settings, drawing.per_mask(len(source.stems)), seed, learned, masks=masks)
    if recipe.check:
        teachers = [teacher_of(trial, drawing.teacher, 0, backbone.device)]
        said = {"unet": weights_hash(*teachers), "reference": fingerprint(val), "agreement": AGREEMENT}
        request, check = replace(request, filter=said), slice_check(teachers, val)
    synthesize(drawing.folder, backbone, controlnet, source, request, check=check)


def deformed_slices(source: PairFolder, drawing: Drawing, seed: int) -> Pairs:
    """The real slices under the deformations that `draw_synthetic` draws masks with, as they are."""
    shapes = Shapes(source, "deformed", seed, SamplingSettings())
    copies = [(stem, i) for stem in source.stems for i in range(drawing.per_mask(len(source.stems)))]
    pairs = ((f"{stem}_s{i:03d}", shapes.image(stem, i), shapes.mask(stem, i)) for stem, i in copies)
    return replace(source.info, origin="synthetic", split={"rule": "deformed", "seed": seed}), pairs


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
    rotated_copies(slices, 1, 0)  # warms up
    started = time.perf_counter()
    copies = rotated_copies(slices, 64, 0)
    seconds["memory"] = (time.perf_counter() - started) / 64
    for i, pair in enumerate(zip(copies.images, copies.masks, strict=True)):
        for kind, pixels in zip(("image", "mask"), pair, strict=True):
            save_png(scratch / f"{kind}_{i:02d}.png", pixels)
    seconds["disk"] = (time.perf_counter() - started) / 64
    shutil.rmtree(scratch)
    return seconds


def rotated_copies(slices: Slices, count: int, seed: int) -> Slices:
    """`count` rotated slices and masks: copy i is a function of (seed, i), of slice i modulo their number."""
    images, masks = [], []
    for copy in range(count):
        image, mask = slices.images[copy % len(slices)], slices.masks[copy % len(slices)]
        pixels, ids = torch.from_numpy(image).float()[None, None], torch.from_numpy(mask)[None]
        seeds = sample_seeds(torch.tensor([[copy]]), seed, "copy")
        warped, ids = augment(pixels, ids, "rotation", seeds, mask.shape, Settings.angle)
        images.append(warped[0, 0].round().clamp(0, 255).to(torch.uint8).numpy())
        masks.append(ids[0].numpy())
    return Slices(images, masks, slices.classes, count, slices.intensity_window)
