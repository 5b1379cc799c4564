"""EM pictures as they come: folders or stacks of PNG and TIFF, 8- and 16-bit, grey, RGB or palette."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from natural2nanoscale.data.pictures import PICTURE_ERRORS
from natural2nanoscale.errors import InputError


@dataclass(frozen=True)
class Page:
    """One slice of a source: a single-page file, or one page of a stack. Size is (width, height)."""

    stem: str
    path: Path
    index: int
    pages: int
    size: tuple[int, int]

    def __str__(self) -> str:
        return str(self.path) if self.pages == 1 else f"{self.path} page {self.index + 1} of {self.pages}"


GREYS = np.arange(256, dtype=np.int32) * 0x010101


@dataclass(frozen=True)
class MaskPixels:
    """A mask as plain values (H,W) int32, or as colours 0xRRGGBB (H,W) int32, the other one None.

    table: (256,) the colour of each value, that of a grey one having equal channels; with `indexed` the file's own.
    """

    values: np.ndarray | None
    colors: np.ndarray | None
    table: np.ndarray
    indexed: bool = False

    def codes(self, by_color: bool) -> np.ndarray:
        """(H,W) values or colours, of a mask that can be read that way."""
        if not by_color:
            return self.values
        return self.table[self.values] if self.colors is None else self.colors

    def value_counts(self) -> dict[int, int] | None:
        """Pixels of every value."""
        return None if self.values is None else count(self.values)

    def palette(self) -> dict[int, int]:
        """Colours of the values in use, of a palette picture; of others empty."""
        return {int(value): int(self.table[value]) for value in np.unique(self.values)} if self.indexed else {}

    def color_counts(self) -> dict[int, int] | None:
        """Pixels of every colour; None where values beyond 255 have no colour."""
        if self.colors is not None:
            return count(self.colors)
        counts: Counter = Counter()
        for value, pixels in count(self.values).items():
            if not 0 <= value <= 255:
                return None
            counts[int(self.table[value])] += pixels
        return dict(counts)


class Reader:
    """Reads one page at a time and keeps the last file open: the pages of a stack are asked for in order.

    `max_pixels` replaces Pillow's own limit against decompression bombs, which EM montages exceed.
    """

    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels
        self.path: Path | None = None
        self.picture: Image.Image | None = None
        self.bits = 8  # of one channel as stored in the file, which Pillow's mode does not always tell

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_exception) -> None:
        if self.picture is not None:
            self.picture.close()
        self.path = self.picture = None

    def open(self, path: Path) -> Image.Image:
        """The file's picture, its first page not yet decoded."""
        if path != self.path:
            self.__exit__()
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # checked below, before decoding
            try:
                self.picture = Image.open(path, formats=["PNG", "TIFF"])
                self.bits = bits_per_sample(self.picture)
            except PICTURE_ERRORS as error:
                raise unreadable(path, error) from error
            finally:
                Image.MAX_IMAGE_PIXELS = limit
            self.path = path
        return self.picture

    def pages_of(self, path: Path, stem: str) -> list[Page]:
        """All pages of a file: named `stem` if it is the only one, else stem_0000, stem_0001, ..."""
        picture = self.open(path)
        try:
            count = 1 if picture.format == "PNG" else picture.n_frames
            sizes = []
            for index in range(count):
                if count > 1:
                    picture.seek(index)
                sizes.append(picture.size)
        except PICTURE_ERRORS as error:
            raise unreadable(path, error) from error
        for width, height in sizes:
            if width * height > self.max_pixels:
                raise InputError(
                    f"{path} is {width}x{height} = {width * height} pixels, more than the limit of "
                    f"{self.max_pixels}: raise it with --max-pixels if the file is what you expect"
                )
        check_imagej(path, picture, count)
        if count == 1:
            return [Page(stem, path, 0, 1, sizes[0])]
        return [Page(f"{stem}_{index:04d}", path, index, count, size) for index, size in enumerate(sizes)]

    def raw(self, page: Page) -> Image.Image:
        """The decoded page."""
        picture = self.open(page.path)
        try:
            if page.pages > 1:
                picture.seek(page.index)
            picture.load()
        except PICTURE_ERRORS as error:
            raise unreadable(page, error) from error
        if self.bits > 8 and picture.mode in ("RGB", "RGBA", "LA", "RGBX"):
            raise InputError(
                f"{page} has {self.bits} bits per channel in colour or with transparency, of which only "
                "8 can be read: save it as 16-bit greyscale"
            )
        return picture

    def image(self, page: Page) -> tuple[np.ndarray, bool]:
        """Grey values (H,W) uint8, uint16, int32 or float32; True if they are a mean of unequal channels."""
        picture = self.raw(page)
        if picture.mode in ("P", "PA", "YCbCr"):
            picture = picture.convert("RGB")
        pixels = pixels_of(picture, page)
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * 255
        if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
            count = int((~np.isfinite(pixels)).sum())
            raise InputError(f"{page} has {count} pixels that are no number (NaN or Inf): replace them and try again")
        if pixels.ndim == 2:
            return pixels, False
        colored = bool((pixels != pixels[..., :1]).any())
        if not colored:
            return pixels[..., 0], False
        return np.round(pixels.mean(axis=-1, dtype=np.float32)).astype(np.uint8), True

    def mask(self, page: Page) -> MaskPixels:
        """The mask as values and as colours; a palette picture's value is its index."""
        picture = self.raw(page)
        if picture.mode == "P":
            table = np.zeros((256, 3), np.int32)
            entries = np.array(picture.getpalette("RGB"), np.int32).reshape(-1, 3)[:256]
            table[: len(entries)] = entries
            return MaskPixels(np.asarray(picture).astype(np.int32), None, packed(table), indexed=True)
        pixels = pixels_of(picture, page)
        if pixels.ndim == 3:
            if (pixels != pixels[..., :1]).any():
                return MaskPixels(None, packed(pixels), GREYS)
            pixels = pixels[..., 0]
        values = pixels.astype(np.int32)
        if pixels.dtype == np.float32 and not np.array_equal(values, pixels):
            raise InputError(f"{page} is a mask with fractions, expected whole class ids: save integers")
        if picture.mode == "L" and self.bits in (2, 4):  # Pillow stretched these to 0..255: no ids any more
            values = values * (2**self.bits - 1) // 255
        return MaskPixels(values, None, GREYS)


