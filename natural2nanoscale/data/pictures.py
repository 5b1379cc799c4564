"""Slices and masks of pair folders: 8-bit, one channel, one page, a regular file of a bounded size."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from natural2nanoscale.errors import InputError
from natural2nanoscale.records import open_regular

MAX_PIXELS = 100_000_000  # of one slice of a pair folder; `prepare` cuts larger ones
# what Pillow raises on truncated or hostile files, found by cutting and flipping bytes of PNGs and TIFFs
PICTURE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
    OverflowError,
    MemoryError, RuntimeError, ZeroDivisionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def read_gray(path: Path, modes: tuple[str, ...] = ("L",)) -> np.ndarray:
    """(H,W) uint8 of an 8-bit single-channel PNG or TIFF; InputError for anything else.

    modes: Pillow's names. A palette picture, "P", gives its indices: class ids, but no grey values.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG", "TIFF"]) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:  # before it is decoded
                raise InputError(
                    f"{path} is {width}x{height}, {width * height} pixels, expected at most {MAX_PIXELS}: cut it with "
                    "`python -m natural2nanoscale prepare --size`"
                )
            pages = getattr(picture, "n_frames", 1)
            if picture.mode not in modes or pages != 1:
                raise InputError(
                    f"{path} is a {picture.mode} picture with {pages} page(s), expected "
                    "one page of 8-bit grey values: convert it with `python -m natural2nanoscale prepare`"
                )
            return np.array(picture)
    except PICTURE_ERRORS as error:
        raise InputError(
            f"{path} cannot be read as a PNG or TIFF picture ({error}): replace or remove the file"
        ) from error
