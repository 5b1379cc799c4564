"""What a study is made of: trials, whose training sets share annotated slices and ControlNets, and their U-Nets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from natural2nanoscale.records import describe
from natural2nanoscale.schemas import SECONDS
from natural2nanoscale.study.conditions import IN_MEMORY, RECIPES, Condition, Recipe
from natural2nanoscale.study.experiments import conditions
from natural2nanoscale.study.presets import Place, Preset

KEY = ("experiment", "condition", "split", "slices", "size", "redraw", "seed", "budget")  # a U-Net's, in its log line


@dataclass(frozen=True)
class Trial:
    """All training sets of one redraw that have the same `count` annotated slices, and so share ControlNets."""

    preset: Preset
    place: Place
    redraw: int
    split: str
    count: int
    conditions: Sequence[Condition]

    @property
    def folder(self) -> Path:
        return self.place.out / f"redraw-{self.redraw}" / f"{self.split}-{self.count}"

    def cells(self) -> list[Cell]:
        """Its U-Nets. The copies that a time yields are counted once it is known."""
        timing, cells = read_timing(self.place.out), []
        for condition in self.conditions:
            if condition.timed and timing:
                made = min(affordable(condition, self.count, self.preset, timing), self.preset.most_copies)
                condition = replace(condition, copies=made / self.count)
            cells += [Cell(self, condition, seed) for seed in range(self.preset.seeds)]
        return cells


@dataclass(frozen=True)
class Cell:
    """One U-Net of a trial."""

    trial: Trial
    condition: Condition
    seed: int

    @property
    def budget(self) -> str:
        return self.condition.budget or self.trial.preset.budget

    @property
    def size(self) -> int | None:
        """Slices in the training set; None while it is not known how many copies the time yields."""
        condition, count = self.condition, self.trial.count
        return None if condition.timed else sum(condition.counts(count)) + condition.pseudo + count * condition.real

    @property
    def key(self) -> tuple:
        """The values of KEY."""
        one, trial = self.condition, self.trial
        named = (one.experiment, one.name, one.split, trial.count, self.size)
        return (*named, trial.redraw, self.seed, self.budget)

    @property
    def training(self) -> tuple:
        """What is trained, whoever asks for it and under whatever name: equal ones are trained once."""
        return (self.condition.nameless, self.trial.count, self.trial.redraw, self.seed, self.budget)

    @property
    def drawing(self) -> Drawing | None:
        """The synthetic slices that it learns from, is asked what it sees in, or needs the time of."""
        condition, trial = self.condition, self.trial
        if condition.synthetic > 0:
            return Drawing(trial, condition.recipe, condition.teacher)
        asked = condition.is_asked or condition.timed
        first = (one.recipe for one in trial.conditions if one.drawn and not one.teacher)
        return next((Drawing(trial, recipe) for recipe in first if asked), None)


@dataclass(frozen=True)
class Drawing:
    """The synthetic slices of a recipe in a trial."""

    trial: Trial
    name: str
    teacher: Condition | None = None  # Condition.teacher of the training sets that take them

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name]

    @property
    def folder(self) -> Path:
        words = ["synthetic", *([] if self.name == "plain" else [self.name])]
        words += [self.teacher.augment] if self.teacher and not self.teacher.is_asked else []
        return self.trial.folder / re.sub(r"\W+", "-", " ".join(words))

    @property
    def controlnet(self) -> Path:
        """The run folder of its ControlNet: recipes that differ in other things alone share it."""
        return self.trial.folder / ("controlnet-adapted" if self.recipe.adapted else "controlnet")

    def per_mask(self, masks: int) -> int:
        """Slices from each of so many masks: what the most demanding training set takes."""
        share = max(one.synthetic for one in self.trial.conditions if one.recipe == self.name)
        return math.ceil(math.floor(share * self.trial.count + 0.5) / masks)


def plan_trials(preset: Preset, place: Place) -> list[Trial]:
    """The training sets of every redraw, in groups that share their annotated slices."""
    groups: dict[tuple[str, int], list[Condition]] = {}
    for condition in conditions(preset, preset.experiments):
        groups.setdefault((condition.split, condition.slices or preset.full), []).append(condition)
    return [
        Trial(preset, place, redraw, split, count, members)
        for redraw in range(preset.redraws)
        for (split, count), members in groups.items()
    ]


def read_timing(out: Path) -> dict[str, float]:
    """Seconds per slice as `synthetic.time_generation` measured them for the study in `out`; empty before."""
    file = out / "timing.json"
    return describe(file, SECONDS, "remove it, and it is measured again") if file.is_file() else {}


def affordable(condition: Condition, count: int, preset: Preset, timing: dict[str, float]) -> int:
    """Rotated copies that can be made in the time of the synthetic slices of the largest ratio."""
    seconds = timing["memory" if condition.name == IN_MEMORY else "disk"]
    return int(max(preset.ratios) * count * timing["synthetic"] / seconds)
