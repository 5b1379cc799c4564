"""The values and colours that masks hold, and the rule that makes class ids of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.prepare.pixels import UNLABELLED, MaskPixels
from natural2nanoscale.data.prepare.ranges import Mapping, merge_ranges
from natural2nanoscale.data.prepare.sources import Page

GREY = 0x010101  # times a value: the grey of that value


@dataclass(frozen=True)
class PageCodes:
    """Pixel counts of a mask read as values and as colours 0xRRGGBB; None where it is not of that kind.

    palette: the colours of the values in use, of a palette picture.
    """

    page: Page
    values: dict[int, int] | None
    colors: dict[int, int] | None
    palette: dict[int, int] = field(default_factory=dict)

    def color_of_value(self) -> dict[int, int]:
        """Colour of every value in use; in a coloured mask the values are its greys."""
        if self.values is None:
            return {color & 0xFF: color for color in self.colors if color % GREY == 0}
        return {value: self.palette.get(value, value * GREY) for value in self.values}

    def colors_without(self, values: Iterable[int]) -> Counter:
        """Pixels of every colour, those left out that have one of these values."""
        shown, rest = self.color_of_value(), Counter()
        if self.values is None:
            gone = {shown[value] for value in values if value in shown}
            return Counter({color: n for color, n in self.colors.items() if color not in gone})
        for value, n in self.values.items():
            if value not in values:
                rest[shown[value]] += n
        return rest


@dataclass(frozen=True)
class LabelRule:
    """How mask pixels become class ids: `table` maps every value, or colour 0xRRGGBB, that occurs.

    Where masks are read by colour, `values` maps what goes by a mask's own value, before its colour.
    """

    classes: Classes
    by_color: bool
    table: dict[int, int]
    notes: tuple[str, ...]
    values: dict[int, int] = field(default_factory=dict)
    mapping: Mapping = field(default_factory=dict)  # --map, whose ranges merge values

    def apply(self, mask: MaskPixels) -> np.ndarray:
        """(H,W) uint8 class ids of a mask whose values or colours are all in the table."""
        mask = merge_ranges(mask, self.mapping)
        codes = np.array(sorted(self.table))
        ids = np.array([self.table[int(code)] for code in codes], np.uint8)
        ids = ids[np.searchsorted(codes, mask.codes(self.by_color))]
        if self.values:
            own = mask.values if mask.colors is None else np.where(mask.colors % GREY, -1, mask.colors & 0xFF)
            for value, to in self.values.items():
                ids[own == value] = to
        return ids


def without_unlabelled(page: PageCodes) -> PageCodes:
    """The counts without pixels that the mask itself calls unlabelled."""

    def without(counts: dict[int, int] | None) -> dict[int, int] | None:
        return counts and {code: n for code, n in counts.items() if code != UNLABELLED}

    return replace(page, values=without(page.values), colors=without(page.colors))
