"""Volumes: MRC, HDF5, Zarr and NumPy arrays, of which one slice at a time is read."""

from __future__ import annotations

import importlib
import math
import os
import re
import tokenize
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np

from natural2nanoscale.data.readers.axes import find_layout
from natural2nanoscale.data.readers.base import (
    PICTURE_ERRORS,
    WHOLE,
    ReadOptions,
    Source,
    check_numbers,
    check_pixels,
    check_regular,
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


class ArraySource(Source):
    """Slices of an array: `load` gives what is indexed, and reads no more than it is asked for.

    A file that is mapped into memory is mapped anew for each slice, else all that was ever read would count as used.
    What is stored becomes `dtype` by its bits, and `shift` is added to it.
    """

    shift = 0

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
        plane = np.ascontiguousarray(self.layout.upright(plane).astype(self.dtype, copy=False))
        return plane + self.dtype.type(self.shift) if self.shift else plane


def open_mrc(path: Path, options: ReadOptions) -> Source:
    """An MRC file. IMOD's stamp says that rows begin below, and whether bytes are stored less 128."""
    mrcfile = need("mrcfile", path)
    with ExitStack() as opened:
        opened.enter_context(warnings.catch_warnings(action="ignore"))  # of old files, without their marks
        opened.enter_context(refusing(path))
        header = opened.enter_context(mrcfile.open(path, header_only=True, permissive=True)).header
        mode, shape = int(header.mode), tuple(int(n) for n in (header.nz, header.ny, header.nx))
        order = ">" if header.mode.dtype.newbyteorder("=") != header.mode.dtype else "<"  # on a little machine
        stamp, flags = np.frombuffer(header.extra2.tobytes()[40:48], f"{order}i4")
        voxel, offset = float(header.cella.x) / max(1, int(header.mx)), 1024 + int(header.nsymbt)
        lowest, highest = float(header.dmin), float(header.dmax)
    if mode not in MRC_KINDS:
        raise InputError(f"{path} has MRC mode {mode}, expected 0, 1, 2, 6 or 12: convert it with IMOD's newstack")
    unsigned = mode == 0 and (stamp == IMOD or (lowest >= 0 and highest > 127))
    stored = np.dtype("u1" if unsigned else MRC_KINDS[mode]).newbyteorder(order)
    if min(*shape, offset) < 1:
        raise unreadable(path, f"its header says {shape[0]} slices of {shape[2]}x{shape[1]} from byte {offset} on")
    if path.stat().st_size < offset + math.prod(shape) * stored.itemsize:
        raise unreadable(path, f"it ends before its {shape[0]} slices of {shape[2]}x{shape[1]} do")
    if stamp == IMOD and options.flip_y:
        raise InputError(f"{path} says itself that its rows begin below, and is turned upright: leave out --flip-y")
    below = stamp == IMOD or options.flip_y

    def load() -> np.ndarray:
        return np.memmap(path, stored, "r", offset, shape)[:, :: -1 if below else 1]

    source = ArraySource(path, load, options, None if options.axes else "ZYX")
    source.shift = 128 if mode == 0 and stamp == IMOD and flags & 1 else 0
    source.pixel_size_nm = nanometres(voxel / 10, "nm") if voxel > 0 and abs(voxel - 1) > 1e-6 else None
    rows = "turned upright, IMOD stores the lowest row first" if stamp == IMOD else "taken as stored, the first on top"
    rows = "turned over by --flip-y" if options.flip_y else rows
    source.notes += (f"MRC rows are {rows}",)
    if mode == 0 and not unsigned:
        source.notes += ("MRC bytes are taken as signed, the file does not say",)
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
    with suppress(ImportError):  # registers more filters
        importlib.import_module("hdf5plugin")
    found: list[str] = []

    def collect(name: str, item) -> None:
        described = re.fullmatch(r"s\d+/(resolutions|subdivisions)", name)  # by BigDataViewer
        if isinstance(item, h5py.Dataset) and item.ndim >= 2 and item.dtype.kind in "buif" and not described:
            found.append("/" + name)

    with ExitStack() as opened:
        with refusing(path):
            file = opened.enter_context(h5py.File(path, "r"))
            file.visititems(collect)
            name = choose(path, found, inner.strip("/") and "/" + inner.strip("/"))
            array, said = file[name], dict(file[name].attrs)
            axes = axes_attribute(said, array.ndim, [dimension.label for dimension in array.dims])
            viewer = re.fullmatch(r"/t\d+/(s\d+)/\d+/cells", name)
            kind = str(file[viewer[1]].attrs.get("dataType", "uint16")) if viewer and viewer[1] in file else ""
        source = ArraySource(f"{path}:{name}", lambda: array, options, axes)
        if "uint16" in kind and array.dtype == np.int16:  # BigDataViewer's and Fiji's way to store it
            source.dtype = np.dtype(np.uint16)
        with suppress(*PICTURE_ERRORS):  # oddly written metadata are no reason to refuse the pixels
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
        if not (root / name).exists():
            choose(root, arrays_below(zarr.open_group(str(root), mode="r")), name, "/")
        node, group = zarr.open(str(root), mode="r", path=name or None), None
        if isinstance(node, zarr.Group):
            group = node
        elif name:
            group = zarr.open(str(root), mode="r", path=name.rpartition("/")[0] or None)
        attributes = dict(group.attrs) if group is not None else {}
        said = (attributes.get("ome", attributes).get("multiscales") or [{}])[0]  # of OME-Zarr 0.4 or 0.5
        levels = said.get("datasets")
        if isinstance(node, zarr.Group) and not levels:
            return open_zarr(root, f"{name}/{choose(root / name, arrays_below(node), separator='/')}", options)
        if isinstance(node, zarr.Group):
            level = levels[0]["path"]
            node, name = node[level], f"{name}/{level}".strip("/")
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in said.get("axes", ())]
        names = [axis["name"] for axis in axes] or getattr(node.metadata, "dimension_names", None) or ()
        known = "".join(str(name)[:1].upper() for name in names) or axes_attribute(dict(node.attrs), node.ndim)
    source = ArraySource(root / name, lambda: node, options, known)
    if levels:
        with suppress(*PICTURE_ERRORS):
            level = next((level for level in levels if level["path"] == name.split("/")[-1]), levels[0])
            steps = [*level.get("coordinateTransformations", ()), *said.get("coordinateTransformations", ())]
            x = known.index("X")
            scales = [float(step["scale"][x]) for step in steps if step.get("type") == "scale"]
            source.pixel_size_nm = nanometres(float(np.prod(scales)), axes[x].get("unit", ""))
    return source


