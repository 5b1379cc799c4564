"""What `prepare` converts, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from natural2nanoscale.data.prepare import splits


@dataclass(frozen=True)
class Preparation:
    """What to convert, and how. Sizes are (width, height); fractions are of the slices, or of the groups."""

    images: Path
    masks: Path
    out: Path
    split: str = "block"  # "block", "random" or "group"
    group: str | None = None  # regular expression whose first group in the file name is the slice's group
    val: float = splits.VAL
    test: float = splits.TEST
    val_groups: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()
    gap: int | None = None  # None: splits.default_gap
    seed: int = 0
    size: tuple[int, int] | None = None
    tiles: int | None = None  # at most so many of each slice, the most central ones
    skip_small: bool = False
    only_pairs: bool = False
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[str, int], ...] = ()
    mapping: dict[int | str, int] | None = None
    default_percentiles: ClassVar[tuple[float, float]] = (0.1, 99.9)
    percentiles: tuple[float, float] | None = None  # None: default_percentiles; 8-bit slices stay as they are
    window: tuple[float, float] | None = None  # grey values that become 0 and 255, instead of percentiles
    pixel_size_nm: float | None = None
    max_pixels: int = 1_000_000_000
