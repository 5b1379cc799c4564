"""The training set of a U-Net: real slices, synthetic ones, or both in a stated ratio."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from natural2nanoscale.data.classes import IGNORE_ID, Classes
from natural2nanoscale.data.digests import mask_hash
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.errors import InputError


@dataclass(frozen=True)
class Slices:
    """Slices in memory: pairs of (H,W) uint8 images and masks of any sizes, the first `real` of them real."""

    images: list[np.ndarray]
    masks: list[np.ndarray]
    classes: Classes
    real: int
    intensity_window: tuple[float, float] | None = None
    sources: tuple[str, ...] = ()  # of synthetic slices: whose masks they were made from; empty: not known
    pixel_size_nm: float | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The different (height, width), sorted."""
        return sorted({image.shape for image in self.images})


def load_slices(folder: PairFolder) -> Slices:
    """All pairs of a folder; they count as real unless the folder's origin is "synthetic"."""
    images, masks = folder.load()
    real = 0 if folder.info.origin == "synthetic" else len(images)
    sources = () if real else tuple(stem.rpartition("_s")[0] or stem for stem in folder.stems)
    info = folder.info
    return Slices(images, masks, info.classes, real, info.intensity_window, sources, info.pixel_size_nm)


def refuse_unlabelled(slices: Slices, name: str) -> None:
    """Raise InputError where no pixel has a class: there is nothing to learn, or to score."""
    if all((mask == IGNORE_ID).all() for mask in slices.masks):
        raise InputError(f"no pixel of the {len(slices)} masks of {name} carries a label: check the masks")


def combine(real: Slices | None, synthetic: Slices | None = None, ratio: float = 1.0, real_count: int = 0) -> Slices:
    """Real slices, then round(`ratio` x real slices) synthetic ones (paper: 1.0 gives 233 + 233 = 466).

    `real` None makes a purely synthetic set, whose ratio counts from `real_count`. The synthetic slices are
    spread evenly over the masks they were made from, always the same ones for the same folder.
    Raises InputError when there are too few of them.
    """
    if synthetic is None:
        if real is None:
            raise InputError("there are neither real nor synthetic slices to train on: leave out --no-real")
        return real
    base = len(real) if real is not None else real_count
    needed = math.floor(ratio * base + 0.5)
    sources = synthetic.sources or [mask_hash(mask) for mask in synthetic.masks]
    if needed > len(synthetic):
        more = math.ceil(needed / max(1, len(set(sources))))
        raise InputError(
            f"--synthetic-ratio {ratio:g} of {base} real slices needs {needed} synthetic slices, found "
            f"{len(synthetic)}: repeat the call that made them, with --per-mask {more}"
        )
    if needed == 0 and real is None:
        raise InputError(f"--synthetic-ratio {ratio:g} with --no-real leaves nothing to train on: raise it")
    chosen = spread_evenly(sources, needed)
    images, masks = [synthetic.images[i] for i in chosen], [synthetic.masks[i] for i in chosen]
    if real is None:
        return replace(synthetic, images=images, masks=masks, sources=())
    return replace(real, images=real.images + images, masks=real.masks + masks)


def spread_evenly(sources: Sequence[Hashable], count: int) -> list[int]:
    """Indices of `count` slices, as many of every different source as possible, in ascending order.

    A round that cannot serve every source serves evenly spaced ones.
    """
    by_source: dict[Hashable, list[int]] = {}
    for index, source in enumerate(sources):
        by_source.setdefault(source, []).append(index)
    chosen: list[int] = []
    for turn in zip_longest(*by_source.values()):
        row = [index for index in turn if index is not None]
        wanted = min(count - len(chosen), len(row))
        chosen += [row[i * len(row) // wanted] for i in range(wanted)]
    return sorted(chosen)
