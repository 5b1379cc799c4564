"""What it takes to make slices: synthetic ones, and rotated copies as standard augmentation (paper, Experiment 3)."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.command import read_prompts
from natural2nanoscale.diffusion.saving import load_trained
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.files import save_png
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.segmentation.augmentation import augment
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices, load_slices
from natural2nanoscale.study.cells import sampling_settings


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
