"""The pair-folder contract: images/<stem>, masks/<stem>, dataset.json. Validate up front, read, write."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from natural2nanoscale import schemas
from natural2nanoscale.data.classes import IGNORE_ID, Classes
from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.readers.gray import read_gray
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import make_folder, refuse_non_empty, save_png, write_json
from natural2nanoscale.records import read_json, reason

T = TypeVar("T")
PARTS = ("train", "val", "test")  # of a data root
IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
FORMAT = 1  # of dataset.json; a file without one is of the first
GENERATION = "generation.json"  # stands in a synthetic folder until dataset.json says that it is complete


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json says of a pair folder."""

    name: str
    origin: str  # "phantom", "prepared" or "synthetic"; it decides which backbone `auto` means
    classes: Classes
    intensity_window: tuple[float, float] | None = None  # grey values that became 0 and 255 at conversion
    pixel_size_nm: float | None = None
    split: dict = field(default_factory=dict)  # how train, val and test were told apart
    digests: dict[str, str] = field(default_factory=dict)  # stem -> slice_digest of the microscope's own pixels
    learned: dict = field(default_factory=dict)  # of synthetic slices: what their ControlNet was trained on

    def to_json(self) -> dict:
        data = {
            "format": FORMAT,
            "name": self.name,
            "origin": self.origin,
            "classes": self.classes.to_json(),
            "ignore_id": IGNORE_ID,
            "intensity_window": list(self.intensity_window) if self.intensity_window else None,
            "pixel_size_nm": self.pixel_size_nm,
            "split": self.split,
        }
        return data | {key: getattr(self, key) for key in ("digests", "learned") if getattr(self, key)}

    @classmethod
    def from_json(cls, data: dict) -> DatasetInfo:
        """Of what fits `schemas.DATASET`; ValueError where that makes no sense."""
        window, pixel_size = data.get("intensity_window"), data.get("pixel_size_nm")
        if window and (len(window) != 2 or not window[0] < window[1]):
            raise ValueError(f"intensity_window is {window}, expected a grey value and a higher one")
        if data.get("format", FORMAT) > FORMAT:
            raise ValueError(f"it is of format {data['format']}, this version reads up to {FORMAT}: update it")
        return cls(
            name=str(data["name"]),
            origin=str(data["origin"]),
            classes=Classes.from_json(data["classes"]),
            intensity_window=(float(window[0]), float(window[1])) if window else None,
            pixel_size_nm=None if pixel_size is None else float(pixel_size),
            split=dict(data.get("split") or {}),
            digests={str(stem): str(digest) for stem, digest in (data.get("digests") or {}).items()},
            learned=dict(data.get("learned") or {}),
        )


