"""The experiments as data: their training sets, and what is compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.study.presets import Preset
from natural2nanoscale.study.recipes import BESIDE_NNUNET, BEST, FREE, RECIPES

REAL, SYNTHETIC, ROTATION = "real", "synthetic", "real + rotation"  # rotation: drawn anew at every visit
COPIES, MIXED = "real + copies", "real + synthetic"  # copies: rotated, made once, the paper's standard augmentation
BOTH, ROTATED_MIX = "real + copies + synthetic", "real + synthetic + rotation"
ALL, SELF = "all slices + rotation", "self-training"  # all: the positive control, what the others are drawn from
ON_DISK, IN_MEMORY = f"{COPIES}, as PNG", f"{COPIES}, in memory"


@dataclass(frozen=True)
class Condition:
    """One training set of a U-Net, and the budget it is given. Shares are per annotated slice."""

    name: str
    synthetic: float = 0.0
    recipe: str = "plain"  # of RECIPES: how they are made
    copies: float = 0.0  # infinity: as many as the time takes in which the synthetic slices are made
    pseudo: int = 0  # slices beside them, labelled by the real + rotation U-Net of the same repetition
    real: bool = True  # with the annotated slices themselves
    augment: str = "none"  # Settings.augment
    angle: float = Settings.angle  # of rotation, in degrees
    finetune: bool = False  # half of the steps on the synthetic slices, half on the real ones
    slices: int | None = None  # annotated ones; None: all that the preset takes
    split: str = "given"  # or "random"
    budget: str = ""  # "": the preset's first
    experiment: str = ""

    def counts(self, slices: int) -> tuple[int, int]:
        """How many rotated copies and how many synthetic slices there are beside `slices` annotated ones."""
        return math.floor(self.copies * slices + 0.5), math.floor(self.synthetic * slices + 0.5)

    @property
    def ratio(self) -> float:
        """Added slices per annotated one."""
        return self.copies + self.synthetic

    @property
    def timed(self) -> bool:
        """Whether generation has to be timed before it is known how many copies there are."""
        return self.copies == math.inf

    @property
    def is_asked(self) -> bool:
        """Whether it is rotation alone, by whatever name: its U-Nets are asked what they see in other slices."""
        return replace(self, name=ROTATION, slices=None, budget="", experiment="") == real("rotation")

    @property
    def facts(self) -> dict:
        """What tells its lines of the log from those of the experiment's other training sets."""
        told = {"slices": self.slices, "budget": self.budget or None, "ratio": None if self.timed else self.ratio}
        found = {key: value for key, value in told.items() if value is not None}
        return {"condition": self.name, "split": self.split} | found


@dataclass(frozen=True)
class Contrast:
    """Two training sets of an experiment whose difference is reported."""

    ours: Condition
    theirs: Condition
    where: str = ""  # the circumstance, as the verdict says it
    suffix: str = ""  # of its label


def real(augment: str = "none", **fields: object) -> Condition:
    """The annotated slices alone."""
    return Condition(REAL if augment == "none" else f"{REAL} + {augment}", augment=augment, **fields)


def mixed(share: float, augment: str = "none", recipe: str = "plain", **fields: object) -> Condition:
    """The annotated slices, and `share` times as many of a recipe."""
    name = MIXED if RECIPES[recipe].drawn else f"{REAL} + {recipe}"
    name += "" if augment == "none" else f" + {augment}"
    if RECIPES[recipe].drawn and recipe != "plain":
        name += f": {recipe}"
    return Condition(name, share, recipe, augment=augment, **fields)


BESIDE, INSTEAD, ON_TOP = "beside the real slices", "in place of rotated copies", "on top of rotation"
Plan = Iterator[Contrast | Condition]  # what is compared, the first matters most; and training sets besides


def scarce(preset: Preset, below: int | None) -> Iterator[tuple[int, str]]:
    """The numbers of annotated slices of which there are more to compare with, and what labels say of them."""
    for count in preset.scarce:
        if below is None or count < below:
            yield count, f", {count} slices" * (len(preset.scarce) > 1)


