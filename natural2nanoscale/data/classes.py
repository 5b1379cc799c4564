"""Class ids, names and colours: the only place that knows how many classes exist."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from natural2nanoscale.errors import InputError

IGNORE_ID = 255  # mask value of pixels that carry no label
IGNORE_COLOR = (0, 0, 0)
MAX_CLASSES = 64


def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` RGB colours in 0..255: red, green, blue (paper 4.2.1), then blends of them.

    Each further colour is the one of a fixed grid that lies farthest from all before it and from black,
    which is kept for the ignore label. So the palette of K classes is a prefix of that of K + 1.
    """
    if not 2 <= count <= MAX_CLASSES:
        raise InputError(f"a dataset has 2 to {MAX_CLASSES} classes, found {count}")
    return _all_colors()[:count]


@lru_cache
def _all_colors() -> tuple[tuple[int, int, int], ...]:
    """The palette of MAX_CLASSES classes."""
    chosen = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    grid = list(product((0, 51, 102, 153, 204, 255), repeat=3))

    def distance(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    nearest = {color: min(distance(color, other) for other in [*chosen, IGNORE_COLOR]) for color in grid}
    while len(chosen) < MAX_CLASSES:
        best = max(grid, key=nearest.__getitem__)  # max keeps the first of equals: deterministic
        chosen.append(best)
        nearest = {color: min(d, distance(color, best)) for color, d in nearest.items()}
    return tuple(chosen)


def color_table(colors: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """(256,3) uint8: the colour of every mask value; all values that are no class are the ignore colour."""
    table = np.tile(np.array(IGNORE_COLOR, np.uint8), (256, 1))
    table[: len(colors)] = np.array(colors, np.uint8)
    return table


def packed(colors: np.ndarray) -> np.ndarray:
    """(...,3) RGB in 0..255 -> (...) int32 0xRRGGBB."""
    red, green, blue = (colors[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def unpacked(codes: np.ndarray) -> np.ndarray:
    """(...) 0xRRGGBB -> (...,3) uint8 RGB."""
    return np.stack([codes >> 16 & 255, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class Classes:
    """Names and colours of the classes; a class id is the position in both."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    @classmethod
    def named(cls, *names: str) -> Classes:
        """Classes with the standard palette."""
        return cls(tuple(names), palette(len(names)))

    @property
    def count(self) -> int:
        return len(self.names)

    def to_json(self) -> list[dict]:
        return [
            {"id": i, "name": name, "color": list(color)}
            for i, (name, color) in enumerate(zip(self.names, self.colors, strict=True))
        ]

    @classmethod
    def from_json(cls, entries: list[dict]) -> Classes:
        """Raises KeyError, TypeError or ValueError when entries are not ids 0..K-1 with names and colours."""
        entries = sorted(entries, key=lambda entry: entry["id"])
        if [entry["id"] for entry in entries] != list(range(len(entries))):
            raise ValueError("class ids must be 0, 1, 2, ... without gaps")
        if not 2 <= len(entries) <= MAX_CLASSES:
            raise ValueError(f"a dataset has 2 to {MAX_CLASSES} classes, found {len(entries)}")
        colors = tuple(tuple(int(c) for c in entry["color"]) for entry in entries)
        if len(set(colors)) < len(colors) or IGNORE_COLOR in colors:
            raise ValueError("class colours must differ from one another and from black, the ignore colour")
        if any(len(color) != 3 or not all(0 <= c <= 255 for c in color) for color in colors):
            raise ValueError("class colours are three numbers in 0..255")
        return cls(tuple(str(entry["name"]) for entry in entries), colors)
