"""The experiments as data: every U-Net's training set is one line of `conditions`, every budget one of PRESETS."""

from __future__ import annotations

import math
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
REAL, SYNTHETIC, ROTATION = "real", "synthetic", "real + rotation"  # rotation: drawn anew at every visit
COPIES, MIXED = "real + copies", "real + synthetic"  # copies: rotated, made once, the paper's standard augmentation
BOTH, ROTATED_MIX = "real + copies + synthetic", "real + synthetic + rotation"
THEN_REAL = "synthetic, then real"  # half of the steps each
UNDER = {"none": (REAL, MIXED), "rotation": (ROTATION, ROTATED_MIX), "nnunet": ("real + nnunet", f"{MIXED} + nnunet")}
ON_DISK, IN_MEMORY = f"{COPIES}, as PNG", f"{COPIES}, in memory"


@dataclass(frozen=True)
class Condition:
    """One training set of a U-Net, and the budget it is given. Shares are per annotated slice."""

    experiment: str
    name: str
    synthetic: float = 0.0
    copies: float = 0.0  # infinity: as many as the time takes in which the synthetic slices are made
    real: bool = True  # with the annotated slices themselves
    augment: str = "none"  # Settings.augment
    angle: float = Settings.angle  # of rotation, in degrees
    finetune: bool = False  # half of the steps on the synthetic slices, half on the real ones
    slices: int | None = None  # annotated ones; None: all that the preset takes
    split: str = "given"  # or "random"
    budget: str = ""  # "": the preset's first

    def counts(self, slices: int) -> tuple[int, int]:
        """How many rotated copies and how many synthetic slices there are beside `slices` annotated ones."""
        return math.floor(self.copies * slices + 0.5), math.floor(self.synthetic * slices + 0.5)


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


def conditions(preset: Preset, only: tuple[str, ...]) -> list[Condition]:
    """All training sets of the experiments named in `only`. Equal ones are trained once, whoever asks for them."""
    last = max(preset.ratios)
    found = [
        Condition("table1", REAL),
        Condition("table1", ROTATION, augment="rotation"),
        Condition("table1", SYNTHETIC, synthetic=1, real=False),
        Condition("figure6", REAL),
        Condition("table2", MIXED, synthetic=last),
        Condition("table2", ON_DISK, copies=math.inf),
        Condition("table2", IN_MEMORY, copies=math.inf),
        Condition("scarcity", REAL),
        Condition("scarcity", ROTATION, augment="rotation"),
    ]
    for ratio in preset.ratios:
        found += [
            Condition("figure6", COPIES, copies=ratio),
            Condition("figure6", MIXED, synthetic=ratio),
            Condition("figure6", BOTH, copies=ratio / 2, synthetic=ratio / 2),
        ]
    for budget in preset.budgets:
        found.append(Condition("budget", REAL, budget=budget))
        for ratio in sorted({min(preset.ratios), last}):
            found.append(Condition("budget", COPIES, copies=ratio, budget=budget))
            found.append(Condition("budget", MIXED, synthetic=ratio, budget=budget))
    for split in ("given", "random"):
        found += [
            Condition("split", REAL, split=split),
            Condition("split", COPIES, copies=min(preset.ratios), split=split),
            Condition("split", MIXED, synthetic=min(preset.ratios), split=split),
        ]
    for count in preset.scarce:
        found += [
            Condition("scarcity", REAL, slices=count),
            Condition("scarcity", ROTATION, augment="rotation", slices=count),
            Condition("scarcity", MIXED, synthetic=preset.scarce_ratio, slices=count),
            Condition("scarcity", ROTATED_MIX, synthetic=preset.scarce_ratio, augment="rotation", slices=count),
        ]
    kinds = ("flips", "shifts", "noise", "rotation", "paper-all", "nnunet")
    found.append(Condition("augmentation", REAL))
    found += [Condition("augmentation", f"real + {kind}", augment=kind) for kind in kinds]
    for angle in (8, 45, 180):
        found.append(Condition("augmentation", f"{ROTATION} by {angle}°", augment="rotation", angle=angle))
    for augment, (plain, mixed) in UNDER.items():
        found += [
            Condition("order", plain, augment=augment),
            Condition("order", mixed, synthetic=last, augment=augment),
            Condition("order", f"{THEN_REAL} + {augment}", synthetic=last, augment=augment, finetune=True),
        ]
    return [condition for condition in found if condition.experiment in only]
