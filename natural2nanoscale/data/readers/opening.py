"""Which reader opens a path: by what the file is, not by what it is called."""

from __future__ import annotations

from pathlib import Path

from natural2nanoscale.data.readers.base import ReadOptions, Source, check_regular
from natural2nanoscale.data.readers.containers import (
    HDF_SUFFIXES,
    MRC_SUFFIXES,
    check_store,
    open_hdf,
    open_mrc,
    open_npy,
    open_npz,
    open_zarr,
)
from natural2nanoscale.data.readers.png import PngSource
from natural2nanoscale.data.readers.tiff import TiffSource
from natural2nanoscale.errors import InputError

PICTURES = (".png", ".tif", ".tiff")
SUFFIXES = (*PICTURES, *MRC_SUFFIXES, ".npy", ".npz", *HDF_SUFFIXES)
VENDORS = {
    **dict.fromkeys((".dm3", ".dm4"), "open it in Fiji and save it as TIFF, or in Digital Micrograph (Save As TIFF)"),
    **dict.fromkeys((".emd", ".ser"), "open it in Velox, or with Python's rosettasciio, and save it as TIFF"),
    **dict.fromkeys(
        (".czi", ".nd2", ".lif", ".ims", ".oib", ".oif", ".vsi", ".lsm", ".stk", ".svs", ".ndpi", ".bif", ".zvi"),
        "open it in Fiji (File > Import > Bio-Formats) and save it as TIFF",
    ),
    **dict.fromkeys((".jpg", ".jpeg"), "JPEG has altered its pixels; take the original, or save it as PNG"),
    **dict.fromkeys((".bmp", ".gif", ".webp"), "save it as PNG"),
    **dict.fromkeys((".nii", ".gz", ".bz2", ".zip"), "unpack it, or save it as TIFF"),
    **dict.fromkeys((".n5", ".raw", ".dat"), "save it as TIFF, Zarr or .npy"),
}  # fmt: skip


def split_container(path: Path) -> tuple[Path, str]:
    """`file.h5:/volumes/raw`, `file.h5/volumes/raw` or `vol.zarr/0` -> the file or folder on disk, and the path within.

    `folder:/volumes/raw` is that array of every file in the folder.
    """
    text = str(path)
    for suffix in (*HDF_SUFFIXES, ".npz"):
        head, colon, inner = text.partition(f"{suffix}:")
        if colon:
            return Path(head + suffix), inner
    head, colon, inner = text.rpartition(":/")
    if colon and Path(head).is_dir():
        return Path(head), inner
    for folder in reversed((path, *path.parents)):
        if is_zarr(folder) or (folder.suffix.lower() in (*HDF_SUFFIXES, ".npz") and folder.is_file()):
            return folder, "" if folder == path else str(path.relative_to(folder))
    return path, ""


def is_zarr(folder: Path) -> bool:
    """Whether a folder is called, or has the files of, a Zarr group or array."""
    files = ("zarr.json", ".zgroup", ".zarray")
    return folder.is_dir() and (folder.suffix == ".zarr" or any((folder / name).is_file() for name in files))


def open_source(path: Path, options: ReadOptions) -> Source:
    """The slices of a file or container path. Raises InputError for what cannot be read right."""
    file, inner = split_container(path)
    if is_zarr(file):
        check_store(file)
        return open_zarr(file, inner, options)
    check_regular(file)
    suffix = file.suffix.lower()
    if suffix in MRC_SUFFIXES:
        return open_mrc(file, options)
    if suffix == ".npy":
        return open_npy(file, options)
    if suffix == ".npz":
        return open_npz(file, inner, options)
    if suffix in HDF_SUFFIXES:
        return open_hdf(file, inner, options)
    with file.open("rb") as opened:
        start = opened.read(8)
    if start == b"\x89PNG\r\n\x1a\n":
        return PngSource(file, options)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffSource(file, options)
    if suffix not in PICTURES:
        refuse_suffix(file)
    known = {b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"GIF8": ".gif"}
    for magic, name in known.items():
        if start.startswith(magic):
            raise InputError(f"{file} cannot be read, it is a {name[1:].upper()} file: {VENDORS[name]}")
    raise InputError(f"{file} cannot be read, it begins like neither PNG nor TIFF: copy it again, or leave it out")


def refuse_suffix(file: Path) -> None:
    """Raise InputError that says how a file of another program is converted."""
    how = VENDORS.get(file.suffix.lower(), "convert it to TIFF")
    raise InputError(f"{file} is no file that can be read here (PNG, TIFF, MRC, HDF5, Zarr, .npy, .npz): {how}")
