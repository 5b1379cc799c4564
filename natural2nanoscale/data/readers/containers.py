"""Volumes: MRC, HDF5 and NumPy arrays, of which one slice at a time is read."""

from __future__ import annotations

import re
import tokenize
import zipfile
from pathlib import Path

import numpy as np

from natural2nanoscale.data.readers.axes import Layout, find_layout
from natural2nanoscale.data.readers.base import (
    PICTURE_ERRORS,
    ReadOptions,
    Source,
    check_numbers,
    check_pixels,
    nanometres,
    need,
    unreadable,
)
from natural2nanoscale.errors import InputError

MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st", ".ali")
HDF_SUFFIXES = (".h5", ".hdf5", ".hdf", ".ilp")
WHOLE = 2**31  # bytes of an array that can only be read as a whole


class ArraySource(Source):
    """Slices of an array; `open_array` gives something that is indexed and reads no more than it is asked for."""

    def __init__(self, name: object, shape, dtype, axes: str | None, options: ReadOptions):
        self.name = name
        colour = axes is not None and "S" in axes and shape[axes.index("S")] in (3, 4)
        if options.axes and "S" in options.axes and len(options.axes) == len(shape):
            colour = shape[options.axes.index("S")] in (3, 4)
        self.layout: Layout = find_layout(name, tuple(map(int, shape)), axes, options, samples=3 if colour else 1)
        check_numbers(name, dtype)
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.shape = self.layout.shape
        self.size, self.count, self.notes = self.layout.size, self.layout.count, self.layout.notes
        self.channels, self.bits = self.layout.channels, 8 * self.dtype.itemsize if self.dtype != bool else 1
        if colour and "S" in self.layout.axes:
            self.kind = "rgb" if self.layout.shape[self.layout.axes.index("S")] == 3 else "rgba"
        check_pixels(name, self.size, options.max_pixels)

    def open_array(self):
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        try:
            plane = np.array(self.open_array()[self.layout.index(index)])
        except PICTURE_ERRORS as error:
            raise unreadable(f"{self.name} slice {index}", error) from error
        plane = self.layout.upright(plane)
        return np.ascontiguousarray(plane.astype(np.uint8 if self.dtype == bool else self.dtype, copy=False))


class MrcSource(ArraySource):
    """An MRC file: modes 0, 1, 2, 6 and 12. IMOD's stamp says whether bytes are signed, and that rows begin below."""

    def __init__(self, path: Path, options: ReadOptions):
        mrcfile = need("mrcfile", path)
        try:
            with mrcfile.open(path, header_only=True) as file:
                header = file.header
                mode, extended = int(header.mode), int(header.nsymbt)
                shape = int(header.nz), int(header.ny), int(header.nx)
                order = ">" if header.mode.dtype.newbyteorder("=") != header.mode.dtype else "<"  # on a little machine
                voxel = float(header.cella.x) / max(1, int(header.mx))
        except PICTURE_ERRORS as error:
            raise unreadable(path, error) from error
        kinds = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
        if mode not in kinds:
            raise InputError(f"{path} has MRC mode {mode}, expected 0, 1, 2, 6 or 12: convert it with IMOD's newstack")
        with path.open("rb") as file:
            raw = file.read(160)
        stamp, flags = (int.from_bytes(raw[i : i + 4], "big" if order == ">" else "little") for i in (152, 156))
        self.imod = stamp == 1146047817
        kind = "u1" if mode == 0 and self.imod and not flags & 1 else kinds[mode]
        self.path, self.offset, self.stored = path, 1024 + extended, np.dtype(kind).newbyteorder(order)
        self.whole = shape
        if path.stat().st_size < self.offset + int(np.prod(shape, dtype=np.int64)) * self.stored.itemsize:
            raise unreadable(path, f"it ends before its {shape[0]} slices of {shape[2]}x{shape[1]} do")
        super().__init__(path, shape, self.stored, None if options.axes else "ZYX", options)
        self.pixel_size_nm = nanometres(voxel / 10, "nm") if voxel > 0 and abs(voxel - 1) > 1e-6 else None
        rows = "turned upright, IMOD stores the lowest row first" if self.imod else "taken as stored, the first on top"
        self.notes += (f"MRC rows are {rows}",)

    def open_array(self):
        array = np.memmap(self.path, self.stored, "r", self.offset, self.whole)
        return array[:, ::-1] if self.imod else array


