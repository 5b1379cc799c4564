"""The scales at which studies run: every budget is one of PRESETS."""

from __future__ import annotations

from dataclasses import dataclass, replace

from natural2nanoscale.phantom.volume import PhantomSettings
from natural2nanoscale.segmentation.settings import SHORT, Settings

EXPERIMENTS = {
    "table1": "real against pure synthetic slices, equally many (the paper's Experiment 1)",
    "figure6": "growing training sets (Experiment 2)",
    "table2": "equal generation time (Experiment 3)",
    "budget": "the paper's epochs and early stopping against equal optimiser steps",
    "split": "blocks with gaps against a random split of the same slices, whose neighbours leak",
    "scarcity": "fewer annotated slices, ControlNet trained on these alone",
    "augmentation": "each kind of standard augmentation alone, rotation by its angle, and all together",
    "order": "synthetic slices beside the real ones or before them, under each standard augmentation",
}


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


EQUAL = replace(SHORT, balance=0.5)
PRESETS = {
    preset.name: preset
    for preset in (
        # To the letter: 233 slices, totals of 466, 5,390 and 10,553, three U-Nets of width 64 on one ControlNet.
        Preset(
            "paper",
            tuple(EXPERIMENTS),
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
        # One core, which takes 150 s for 900 steps of ControlNet, 0.55 s for a synthetic slice and 24 s for a U-Net.
        # A redraw has two ControlNets (300 s), 256 + 64 synthetic slices (175 s) and 16 U-Nets (390 s): three take 43
        # minutes, and phantoms, latents and scores another 4.
        Preset(
            "embedded",
            ("table1", "figure6", "scarcity"),
            {"equal": EQUAL},
            ratios=(1.0, 4.0, 8.0),
            scarce=(8,),
            scarce_ratio=8.0,
            slices=32,
            redraws=3,
            seeds=1,
            controlnet_steps=900,
        ),
        # Likewise, per redraw: five ControlNets (750 s), 704 + 32 + 224 synthetic slices (530 s), 42 U-Nets under the
        # equal budget (1,000 s); under the paper's rule, epochs and early stopping, 200 steps for the real ones, 2 x
        # 400 and 2 x 4,600 for the larger sets (1,200 s, fewer with early stopping). In all: three hours.
        Preset(
            "overnight",
            tuple(EXPERIMENTS),
            {"equal": EQUAL, "paper": replace(EQUAL, max_steps=None, epochs=25, validate_every=None, patience=20)},
            ratios=(1.0, 8.0, 22.0),
            scarce=(4, 8, 16),
            scarce_ratio=8.0,
            slices=32,
            redraws=3,
            seeds=1,
            controlnet_steps=900,
            most_copies=800,  # as many slices as a U-Net visits under the equal budget
        ),
    )
}
