"""The scales at which studies run: every budget is one of PRESETS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from natural2nanoscale.cli import at_least, setting, size
from natural2nanoscale.phantom.volume import PhantomSettings
from natural2nanoscale.segmentation.settings import SHORT, Settings

EXPERIMENTS = {
    "table1": "real against pure synthetic slices, equally many (the paper's Experiment 1)",
    "figure6": "growing training sets (Experiment 2)",
    "table2": "equal generation time (Experiment 3)",
    "budget": "the paper's epochs and early stopping against equal optimiser steps",
    "split": "blocks with gaps against a random split of the same slices, whose neighbours leak",
    "scarcity": "fewer annotated slices, ControlNet trained on these alone",
    "worth": "synthetic slices among free augmentations and self-training, under a positive control",
    "recipes": "synthetic slices made in other ways: adapted backbone, deformed, predicted masks, checked slices",
    "augmentation": "each kind of standard augmentation alone, rotation by its angle, and all together",
    "order": "synthetic slices beside the real ones or before them, under each standard augmentation",
}

LOOKS = 15  # at the validation slices in every training; the best of them is tested
JOBS = "U-Nets and ControlNets side by side, in processes of one thread (default: one per core, or one on a GPU)"


@dataclass(frozen=True)
class Preset:
    """What all experiments of one scale have in common."""

    name: str
    experiments: tuple[str, ...]
    budgets: dict[str, Settings]  # of every U-Net; the first one serves all experiments but "budget"
    ratios: tuple[float, ...]  # added slices per annotated one in Figure 6
    scarce: tuple[int, ...]  # numbers of annotated slices
    scarce_ratio: float  # synthetic slices per annotated one there
    slices: int | None = None  # annotated slices at most; None: all of train/
    redraws: int = 1  # repetitions with other slices, ControlNets and U-Nets, and without --data other volumes
    seeds: int = 3  # U-Nets per training set and redraw
    seed: int = 0
    controlnet_steps: int | None = None  # None: 600 epochs
    most_copies: int = 34592  # rotated slices of table2: with 233 real ones the paper's 34,825
    block: int = 4  # consecutive test slices that the bootstrap keeps together
    phantom: PhantomSettings = PhantomSettings()
    crop: tuple[int, int] | None = None  # ControlNet's window, width and height in pixels; None: the backbone's
    pilot: bool = False  # the first budget's steps are found by `pilot.fix_steps`
    pool: int | None = None  # slices that the annotated ones are drawn from: found where a study starts


@dataclass(frozen=True)
class Place:
    """Where a study runs and what it runs on."""

    out: Path
    data: Path | None  # data root; None: every redraw has a phantom of its own
    backbone: str
    device: str
    jobs: int | None = None  # processes side by side; None: one per core, or one on a GPU


# Long enough for all of a phantom's slices: `experiments --preset worth --unet-steps pilot` finds the number again.
EQUAL = replace(SHORT, max_steps=1500, validate_every=100, balance=0.5)
PRESETS = {
    preset.name: preset
    for preset in (
        # To the letter: 233 slices, totals of 466, 5,390 and 10,553, three U-Nets of width 64 on one ControlNet.
        Preset(
            "paper",
            tuple(name for name in EXPERIMENTS if name not in ("worth", "recipes")),
            {
                "paper": Settings(),
                "equal": Settings(max_steps=2000, batch_size=64, full_batches=True, validate_every=50, patience=0),
            },
            ratios=(1.0, 5157 / 233, 10320 / 233),
            scarce=(4, 8, 16, 32),
            scarce_ratio=10320 / 233,
            block=5,
            phantom=PhantomSettings((896, 512), 233, 25, 65),
        ),
        # What the main claim rests on. Per redraw one ControlNet (150 s on one core), 32 synthetic slices (20 s) and 7
        # U-Nets (90 s each, in bfloat16): 14 minutes of one core.
        Preset(
            "worth",
            ("worth",),
            {"equal": EQUAL},
            ratios=(16.0,),
            scarce=(2,),
            scarce_ratio=16.0,
            redraws=10,
            seeds=1,
            controlnet_steps=900,
        ),
        # Per redraw four ControlNets (600 s on one core), 256 + 112 synthetic slices (200 s) and 23 U-Nets (2,100 s):
        # three take 145 minutes of one core, 75 on two.
        Preset(
            "embedded",
            ("table1", "figure6", "scarcity"),
            {"equal": EQUAL},
            ratios=(1.0, 4.0, 8.0),
            scarce=(2, 4, 8),
            scarce_ratio=8.0,
            slices=32,
            redraws=3,
            seeds=1,
            controlnet_steps=900,
        ),
        # Per redraw six ControlNets (900 s), 704 + 32 + 144 synthetic slices (500 s) and 53 U-Nets under the equal
        # budget (4,800 s); under the paper's rule, epochs and early stopping, 200 steps for the real slices, 2 x 400
        # and 2 x 4,600 for the larger sets (600 s, fewer with early stopping). In all: three hours on two cores.
        Preset(
            "overnight",
            tuple(name for name in EXPERIMENTS if name != "recipes"),
            {"equal": EQUAL, "paper": replace(EQUAL, max_steps=None, epochs=25, validate_every=None, patience=20)},
            ratios=(1.0, 8.0, 22.0),
            scarce=(2, 4, 8),
            scarce_ratio=8.0,
            slices=32,
            redraws=3,
            seeds=1,
            controlnet_steps=900,
            most_copies=6000,  # as many slices as a U-Net visits under the equal budget
        ),
    )
}


@dataclass(frozen=True)
class Grid:
    """What `calibrate` tries, beside real slices alone: every strength with every start and ratio."""

    strengths: tuple[float, ...] = setting(
        (1.0, 1.6), "scales of what ControlNet adds (default: 1 1.6)", at_least(0.0, float), nargs="+",
        metavar="SCALE",
    )  # fmt: skip
    starts: tuple[float, ...] = setting(
        (0.8, 1.0), "shares of the sampling steps that are taken (default: 0.8 1)", at_least(0.0, float), nargs="+",
        metavar="SHARE",
    )  # fmt: skip
    ratios: tuple[float, ...] = setting(
        (1.0, 4.0), "synthetic slices per real one; the most also before the real ones (default: 1 4)",
        at_least(0.01, float), nargs="+", metavar="R",
    )  # fmt: skip
    seeds: int = setting(
        2, "further U-Nets of real slices alone and of the best mix, whose means decide between them", at_least(1)
    )
    seed: int = setting(0, "seed of everything that is drawn", at_least(0))
    unet_steps: int = setting(EQUAL.max_steps, "steps of every U-Net", at_least(1))
    unet_width: int = setting(EQUAL.width, "channels at the top of the U-Nets", at_least(1))
    unet_crop: tuple[int, int] = setting(EQUAL.crop, "the U-Nets' window in pixels", size, metavar="WxH")
