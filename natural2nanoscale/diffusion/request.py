"""What is to be drawn from masks: every image with its own seed and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.locks import NAME
from natural2nanoscale.seeds import generator_for, seed_for


@dataclass(frozen=True)
class Image:
    """One synthetic image to be made: the `copy`-th slice from the mask `source`."""

    source: str
    copy: int
    seed: int
    prompt: str
    tries: int = 1  # the filter had another noise drawn before each but the first

    @property
    def stem(self) -> str:
        return f"{self.source}_s{self.copy:03d}"


@dataclass(frozen=True)
class Request:
    """What is to be drawn from every mask."""

    prompts: list[str]
    settings: SamplingSettings
    per_mask: int = 1
    seed: int = 0
    learned: dict | None = None  # what the ControlNet was trained on, as its run's config.json says
    call: str | None = None  # the command that makes the rest, should this one be stopped
    shard: tuple[int, int] = (1, 1)  # (i, n): the i-th of n calls that share the images among them; i from 1
    masks: str = "same"  # or "deformed", "between": how masks come out of the source's, see `Shapes`
    filter: dict | None = None  # "unet": who checks slices, "agreement": with its mask, below which one is redrawn

    @property
    def suffix(self) -> str:
        """What the names of a shard's own files end with."""
        return "" if self.shard == (1, 1) else "-{}-of-{}".format(*self.shard)

    @property
    def lock(self) -> str:
        """Name of the file that keeps other calls of this shard away."""
        return f".shard{self.suffix}.lock" if self.suffix else NAME

    def image(self, source: str, copy: int, tries: int = 1) -> Image:
        """An image with its own seed and prompt: functions of (seed, mask, copy, tries), whatever else is made."""
        seed = seed_for(self.seed, "image", source, copy)
        draw = torch.randint(len(self.prompts), (1,), generator=generator_for(seed, "prompt"))
        return Image(source, copy, seed_for(seed, "redraw", tries) if tries > 1 else seed, self.prompts[draw], tries)

    def images(self, stems: Sequence[str]) -> list[Image]:
        """Those that this call makes. Which shard an image belongs to is a function of (mask, copy): any `per_mask`
        deals them out evenly, and a larger one moves none."""
        index, count = self.shard
        places = [(i, copy) for i in range(len(stems)) for copy in range(self.per_mask)]
        return [self.image(stems[i], copy) for i, copy in places if (copy * len(stems) + i) % count == index - 1]
