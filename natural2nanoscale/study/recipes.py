"""The recipes of synthetic slices: what a ControlNet stands on, and from which masks slices are drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How synthetic slices are made: what the ControlNet stands on, and which masks they are drawn from."""

    adapted: bool = False  # to the pool's slices without masks, before
    masks: str = "same"  # Request.masks, or "predicted": the real + rotation U-Net's answers on slices without masks
    detail: bool = False  # SamplingSettings.detail
    check: bool = False  # unsure pixels are ignored, slices that show something else drawn again or left out
    drawn: bool = True  # False: the real slices themselves, deformed with the masks: what geometry alone brings

    @property
    def asks(self) -> bool:
        """Whether the real + rotation U-Net is needed first."""
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
    "adapted, predicted, checked": Recipe(adapted=True, masks="predicted", check=True),
}
BEST = "deformed masks"  # which worth and the demo take
FREE = "deformed slices"  # the one without a generator
BESIDE_NNUNET = (FREE, BEST, "deformed masks, detail")  # tried with nnU-Net's augmentation as well
