"""Slices and masks of pair folders: 8-bit, one channel, one page."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from natural2nanoscale.data.readers.base import ReadOptions
from natural2nanoscale.data.readers.opening import open_source
from natural2nanoscale.errors import InputError

MAX_PIXELS = 100_000_000  # of one slice of a pair folder; `prepare` cuts larger ones


def read_gray(path: Path, indexed: bool = False) -> np.ndarray:
    """(H,W) uint8 of an 8-bit single-channel PNG or TIFF; InputError for anything else.

    indexed: a palette picture is taken too and gives its indices: class ids, but no grey values. As for `prepare`, 0 is
    black also where a TIFF calls it white.
    """
    with closing(open_source(path, ReadOptions(max_pixels=2**62))) as source:
        width, height = source.size
        if width * height > MAX_PIXELS:  # before it is decoded
            raise InputError(
                f"{path} is {width}x{height}, {width * height} pixels, expected at most {MAX_PIXELS}: cut it with "
                "`python -m natural2nanoscale prepare --size`"
            )
        kind = source.kind if source.palette is None or indexed else "palette"
        if (source.count, kind, source.bits, source.dtype) != (1, "grey", 8, np.uint8):
            raise InputError(
                f"{path} is a {source.bits}-bit {kind} picture of {source.dtype} with {source.count} page(s), expected "
                "one page of 8-bit grey values: convert it with `python -m natural2nanoscale prepare`"
            )
        pixels = source.read(0)
        return 255 - pixels if source.inverted else pixels
