"""The judge of a fine-tuning: a small U-Net that learned from the real slices says what synthetic ones show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation.evaluation import image_matrices
from natural2nanoscale.segmentation.metrics import miou
from natural2nanoscale.segmentation.settings import SHORT
from natural2nanoscale.segmentation.slices import Slices, load_slices
from natural2nanoscale.segmentation.training import train
from natural2nanoscale.segmentation.unet import WEIGHTS_NAME, load_unet


def train_judge(
    train_folder: PairFolder,
    val_folder: PairFolder,
    device: torch.device,
    out: Path,
    seed: int = 0,
    steps: int = SHORT.max_steps,
) -> Callable[[np.ndarray, np.ndarray], float]:
    """Train a U-Net in `out`, or take the one that is there; return the mask agreement it measures.

    The mask agreement of slices (B,H,W) uint8 with masks (B,H,W) uint8 is the mIoU in [0,1] between what the U-Net
    sees in the slices and the masks; 0 when no pixel carries a label. It is meant for slices drawn from the validation
    masks: the training slices themselves, which the U-Net has learned by heart, would flatter what resembles them.
    """
    best = out / "best"
    if not (best / WEIGHTS_NAME).is_file():
        out.mkdir(exist_ok=True)
        training, validation = load_slices(train_folder), load_slices(val_folder)
        height, width = (min(lengths) for lengths in zip(*training.shapes, strict=True))
        crop = min(width, 256), min(height, 256)  # windows that slices of any size can give
        every = max(1, steps // 8)
        settings = replace(SHORT, max_steps=steps, augment="rotation", crop=crop, validate_every=every, seed=seed)
        train(training, validation, settings, device, RunFolder(out))
    model, info = load_unet(best, device)
    score = info.trained["best"]["val_miou"]
    print(
        f"the judge's own mIoU on {val_folder.path}: {score:.3f}; mask agreement of synthetic slices can hardly pass it"
    )

    def agreement(images: np.ndarray, masks: np.ndarray) -> float:
        matrices = image_matrices(model, Slices(list(images), list(masks), info.classes, 0), device)
        return float(miou(matrices.sum(0)).nan_to_num())

    return agreement
