"""Random numbers by name, many at once: every number is a function of its sample's key and its place alone.

SplitMix64 (Steele, Lea and Flood 2014), counted instead of iterated: no batch, no device, no worker and no
interruption changes what a sample draws, and no Python runs per sample.
"""

from __future__ import annotations

import torch

from natural2nanoscale.seeds import seed_for

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio; int64 arithmetic wraps


def sample_seeds(keys: torch.Tensor, *name: int | str) -> torch.Tensor:
    """A seed (B,) int64 for every row of keys (B,k) int64, such as (epoch, index), under a name."""
    seeds = torch.full((len(keys),), seed_for(*name), dtype=torch.int64, device=keys.device)
    for column in keys.unbind(1):
        seeds = _mix(seeds + (column + 1) * GOLDEN)
    return seeds


def uniform(seeds: torch.Tensor, count: int) -> torch.Tensor:
    """(B,count) float64 in [0,1), multiples of 2^-32, for seeds (B,) int64."""
    return _shift(_bits(seeds, count), 32).double() * 2**-32


def normal(seeds: torch.Tensor, count: int) -> torch.Tensor:
    """(B,count) float32 of mean 0 and deviation 1 for seeds (B,) int64; none is beyond 5.5."""
    odd = 2 * _shift(_bits(seeds, count), 40) + 1 - 2**24  # an odd number below 2^24 either way: never 1 after division
    return torch.erfinv(odd.float() * 2**-24) * 2**0.5


def permutations(count: int, epochs: torch.Tensor, *name: int | str) -> torch.Tensor:
    """(E,count) int64: a permutation of range(count) for each of epochs (E,), under a name."""
    return _bits(sample_seeds(epochs.unsqueeze(1), *name), count).argsort(dim=1, stable=True)


def _bits(seeds: torch.Tensor, count: int) -> torch.Tensor:
    return _mix(seeds.unsqueeze(1) + torch.arange(1, count + 1, device=seeds.device) * GOLDEN)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, places: int) -> torch.Tensor:
    """To the right, zeros coming in: torch's own shift of int64 copies the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)
