"""The one interface of all readers, `slices of a source`, and what they share."""

from __future__ import annotations

import importlib
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from natural2nanoscale.errors import InputError

INSTALL = 'pip install -e ".[em]"'
WHOLE = 2**31  # bytes of an array that can only be read as a whole
# what Pillow raises on truncated or hostile files, found by cutting and flipping bytes of PNGs and TIFFs
PICTURE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
    AssertionError, MemoryError, RuntimeError, ZeroDivisionError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True)
class ReadOptions:
    """How files are to be understood where they do not say it themselves.

    max_pixels: of one slice. channel: which one of several, from 0. axes: what the axes of an array are, such as ZYX.
    split_channels: every channel is a slice of its own, those of one slice in a row (masks of one class each).
    labels: the file holds masks; then axes are for arrays of this shape only, which is that of the slices' array, and
    said is what the slices' file says of its axes.
    flip_y: rows of MRC files begin below.
    """

    max_pixels: int = 1_000_000_000
    channel: int | None = None
    axes: str | None = None
    split_channels: bool = False
    labels: bool = False
    shape: tuple[int, ...] = ()
    said: str | None = None
    flip_y: bool = False


class Source:
    """Slices of one file or container: how many, their size, type and pixel size, and slice i as an array.

    kind: "grey" (H,W), "alpha" (H,W,2) grey and alpha, "rgb" (H,W,3) or "rgba" (H,W,4).
    palette: (N,) 0xRRGGBB of every value, of a palette picture. bits: of one channel as stored.
    inverted: the file says that 0 is white. notes: what the user should know of how the file was understood.
    """

    shape: tuple[int, ...] = ()  # of the whole array that the slices are cut from
    said: str | None = None  # what the file says of its axes
    count: int = 1
    size: tuple[int, int] = (0, 0)  # width, height
    dtype: np.dtype = np.dtype(np.uint8)
    kind: str = "grey"
    channels: int = 1
    bits: int = 8
    palette: np.ndarray | None = None
    inverted: bool = False
    pixel_size_nm: float | None = None
    notes: tuple[str, ...] = ()

    def read(self, index: int) -> np.ndarray:
        """Slice `index` in native byte order; raises InputError where it cannot be decoded."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""


def need(module: str, what: object) -> ModuleType:
    """A reader of the extra `em`, imported when the first file asks for it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{what} is read by {module}, which is not installed: `{INSTALL}`") from error


def unreadable(what: object, error: object) -> InputError:
    reason = " ".join(str(error).split())
    if re.search(r"lib/plugin|required filter", reason):  # HDF5's words
        return InputError(
            f"{what} is compressed by an HDF5 filter that is missing: `pip install hdf5plugin`, or save it with gzip"
        )
    name = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
    return InputError(
        f"{what} cannot be read ({name}{reason}): the file is damaged or cut short, copy it again from where it was "
        "written"
    )


@contextmanager
def refusing(what: object, *errors: type[Exception]) -> Iterator[None]:
    """Turn what readers raise on damaged files, and these errors, into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except (*PICTURE_ERRORS, *errors) as error:
        raise unreadable(what, error) from error


def check_regular(path: Path) -> None:
    """Raise InputError unless `path` is a file: opening a pipe or a device would wait forever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a file that exists") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} cannot be read, it is no regular file but a pipe, device or folder: leave it out")


def check_pixels(what: object, size: tuple[int, int], limit: int) -> None:
    """Raise InputError where a slice (width, height) is larger than the limit, before anything is decoded."""
    width, height = size
    if width * height > limit:
        raise InputError(
            f"{what} is {width}x{height} = {width * height} pixels, more than the limit of {limit}: "
            f"raise it with `--max-pixels {width * height}` if the file is what you expect"
        )
    if not width * height:
        raise InputError(f"{what} is {width}x{height}, expected pixels: leave it out")


def check_numbers(what: object, dtype: np.dtype) -> None:
    """Raise InputError unless pixels are whole or real numbers."""
    if dtype is None or np.dtype(dtype).kind not in "buif" or np.dtype(dtype).itemsize > 8:
        raise InputError(f"{what} has pixels of type {dtype}, expected real numbers of at most 64 bits: convert it")


def nanometres(value: float, unit: str) -> float | None:
    """A length in nanometres; None for what is no length, or none that a microscope's pixel has."""
    units = {
        "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0, "å": 0.1, "angstrom": 0.1, "µm": 1e3, "μm": 1e3, "um": 1e3,
        "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "micrometre": 1e3, "\\u00b5m": 1e3, "mm": 1e6, "cm": 1e7,
        "m": 1e9, "meter": 1e9,
    }  # fmt: skip
    length = value * units.get(str(unit).strip().lower(), 0.0)
    return float(f"{length:.6g}") if 0.001 < length < 1e5 else None
