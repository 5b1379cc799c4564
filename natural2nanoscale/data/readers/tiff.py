"""TIFF as microscopes and programs of the field write it, read by tifffile: nothing is guessed or half-decoded."""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import packed
from natural2nanoscale.data.readers.axes import find_layout
from natural2nanoscale.data.readers.base import (
    PICTURE_ERRORS,
    WHOLE,
    ReadOptions,
    Source,
    check_pixels,
    need,
    unreadable,
)
from natural2nanoscale.data.readers.tiff_checks import (
    MIN_IS_WHITE,
    PALETTE,
    RGB,
    YCBCR,
    check_page,
    kind_of,
    listening,
    named_axes,
    pixel_size,
)
from natural2nanoscale.errors import InputError

PLAIN = ("generic", "uniform")  # files of pages that nothing describes
KINDS = (*PLAIN, "shaped", "imagej", "ome", "nih")  # whose axes tifffile takes from the file's own words


class TiffSource(Source):
    """Slices of a TIFF file: what its description (ImageJ, OME-XML, tifffile's) or else its pages say they are.

    Reduced copies (NewSubfileType) are no slices. Orientation is ignored as ImageJ and napari do.
    """

    def __init__(self, path: Path, options: ReadOptions):
        tifffile = need("tifffile", path)
        need("imagecodecs", path)
        self.path = path
        with ExitStack() as opened:
            with listening(path):
                self.file = opened.enter_context(tifffile.TiffFile(path, _multifile=False))
                self._understand(options)
            self.close = opened.pop_all().close

    def _understand(self, options: ReadOptions) -> None:
        self.pages, kind, shape, axes = self._main_series()
        first = self.pages[0]
        for page in self.pages:
            check_page(self.path, page, options)
            if kind_of(page) != kind_of(first):
                raise InputError(
                    f"{self.path} has pages of different kinds, {kind_of(first)} and {kind_of(page)}: save the slices "
                    "alone, one stack or file per kind"
                )
        planes, pages = math.prod(shape) // math.prod(first.shape), len(self.pages)
        self.shape, self.offset = shape, None
        if pages == 1 and planes > 1:  # one IFD, planes one after another
            self.offset = int(first.dataoffsets[0])
            end = self.offset + math.prod(shape) * first.dtype.itemsize
            plain = first.is_contiguous and first.predictor == 1 and first.fillorder == 1
            if not plain or self.path.stat().st_size < end:
                raise unreadable(self.path, f"it announces {planes} slices but has 1 page and no room for more")
        elif math.prod(shape) != pages * math.prod(first.shape):
            raise unreadable(self.path, f"it announces the shape {shape} but has {pages} pages of {first.shape}")
        self._check_description(kind, math.prod(shape) // (first.imagewidth * first.imagelength))
        self._colours(first)
        samples = {"grey": 1, "alpha": 2, "rgb": 3, "rgba": 4}[self.kind]
        self.said = named_axes(axes)
        known = options.axes is None or options.labels or self.kind != "grey"
        self.layout = find_layout(self.path, shape, self.said if known else None, options, samples)
        self.size, self.count, self.channels = self.layout.size, self.layout.count, self.layout.channels
        self.notes += self.layout.notes
        check_pixels(self.path, self.size, options.max_pixels)
        self.dtype = np.dtype(np.uint8) if first.dtype == bool else first.dtype.newbyteorder("=")
        with suppress(*PICTURE_ERRORS):  # oddly written metadata are no reason to refuse the pixels
            self.pixel_size_nm = pixel_size(self.file, first)
        # the last page is kept: channels and planes of one page are asked for one after the other
        self._kept: tuple[object, np.ndarray | None] = (None, None)

    def _main_series(self) -> tuple[list, str, tuple[int, ...], str]:
        """The pages that hold the slices, of which kind of file, and shape and axes of all of them."""
        tif = self.file
        tif.pages.useframes = False
        pages = [tif.pages[i] for i in range(len(tif.pages))]
        if not pages:
            raise unreadable(self.path, "it has no page")
        full = [page for page in pages if not page.subfiletype & 5] or pages[:1]  # 1 reduced copy, 4 mask
        series = [one for one in tif.series if not one.keyframe.subfiletype & 5] or tif.series[:1]
        main = series[0]
        if main.kind not in KINDS:
            raise InputError(
                f"{self.path} is a {main.kind} file of a microscope's vendor: open it in Fiji (File > Import > "
                "Bio-Formats) and save it as TIFF"
            )
        if len(full) < len(pages):
            self.notes += (f"reduced copies are no slices ({len(pages) - len(full)} pages)",)
        elif any(one.levels[1:] for one in series):
            self.notes += ("reduced copies are no slices",)
        alike = {(one.kind, one.axes, one.shape, one.dtype) for one in series}
        one_by_one = alike == {("shaped", "YX", main.shape, main.dtype)} and len(series) == len(full)
        if main.kind in PLAIN or one_by_one:
            stacked = len(full) > 1
            return full, main.kind, (len(full),) * stacked + full[0].shape, "I" * stacked + full[0].axes
        if len(series) > 1:
            shapes = ", ".join(str(one.shape) for one in series[:4])
            raise InputError(f"{self.path} holds {len(series)} images of shapes {shapes}: save one image per file")
        if any(page is None for page in main.pages):
            raise unreadable(self.path, f"its description announces {len(main.pages)} pages of which some are missing")
        if len(full) > len(main.pages):
            raise unreadable(self.path, f"it announces {len(main.pages)} pages but has {len(full)}")
        chosen = [pages[page.index] if page.index < len(pages) else page for page in main.pages]
        chosen = [page if hasattr(page, "tags") else page.aspage() for page in chosen]
        return chosen, main.kind, tuple(main.shape), main.axes

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

    def _colours(self, page) -> None:
        self.bits, samples = 1 if page.dtype == bool else int(page.bitspersample), int(page.samplesperpixel)
        if page.photometric in (RGB, YCBCR):
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
        if page.photometric == PALETTE and page.colormap is not None:
            table = np.asarray(page.colormap).astype(np.int32)  # (3, 2**bits)
            self.palette = packed((table >> 8 if table.max() > 255 else table).T)
        self.inverted = page.photometric == MIN_IS_WHITE
        turned = page.tags.valueof(274, 1)
        if turned != 1:
            self.notes += (f"the Orientation tag ({int(turned)}) is ignored, as ImageJ and napari do",)

    def read(self, index: int) -> np.ndarray:
        with listening(f"{self.path} slice {index}" if self.count > 1 else self.path):
            plane = np.array(self._select(self.layout.index(index)))
        return np.ascontiguousarray(self.layout.upright(plane).astype(self.dtype, copy=False))

    def _select(self, place: tuple[int | slice, ...]) -> np.ndarray:
        first = self.pages[0]
        if self.offset is not None:
            stored = first.dtype.newbyteorder(self.file.byteorder)
            return np.memmap(self.path, stored, "r", self.offset, self.shape)[place]
        outer = 0  # axes that count pages
        while math.prod(self.shape[:outer]) < len(self.pages):
            outer += 1
        if all(isinstance(at, int) for at in place[:outer]):
            number = int(np.ravel_multi_index(place[:outer], self.shape[:outer])) if outer else 0
            return self._decoded([number], self.shape[outer:])[place[outer:]]
        if math.prod(self.shape) * first.dtype.itemsize > WHOLE:
            raise InputError(
                f"{self.path} has its slices across its pages and is too large for that: save it with Z first"
            )
        return self._decoded(range(len(self.pages)), self.shape)[place]

    def _decoded(self, numbers: list[int] | range, shape: tuple[int, ...]) -> np.ndarray:
        if self._kept[0] != numbers:
            pages = [self.pages[number].asarray(maxworkers=1) for number in numbers]
            self._kept = numbers, (np.stack(pages) if len(pages) > 1 else pages[0]).reshape(shape)
        return self._kept[1]
