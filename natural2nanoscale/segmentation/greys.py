"""The grey values of slices as the U-Nets know them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from natural2nanoscale.data.folders import DatasetInfo, read_info
from natural2nanoscale.data.prepare.intensity import to_bytes
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.errors import InputError
from natural2nanoscale.segmentation.unet import UNetInfo

STRIP = 256  # rows

RULES = {  # what happens to grey values before the network sees them
    "as they are": "8-bit grey values are taken as they are",
    "converted": "8-bit grey values are taken as converted already: the U-Nets learned from deeper ones, {:g} to {:g}",
    "window": "grey values {:g} to {:g} become 0 to 255, as in the training set",
}


def grey_rule(bytes_: bool, window: tuple[float, float] | None, converted: tuple[float, float] | None) -> str:
    """A name of RULES for slices of 8 bits or more, the training set's window and that of a pair folder they lie in.

    8-bit slices have passed a window already when their folder says so, or when the window is none of 8-bit values.
    """
    if window is None:
        if not bytes_:
            raise InputError(
                "the slices have more than 8 bits, but the U-Nets learned from 8-bit slices and know no grey window: "
                "convert the slices to 8 bits as those were"
            )
        return "as they are"
    eight_bit = 0 <= window[0] and 2 <= window[1] <= 255
    return "converted" if bytes_ and (converted == window or not eight_bit) else "window"


def images_of(path: Path) -> tuple[Path, DatasetInfo | None]:
    """The slices that a path names, of a pair folder those in its images/, and what that folder says of them."""
    images = path / "images" if (path / "dataset.json").is_file() else path
    return images, read_info(images.parent) if (images.parent / "dataset.json").is_file() else None


def read_slice(reader: Reader, page: Page, info: UNetInfo, rule: str) -> tuple[np.ndarray, int]:
    """The slice as the U-Nets know slices, (H,W) uint8, and how many pixels lay outside their window."""
    pixels, _ = reader.image(page)
    if rule != "window":
        if pixels.dtype != np.uint8:
            raise InputError(f"{page} has more than 8 bits, unlike the slices before it: convert all to one depth")
        return pixels, 0
    low, high = info.intensity_window
    clipped = sum(int(((strip < low) | (strip > high)).sum()) for strip in (pixels[rows] for rows in strips(pixels)))
    return to_bytes(pixels, (low, high)), clipped


def strips(pixels: np.ndarray) -> list[slice]:
    """The rows of a slice in portions, for work that would take several times its memory."""
    return [slice(top, top + STRIP) for top in range(0, len(pixels), STRIP)]
