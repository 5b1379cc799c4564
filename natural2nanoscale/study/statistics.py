"""What a handful of repetitions and of test slices can say: paired differences and their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from natural2nanoscale.segmentation.metrics import miou

FEWEST_BLOCKS = 10  # of neighbouring test slices, of all test sets; with fewer, an interval over them covers too little
FEWEST_OF_ONE = 4  # blocks of each test set
FEWEST_REPETITIONS = 5  # of which an interval by resampling is shown


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and half the width of its 95 % t interval (None for a single pair)."""

    mean: float
    half_width: float | None
    pairs: int
    unit: str = "redraw"  # what the pairs are of; "seed", of the U-Nets, where there is one redraw

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)

    @property
    def over_redraws(self) -> tuple[float, float] | None:
        """The interval that a verdict goes by; None of a single draw of slices."""
        return self.interval if self.unit == "redraw" else None


def paired_difference(
    with_it: Sequence[float], without: Sequence[float], overlap: float = 0.0, unit: str = "redraw"
) -> Difference:
    """95 % t interval of the mean of with_it[i] - without[i].

    overlap: share in [0,1) of its slices that a repetition has in common with another one, see `widening`.
    """
    differences = [a - b for a, b in zip(with_it, without, strict=True)]
    mean, count, half_width = statistics.fmean(differences), len(differences), None
    if count > 1:
        error = statistics.stdev(differences) / math.sqrt(count)
        half_width = t_quantile(0.975, count - 1) * error * widening(count, overlap)
    return Difference(mean, half_width, count, unit)


def widening(count: int, overlap: float) -> float:
    """How much wider an interval over repetitions has to be than if they had no slices in common.

    What they share correlates them, so their spread s understates the error of a mean of J: its variance is
    s^2 (1/J + overlap / (1 - overlap)) (Nadeau & Bengio 2003, "Inference for the generalization error").
    """
    return math.sqrt(1 + count * overlap / (1 - overlap))


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution for `probability` > 0.5, to seven digits.

    t = sqrt(freedom) tan(a), where the density of the angle a in (-pi/2, pi/2) is proportional to cos(a)^(freedom - 1).
    """
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.cumsum(density[1:] + density[:-1])  # trapezoids, up to a factor
    return math.sqrt(freedom) * math.tan(np.interp((2 * probability - 1) * below[-1], below, angles[1:]))


def block_bootstrap(
    with_it: np.ndarray,
    without: np.ndarray,
    block: int,
    volumes: Sequence[int],
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of the mean difference in mIoU, over resampled blocks of consecutive test slices.

    with_it, without: (R,N,K,K) confusion matrices of R repetitions on N test slices each, truth in rows. Slices are
    cut into ceil(N / block) runs of neighbours, which are not independent; runs are drawn with replacement, their
    matrices added up, and the mIoU of every repetition is taken from the sum. Repetitions with the same number in
    `volumes` (R,) saw the same test slices and share their draws.

    Resampling B blocks narrows the spread by sqrt((B-1)/B), and normal quantiles stand where t quantiles belong; the
    percentiles are taken further out by both (the expanded percentile interval of Hesterberg 2014, "What teachers
    should know about the bootstrap", section 3.4). Show it where `enough_blocks` says so.
    """
    starts = np.arange(0, with_it.shape[1], block)
    groups = np.unique(np.asarray(volumes), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(starts), np.full(len(starts), 1 / len(starts)), size=(draws, groups.max() + 1))
    times = times[:, groups].astype(np.float64)  # (draws,R,blocks): how often each block was drawn
    scores = []
    for matrices in (with_it, without):
        blocks = np.add.reduceat(matrices.astype(np.float64), starts, axis=1)  # (R,blocks,K,K)
        scores.append(miou(torch.from_numpy(np.einsum("drb,rbij->drij", times, blocks))).numpy())
    return expanded_interval((scores[0] - scores[1]).mean(axis=1), len(starts), int(groups.max()) + 1)


def expanded_interval(values: np.ndarray, units: int, sets: int = 1) -> tuple[float, float]:
    """95 % interval from bootstrap `values` (draws,), each of `units` resampled ones, in `sets` independent sets."""
    freedom = units - 1
    reach = math.sqrt(1 + 1 / freedom) * t_quantile(0.975, freedom * sets) if freedom else math.inf
    tail = statistics.NormalDist().cdf(-reach)
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def ratio_interval(
    gains: Sequence[float], rooms: Sequence[float], overlap: float = 0.0, draws: int = 4000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval of mean(gains) / mean(rooms), pairs (R,) of repetitions drawn anew together.

    overlap: as in `paired_difference`. None for fewer than FEWEST_REPETITIONS, of which a bootstrap covers too little.
    """
    if len(gains) < FEWEST_REPETITIONS:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(gains), (draws, len(gains)))
    above, below = np.asarray(gains)[drawn].mean(axis=1), np.asarray(rooms)[drawn].mean(axis=1)
    low, high = expanded_interval(above / np.where(below == 0, np.nan, below), len(gains))
    ratio, wider = statistics.fmean(gains) / statistics.fmean(rooms), widening(len(gains), overlap)
    return ratio - wider * (ratio - low), ratio + wider * (high - ratio)


def enough_blocks(slices: int, block: int, volumes: int) -> bool:
    """Whether an interval over test slices covers what it says: `volumes` test sets of `slices` slices each."""
    blocks = math.ceil(slices / block)
    return blocks >= FEWEST_OF_ONE and blocks * volumes >= FEWEST_BLOCKS