def check_store(folder: Path | str) -> None:
    """Raise InputError where a Zarr store holds pipes or devices: to open one would wait forever. No file is opened."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                check_store(entry.path)
            elif not entry.is_file(follow_symlinks=False) and not entry.is_dir():
                check_regular(Path(entry.path))


def arrays_below(group, above: str = "") -> list[str]:
    """Paths of the arrays of a Zarr group that may hold slices, and of the groups that OME-Zarr calls images."""
    found = []
    for key, item in sorted(group.members()):
        if hasattr(item, "members"):
            image = "multiscales" in dict(item.attrs).get("ome", item.attrs)
            found += [above + key] if image else arrays_below(item, f"{above}{key}/")
        elif item.ndim >= 2 and item.dtype.kind in "buif":
            found.append(above + key)
    return found


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


def axes_attribute(attributes: dict, ndim: int, labels: Sequence[str] = ()) -> str | None:
    """Axes as xarray or ilastik write them beside an array, or HDF5 as labels of its dimensions."""
    names = attributes.get("_ARRAY_DIMENSIONS") or labels
    axes = "".join(str(name)[:1].upper() for name in names)
    tags = re.findall(r'"key": "(\w)"', str(attributes.get("axistags", "")))  # vigra's, of ilastik
    axes = axes or "".join(tags).upper()
    return axes if len(axes) == ndim and {"Y", "X"} <= set(axes) else None
