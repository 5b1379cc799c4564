"""The pixels of a mask as values and as colours, and what is done to arrays of either."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

GREYS = np.arange(256, dtype=np.int32) * 0x010101
UNLABELLED = -(2**31) + 1  # value and colour of pixels that a mask itself calls unlabelled, by transparency


@dataclass(frozen=True)
class MaskPixels:
    """A mask as plain values (H,W) int32 or int64, or as colours 0xRRGGBB (H,W) int32, the other one None.

    table: the colour of each value, that of a grey one having equal channels; with `indexed` the file's own.
    """

    values: np.ndarray | None
    colors: np.ndarray | None
    table: np.ndarray
    indexed: bool = False

    def codes(self, by_color: bool) -> np.ndarray:
        """(H,W) values or colours, of a mask that can be read that way."""
        if not by_color:
            return self.values
        if self.colors is not None:
            return self.colors
        return np.where(self.values >= 0, self.table[np.maximum(self.values, 0)], self.values)

    def value_counts(self) -> dict[int, int] | None:
        """Pixels of every value."""
        return None if self.values is None else count(self.values)

    def palette(self) -> dict[int, int]:
        """Colours of the values in use, of a palette picture; of others empty."""
        return {int(value): int(self.table[value]) for value in np.unique(self.values)} if self.indexed else {}

    def color_counts(self) -> dict[int, int] | None:
        """Pixels of every colour; None where values have no colour."""
        if self.colors is not None:
            return count(self.colors)
        counts: Counter = Counter()
        for value, pixels in count(self.values).items():
            if value != UNLABELLED and not 0 <= value < len(self.table):
                return None
            counts[int(self.table[value]) if value >= 0 else value] += pixels
        return dict(counts)


def turned_over(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Black and white exchanged: of unsigned, signed and real numbers."""
    if pixels.dtype.kind == "f":
        return -pixels
    return ~pixels if pixels.dtype.kind == "i" else (pixels.dtype.type(2**bits - 1) - pixels)


def count(codes: np.ndarray) -> dict[int, int]:
    """Pixels of every whole number in an array."""
    if codes.min() >= 0 and codes.max() < 2**16:
        counts = np.bincount(codes.ravel())
        return {int(code): int(counts[code]) for code in np.flatnonzero(counts)}
    return {int(code): int(n) for code, n in zip(*np.unique(codes, return_counts=True), strict=True)}