def company(preset: Preset, count: int) -> list[Condition]:
    """What needs no generator: rotation, elastic deformation, nnU-Net's augmentation, and self-training."""
    alone = [real(augment, slices=count) for augment in ("rotation", "elastic", "nnunet")]
    undrawn = max(0, (preset.pool or 0) - count)
    return [*alone, Condition(SELF, pseudo=undrawn, augment="rotation", slices=count)]


def control(preset: Preset, count: int) -> list[Condition]:
    """The positive control: all of the pool or, where that is no more, half of the slices."""
    if not preset.pool or count < preset.pool:
        return [Condition(ALL, augment="rotation", slices=preset.pool)] if preset.pool else []
    return [real("rotation", slices=count // 2)] if count > 1 else []


def worth(preset: Preset) -> Plan:
    """What synthetic slices are worth. Synthetic slices among free augmentations and self-training, under a positive
    control."""
    for count, suffix in scarce(preset, preset.pool):
        rotation, elastic, nnunet, taught = free = company(preset, count)
        plain, best = (mixed(preset.scarce_ratio, "rotation", recipe, slices=count) for recipe in ("plain", BEST))
        bent = mixed(preset.scarce_ratio, "elastic", slices=count)
        yield from (*free, plain, best, bent)  # in this order
        yield Contrast(best, rotation, ON_TOP, suffix)
        yield Contrast(plain, rotation, ON_TOP, suffix)
        yield Contrast(bent, elastic, "on top of elastic deformation", suffix)
        pairs = [(one, rotation) for one in free[1:]] + [(best, one) for one in (taught, elastic, nnunet)]
        yield from (Contrast(*pair, suffix=suffix) for pair in pairs)
        yield from control(preset, count)


def recipes(preset: Preset) -> Plan:
    """Recipes. Synthetic slices made in other ways: adapted backbone, deformed, predicted masks, checked slices."""
    for count, suffix in scarce(preset, preset.pool):
        rotation, _, nnunet, taught = free = company(preset, count)
        shares = dict.fromkeys(("same", "deformed"), preset.scarce_ratio)
        shares["predicted"] = (preset.pool or 2 * count) / count - 1  # one of each slice without masks
        made = {name: mixed(shares[how.masks], "rotation", name, slices=count) for name, how in RECIPES.items()}
        pairs = [(one, other) for other in (rotation, taught) for one in made.values()]
        pairs += [(one, made[FREE]) for one in made.values() if one != made[FREE]]
        pairs += [(one, rotation) for one in free[1:]]
        pairs += [(mixed(preset.scarce_ratio, "nnunet", name, slices=count), nnunet) for name in BESIDE_NNUNET]
        yield from (Contrast(*pair, suffix=suffix) for pair in pairs)
        yield from control(preset, count)


def demo(preset: Preset) -> Plan:
    """Training sets. Rotation, elastic deformation and synthetic slices, under a positive control."""
    for count, suffix in scarce(preset, preset.pool and preset.pool + 1):
        rotation, elastic, *_ = company(preset, count)
        mix = replace(mixed(preset.scarce_ratio, "rotation", BEST, slices=count), name=ROTATED_MIX)
        yield Contrast(mix, rotation, ON_TOP, suffix)
        yield Contrast(elastic, rotation, suffix=suffix)
        yield Contrast(mix, elastic, suffix=suffix)
        yield from control(preset, count)


def table1(preset: Preset) -> Plan:
    """Table 1: pure synthetic slices. Real against pure synthetic slices, equally many (the paper's Experiment 1)."""
    yield real("rotation")
    yield Contrast(Condition(SYNTHETIC, synthetic=1.0, real=False), real(), "in place of the real slices")


def figure6(preset: Preset) -> Plan:
    """Figure 6: growing training sets. Growing training sets (Experiment 2)."""
    for ratio in sorted(preset.ratios, reverse=True):
        copies, both = Condition(COPIES, copies=ratio), Condition(BOTH, ratio / 2, copies=ratio / 2)
        suffix = f", {ratio:.3g} to 1"
        yield Contrast(mixed(ratio), real(), BESIDE, suffix)
        yield Contrast(both, copies, "in place of half of the rotated copies", suffix)
        yield Contrast(mixed(ratio), copies, INSTEAD, suffix)


def table2(preset: Preset) -> Plan:
    """Table 2: equal generation time. Equal generation time (Experiment 3)."""
    on_disk, in_memory = (Condition(name, copies=math.inf) for name in (ON_DISK, IN_MEMORY))
    yield Contrast(mixed(max(preset.ratios)), on_disk, f"{INSTEAD} made in the same time")
    yield in_memory


def mix_or_copies(ratio: float, suffix: str, **fields: object) -> Plan:
    """Synthetic slices beside the real ones, and in place of copies."""
    mix = mixed(ratio, **fields)
    yield Contrast(mix, real(**fields), BESIDE, suffix)
    yield Contrast(mix, Condition(COPIES, copies=ratio, **fields), INSTEAD, suffix)


def budget(preset: Preset) -> Plan:
    """Control: epochs or equal steps. The paper's epochs and early stopping against equal optimiser steps."""
    for name in preset.budgets:
        for ratio in sorted({min(preset.ratios), max(preset.ratios)}):
            yield from mix_or_copies(ratio, f", {ratio:.3g} to 1, {name}", budget=name)


def split(preset: Preset) -> Plan:
    """Control: blocks or random slices. Blocks with gaps against a random split of the same slices, whose neighbours
    leak."""
    for name in ("given", "random"):
        yield from mix_or_copies(min(preset.ratios), f", {name} split", split=name)


def scarcity(preset: Preset) -> Plan:
    """Label scarcity. Fewer annotated slices, ControlNet trained on these alone."""
    for count, suffix in scarce(preset, preset.full):
        yield from (real(), real("rotation"))
        for augment, where in (("rotation", ON_TOP), ("none", BESIDE)):
            mix = mixed(preset.scarce_ratio, augment, slices=count)
            yield Contrast(mix, real(augment, slices=count), where, suffix)
        yield from control(preset, count)


def augmentation(preset: Preset) -> Plan:
    """Standard augmentation. Each kind of standard augmentation alone, rotation by its angle, and all together."""
    kinds = [real(kind) for kind in ("flips", "shifts", "noise", "rotation", "paper-all", "nnunet")]
    angles = [replace(real("rotation", angle=angle), name=f"{ROTATION} by {angle}°") for angle in (8, 45, 180)]
    yield from (Contrast(one, real()) for one in (*kinds, *angles))


def order(preset: Preset) -> Plan:
    """Beside the real slices or before them. Synthetic slices beside the real ones or before them, under each standard
    augmentation."""
    for augment in ("none", "rotation", "nnunet"):
        plain, mix = real(augment), mixed(max(preset.ratios), augment)
        before = replace(mix, name=f"synthetic, then real + {augment}", finetune=True)  # half of the steps each
        yield Contrast(mix, plain, BESIDE)
        yield Contrast(before, plain, "before the real slices")


EXPERIMENTS = {  # in the order of the report
    plan.__name__: plan
    for plan in (worth, recipes, demo, table1, figure6, table2, budget, split, scarcity, augmentation, order)
}


def described(experiment: str) -> list[str]:
    """The title of its tables, and what it compares."""
    return " ".join(EXPERIMENTS[experiment].__doc__.split()).split(". ", 1)


def conditions(preset: Preset, only: Sequence[str]) -> list[Condition]:
    """The training sets of the experiments named in `only`, each once."""
    found = []
    for name, plan in EXPERIMENTS.items():
        for one in plan(preset) if name in only else ():
            sides = [one.theirs, one.ours] if isinstance(one, Contrast) else [one]
            found += [replace(side, experiment=name) for side in sides]
    return list(dict.fromkeys(found))


def contrasts(preset: Preset, experiment: str) -> list[Contrast]:
    """The differences that an experiment is about."""
    return [one for one in EXPERIMENTS[experiment](preset) if isinstance(one, Contrast)]
