"""Ranges of label values in --map, such as 1-=1 for thousands of numbered objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from natural2nanoscale.data.prepare.pixels import MaskPixels

Mapping = dict  # value (int), range of values (low, high or None for no end) or colour ("#rrggbb") -> class id


def without_ranges(mapping: Mapping) -> Mapping:
    """The entries of --map, with one value that stands for all values of a range, as `merge_ranges` leaves it."""
    return {_standing_for(key, mapping) if isinstance(key, tuple) else key: to for key, to in mapping.items()}


def merge_ranges(mask: MaskPixels, mapping: Mapping) -> MaskPixels:
    """The mask with every value of a range replaced by the one that stands for it; single entries go before ranges."""
    ranges = [key for key in mapping if isinstance(key, tuple)]
    if not ranges or mask.values is None:
        return mask
    values = mask.values.copy()
    free = ~np.isin(mask.values, [key for key in mapping if isinstance(key, int)])
    for low, high in ranges:
        inside = free & (mask.values >= low) & (mask.values <= (np.iinfo(np.int64).max if high is None else high))
        values[inside] = _standing_for((low, high), mapping)
        free &= ~inside
    return replace(mask, values=values)


def _standing_for(key: tuple[int, int | None], mapping: Mapping) -> int:
    value = key[0]
    while value in mapping:
        value += 1
    return value


def spelled(mapping: Mapping, ignore_id: int) -> str:
    """The entries of --map as they are typed."""

    def key_of(key) -> str:
        return f"{key[0]}-{'' if key[1] is None else key[1]}" if isinstance(key, tuple) else str(key)

    return ",".join(f"{key_of(key)}={'ignore' if to == ignore_id else to}" for key, to in mapping.items())
