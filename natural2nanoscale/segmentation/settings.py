"""What a U-Net training is set to (paper 4.3 and 4.4), its flags, and what a dataset's origin recommends instead."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from natural2nanoscale.cli import at_least, setting, shard, size
from natural2nanoscale.data.prepare.settings import Preparation, parse_axes

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

# By a dataset's origin, where that is not the default.
RECOMMENDED: dict[str, dict[str, object]] = {
    "phantom": {  # small slices that hardly vary need neither the paper's network nor its length
        "width": 8,
        "epochs": 60,
        "batch_size": 8,
        "learning_rate": 8e-3,  # its highest value: it rises and falls, which 200 steps need
        "decay": True,
        "class_balance": 0.5,  # without it, so short a training may never find a rare class, with any training set
        "crop": (112, 112),  # as many steps of whole slices cost more
        "select_by": "miou",
    },
}


def shown(value: object) -> str:
    """A setting as its flag takes it."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def recommended(name: str, default: object, text: str, kind: Callable | None = None, **argument: object) -> Any:
    """The setting `name`, of which RECOMMENDED has other values: its flag is None until it is given."""
    special = "".join(f"; {shown(values[name])} for the {origin}" for origin, values in RECOMMENDED.items())
    return setting(default, f"{text} (default: {shown(default)}{special})", kind, default=None, **argument)


@dataclass(frozen=True)
class Settings:
    """One U-Net training."""

    balance: float | None = setting(
        None, "share of every batch that is real, such as 0.5 (default: as in the set)", at_least(0.0, float),
        metavar="SHARE",
    )  # fmt: skip
    augment: str = setting(
        "none", "rotation is the paper's, elastic rotates and deforms, paper-all is all that the paper tried, nnunet "
        "nnU-Net's defaults", choices=tuple(AUGMENTATIONS),
    )  # fmt: skip
    angle: float = setting(  # "nnunet" has its own
        16.0, "largest rotation either way", at_least(0.0, float), metavar="DEGREES"
    )
    enlarge_to: int | None = setting(
        None, "augment once and for all, to N slices from the real ones (default: anew at every visit)", at_least(1)
    )
    crop: tuple[int, int] | None = recommended(
        "crop", None, "train on windows of this size, not on whole slices", size, metavar="WxH"
    )
    epochs: int = recommended("epochs", 400, "passes over the training slices", at_least(1))
    max_steps: int | None = setting(None, "optimiser steps, in place of --epochs", at_least(1))
    batch_size: int = recommended("batch_size", 512, "slices per step, all where there are fewer", at_least(1))
    full_batches: bool = False  # every step takes batch_size slices, even from a smaller set
    finetune_after: int | None = None  # steps on synthetic slices (with balance: on both), then real ones alone
    micro_batch: int | None = setting(None, "slices per forward pass (default: what fits)", at_least(1))
    width: int = recommended("width", 64, "channels of the first stage", at_least(1))
    depth: int = setting(4, "halvings of the resolution", at_least(1))
    learning_rate: float = recommended("learning_rate", 1e-3, "learning rate", at_least(0.0, float), flag="--lr")
    decay: bool = recommended(
        "decay", False, "let the learning rate rise for a tenth of the steps, then fall to 0: good for short trainings",
        action=argparse.BooleanOptionalAction,
    )  # fmt: skip
    class_balance: float = recommended(
        "class_balance", 0.0, "pixels weigh (share of their class)^-B in the loss; 0.5 helps rare classes",
        at_least(0.0, float), metavar="B",
    )  # fmt: skip
    validate_every: int | None = setting(
        None, "steps between validations (default: once per epoch, less often where that takes more than a twentieth "
        "of the time)", at_least(1), metavar="STEPS",
    )  # fmt: skip
    patience: int = setting(20, "validations without a better one until training stops, 0 for never", at_least(0))
    select_by: str = recommended(
        "select_by", "loss", "validation score that names the best weights", choices=("loss", "miou"), flag="--select"
    )
    compile: bool = setting(False, "torch.compile; about a minute at the start, less time per step")
    precision: str = setting(
        "auto", "of the arithmetic, weights are float32; auto is bfloat16 on a GPU that computes in it",
        choices=("auto", "float32", "bfloat16"),
    )  # fmt: skip
    checkpoint_every: int = setting(200, "steps between checkpoints", at_least(1), metavar="STEPS")
    checkpoint_minutes: float = setting(
        10.0, "and minutes, whichever come first; a first one after one minute; 0 counts steps alone",
        at_least(0.0, float), metavar="MINUTES",
    )  # fmt: skip
    seed: int = setting(0, "the first seed", at_least(0))


def complete(settings: Settings, origin: str) -> Settings:
    """Settings whose flags were not all given: None becomes what the origin recommends (printed), or the default."""
    open_ = {field.name: field.default for field in fields(Settings) if getattr(settings, field.name) is None}
    advised = {name: value for name, value in RECOMMENDED.get(origin, {}).items() if name in open_}
    if advised:
        values = ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in advised.items())
        print(f"{values}: recommended for the {origin}")
    return replace(settings, **open_ | advised)


# Minutes in place of hours, in which few slices converge: the U-Nets of the demo, of the experiments and of the judge.
SHORT = Settings(
    **RECOMMENDED["phantom"]
    | {"epochs": Settings.epochs, "max_steps": 200, "batch_size": 4, "full_batches": True, "patience": 0},
    validate_every=40,  # eight slices of the phantom take as long as two steps: a twentieth of the time
)

# What may differ on --resume.
MAY_CHANGE = ("epochs", "max_steps", "validate_every", "patience", "checkpoint_every", "checkpoint_minutes",
              "micro_batch")  # fmt: skip


@dataclass(frozen=True)
class Segmentation:
    """Which slices get masks, by which run, and what is written beside them."""

    run: Path
    images: Path
    out: Path
    channel: int | None = setting(None, "of several channels of the slices the one to take, from 0", at_least(0))
    axes: str | None = setting(
        None, "what the axes of arrays are where files do not say it, such as ZYX", parse_axes, metavar="AXES"
    )
    crop_bottom: int = setting(0, "cut off the lowest rows, a microscope's information bar", at_least(0))
    flip_y: bool = setting(
        False, "rows of MRC files begin below, as for `prepare`; masks are of the slices turned upright, as IMOD's are"
    )
    format: str = setting(
        "png", "masks/*.png alone, or also masks.ome.tif or masks.ome.zarr", choices=("png", "tiff", "zarr")
    )
    flips: bool = setting(False, "average over the slice and its three mirror images, in four times the time")
    probabilities: bool = setting(False, "write them, probabilities/*.npy (K,H,W) float16")
    overlay: bool = setting(False, "write overlays/*.png, the slices tinted by their classes")
    pixel_size_nm: float | None = setting(
        None, "nanometres per pixel (default: as the files say)", at_least(0.0, float), "--pixel-size", metavar="NM"
    )
    rescale: float = setting(
        1.0, "show the slices to the networks this many times larger; masks keep the slices' size",
        at_least(0.01, float), metavar="FACTOR",
    )  # fmt: skip
    shard: tuple[int, int] | None = setting(None, "make every n-th slice alone, from the i-th", shard, metavar="I/N")
    max_pixels: int = setting(
        Preparation.max_pixels, "refuse larger pictures, against decompression bombs", at_least(1), metavar="N"
    )
