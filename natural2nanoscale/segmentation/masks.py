"""What becomes of the masks of a whole stack: a table of areas, and one file of the formats that others open."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.readers.base import need
from natural2nanoscale.files import new_file, new_folder, write_text


def write_areas(path: Path, rows: Iterable[tuple[str, Sequence[int]]], classes: Classes, nm: float | None) -> None:
    """areas.csv: a line per slice and class, given (slice, pixels per class); square micrometres where the pixel size
    in nanometres is known, else empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "class", "pixels", "share", "area_um2"])
    for image, pixels in rows:
        for name, count in zip(classes.names, pixels, strict=True):
            area = f"{count * nm**2 / 1e6:.6g}" if nm else ""
            table.writerow([image, name, count, f"{count / max(1, sum(pixels)):.6f}", area])
    write_text(path, text.getvalue())


def assemble(
    out: Path, kind: str, read: Callable[[int], np.ndarray], shape: tuple[int, int, int], nm: float | None
) -> Path:
    """One file or folder in `out` of all masks, of `shape` = (Z,H,W): a key of FORMATS; mask i (H,W) uint8 is read when
    its turn comes. Returns its path."""
    name, write = FORMATS[kind]
    write(out / name, read, shape, nm)
    return out / name


def _write_tiff(path: Path, read: Callable[[int], np.ndarray], shape: tuple[int, int, int], nm: float | None) -> None:
    """OME-TIFF, a page per slice."""
    tifffile = need("tifffile", path)
    size = {f"PhysicalSize{axis}{what}": value for axis in "XY" for what, value in (("", nm), ("Unit", "nm"))}
    with new_file(path) as file:
        tifffile.imwrite(
            file,
            (read(i) for i in range(shape[0])),
            shape=shape,
            dtype=np.uint8,
            ome=True,
            bigtiff=np.prod(shape, dtype=np.int64) > 2**31,
            photometric="minisblack",
            compression="zlib",
            metadata={"axes": "ZYX"} | (size if nm else {}),
        )


def _write_zarr(path: Path, read: Callable[[int], np.ndarray], shape: tuple[int, int, int], nm: float | None) -> None:
    """OME-Zarr 0.4, which is what most programs read by now: one level, a chunk per 1024 x 1024 pixels."""
    zarr = need("zarr", path)
    axes = [{"name": name, "type": "space"} | ({"unit": "nanometer"} if nm and name != "z" else {}) for name in "zyx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, nm or 1.0, nm or 1.0]}]}
    with new_folder(path) as folder:
        group = zarr.open_group(str(folder), mode="w", zarr_format=2)
        group.attrs["multiscales"] = [{"version": "0.4", "name": "masks", "axes": axes, "datasets": [level]}]
        chunks = (1, min(shape[1], 1024), min(shape[2], 1024))
        encoding = {"name": "v2", "separator": "/"}
        array = group.create_array("0", shape=shape, chunks=chunks, dtype="u1", chunk_key_encoding=encoding)
        for index in range(shape[0]):
            array[index] = read(index)


FORMATS = {"tiff": ("masks.ome.tif", _write_tiff), "zarr": ("masks.ome.zarr", _write_zarr)}