@dataclass(frozen=True)
class PairFolder:
    """A validated pair folder. Stems are in natural order: slice_9 comes before slice_10."""

    path: Path
    info: DatasetInfo
    stems: tuple[str, ...]
    image_files: dict[str, Path]
    shapes: tuple[tuple[int, int], ...] = ()  # (height, width) of every slice, in the order of the stems
    seen: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)  # size, time of files

    def image(self, stem: str) -> np.ndarray:
        """(H,W) uint8 grey values."""
        return self._read(self.image_files[stem], ("L",))

    def mask(self, stem: str) -> np.ndarray:
        """(H,W) uint8 class ids, 255 = ignore."""
        return self._read(self.path / "masks" / f"{stem}.png", ("L", "P"))

    def _read(self, file: Path, modes: tuple[str, ...]) -> np.ndarray:
        """InputError for a file that is another one than when it was first read: what was learned and what is said of
        it would differ."""
        pixels, status = read_gray(file, modes), file.stat()
        stamp = status.st_size, status.st_mtime_ns
        if self.seen.setdefault(file, stamp) != stamp:
            raise InputError(f"{file} was replaced while it is in use: start again, or bring the old one back")
        return pixels

    def load(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """All images and all masks, in the order of the stems."""
        return [self.image(stem) for stem in self.stems], [self.mask(stem) for stem in self.stems]


def natural_order(stem: str) -> list:
    """Sort key under which slice_9 comes before slice_10."""
    parts = [part for part in re.split(r"(\d+)", stem) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """`count` items, first and last among them, or all when there are fewer; of one, the first."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def write_pairs(path: Path, info: DatasetInfo, items: Iterable[tuple]) -> PairFolder:
    """Write (stem, image (H,W) uint8, mask (H,W) uint8) triples as a new pair folder.

    A fourth item is the slice's digest. Without it the one in `info` counts, or that of the image where no grey
    window lies between it and the microscope's pixels; `info`'s digests of other slices are dropped.
    """
    path = Path(path)
    refuse_non_empty(path)
    path.mkdir(parents=True, exist_ok=True)
    make_folder(path / "images")
    make_folder(path / "masks")
    digests = {}
    for stem, image, mask, *given in items:
        save_png(path / "images" / f"{stem}.png", image)
        save_png(path / "masks" / f"{stem}.png", mask)
        known = given[0] if given else info.digests.get(stem)
        if known or info.intensity_window is None:
            digests[stem] = known or slice_digest(image)
    info = replace(info, digests=digests)
    write_json(path / "dataset.json", info.to_json())  # last: a folder with dataset.json is complete
    return open_pairs(path)


def read_info(path: Path) -> DatasetInfo:
    """dataset.json of a pair folder; InputError when it is missing or not of its form."""
    file = Path(path) / "dataset.json"
    if os.path.lexists(file):
        return _parse_info(file)[0]
    if os.path.lexists(Path(path) / GENERATION):
        call = read_generation(path)[2]
        raise InputError(f"{path} is unfinished, slices are missing: " + (f"`{call}` makes them" if call else "go on"))
    raise InputError(
        f"{path} is no pair folder, it has no dataset.json: make one with "
        "`python -m natural2nanoscale prepare` or `phantom`"
    )


def read_generation(path: Path) -> tuple[DatasetInfo, int, str | None]:
    """Of an unfinished synthetic folder: what its dataset.json will say, how many slices per mask are planned, and the
    call that makes those that are missing, if it is known."""
    info, data = _parse_info(Path(path) / GENERATION)
    return info, data.get("per_mask") or 0, data.get("call")


def _parse_info(file: Path) -> tuple[DatasetInfo, dict]:
    try:
        data = read_json(file, schemas.GENERATION if file.name == GENERATION else schemas.DATASET)
        return DatasetInfo.from_json(data), data
    except (OSError, ValueError, InputError) as error:
        raise InputError(
            f"{file} is not a valid dataset description ({reason(error)}): prepare the folder again"
        ) from error


def stems_of(folder: Path) -> dict[str, Path]:
    """File of every stem in a folder of pictures, in natural order; hidden files are no pictures."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir() if folder.is_dir() else []):
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
            if file.stem in files:
                raise InputError(f"{folder} has two pictures of the stem {file.stem!r}: remove one of them")
            files[file.stem] = file
    return dict(sorted(files.items(), key=lambda entry: natural_order(entry[0])))


def open_pairs(path: Path) -> PairFolder:
    """Validate a pair folder: pairing by stem, equal sizes, 8-bit grey, mask values among the classes.

    Raises InputError that names the first offending file. Every file is opened once.
    """
    path = Path(path)
    info = read_info(path)
    images = stems_of(path / "images")
    masks = [stem for stem, file in stems_of(path / "masks").items() if file.suffix == ".png"]
    for article, kind, other, missing in (
        ("a", "mask", "image", [s for s in images if s not in masks]),
        ("an", "image", "mask", [s for s in masks if s not in images]),
    ):
        if missing:
            raise InputError(
                f"{path} has {len(missing)} {other}(s) without {article} {kind} of the same stem, "
                f"such as {missing[0]!r}: add the {kind}s or remove the {other}s"
            )
    if not images:
        raise InputError(f"{path}/images holds no PNG or TIFF picture, expected at least one: prepare it again")
    folder, shapes = PairFolder(path, info, tuple(images), images), []
    for stem in folder.stems:
        image, mask = folder.image(stem), folder.mask(stem)
        if image.shape != mask.shape:
            raise InputError(
                f"{path}: image {stem!r} is {image.shape[1]}x{image.shape[0]} but its mask is "
                f"{mask.shape[1]}x{mask.shape[0]}, expected equal sizes"
            )
        shapes.append(image.shape)
        counts = np.bincount(mask.ravel(), minlength=256)
        strange = [v for v in np.flatnonzero(counts) if v >= info.classes.count and v != IGNORE_ID]
        if strange:
            found = ", ".join(f"{v} ({counts[v]} px)" for v in strange[:5])
            raise InputError(
                f"{path}/masks/{stem}.png has mask values {found}, expected 0..{info.classes.count - 1} or "
                f"{IGNORE_ID} to ignore: map them with `prepare --map` or list the class in dataset.json"
            )
    return replace(folder, shapes=tuple(shapes))


def pair_digests(folder: PairFolder) -> dict[str, str]:
    """Stem -> 16 hexadecimal digits of a sha256 over the pixels of image and mask."""
    digests = {}
    for stem in folder.stems:
        image = folder.image(stem)
        content = str(image.shape).encode() + image.tobytes() + folder.mask(stem).tobytes()
        digests[stem] = hashlib.sha256(content).hexdigest()[:16]
    return digests


def fingerprint(folder: PairFolder) -> str:
    """sha256 over stems, pixels and class table: equal exactly when training would see equal data."""
    digest = hashlib.sha256(json.dumps(folder.info.classes.to_json()).encode())
    for stem in folder.stems:
        image = folder.image(stem)
        digest.update(f"{stem} {image.shape}".encode())
        digest.update(image.tobytes())
        digest.update(folder.mask(stem).tobytes())
    return digest.hexdigest()
