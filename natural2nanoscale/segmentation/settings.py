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
    finetune_after: int | None = None  # steps on synthetic slices (with balance: on both), then real ones alone
    learning_rate: float = 1e-3
    decay: bool = False  # the learning rate rises for a tenth of the steps, then falls to 0 along a cosine
    class_balance: float = 0.0  # a pixel weighs (share of its class)^-class_balance in the loss; 0: all the same
    augment: str = "none"  # a name of AUGMENTATIONS
    angle: float = 16.0  # degrees: rotation is uniform in [-angle, angle] (paper 4.3); "nnunet" has its own
    enlarge_to: int | None = None  # the real slices become this many, augmented once and for all
    crop: tuple[int, int] | None = None  # (width, height) in pixels of windows cut from the training slices
    validate_every: int | None = None  # steps; None: once per epoch, less often where that would take long
    patience: int = 20  # validations without a better one until training stops; 0: never
    select_by: str = "loss"  # validation "loss" or "miou" names the best weights
    checkpoint_every: int = 200  # steps
    checkpoint_minutes: float = 10.0  # and minutes, whichever come first; the first is due after one; 0: steps alone
    micro_batch: int | None = None  # slices per forward pass; None: by pixels and device
    compile: bool = False  # torch.compile of the training pass; worth its minute at the start in long trainings
    precision: str = "auto"  # of the arithmetic, weights are float32; auto: bfloat16 where the device computes in it
    seed: int = 0


# Minutes in place of hours, in which few slices converge: the U-Nets of the demo, of the experiments and of the judge.
SHORT = Settings(
    width=8,
    max_steps=200,
    batch_size=4,
    full_batches=True,
    learning_rate=8e-3,  # its highest value: it rises and falls, which 200 steps need
    decay=True,
    class_balance=0.5,  # without it, so short a training may never find a rare class, with any training set
    crop=(112, 112),  # as many steps of whole slices cost more
    validate_every=40,  # eight slices of the phantom take as long as two steps: a twentieth of the time
    patience=0,
    select_by="miou",
)

AUGMENTATIONS = {  # paper 4.3: its standard augmentation, rotation; what it found useless; all of them
    "none": (),
    "rotation": ("rotation",),
    "flips": ("flips",),
    "shifts": ("shifts",),
    "noise": ("noise",),
    "elastic": ("rotation", "elastic"),  # beside rotation, as studies compare the two
    "paper-all": ("rotation", "flips", "shifts", "noise"),
    "nnunet": ("rotation", "flips"),  # and scale and intensities, by nnU-Net's published 2-D defaults
}

# What may differ on --resume.
MAY_CHANGE = (
    "epochs",
    "max_steps",
    "validate_every",
    "patience",
    "checkpoint_every",
    "checkpoint_minutes",
    "micro_batch",
)

# Small slices that hardly vary need neither the paper's network nor its length.
RECOMMENDED: dict[str, dict[str, object]] = {
    "phantom": {
        "width": SHORT.width,
        "epochs": 60,
        "batch_size": 8,
        "learning_rate": SHORT.learning_rate,
        "decay": SHORT.decay,
        "class_balance": SHORT.class_balance,
        "crop": SHORT.crop,
        "select_by": SHORT.select_by,
    },
}


def shown(value: object) -> str:
    """A setting as its flag takes it."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def recommended_help(name: str) -> str:
    """A setting's default and its recommended values, for the help text of its flag."""
    special = "".join(
        f"; {shown(values[name])} for the {origin}" for origin, values in RECOMMENDED.items() if name in values
    )
    default = getattr(Settings(), name)
    return f"(default: {'whole slices' if name == 'crop' else shown(default)}{special})"
