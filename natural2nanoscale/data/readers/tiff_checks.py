"""What a TIFF says of its axes and pixels, and what is refused of it before it is decoded."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from natural2nanoscale.data.readers.base import (
    ReadOptions,
    check_numbers,
    check_pixels,
    nanometres,
    need,
    refusing,
    unreadable,
)
from natural2nanoscale.errors import InputError

CODECS = {
    1: "none", 2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "packbits",
    32946: "deflate", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000",
    34887: "LERC", 34925: "LZMA", 34926: "zstd", 50000: "zstd",
}  # fmt: skip
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
WORRYING = ("missing", "zeroed", "truncat", "corrupt", "invalid series", "match", "cannot handle", "incomplete")


class _Listener(logging.Handler):
    """Keeps what tifffile logs: a file that it only grumbles about is one that it may read wrongly."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR or any(word in text for word in WORRYING):
            self.said.append(text)


@contextmanager
def listening(what: object) -> Iterator[None]:
    """Turn what tifffile raises, or merely logs, into an InputError that names the file."""
    logger, listener = logging.getLogger("tifffile"), _Listener()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        with refusing(what):
            yield
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate
    if listener.said:
        raise unreadable(what, listener.said[0])


def check_page(path: Path, page, options: ReadOptions) -> None:
    """Refuse, before decoding, what is not known to be read right."""
    codec = int(page.compression)
    if codec not in CODECS:
        name = getattr(page.compression, "name", codec)
        raise InputError(f"{path} has the codec {name} ({codec}): save it without compression, or with deflate")
    photometric = int(page.photometric) if page.photometric is not None else MIN_IS_BLACK
    allowed = (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE) + ((YCBCR,) if codec in (7, 33003, 33005, 34712) else ())
    if photometric not in allowed:
        name = getattr(page.photometric, "name", photometric)
        raise InputError(f"{path} has the colours {name}, expected grey, RGB or a palette: save it as one of these")
    if isinstance(page.bitspersample, tuple):
        raise InputError(f"{path} has channels of {page.bitspersample} bits, expected equal ones: save it as RGB")
    check_numbers(path, page.dtype)
    floating = page.parent.byteorder == ">" and page.dtype.kind == "f"
    if floating and (page.predictor == 3 or codec == 34887):
        raise InputError(  # libtiff 4.5 writes these with their bytes swapped, others do not: no reader can tell
            f"{path} holds big-endian {page.dtype} by {'a predictor' if page.predictor == 3 else 'LERC'}, "
            "which programs write in two ways: save it little-endian, or without compression"
        )
    check_pixels(path, (page.imagewidth, page.imagelength), options.max_pixels)
    if page.is_tiled:
        check_pixels(f"a tile of {path}", (page.tilewidth, page.tilelength), 4 * max(options.max_pixels, 2**20))
    segments = math.prod(page.chunked)
    end = max((a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False) if b), default=0)
    if len(page.dataoffsets) < segments or end > page.parent.filehandle.size:
        raise unreadable(path, f"page {page.index + 1} lies beyond the end of the file")


def kind_of(page) -> str:
    """What all pages of a stack have in common."""
    colours = getattr(page.photometric, "name", page.photometric)
    table = "" if page.colormap is None else f" {hash(page.colormap.tobytes()) & 0xFFFF:04x}"
    samples = f" x{page.samplesperpixel}" if page.samplesperpixel > 1 else ""
    return f"{page.imagewidth}x{page.imagelength}{samples} {page.dtype} {colours}{table}"


def named_axes(axes: str) -> str:
    """tifffile's axes, each with a letter of its own."""
    spare, named = iter("ABDEFGHJKLMNOPRU"), ""
    for name in axes:
        named += name if name not in named and name not in "Q" else next(spare)
    return named


def pixel_size(tif, page) -> float | None:
    """Nanometres per pixel, where the file says it."""
    if tif.is_ome and tif.ome_metadata:
        pixels = need("tifffile", "").xml2dict(tif.ome_metadata)["OME"]["Image"]
        pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
        return nanometres(float(pixels.get("PhysicalSizeX", 0)), pixels.get("PhysicalSizeXUnit", "µm"))
    if tif.is_fei and tif.fei_metadata:
        return nanometres(float(tif.fei_metadata.get("Scan", {}).get("PixelWidth", 0)), "m")
    if tif.is_sem and tif.sem_metadata and "ap_image_pixel_size" in tif.sem_metadata:
        _name, value, unit = tif.sem_metadata["ap_image_pixel_size"][:3]
        return nanometres(float(value), unit)
    resolution = page.tags.valueof(282)
    if not resolution or not resolution[0]:
        return None
    length = resolution[1] / resolution[0]
    if tif.is_imagej and tif.imagej_metadata:
        return nanometres(length, tif.imagej_metadata.get("unit", ""))
    return nanometres(length, "cm") if page.tags.valueof(296, 2) == 3 else None
