"""A training set of a U-Net as data, and how the synthetic slices in it are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from natural2nanoscale.segmentation.settings import Settings

REAL, SYNTHETIC, ROTATION = "real", "synthetic", "real + rotation"  # rotation: drawn anew at every visit
COPIES, MIXED = "real + copies", "real + synthetic"  # copies: rotated, made once, the paper's standard augmentation
BOTH, ROTATED_MIX = "real + copies + synthetic", "real + synthetic + rotation"
SELF, NNUNET = "self-training", "real + nnunet"
ALL, ALL_NNUNET = "all slices + rotation", "all slices + nnunet"  # positive controls: what the others are drawn from
CONTROLS = {ALL: ROTATION, ALL_NNUNET: NNUNET}  # and what the head-room is measured from
ON_DISK, IN_MEMORY = f"{COPIES}, as PNG", f"{COPIES}, in memory"


@dataclass(frozen=True)
class Recipe:
    """How synthetic slices are made: what the ControlNet stands on, and which masks they are drawn from."""

    adapted: bool = False  # to the pool's slices without masks, before
    masks: str = "same"  # Request.masks, or "predicted": by the teacher (Condition.teacher), on slices without masks
    detail: bool = False  # SamplingSettings.detail
    keep: float = 0.0  # SamplingSettings.keep
    check: bool = False  # unsure pixels are ignored, slices that show something else drawn again or left out
    drawn: bool = True  # False: the real slices themselves, deformed with the masks: what geometry alone brings

    @property
    def asks(self) -> bool:
        """Whether a U-Net of the real slices is needed first."""
        return self.masks == "predicted" or self.check


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
    "adapted, predicted, detail": Recipe(adapted=True, masks="predicted", detail=True),
    "doubt redrawn": Recipe(adapted=True, masks="predicted", detail=True, keep=0.7),
    "adapted, predicted, checked": Recipe(adapted=True, masks="predicted", check=True),
}


@dataclass(frozen=True)
class Condition:
    """One training set of a U-Net, and the budget it is given. Shares are per annotated slice."""

    name: str
    synthetic: float = 0.0
    recipe: str = "plain"  # of RECIPES: how they are made
    copies: float = 0.0  # infinity: as many as the time takes in which the synthetic slices are made
    pseudo: int = 0  # slices beside them, labelled by the teacher of the same repetition
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
    def drawn(self) -> bool:
        """Whether slices that a ControlNet drew are in it."""
        return self.synthetic > 0 and RECIPES[self.recipe].drawn

    @property
    def nameless(self) -> Condition:
        """What is trained, whoever asks for it and under whatever name."""
        return replace(self, name="", slices=None, budget="", experiment="")

    def trains_as(self, other: Condition) -> bool:
        """Whether it is the same training set, by whatever name."""
        return self.nameless == other.nameless

    @property
    def is_asked(self) -> bool:
        """Whether it is rotation alone: its U-Nets are asked what they see in synthetic slices."""
        return self.trains_as(real("rotation"))

    @property
    def teacher(self) -> Condition | None:
        """Whose U-Net labels slices for it: that of the real slices alone with its augmentation; None: nobody's."""
        return real(self.augment) if self.pseudo or RECIPES[self.recipe].asks else None

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
