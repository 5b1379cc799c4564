"""The defaults of U-Net training (paper 4.3 and 4.4), and what a dataset's origin recommends instead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """One U-Net training."""

    width: int = 64  # channels of the first stage
    depth: int = 4  # halvings of the resolution
    epochs: int = 400
    max_steps: int | None = None  # optimiser steps, in place of epochs
    batch_size: int = 512  # slices per step; the whole set when it is smaller
    full_batches: bool = False  # every step takes batch_size slices, even from a smaller set
    balance: float | None = None  # share of every batch that is real; None: as in the set
    learning_rate: float = 1e-3
    decay: bool = False  # the learning rate rises for a tenth of the steps, then falls to 0 along a cosine
    class_balance: float = 0.0  # a pixel weighs (share of its class)^-class_balance in the loss; 0: all the same
    augment: str = "none"  # or "rotation": uniform in [-MAX_ANGLE, MAX_ANGLE]
    crop: tuple[int, int] | None = None  # (width, height) in pixels of windows cut from the training slices
    validate_every: int | None = None  # steps; None: once per epoch
    patience: int = 20  # validations without a better one until training stops; 0: never
    select_by: str = "loss"  # validation "loss" or "miou" names the best weights
    checkpoint_every: int = 200  # steps
    micro_batch: int | None = None  # slices per forward pass; None: by pixels and device
    seed: int = 0


MAX_ANGLE = 16.0  # degrees, paper 4.3

# What may differ on --resume.
MAY_CHANGE = ("epochs", "max_steps", "validate_every", "patience", "checkpoint_every", "micro_batch")

# Small slices that hardly vary need neither the paper's network nor its length.
RECOMMENDED: dict[str, dict[str, int]] = {
    "phantom": {"width": 8, "epochs": 60, "batch_size": 8},
}


def recommended_help(name: str) -> str:
    """A setting's default and its recommended values, for the help text of its flag."""
    special = "".join(f"; {values[name]} for the {origin}" for origin, values in RECOMMENDED.items() if name in values)
    return f"(default: {getattr(Settings(), name)}{special})"
