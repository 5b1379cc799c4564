"""The experiments as data: what each compares, and so which training sets it has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from natural2nanoscale.study.conditions import (
    ALL,
    ALL_NNUNET,
    BOTH,
    COPIES,
    IN_MEMORY,
    ON_DISK,
    RECIPES,
    ROTATION,
    SELF,
    SYNTHETIC,
    Condition,
    Contrast,
    mixed,
    real,
)
from natural2nanoscale.study.presets import Preset

BENT = "deformed masks"  # the recipe that shows shapes which nobody drew
FREE = "deformed slices"  # their geometry, without a generator
LEARNED = "doubt redrawn"  # the one that takes most from slices without masks, and does best
BESIDE_NNUNET = (FREE, BENT, "adapted, predicted, detail", LEARNED)  # tried with nnU-Net's augmentation as well
BESIDE, INSTEAD, ON_TOP = "beside the real slices", "in place of rotated copies", "on top of rotation"
Plan = Iterator[Contrast | Condition]  # what is compared, the first matters most; and training sets besides


def scarce(preset: Preset, below: int | None) -> Iterator[tuple[int, str]]:
    """The numbers of annotated slices of which there are more to compare with, and what labels say of them."""
    for count in preset.scarce:
        if below is None or count < below:
            yield count, f", {count} slices" * (len(preset.scarce) > 1)


def company(preset: Preset, count: int) -> list[Condition]:
    """What needs no generator: rotation, elastic deformation, nnU-Net's augmentation, self-training, and real slices
    deformed as masks are."""
    alone = [real(augment, slices=count) for augment in ("rotation", "elastic", "nnunet")]
    deformed = mixed(preset.scarce_ratio, "rotation", FREE, slices=count)
    return [*alone, self_training(preset, count, "rotation"), deformed]


def undrawn(preset: Preset, count: int) -> int:
    """Slices of the pool that are not drawn, whose masks stay hidden."""
    return max(0, (preset.pool or 0) - count)


def self_training(preset: Preset, count: int, augment: str) -> Condition:
    """The real slices, and all others of the pool as the U-Net of the real ones labels them."""
    name = SELF if augment == "rotation" else f"{SELF} + {augment}"
    return Condition(name, pseudo=undrawn(preset, count), augment=augment, slices=count)


def best(preset: Preset, count: int) -> Condition:
    """What did best on the phantom: one from every slice without a mask, drawn by what has learned from these too; from
    deformed masks where there is none."""
    others = undrawn(preset, count)
    share, recipe = (others / count, LEARNED) if others else (preset.scarce_ratio, BENT)
    return mixed(share, "nnunet", recipe, slices=count)


def control(preset: Preset, count: int) -> list[Condition]:
    """The positive control: all of the pool or, where that is no more, half of the slices."""
    if not preset.pool or count < preset.pool:
        return [Condition(ALL, augment="rotation", slices=preset.pool)] if preset.pool else []
    return [real("rotation", slices=count // 2)] if count > 1 else []


def worth(preset: Preset) -> Plan:
    """What synthetic slices are worth. Synthetic slices among free augmentations and self-training, under a positive
    control."""
    for count, suffix in scarce(preset, preset.pool):
        rotation, elastic, nnunet, taught, deformed = free = company(preset, count)
        plain, bent = (mixed(preset.scarce_ratio, "rotation", recipe, slices=count) for recipe in ("plain", BENT))
        plain_elastic = mixed(preset.scarce_ratio, "elastic", slices=count)
        taught_nnunet = self_training(preset, count, "nnunet")
        learned = best(preset, count)
        yield from (*free, taught_nnunet, plain, bent, plain_elastic, learned)  # in this order
        yield Contrast(learned, nnunet, "on top of nnU-Net's augmentation", suffix)
        yield Contrast(bent, rotation, ON_TOP, suffix)
        yield Contrast(plain, rotation, ON_TOP, suffix)
        yield Contrast(plain_elastic, elastic, "on top of elastic deformation", suffix)
        pairs = [(one, rotation) for one in (learned, *free[1:])] + [(learned, taught_nnunet), (taught_nnunet, nnunet)]
        pairs += [(bent, one) for one in (deformed, taught, elastic, nnunet)]
        yield from (Contrast(*pair, suffix=suffix) for pair in pairs)
        yield from control(preset, count)


def recipes(preset: Preset) -> Plan:
    """Recipes. Synthetic slices made in other ways: adapted backbone, deformed, predicted masks, checked slices."""
    for count, suffix in scarce(preset, preset.pool):
        rotation, _, nnunet, taught, deformed = free = company(preset, count)
        shares = dict.fromkeys(("same", "deformed"), preset.scarce_ratio)
        shares["predicted"] = undrawn(preset, count) / count  # one of each slice without masks
        made, made_nnunet = (
            {name: mixed(shares[how.masks], augment, name, slices=count) for name, how in RECIPES.items()}
            for augment in ("rotation", "nnunet")
        )
        pairs = [(one, other) for other in (rotation, taught) for one in made.values()]
        pairs += [(one, deformed) for one in made.values() if one != deformed]
        pairs += [(one, rotation) for one in free[1:-1]] + [(made_nnunet[name], nnunet) for name in BESIDE_NNUNET]
        taught_nnunet = self_training(preset, count, "nnunet")
        pairs += [(taught_nnunet, nnunet), (made_nnunet[LEARNED], taught_nnunet)]
        yield from (Contrast(*pair, suffix=suffix) for pair in pairs)
        yield from control(preset, count)
        if preset.pool:
            yield Condition(ALL_NNUNET, augment="nnunet", slices=preset.pool)


def unlabelled(preset: Preset) -> Plan:
    """What slices without masks are worth. Synthetic slices learned from them, and self-training on them, beside the
    strongest free augmentation and under a positive control with it."""
    for count, suffix in scarce(preset, preset.pool):
        nnunet, taught = real("nnunet", slices=count), self_training(preset, count, "nnunet")
        learned = best(preset, count)
        yield Contrast(learned, nnunet, "on top of nnU-Net's augmentation", suffix)
        yield Contrast(learned, taught, suffix=suffix)
        yield Contrast(taught, nnunet, suffix=suffix)
        yield Condition(ALL_NNUNET, augment="nnunet", slices=preset.pool)


def demo(preset: Preset) -> Plan:
    """Training sets. Rotation, nnU-Net's augmentation, and the best synthetic slices beside it, under a positive
    control."""
    for count, suffix in scarce(preset, preset.pool and preset.pool + 1):
        rotation, nnunet = (real(augment, slices=count) for augment in ("rotation", "nnunet"))
        made = best(preset, count)
        yield Contrast(made, rotation, "with nnU-Net's augmentation, over rotation alone", suffix)
        yield Contrast(made, nnunet, "on top of nnU-Net's augmentation", suffix)
        yield Contrast(nnunet, rotation, suffix=suffix)
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
    for plan in (worth, unlabelled, recipes, demo, table1, figure6, table2)
    + (budget, split, scarcity, augmentation, order)
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