def unreadable(what: object, error: BaseException) -> InputError:
    return InputError(
        f"{what} cannot be read as a PNG or TIFF picture ({type(error).__name__}: {error}): replace or remove the file"
    )


def packed(colors: np.ndarray) -> np.ndarray:
    """(...,3) RGB in 0..255 -> (...) int32 0xRRGGBB."""
    red, green, blue = (colors[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def count(codes: np.ndarray) -> dict[int, int]:
    """Pixels of every whole number in an array."""
    if codes.min() >= 0 and codes.max() < 2**16:
        counts = np.bincount(codes.ravel())
        return {int(code): int(counts[code]) for code in np.flatnonzero(counts)}
    return {int(code): int(n) for code, n in zip(*np.unique(codes, return_counts=True), strict=True)}


def bits_per_sample(picture: Image.Image) -> int:
    """Bits of one channel of a picture that is open but not yet decoded."""
    if picture.format == "PNG":
        modes = picture.tile[0].args if picture.tile else ""  # such as L;2 or RGB;16B
        depth = re.search(r";(\d+)", str(modes))
        return int(depth[1]) if depth else 8
    if 2 in picture.tag_v2.get(339, ()) and picture.mode == "L":
        raise ValueError("signed 8-bit pixels, expected unsigned ones")
    return int(max(picture.tag_v2.get(258, (1,))))


def pixels_of(picture: Image.Image, page: Page) -> np.ndarray:
    """(H,W) bool, uint8, uint16, int32, float32 or (H,W,3) uint8; an alpha channel is dropped."""
    if picture.mode in ("1", "L", "I", "F", "RGB"):
        return np.asarray(picture)
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)  # native byte order
    if picture.mode == "LA":
        return np.asarray(picture)[..., 0]
    if picture.mode in ("RGBA", "RGBX"):
        return np.asarray(picture)[..., :3]
    raise InputError(f"{page} has Pillow's mode {picture.mode}, expected grey, RGB or palette: save it as 8- or 16-bit")


def check_imagej(path: Path, picture: Image.Image, count: int) -> None:
    """Refuse the two kinds of ImageJ TIFF whose pages are not the slices."""
    description = str(getattr(picture, "tag_v2", {}).get(270, ""))
    if not description.startswith("ImageJ="):
        return
    said = {
        key: int(n) for key, n in re.findall(r"^(images|slices|frames|channels)=(\d+)\s*$", description, re.MULTILINE)
    }
    if said.get("channels", 1) > 1 and max(said.get("slices", 1), said.get("frames", 1)) > 1:
        raise InputError(
            f"{path} interleaves {said['channels']} channels: save the channel to use as a stack of its own"
        )
    if said.get("images", count) != count:
        raise InputError(
            f"{path} announces {said['images']} slices but has {count} page(s), as ImageJ writes stacks "
            "beyond 4 GB: save it as an image sequence and name that folder"
        )
