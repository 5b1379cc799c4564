"""The values and colours that masks hold, and the rule that makes class ids of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.prepare.settings import Mapping
from natural2nanoscale.data.prepare.sources import COLOR, MaskPixels, Page, is_color

Code = int | tuple  # value, COLOR + 0xRRGGBB, or a range of --map that stands for all values in it


@dataclass(frozen=True)
class PageCodes:
    """Pixels of a mask by their code; palette: colours of its values, if it has one."""

    page: Page | None
    counts: dict[Code, int]
    palette: dict[Code, int]

    @property
    def colored(self) -> bool:
        return any(not isinstance(code, tuple) and is_color(code) for code in self.counts)

    def color_of(self, code: Code) -> int | None:
        """The colour 0xRRGGBB that a code is shown in: its own, the palette's, or a grey; None for others."""
        if isinstance(code, tuple):
            return None
        return code - COLOR if is_color(code) else self.palette.get(code, code * 0x010101 if 0 <= code < 256 else None)


def codes_of(page: Page | None, mask: MaskPixels, mapping: Mapping) -> PageCodes:
    """What a mask holds, thousands of numbered objects in a range of --map as one."""
    counts: Counter = Counter()
    for code, pixels in count(mask.values).items():
        counts[entry_of(code, mapping)] += pixels
    palette = {} if mask.palette is None else {c: int(mask.palette[c]) for c in counts if not isinstance(c, tuple)}
    return PageCodes(page, counts, palette)


def entry_of(code: int, mapping: Mapping) -> Code:
    """The range of --map that a value goes by, or the value itself; single entries go before ranges."""
    ranges = () if code in mapping or is_color(code) else (key for key in mapping if isinstance(key, tuple))
    return next((key for key in ranges if key[0] <= code and (key[1] is None or code <= key[1])), code)


@dataclass(frozen=True)
class LabelRule:
    """How mask pixels become class ids: by `table` of their codes, or else by `colors`, 0xRRGGBB times `scale`."""

    classes: Classes
    notes: tuple[str, ...]
    mapping: Mapping
    table: dict[Code, int]
    colors: dict[int, int]
    scale: int = 1

    def apply(self, mask: MaskPixels) -> np.ndarray:
        """(H,W) uint8 class ids of a mask whose codes were all seen when the rule was made."""
        found = codes_of(None, mask, {})
        codes, ids = sorted(found.counts), []
        for code in codes:
            entry = entry_of(code, self.mapping)
            ids.append(self.table[entry] if entry in self.table else self.colors[found.color_of(code) * self.scale])
        return np.array(ids, np.uint8)[np.searchsorted(codes, mask.values)]


def count(codes: np.ndarray) -> Counter:
    """Pixels of every whole number in an array."""
    if codes.min() >= 0 and codes.max() < 2**16:
        counts = np.bincount(codes.ravel())
        return Counter({int(code): int(counts[code]) for code in np.flatnonzero(counts)})
    return Counter({int(code): int(n) for code, n in zip(*np.unique(codes, return_counts=True), strict=True)})
