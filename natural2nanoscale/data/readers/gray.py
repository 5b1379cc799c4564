"""Slices and masks of pair folders: 8-bit, one channel, one page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from natural2nanoscale.data.readers.base import PICTURE_ERRORS, ReadOptions, check_regular, unreadable
from natural2nanoscale.data.readers.opening import open_source
from natural2nanoscale.errors import InputError

MAX_PIXELS = 100_000_000  # of one slice of a pair folder; `prepare` cuts larger ones


def read_gray(path: Path, modes: tuple[str, ...] = ("L",)) -> np.ndarray:
    """(H,W) uint8 of an 8-bit single-channel PNG or TIFF; InputError for anything else.

    modes: Pillow's names. A palette picture, "P", gives its indices: class ids, but no grey values.
    """
    if path.suffix.lower() in (".tif", ".tiff"):
        return _read_gray_tiff(path)
    check_regular(path)
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:  # before it is decoded
                raise InputError(
                    f"{path} is {width}x{height}, {width * height} pixels, expected at most {MAX_PIXELS}: cut it with "
                    "`python -m natural2nanoscale prepare --size`"
                )
            if picture.mode not in modes:
                raise _not_gray(path, f"{picture.mode} picture")
            return np.array(picture)
    except PICTURE_ERRORS as error:
        raise unreadable(path, error) from error


def _read_gray_tiff(path: Path) -> np.ndarray:
    """(H,W) uint8 of an 8-bit TIFF; as for `prepare`, 0 is black also where the file calls it white."""
    source = open_source(path, ReadOptions(max_pixels=MAX_PIXELS))
    try:
        if source.count != 1 or source.kind != "grey" or source.palette is not None or source.bits != 8:
            raise _not_gray(path, f"{source.bits}-bit {source.kind} picture with {source.count} page(s)")
        if source.dtype != np.uint8:
            raise _not_gray(path, f"{source.dtype} picture")
        pixels = source.read(0)
        return 255 - pixels if source.inverted else pixels
    finally:
        source.close()


def _not_gray(path: Path, found: str) -> InputError:
    return InputError(
        f"{path} is a {found}, expected one page of 8-bit grey values: convert it with "
        "`python -m natural2nanoscale prepare`"
    )