class NumpySource(ArraySource):
    """A .npy file, of which only the slice that is asked for is read."""

    def __init__(self, path: Path, options: ReadOptions):
        self.path = path
        try:
            array = self.open_array()
        except (*PICTURE_ERRORS, tokenize.TokenError) as error:
            raise unreadable(path, error) from error
        super().__init__(path, array.shape, array.dtype, None, options)

    def open_array(self):
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class NpzSource(ArraySource):
    """One array of a .npz file; it is read as a whole."""

    def __init__(self, path: Path, inner: str, options: ReadOptions):
        try:
            with zipfile.ZipFile(path) as archive:
                sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
            name = inner.strip("/") or choose(path, list(sizes))
            if name not in sizes:
                choose(path, list(sizes), name)
            if sizes[name] > WHOLE:
                raise InputError(f"{path}:{name} unpacks to {sizes[name] / 2**30:.1f} GiB: save it as .npy")
            with np.load(path, allow_pickle=False) as arrays:
                self.array = arrays[name]
        except InputError:
            raise
        except (*PICTURE_ERRORS, zipfile.BadZipFile, tokenize.TokenError) as error:
            raise unreadable(path, error) from error
        super().__init__(f"{path}:{name}", self.array.shape, self.array.dtype, None, options)

    def open_array(self):
        return self.array


class HdfSource(ArraySource):
    """A dataset of an HDF5 file."""

    def __init__(self, path: Path, inner: str, options: ReadOptions):
        h5py = need("h5py", path)
        try:
            self.file = h5py.File(path, "r")
        except PICTURE_ERRORS as error:
            raise unreadable(path, error) from error
        found: list[str] = []

        def collect(name: str, item) -> None:
            if isinstance(item, h5py.Dataset) and item.ndim >= 2 and item.dtype.kind in "buif":
                found.append("/" + name)

        try:
            self.file.visititems(collect)
            name = "/" + inner.strip("/") if inner.strip("/") else choose(path, found)
            if name not in found:
                choose(path, found, name)
            self.array = self.file[name]
            attributes = dict(self.array.attrs)
        except InputError:
            self.close()
            raise
        except PICTURE_ERRORS as error:
            self.close()
            raise unreadable(path, error) from error
        axes = axes_attribute(attributes, self.array.ndim)
        try:
            super().__init__(f"{path}:{name}", self.array.shape, self.array.dtype, axes, options)
        except InputError:
            self.close()
            raise
        if "element_size_um" in attributes:  # Ilastik, Fiji's HDF5 plug-in: Z, Y, X
            self.pixel_size_nm = nanometres(float(np.ravel(attributes["element_size_um"])[-1]), "um")
        elif "resolution" in attributes and np.size(attributes["resolution"]) == 3:  # CREMI: nanometres, Z, Y, X
            self.pixel_size_nm = nanometres(float(np.ravel(attributes["resolution"])[-1]), "nm")

    def open_array(self):
        return self.array

    def close(self) -> None:
        self.file.close()


def choose(path: Path, found: list[str], missing: str = "", separator: str = ":") -> str:
    """The only array of a container, or an InputError that lists them."""
    if len(found) == 1 and not missing:
        return found[0]
    if not found:
        raise InputError(f"{path} holds no array of two or more axes: name another file")
    places = ", ".join(f"`{path}{separator}{name}`" for name in found[:10]) + ", ..." * (len(found) > 10)
    what = f"no array {missing}" if missing else f"{len(found)} arrays"
    raise InputError(f"{path} holds {what}, name one of {places}")


def axes_attribute(attributes: dict, ndim: int) -> str | None:
    """Axes as xarray or ilastik write them beside an array."""
    names = attributes.get("_ARRAY_DIMENSIONS") or []
    axes = "".join(str(name)[:1].upper() for name in names)
    tags = re.findall(r'"key": "(\w)"', str(attributes.get("axistags", "")))  # vigra's, of ilastik
    axes = axes or "".join(tags).upper()
    return axes if len(axes) == ndim and {"Y", "X"} <= set(axes) else None
