"""What a handful of repetitions can say: paired differences and their t intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and half the width of its 95 % t interval (None for a single pair)."""

    mean: float
    half_width: float | None
    pairs: int

    @property
    def reaches_zero(self) -> bool:
        """Whether the interval holds zero or lies below it; a single pair can exclude nothing."""
        return self.half_width is None or self.mean - self.half_width <= 0


def paired_difference(with_it: Sequence[float], without: Sequence[float]) -> Difference:
    """95 % t interval of the mean of with_it[i] - without[i]."""
    differences = [a - b for a, b in zip(with_it, without, strict=True)]
    count = len(differences)
    if count < 2:
        return Difference(differences[0], None, count)
    error = statistics.stdev(differences) / math.sqrt(count)
    return Difference(statistics.fmean(differences), t_quantile(0.975, count - 1) * error, count)


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution for `probability` > 0.5, by bisection of its distribution function."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        if t_distribution(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_distribution(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0 and whole degrees of freedom: the finite sums of Abramowitz and Stegun 26.7.3-4."""
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for k in range(3, freedom + 1, 2):
            total += term
            term *= cos2 * (k - 1) / k
        inside = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(2, freedom + 1, 2):
            total += term
            term *= cos2 * (k - 1) / k
        inside = math.sin(angle) * total
    return 0.5 + inside / 2
