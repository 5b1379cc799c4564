"""TIFF as microscopes and programs of the field write it, read by tifffile: nothing is guessed or half-decoded."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import packed
from natural2nanoscale.data.readers.axes import find_layout
from natural2nanoscale.data.readers.base import (
    PICTURE_ERRORS,
    ReadOptions,
    Source,
    check_pixels,
    need,
    unreadable,
)
from natural2nanoscale.data.readers.tiff_checks import (
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    PALETTE,
    RGB,
    YCBCR,
    check_page,
    kind_of,
    named_axes,
    pixel_size,
    refusing,
)
from natural2nanoscale.errors import InputError

KINDS = ("generic", "uniform", "shaped", "imagej", "ome", "nih")  # whose axes tifffile takes from the file's own words
WHOLE = 2**31  # bytes of an array that can only be read as a whole


class TiffSource(Source):
    """Slices of a TIFF file: what its description (ImageJ, OME-XML, tifffile's) or else its pages say they are.

    Reduced copies (NewSubfileType) are no slices. Orientation is ignored as ImageJ and napari do.
    """

    def __init__(self, path: Path, options: ReadOptions):
        self.path = path
        tifffile = need("tifffile", path)
        need("imagecodecs", path)
        with refusing(path):
            self.file = tifffile.TiffFile(path, _multifile=False)
        try:
            with refusing(path):
                self._understand(options)
        except BaseException:
            self.close()
            raise

    def _understand(self, options: ReadOptions) -> None:
        series, all_pages = self._main_series()
        self.pages = list(series.pages) if series.kind not in ("generic", "uniform") else all_pages
        if any(page is None for page in self.pages):
            raise unreadable(self.path, f"its description announces {len(self.pages)} pages of which some are missing")
        self.pages = [self.file.pages[page.index] if page.index < len(self.file.pages) else page for page in self.pages]
        self.pages = [page if hasattr(page, "tags") else page.aspage() for page in self.pages]
        first = self.pages[0]
        for page in self.pages:
            check_page(self.path, page, options)
            if kind_of(page) != kind_of(first):
                raise InputError(
                    f"{self.path} has pages of different kinds, {kind_of(first)} and {kind_of(page)}: save the slices "
                    "alone, one stack or file per kind"
                )
        if len(all_pages) > len(self.pages):
            raise unreadable(self.path, f"it announces {len(self.pages)} pages but has {len(all_pages)}")
        if series.kind in ("generic", "uniform"):
            shape, axes = first.shape, first.axes
            if len(self.pages) > 1:
                shape, axes = (len(self.pages), *shape), "I" + axes
        else:
            shape, axes = tuple(series.shape), series.axes
        self.inner = self._page_axes(axes, shape, first)
        self.shape, self.offset = shape, None
        if len(self.pages) == 1 and math.prod(shape) > math.prod(first.shape):  # one IFD, planes one after another
            self.offset = int(first.dataoffsets[0])
            if (
                not first.is_contiguous
                or first.predictor != 1
                or first.fillorder != 1
                or self.path.stat().st_size < self.offset + math.prod(shape) * first.dtype.itemsize
            ):
                planes = math.prod(shape) // math.prod(first.shape)
                raise unreadable(self.path, f"it announces {planes} slices but has 1 page and no room for more")
        elif self.offset is None and math.prod(shape) != len(self.pages) * math.prod(first.shape):
            raise unreadable(
                self.path, f"it announces the shape {shape} but has {len(self.pages)} pages of {first.shape}"
            )
        self._check_description(series.kind, math.prod(shape) // (first.imagewidth * first.imagelength))
        self._colours(first)
        samples = {"grey": 1, "alpha": 2, "rgb": 3, "rgba": 4}[self.kind]
        known = axes if options.axes is None or self.kind != "grey" else None
        self.layout = find_layout(self.path, shape, named_axes(axes) if known else None, options, samples)
        self.size, self.count, self.channels = self.layout.size, self.layout.count, self.layout.channels
        self.notes += self.layout.notes
        check_pixels(self.path, self.size, options.max_pixels)
        self.dtype = np.dtype(np.uint8) if first.dtype == bool else first.dtype.newbyteorder("=")
        with suppress(*PICTURE_ERRORS):  # oddly written metadata are no reason to refuse the pixels
            self.pixel_size_nm = pixel_size(self.file, first)
        self._cache: tuple[object, np.ndarray | None] = (None, None)

    def _check_description(self, kind: str, planes: int) -> None:
        """Refuse a file whose description says otherwise than what was found in it."""
        said = int((self.file.imagej_metadata or {}).get("images", 1)) if self.file.is_imagej else 1
        if said > planes:
            raise unreadable(self.path, f"it announces {said} slices but has {planes} and no room for more")
        if self.file.is_ome and kind not in ("ome", "imagej"):
            raise InputError(
                f"{self.path} has OME-XML that speaks of pages in other files, as of a set: open the set in Fiji "
                "(File > Import > Bio-Formats) and save it as one TIFF"
            )

    def _main_series(self):
        """The series that holds the slices, and the pages that are no reduced copies."""
        tif = self.file
        tif.pages.useframes = False
        pages = [tif.pages[i] for i in range(len(tif.pages))]
        if not pages:
            raise unreadable(self.path, "it has no page")
        full = [page for page in pages if not (page.subfiletype & 5)] or pages[:1]  # 1 reduced copy, 4 mask
        series = [one for one in tif.series if not (one.keyframe.subfiletype & 5)] or tif.series[:1]
        kind = series[0].kind
        if kind not in KINDS:
            raise InputError(
                f"{self.path} is a {kind} file of a microscope's vendor: open it in Fiji (File > Import > Bio-Formats) "
                "and save it as TIFF"
            )
        if len(series) > 1 and kind not in ("generic", "uniform"):
            shapes = ", ".join(str(one.shape) for one in series[:4])
            raise InputError(f"{self.path} holds {len(series)} images of shapes {shapes}: save one image per file")
        if len(full) < len(pages):
            self.notes += (f"reduced copies are no slices ({len(pages) - len(full)} pages)",)
        elif any(one.levels[1:] for one in series):
            self.notes += ("reduced copies are no slices",)
        return series[0], full

    def _page_axes(self, axes: str, shape: tuple[int, ...], first) -> int:
        """How many of the last axes lie within one page."""
        size, within = 1, 0
        for length in reversed(shape):
            if size == math.prod(first.shape) and within >= 2:
                break
            size, within = size * length, within + 1
        return within

    def _colours(self, page) -> None:
        photometric = int(page.photometric) if page.photometric is not None else MIN_IS_BLACK
        self.bits, samples = int(page.bitspersample), int(page.samplesperpixel)
        if page.dtype == bool:
            self.bits = 1
        if photometric in (RGB, YCBCR):
            if samples not in (3, 4):
                raise InputError(
                    f"{self.path} has {samples} samples per pixel in colour, expected 3 or 4: save it as RGB"
                )
            self.kind = "rgb" if samples == 3 else "rgba"
            if page.dtype != np.uint8:
                raise InputError(
                    f"{self.path} has {self.bits} bits per channel in colour, of which only 8 can be read: save it as "
                    "16-bit greyscale"
                )
        elif samples == 2 and page.extrasamples and int(page.extrasamples[0]) in (1, 2):
            self.kind = "alpha"
        if photometric == PALETTE and page.colormap is not None:
            table = np.asarray(page.colormap).astype(np.int32)  # (3, 2**bits)
            table = table >> 8 if table.max() > 255 else table
            self.palette = packed(table.T)
        self.inverted = photometric == MIN_IS_WHITE
        turned = page.tags.valueof(274, 1)
        if turned != 1:
            self.notes += (f"the Orientation tag ({int(turned)}) is ignored, as ImageJ and napari do",)

    def read(self, index: int) -> np.ndarray:
        place = self.layout.index(index)
        with refusing(f"{self.path} slice {index}" if self.count > 1 else self.path):
            plane = np.array(self._select(place))
        plane = self.layout.upright(plane)
        return np.ascontiguousarray(plane.astype(self.dtype, copy=False))

    def _select(self, place: tuple[int | slice, ...]) -> np.ndarray:
        first = self.pages[0]
        if self.offset is not None:
            stored = first.dtype.newbyteorder(self.file.byteorder)
            return np.memmap(self.path, stored, "r", self.offset, self.shape)[place]
        before = len(self.shape) - self.inner
        outer = place[:before]
        if all(isinstance(at, int) for at in outer):
            number = int(np.ravel_multi_index(outer, self.shape[:before])) if outer else 0
            return self._array(number, lambda: self._decode(number).reshape(self.shape[before:]))[place[before:]]
        if math.prod(self.shape) * first.dtype.itemsize > WHOLE:
            raise InputError(
                f"{self.path} has its slices across its pages and is too large for that: save it with Z first"
            )
        whole = self._array(
            "all", lambda: np.stack([self._decode(i) for i in range(len(self.pages))]).reshape(self.shape)
        )
        return whole[place]

    def _array(self, key: object, make) -> np.ndarray:
        """The last page is kept: channels and planes of one page are asked for one after the other."""
        if self._cache[0] != key:
            self._cache = key, make()
        return self._cache[1]

    def _decode(self, number: int) -> np.ndarray:
        return self.pages[number].asarray(maxworkers=1)

    def close(self) -> None:
        self.file.close()
