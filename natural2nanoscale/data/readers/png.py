"""PNG pictures, read by Pillow."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from natural2nanoscale.data.classes import packed
from natural2nanoscale.data.readers.base import ReadOptions, Source, check_pixels, refusing
from natural2nanoscale.errors import InputError

KINDS = {"1": "grey", "L": "grey", "P": "grey", "I": "grey", "LA": "alpha", "RGB": "rgb", "RGBA": "rgba"}


class PngSource(Source):
    """The one slice of a PNG file."""

    def __init__(self, path: Path, options: ReadOptions):
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # checked below, before decoding
        try:
            with refusing(path):
                self.picture = Image.open(path, formats=["PNG"])
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        self.path, self.size, mode = path, self.picture.size, self.picture.mode
        check_pixels(path, self.size, options.max_pixels)
        args = self.picture.tile[0].args if self.picture.tile else ""  # such as L;2 or RGB;16B
        depth = re.search(r";(\d+)", str(args))
        self.bits = int(depth[1]) if depth else 1 if mode == "1" else 8
        self.kind = "grey" if mode.startswith("I;16") else KINDS.get(mode, "")
        if not self.kind:
            raise InputError(f"{path} has Pillow's mode {mode}, expected grey, RGB or palette: save it as 8-bit grey")
        if self.bits > 8 and self.kind != "grey":
            raise InputError(
                f"{path} has {self.bits} bits per channel in colour or with transparency, of which only "
                "8 can be read: save it as 16-bit greyscale"
            )
        self.dtype = np.dtype(np.uint16 if self.bits > 8 else np.uint8)
        if mode == "P":
            entries = np.array(self.picture.getpalette("RGB"), np.int32).reshape(-1, 3)[:256]
            table = np.zeros((256, 3), np.int32)
            table[: len(entries)] = entries
            self.palette = packed(table)
            self.bits = 8  # indices are never stretched

    def read(self, index: int) -> np.ndarray:
        with refusing(self.path):
            self.picture.load()
            pixels = np.asarray(self.picture)
        if self.palette is None and self.bits in (2, 4):  # Pillow stretched these to 0..255
            pixels = (pixels.astype(np.uint16) * (2**self.bits - 1) // 255).astype(np.uint8)
        return pixels.astype(self.dtype)

    def close(self) -> None:
        self.picture.close()
