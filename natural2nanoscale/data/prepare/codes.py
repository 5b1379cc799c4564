"""The values and colours that masks hold, and the rule that makes class ids of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.prepare.settings import Mapping
from natural2nanoscale.data.prepare.sources import COLOR, MaskPixels, Page, is_color


@dataclass(frozen=True)
class PageCodes:
    """Pixels of a mask by their code: a value, or COLOR + 0xRRGGBB; palette: colours of its values, if it has one."""

    page: Page
    counts: Counter
    palette: dict[int, int]

    @property
    def colored(self) -> bool:
        return any(map(is_color, self.counts))

    def color_of(self, code: int) -> int | None:
        return color_of(code, self.palette)


def codes_of(page: Page, mask: MaskPixels) -> PageCodes:
    """What a mask holds."""
    counts = count(mask.values)
    return PageCodes(page, counts, {} if mask.palette is None else {code: int(mask.palette[code]) for code in counts})


def color_of(code: int, palette: dict[int, int]) -> int | None:
    """The colour 0xRRGGBB that a code is shown in: its own, the palette's, or a grey; None beyond 255."""
    if is_color(code):
        return code - COLOR
    return palette.get(code, code * 0x010101 if 0 <= code < 256 else None)


def look_up(mapping: Mapping, value: int) -> int | None:
    """The class that --map gives to a value; single entries go before ranges."""
    ranges = [key for key in mapping if isinstance(key, tuple) and not is_color(value)]
    fitting = (key for key in ranges if key[0] <= value and (key[1] is None or value <= key[1]))
    return mapping.get(value, mapping.get(next(fitting, None)))


@dataclass(frozen=True)
class LabelRule:
    """How mask pixels become class ids: by `table` of their codes, or else by `colors`, 0xRRGGBB times `scale`."""

    classes: Classes
    notes: tuple[str, ...]
    table: dict[int, int]
    colors: dict[int, int]
    scale: int = 1

    def apply(self, mask: MaskPixels) -> np.ndarray:
        """(H,W) uint8 class ids of a mask whose codes were all seen when the rule was made."""
        found = codes_of(None, mask)
        codes = sorted(found.counts)
        ids = [self.table[c] if c in self.table else self.colors[found.color_of(c) * self.scale] for c in codes]
        return np.array(ids, np.uint8)[np.searchsorted(codes, mask.values)]


def count(codes: np.ndarray) -> Counter:
    """Pixels of every whole number in an array."""
    if codes.min() >= 0 and codes.max() < 2**16:
        counts = np.bincount(codes.ravel())
        return Counter({int(code): int(counts[code]) for code in np.flatnonzero(counts)})
    return Counter({int(code): int(n) for code, n in zip(*np.unique(codes, return_counts=True), strict=True)})
