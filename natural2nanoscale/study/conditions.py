"""The experiments as data: a U-Net's training set is one line of `conditions`, what is compared one of `contrasts`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.study.presets import Preset

REAL, SYNTHETIC, ROTATION = "real", "synthetic", "real + rotation"  # rotation: drawn anew at every visit
COPIES, MIXED = "real + copies", "real + synthetic"  # copies: rotated, made once, the paper's standard augmentation
BOTH, ROTATED_MIX = "real + copies + synthetic", "real + synthetic + rotation"
THEN_REAL = "synthetic, then real"  # half of the steps each
ALL = "all slices + rotation"  # the positive control: all that the annotated slices are drawn from
ELASTIC, NNUNET, SELF = "real + elastic", "real + nnunet", "self-training"
ELASTIC_MIX = "real + synthetic + elastic"
UNDER = {"none": (REAL, MIXED), "rotation": (ROTATION, ROTATED_MIX), "nnunet": (NNUNET, f"{MIXED} + nnunet")}
BESIDE = (ROTATION, ELASTIC, NNUNET, SELF)  # what the recipes are compared with
ON_DISK, IN_MEMORY = f"{COPIES}, as PNG", f"{COPIES}, in memory"


@dataclass(frozen=True)
class Recipe:
    """How synthetic slices are made: what the ControlNet stands on, and which masks they are drawn from."""

    adapted: bool = False  # to the pool's slices without masks, before
    masks: str = "same"  # Request.masks, or "predicted": the real + rotation U-Net's answers on slices without masks
    start: float | None = None  # SamplingSettings.start; None: the backbone's
    detail: bool = False  # SamplingSettings.detail
    check: bool = False  # unsure pixels are ignored, slices that show something else drawn again or left out
    drawn: bool = True  # False: the real slices themselves, deformed with the masks: what geometry alone brings

    @property
    def asks(self) -> bool:
        """Whether the real + rotation U-Net is needed first."""
        return self.masks == "predicted" or self.check

    @property
    def controlnet(self) -> str:
        """Name of the folder of the ControlNet: recipes that differ in other things alone share it."""
        return "controlnet-adapted" if self.adapted else "controlnet"


BEST = "deformed masks"  # which worth and the demo take
FREE = "deformed slices"  # of RECIPES, the one without a generator
ADAPTATION = 2  # steps of the adaptation for one of the ControlNet
RECIPES = {
    "plain": Recipe(),
    "deformed slices": Recipe(masks="deformed", drawn=False),
    "deformed masks": Recipe(masks="deformed"),
    "deformed masks, detail": Recipe(masks="deformed", detail=True),
    "predicted masks": Recipe(masks="predicted"),
    "adapted": Recipe(adapted=True),
    "adapted, deformed": Recipe(adapted=True, masks="deformed"),
    "adapted, predicted": Recipe(adapted=True, masks="predicted"),
    "adapted, predicted, checked": Recipe(adapted=True, masks="predicted", check=True),
}
BESIDE_NNUNET = (FREE, BEST, "deformed masks, detail")  # tried with nnU-Net's augmentation as well


@dataclass(frozen=True)
class Condition:
    """One training set of a U-Net, and the budget it is given. Shares are per annotated slice."""

    experiment: str
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

    def counts(self, slices: int) -> tuple[int, int]:
        """How many rotated copies and how many synthetic slices there are beside `slices` annotated ones."""
        return math.floor(self.copies * slices + 0.5), math.floor(self.synthetic * slices + 0.5)


@dataclass(frozen=True)
class Contrast:
    """Two training sets of an experiment whose difference is reported; the fields of rows tell them apart."""

    with_it: str
    without: str
    where: str = ""  # the circumstance, as the verdict says it
    suffix: str = ""  # of its label
    ours: dict = field(default_factory=dict)
    theirs: dict = field(default_factory=dict)


def conditions(preset: Preset, only: tuple[str, ...]) -> list[Condition]:
    """All training sets of the experiments named in `only`. Equal ones are trained once, whoever asks for them."""
    last = max(preset.ratios)
    found = [
        Condition("demo", ROTATION, augment="rotation"),
        Condition("demo", ROTATED_MIX, synthetic=last, recipe=BEST, augment="rotation"),
        Condition("demo", ELASTIC, augment="elastic"),
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
    pool = preset.pool
    if pool:
        found.append(Condition("scarcity", ALL, augment="rotation", slices=pool))
        found += control("demo", min(preset.slices or pool, pool), pool)
    for count in preset.scarce:
        given = {"slices": count}
        found += [
            Condition("worth", ROTATION, augment="rotation", **given),
            Condition("worth", ELASTIC, augment="elastic", **given),
            Condition("worth", NNUNET, augment="nnunet", **given),
            Condition("worth", SELF, pseudo=max(0, (pool or 0) - count), augment="rotation", **given),
            Condition("worth", ROTATED_MIX, synthetic=preset.scarce_ratio, augment="rotation", **given),
            Condition("worth", by(BEST), synthetic=preset.scarce_ratio, recipe=BEST, augment="rotation", **given),
            Condition("worth", ELASTIC_MIX, synthetic=preset.scarce_ratio, augment="elastic", **given),
        ]
        for recipe in RECIPES:
            free = RECIPES[recipe].masks == "predicted"  # one slice from each of them
            share = (pool or 2 * count) / count - 1 if free else preset.scarce_ratio
            found.append(Condition("recipes", by(recipe), synthetic=share, recipe=recipe, augment="rotation", **given))
        for recipe in BESIDE_NNUNET:
            name = by(recipe, "nnunet")
            found.append(Condition("recipes", name, preset.scarce_ratio, recipe, augment="nnunet", **given))
        beside = [one for one in found if one.experiment == "worth" and one.slices == count and one.name in BESIDE]
        found += [replace(one, experiment="recipes") for one in beside]
    if pool and preset.scarce:
        found.append(Condition("recipes", ALL, augment="rotation", slices=pool))
        found.append(Condition("worth", ALL, augment="rotation", slices=pool))
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


def by(recipe: str, augment: str = "rotation") -> str:
    """Name of the condition that adds the slices of a recipe to those with an augmentation."""
    if not RECIPES[recipe].drawn:
        return f"{REAL} + {recipe} + {augment}"
    return f"{MIXED} + {augment}" + ("" if recipe == "plain" else f": {recipe}")


def control(experiment: str, count: int, pool: int) -> list[Condition]:
    """The positive control of `count` annotated slices: all of the pool or, where that is no more, half of them."""
    if count < pool:
        return [Condition(experiment, ALL, augment="rotation", slices=pool)]
    return [Condition(experiment, ROTATION, augment="rotation", slices=count // 2)] if count > 1 else []


def contrasts(preset: Preset, experiment: str) -> list[Contrast]:
    """The differences that an experiment is about; the first ones matter most."""
    beside, instead = "beside the real slices", "in place of rotated copies"
    last, first = max(preset.ratios), min(preset.ratios)
    found = []
    if experiment == "demo":
        at = {"slices": min(preset.slices or preset.pool, preset.pool)} if preset.pool else {}
        found.append(Contrast(ROTATED_MIX, ROTATION, "on top of rotation", ours=at, theirs=at))
        found += [Contrast(*pair, ours=at, theirs=at) for pair in ((ELASTIC, ROTATION), (ROTATED_MIX, ELASTIC))]
    elif experiment == "worth":
        for count in preset.scarce:
            at, suffix = {"slices": count}, f", {count} slices" * (len(preset.scarce) > 1)
            found.append(Contrast(by(BEST), ROTATION, "on top of rotation", suffix, at, at))
            found.append(Contrast(ROTATED_MIX, ROTATION, "on top of rotation", suffix, at, at))
            found.append(Contrast(ELASTIC_MIX, ELASTIC, "on top of elastic deformation", suffix, at, at))
            pairs = [(one, ROTATION) for one in (ELASTIC, NNUNET, SELF)]
            pairs += [(by(BEST), one) for one in (SELF, ELASTIC, NNUNET)]
            found += [Contrast(*pair, suffix=suffix, ours=at, theirs=at) for pair in pairs]
    elif experiment == "recipes":
        for count in preset.scarce:
            at, suffix = {"slices": count}, f", {count} slices" * (len(preset.scarce) > 1)
            pairs = [(by(recipe), other) for other in (ROTATION, SELF) for recipe in RECIPES]
            pairs += [(by(recipe), by(FREE)) for recipe in RECIPES if recipe != FREE]
            pairs += [(other, ROTATION) for other in (ELASTIC, NNUNET, SELF)]
            pairs += [(by(recipe, "nnunet"), NNUNET) for recipe in BESIDE_NNUNET]
            found += [Contrast(*pair, suffix=suffix, ours=at, theirs=at) for pair in pairs]
    elif experiment == "table1":
        found.append(Contrast(SYNTHETIC, REAL, "in place of the real slices"))
    elif experiment == "figure6":
        for ratio in sorted(preset.ratios, reverse=True):
            at, suffix = {"ratio": ratio}, f", {ratio:.3g} to 1"
            found.append(Contrast(MIXED, REAL, beside, suffix, at))
            found.append(Contrast(BOTH, COPIES, "in place of half of the rotated copies", suffix, at, at))
            found.append(Contrast(MIXED, COPIES, instead, suffix, at, at))
    elif experiment == "table2":
        found.append(Contrast(MIXED, ON_DISK, f"{instead} made in the same time"))
    elif experiment == "budget":
        for budget in preset.budgets:
            at = {"budget": budget}
            for ratio in sorted({first, last}):
                own, suffix = at | {"ratio": ratio}, f", {ratio:.3g} to 1, {budget}"
                found.append(Contrast(MIXED, REAL, beside, suffix, own, at))
                found.append(Contrast(MIXED, COPIES, instead, suffix, own, own))
    elif experiment == "split":
        for split in ("given", "random"):
            at, suffix = {"split": split}, f", {split} split"
            found += [Contrast(MIXED, REAL, beside, suffix, at, at), Contrast(MIXED, COPIES, instead, suffix, at, at)]
    elif experiment == "augmentation":
        names = dict.fromkeys(condition.name for condition in conditions(preset, (experiment,)))
        found += [Contrast(name, REAL) for name in names if name != REAL]
    elif experiment == "order":
        for augment, (plain, mixed) in UNDER.items():
            found.append(Contrast(mixed, plain, beside))
            found.append(Contrast(f"{THEN_REAL} + {augment}", plain, "before the real slices"))
    else:
        for count in preset.scarce:
            at, suffix = {"slices": count}, f", {count} slices"
            found.append(Contrast(ROTATED_MIX, ROTATION, "on top of rotation", suffix, at, at))
        for count in preset.scarce:
            at, suffix = {"slices": count}, f", {count} slices"
            found.append(Contrast(MIXED, REAL, beside, suffix, at, at))
    return found
