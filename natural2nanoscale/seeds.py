"""Randomness by name: whatever is drawn is a function of a seed and of what it is drawn for, and of nothing else."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that is a function of its parts alone, so a draw depends on nothing but its name."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_for`: the same draws whatever device the work runs on."""
    import torch  # here, because the phantom, which --help imports, needs no more than seed_for

    return torch.Generator().manual_seed(seed_for(*parts))


def permutation_for(count: int, *parts: int | str) -> list[int]:
    """A permutation of range(count), keyed by the parts."""
    import torch

    return torch.randperm(count, generator=generator_for(*parts)).tolist()
