"""Volumes: MRC, HDF5, Zarr and NumPy arrays, of which one slice at a time is read."""

from __future__ import annotations

import re
import tokenize
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from natural2nanoscale.data.readers.axes import find_layout
from natural2nanoscale.data.readers.base import (
    ReadOptions,
    Source,
    check_numbers,
    check_pixels,
    nanometres,
    need,
    refusing,
    unreadable,
)
from natural2nanoscale.errors import InputError

MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st", ".ali")
HDF_SUFFIXES = (".h5", ".hdf5", ".hdf", ".ilp")
MRC_KINDS = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}  # by mode
IMOD = 1146047817  # its stamp in a header
WHOLE = 2**31  # bytes of an array that can only be read as a whole


class ArraySource(Source):
    """Slices of an array: `load` gives what is indexed, and reads no more than it is asked for.

    A file that is mapped into memory is mapped anew for each slice, else all that was ever read would count as used.
    """

    def __init__(self, name: object, load: Callable, options: ReadOptions, axes: str | None = None):
        array = load()
        self.name, self.load, self.shape, self.said = name, load, tuple(map(int, array.shape)), axes
        check_numbers(name, array.dtype)
        said = options.axes if options.axes and len(options.axes) == len(self.shape) else axes
        samples = self.shape[said.index("S")] if said and "S" in said else 1
        self.layout = find_layout(name, self.shape, axes, options, samples if samples in (3, 4) else 1)
        if "S" in self.layout.axes:
            self.kind = "rgb" if samples == 3 else "rgba"
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.size, self.count, self.notes = self.layout.size, self.layout.count, self.layout.notes
        self.channels, self.bits = self.layout.channels, 8 * self.dtype.itemsize
        if self.dtype == bool:
            self.dtype, self.bits = np.dtype(np.uint8), 1
        check_pixels(name, self.size, options.max_pixels)

    def read(self, index: int) -> np.ndarray:
        with refusing(f"{self.name} slice {index}"):
            plane = np.array(self.load()[self.layout.index(index)])
        return np.ascontiguousarray(self.layout.upright(plane).astype(self.dtype, copy=False))


def open_mrc(path: Path, options: ReadOptions) -> Source:
    """An MRC file. IMOD's stamp says whether bytes are signed, and that rows begin below."""
    mrcfile = need("mrcfile", path)
    with refusing(path), mrcfile.open(path, header_only=True) as file:
        header = file.header
        mode, shape = int(header.mode), tuple(int(n) for n in (header.nz, header.ny, header.nx))
        order = ">" if header.mode.dtype.newbyteorder("=") != header.mode.dtype else "<"  # on a little machine
        stamp, flags = np.frombuffer(header.extra2.tobytes()[40:48], f"{order}i4")
        voxel, offset = float(header.cella.x) / max(1, int(header.mx)), 1024 + int(header.nsymbt)
    if mode not in MRC_KINDS:
        raise InputError(f"{path} has MRC mode {mode}, expected 0, 1, 2, 6 or 12: convert it with IMOD's newstack")
    unsigned = mode == 0 and stamp == IMOD and not flags & 1
    stored = np.dtype("u1" if unsigned else MRC_KINDS[mode]).newbyteorder(order)
    if path.stat().st_size < offset + int(np.prod(shape, dtype=np.int64)) * stored.itemsize:
        raise unreadable(path, f"it ends before its {shape[0]} slices of {shape[2]}x{shape[1]} do")
    if stamp == IMOD and options.flip_y:
        raise InputError(f"{path} says itself that its rows begin below, and is turned upright: leave out --flip-y")
    below = stamp == IMOD or options.flip_y

    def load() -> np.ndarray:
        return np.memmap(path, stored, "r", offset, shape)[:, :: -1 if below else 1]

    source = ArraySource(path, load, options, None if options.axes else "ZYX")
    source.pixel_size_nm = nanometres(voxel / 10, "nm") if voxel > 0 and abs(voxel - 1) > 1e-6 else None
    rows = "turned upright, IMOD stores the lowest row first" if stamp == IMOD else "taken as stored, the first on top"
    rows = "turned over by --flip-y" if options.flip_y else rows
    source.notes += (f"MRC rows are {rows}",)
    return source


def open_npy(path: Path, options: ReadOptions) -> Source:
    """A .npy file, of which only the slice that is asked for is read."""
    with refusing(path, tokenize.TokenError):
        return ArraySource(path, partial(np.load, path, mmap_mode="r", allow_pickle=False), options)


