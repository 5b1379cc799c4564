"""Slices and masks as `prepare` and `segment` take them: grey values, or label values and colours, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import packed, unpacked
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.readers.base import ReadOptions, Source
from natural2nanoscale.data.readers.containers import MRC_SUFFIXES
from natural2nanoscale.data.readers.opening import open_source, split_container
from natural2nanoscale.errors import InputError

COLOR = -(2**30)  # code of a pixel that is no grey: COLOR + 0xRRGGBB
UNLABELLED = -(2**31) + 1  # code of pixels that a mask itself calls unlabelled, by transparency


def is_color(code):
    """Whether a code, or which of an array, is a colour and not a value."""
    return (code >= COLOR) & (code < COLOR + 2**24)


@dataclass(frozen=True)
class MaskPixels:
    """A mask as codes (H,W) int32 or int64: values as stored, and COLOR + 0xRRGGBB where a pixel is no grey.

    palette: (N,) 0xRRGGBB of the values of a palette picture, which are its indices.
    """

    values: np.ndarray
    palette: np.ndarray | None = None


@dataclass(frozen=True)
class Page:
    """One slice of a source: a single-page file, or one page of a stack. Size is (width, height), `extent` its words.

    parts: the pages of a mask that has one per class, in the order of the ids.
    """

    stem: str
    path: Path
    index: int
    pages: int
    size: tuple[int, int]
    parts: tuple[Page, ...] = ()

    def __str__(self) -> str:
        return str(self.path) if self.pages == 1 else f"{self.path} page {self.index + 1} of {self.pages}"

    @property
    def extent(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"

    @property
    def file(self) -> Path:
        """The file or folder on disk that holds the slice."""
        return split_container(self.path)[0]


class Reader:
    """Reads one page at a time and keeps the last source open: the pages of a stack are asked for in order.

    alpha: what the transparency of a mask means: "drop" it, "ignore" transparent pixels, or "class" ids; None to ask.
    What the user should know of how files were understood is printed, each kind of thing once.
    """

    def __init__(self, options: ReadOptions, alpha: str | None = None):
        self.options, self.alpha = options, alpha
        self.path: Path | None = None
        self.source: Source | None = None
        self.said: set[str] = set()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_exception) -> None:
        if self.source is not None:
            self.source.close()
        self.path = self.source = None

    def open(self, path: Path) -> Source:
        """The file's slices, none of them decoded yet."""
        if path != self.path:
            self.__exit__()
            self.source = open_source(path, self.options)
            self.path = path
            for note in self.source.notes:
                self.say(note.replace(str(path), ""), note if str(path) in note else f"{path}: {note}")
            if self.options.flip_y and path.suffix.lower() not in MRC_SUFFIXES:
                self.say("flip", f"{path} is no MRC file and is taken as stored: --flip-y turns MRC alone")
            count = {"rgb": 3, "rgba": 4}.get(self.source.kind, self.source.channels)
            if (self.options.channel or 0) >= count:
                channels = "one channel" if count == 1 else f"{count} channels"
                raise InputError(
                    f"{path} has {channels}, found --channel {self.options.channel}: leave it out, or pass a lower one"
                )
        return self.source

    def say(self, kind: str, text: str) -> None:
        """Print a note unless one of its kind was printed."""
        if kind not in self.said:
            self.said.add(kind)
            print(f"note: {text}")

    def pages_of(self, path: Path, stem: str) -> list[Page]:
        """All slices of a file: named `stem` if it is the only one, else stem_0000, stem_0001, ..."""
        source = self.open(path)
        if source.count == 0:
            raise InputError(f"{path} holds no slice, its shape is {source.shape}: name another")
        if source.count == 1:
            return [Page(stem, path, 0, 1, source.size)]
        return [Page(f"{stem}_{i:04d}", path, i, source.count, source.size) for i in range(source.count)]

    def pixel_size(self, page: Page) -> float | None:
        """Nanometres per pixel, where the file says it."""
        return self.open(page.path).pixel_size_nm

    def read(self, page: Page) -> tuple[Source, np.ndarray]:
        """The source and its stored pixels, cut to the rows of the page."""
        source = self.open(page.path)
        pixels = source.read(page.index)
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            count = np.count_nonzero(~np.isfinite(pixels))
            raise InputError(f"{page} has {count} pixels that are no number (NaN or Inf): replace them and try again")
        return source, pixels[: page.size[1]]

    def image(self, page: Page) -> tuple[np.ndarray, bool]:
        """Grey values (H,W) of the file's type; True if they are a mean of unequal channels."""
        source, pixels = self.read(page)
        if source.palette is not None:
            pixels = unpacked(source.palette[pixels])
        elif source.kind == "alpha":
            pixels = pixels[..., 0]
        elif source.kind in ("rgb", "rgba"):
            pixels = pixels[..., :3] if self.options.channel is None else pixels[..., self.options.channel]
        if source.inverted:
            self.say("inverted", f"{page.path} says that 0 is white (MinIsWhite): its greys are turned over")
            highest = {"f": 0, "i": -1}.get(pixels.dtype.kind, 2**source.bits - 1)
            pixels = pixels.dtype.type(highest) - pixels
        if source.bits < 8 and source.palette is None:
            pixels = (pixels.astype(np.uint16) * 255 // (2**source.bits - 1)).astype(np.uint8)
        if pixels.ndim == 2 or (pixels == pixels[..., :1]).all():
            return pixels.reshape(*pixels.shape[:2], -1)[..., 0], False
        return np.round(pixels.mean(axis=-1, dtype=np.float32)).astype(pixels.dtype), True

    def mask(self, page: Page) -> MaskPixels:
        """The mask as stored."""
        if page.parts:
            return self._one_hot(page)
        source, pixels = self.read(page)
        if source.inverted:
            self.say("inverted", f"{page.path} says that 0 is white (MinIsWhite): labels keep their stored values")
        if source.palette is not None:
            return MaskPixels(pixels.astype(np.int32), source.palette)
        hidden = None
        if source.kind in ("alpha", "rgba"):
            pixels, hidden = self._transparency(page, pixels[..., :-1], pixels[..., -1])
        grey = pixels.ndim == 2 or (pixels == pixels[..., :1]).all(axis=-1)
        if np.all(grey):
            values = whole_numbers(page, pixels if pixels.ndim == 2 else pixels[..., 0])
        else:
            colors = packed(pixels)
            values = np.where(grey, colors >> 16, COLOR + colors)
        return MaskPixels(values if hidden is None else np.where(hidden, values.dtype.type(UNLABELLED), values))

    def _transparency(self, page: Page, colors: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """What the mask's pixels are, and which are unlabelled, by what `alpha` says of their transparency."""
        if self.alpha == "class":
            return alpha, None
        if self.alpha == "ignore":
            return colors, alpha < (np.iinfo(alpha.dtype).max / 2 if alpha.dtype.kind in "ui" else 0.5)
        clear = alpha < alpha.max()
        if self.alpha is None and clear.any():
            if not np.ptp(colors.reshape(-1, colors.shape[-1]), axis=0).any():
                raise InputError(f"{page} is of one colour, its alpha channel alone varies: pass `--alpha class`")
            if colors[clear].any():
                raise InputError(
                    f"{page} has {int(clear.sum())} transparent pixels with a colour under them: pass `--alpha ignore` "
                    "if these are unlabelled, or `--alpha drop` if the colours count"
                )
        return colors, None

    def _one_hot(self, page: Page) -> MaskPixels:
        """Value i + 1 where the page of class i is not 0, and 0 where none is."""
        values = np.zeros((page.size[1], page.size[0]), np.int32)
        for number, part in enumerate(page.parts, 1):
            if part.size != page.size:
                raise InputError(f"{part} is {part.extent}, the mask of another class {page.extent}")
            found = self.mask(part).values
            if is_color(found).any():
                raise InputError(f"{part} is coloured, expected 0 and another value in the mask of one class")
            twice = np.count_nonzero(found[values > 0])
            if twice:
                raise InputError(f"{part} overlaps masks of classes before it in {twice} pixels: make them disjoint")
            values[found != 0] = number
        return MaskPixels(values)


@contextmanager
def readers_of(settings: Preparation) -> Iterator[tuple[Reader, Reader]]:
    """The readers of slices and of masks."""
    both = ReadOptions(settings.max_pixels, axes=settings.axes, flip_y=settings.flip_y)
    masks = Reader(replace(both, labels=True, split_channels=settings.one_hot), settings.alpha)
    with Reader(replace(both, channel=settings.channel)) as images, masks:
        yield images, masks


def whole_numbers(page: Page, pixels: np.ndarray) -> np.ndarray:
    """Label values as (H,W) int32, or int64 where the file has such."""
    if pixels.dtype == np.uint64 and pixels.max() >= 2**62:
        raise InputError(f"{page} has mask values up to {pixels.max()}, expected class ids: number them from 0")
    small = pixels.dtype.itemsize < 4 or pixels.dtype == np.int32
    values = pixels.astype(np.int32 if small and pixels.dtype.kind != "f" else np.int64)
    if pixels.dtype.kind == "f" and not np.array_equal(values, pixels):
        raise InputError(f"{page} is a mask with fractions, expected whole class ids: save integers")
    return values