def open_npz(path: Path, inner: str, options: ReadOptions) -> Source:
    """One array of a .npz file; it is read as a whole."""
    with refusing(path, tokenize.TokenError, zipfile.BadZipFile):
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        name = choose(path, list(sizes), inner.strip("/"))
        if sizes[name] > WHOLE:
            raise InputError(f"{path}:{name} unpacks to {sizes[name] / 2**30:.1f} GiB: save it as .npy")
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[name]
    return ArraySource(f"{path}:{name}", lambda: array, options)


def open_hdf(path: Path, inner: str, options: ReadOptions) -> Source:
    """A dataset of an HDF5 file."""
    h5py = need("h5py", path)
    found: list[str] = []

    def collect(name: str, item) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 2 and item.dtype.kind in "buif":
            found.append("/" + name)

    with ExitStack() as opened:
        with refusing(path):
            file = opened.enter_context(h5py.File(path, "r"))
            file.visititems(collect)
            name = choose(path, found, inner.strip("/") and "/" + inner.strip("/"))
            array, said = file[name], dict(file[name].attrs)
        source = ArraySource(f"{path}:{name}", lambda: array, options, axes_attribute(said, array.ndim))
        if "element_size_um" in said:  # ilastik, Fiji's HDF5 plug-in: Z, Y, X
            source.pixel_size_nm = nanometres(float(np.ravel(said["element_size_um"])[-1]), "um")
        elif np.size(said.get("resolution", ())) == 3:  # CREMI: nanometres, Z, Y, X
            source.pixel_size_nm = nanometres(float(np.ravel(said["resolution"])[-1]), "nm")
        source.close = opened.pop_all().close
    return source


def open_zarr(root: Path, inner: str, options: ReadOptions) -> Source:
    """An array of a Zarr group, version 2 or 3; of OME-Zarr the finest level unless the path names another."""
    zarr = need("zarr", root)
    name = inner.strip("/")
    with refusing(root / name, Exception):  # zarr's own errors have no common base
        node, group = zarr.open(str(root), mode="r", path=name or None), None
        if isinstance(node, zarr.Group):
            group = node
        elif name:
            group = zarr.open(str(root), mode="r", path=name.rpartition("/")[0] or None)
        attributes = dict(group.attrs) if group is not None else {}
        said = (attributes.get("ome", attributes).get("multiscales") or [{}])[0]  # of OME-Zarr 0.4 or 0.5
        levels = said.get("datasets")
        if isinstance(node, zarr.Group):
            level = levels[0]["path"] if levels else choose(root, [key for key, _ in node.arrays()], separator="/")
            node, name = node[level], f"{name}/{level}".strip("/")
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in said.get("axes", ())]
        names = [axis["name"] for axis in axes] or getattr(node.metadata, "dimension_names", None) or ()
        known = "".join(str(name)[:1].upper() for name in names) or axes_attribute(dict(node.attrs), node.ndim)
    source = ArraySource(root / name, lambda: node, options, known)
    if levels:
        level = next((level for level in levels if level["path"] == name.split("/")[-1]), levels[0])
        steps = [*level.get("coordinateTransformations", ()), *said.get("coordinateTransformations", ())]
        scales = [float(step["scale"][-1]) for step in steps if step.get("type") == "scale"]
        source.pixel_size_nm = nanometres(float(np.prod(scales)), axes[-1].get("unit", "") if axes else "")
    return source


def choose(path: Path, found: list[str], wanted: str = "", separator: str = ":") -> str:
    """The array of a container that is wanted, or the only one; else an InputError that lists them."""
    if wanted in found or (len(found) == 1 and not wanted):
        return wanted or found[0]
    if not found:
        raise InputError(f"{path} holds no array of two or more axes: name another file")
    places = ", ".join(f"`{path}{separator}{name}`" for name in found[:10]) + ", ..." * (len(found) > 10)
    what = f"no array {wanted}" if wanted else f"{len(found)} arrays"
    several = separator == ":" and len(list(path.parent.glob(f"*{path.suffix}"))) > 1
    others = f", or that of every file in the folder, such as `{path.parent}:/{found[-1].strip('/')}`" * several
    raise InputError(f"{path} holds {what}, name one of {places}{others}")


def axes_attribute(attributes: dict, ndim: int) -> str | None:
    """Axes as xarray or ilastik write them beside an array."""
    names = attributes.get("_ARRAY_DIMENSIONS") or []
    axes = "".join(str(name)[:1].upper() for name in names)
    tags = re.findall(r'"key": "(\w)"', str(attributes.get("axistags", "")))  # vigra's, of ilastik
    axes = axes or "".join(tags).upper()
    return axes if len(axes) == ndim and {"Y", "X"} <= set(axes) else None
