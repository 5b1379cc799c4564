"""The pair-folder contract: images/<stem>, masks/<stem>, dataset.json. Validate up front, read, write."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from natural2nanoscale import schemas
from natural2nanoscale.data.classes import IGNORE_ID, Classes
from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.readers.gray import read_gray
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import make_folder, refuse_non_empty, save_png, write_json
from natural2nanoscale.records import describe, reason

T = TypeVar("T")
PARTS, UNLABELLED = ("train", "val", "test"), "unlabelled"  # of a data root
DOUBT = "doubt"  # folder beside predicted masks: what is doubted of them
IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
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
    transductive: bool = False  # of unlabelled slices: those of validation and test are among them

    def to_json(self) -> dict:
        """What is written; digests and what else few folders have only where there is something."""
        few = ("digests", "learned", "transductive")
        said = {name: value for name, value in vars(self).items() if value or name not in few}
        return {**said, "classes": self.classes.to_json(), "ignore_id": IGNORE_ID}

    @classmethod
    def from_json(cls, data: dict) -> DatasetInfo:
        """Of what fits `schemas.DATASET`; ValueError where that makes no sense."""
        window = data.get("intensity_window")
        if window and (len(window) != 2 or not window[0] < window[1]):
            raise ValueError(f"intensity_window is {window}, expected a grey value and a higher one")
        said = {field.name: data[field.name] for field in fields(cls) if data.get(field.name) is not None}
        window = tuple(map(float, window)) if window else None
        return cls(**said | {"classes": Classes.from_json(data["classes"]), "intensity_window": window})


@dataclass(frozen=True)
class ImageFolder:
    """A validated folder of slices. Stems are in natural order: slice_9 comes before slice_10."""

    path: Path
    info: DatasetInfo
    stems: tuple[str, ...]
    image_files: dict[str, Path]
    shapes: tuple[tuple[int, int], ...] = ()  # (height, width) of every slice, in the order of the stems
    seen: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)  # size, time of files

    def image(self, stem: str) -> np.ndarray:
        """(H,W) uint8 grey values."""
        return self._read(self.image_files[stem])

    def _read(self, file: Path, indexed: bool = False) -> np.ndarray:
        """InputError for a file that is another one than when it was first read: what was learned and what is said of
        it would differ."""
        pixels, status = read_gray(file, indexed=indexed), file.stat()
        stamp = status.st_size, status.st_mtime_ns
        if self.seen.setdefault(file, stamp) != stamp:
            raise InputError(f"{file} was replaced while it is in use: start again, or bring the old one back")
        return pixels


@dataclass(frozen=True)
class PairFolder(ImageFolder):
    """A validated folder of slices and their masks."""

    def mask(self, stem: str) -> np.ndarray:
        """(H,W) uint8 class ids, 255 = ignore."""
        return self._read(self.path / "masks" / f"{stem}.png", indexed=True)

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
    _write(path, info, items, ("images", "masks"))
    return open_pairs(path)


def write_images(path: Path, info: DatasetInfo, items: Iterable[tuple]) -> ImageFolder:
    """As `write_pairs`, without the masks, which are None: a folder of unlabelled slices."""
    _write(path, info, items, ("images",))
    return open_images(path)


def _write(path: Path, info: DatasetInfo, items: Iterable[tuple], kinds: tuple[str, ...]) -> None:
    path = Path(path)
    refuse_non_empty(path)
    path.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        make_folder(path / kind)
    digests = {}
    for stem, *pictures in items:
        for kind, pixels in zip(kinds, pictures, strict=False):
            save_png(path / kind / f"{stem}.png", pixels)
        known = pictures[2] if pictures[2:] else info.digests.get(stem)
        if known or info.intensity_window is None:
            digests[stem] = known or slice_digest(pictures[0])
    info = replace(info, digests=digests)
    write_json(path / "dataset.json", info.to_json())  # last: a folder with dataset.json is complete


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
    """Of an unfinished synthetic folder: its coming dataset.json, slices per mask, and the call that goes on."""
    info, data = _parse_info(Path(path) / GENERATION)
    return info, data.get("per_mask") or 0, data.get("call")


def _parse_info(file: Path) -> tuple[DatasetInfo, dict]:
    schema = schemas.GENERATION if file.name == GENERATION else schemas.DATASET
    data = describe(file, schema, "prepare the folder again")
    try:
        return DatasetInfo.from_json(data), data
    except (ValueError, InputError) as error:
        raise InputError(
            f"{file} is not a valid dataset description ({reason(error)}): prepare the folder again"
        ) from error


def is_picture(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def stems_of(folder: Path, fits: Callable[[Path], bool] = is_picture) -> dict[str, Path]:
    """File of every stem in a folder of pictures, in natural order; hidden files are no pictures."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir() if folder.is_dir() else []):
        if fits(file) and not file.name.startswith("."):
            if file.stem in files:
                raise InputError(f"{folder} has two pictures of the stem {file.stem!r}: remove one of them")
            files[file.stem] = file
    return dict(sorted(files.items(), key=lambda entry: natural_order(entry[0])))


def open_images(path: Path) -> ImageFolder:
    """Validate a folder of slices, with masks or without; InputError names the first file that is no 8-bit grey."""
    path = Path(path)
    info, images = read_info(path), stems_of(path / "images")
    if not images:
        raise InputError(f"{path}/images holds no PNG or TIFF picture, expected at least one: prepare it again")
    return ImageFolder(path, info, tuple(images), images, tuple(read_gray(file).shape for file in images.values()))


def open_pairs(path: Path) -> PairFolder:
    """Validate a pair folder: as `open_images`, pairing by stem, equal sizes, mask values among the classes."""
    folder = PairFolder(**vars(open_images(path)))
    path, info = folder.path, folder.info
    masks = [stem for stem, file in stems_of(path / "masks").items() if file.suffix == ".png"]
    for other, partner, missing in (
        ("image", "a mask", [stem for stem in folder.stems if stem not in masks]),
        ("mask", "an image", [stem for stem in masks if stem not in folder.stems]),
    ):
        if missing:
            raise InputError(
                f"{path} has {len(missing)} {other}(s) without {partner} of the same stem, such as {missing[0]!r}: "
                f"add {partner} for each or remove the {other}(s)"
            )
    for stem, shape in zip(folder.stems, folder.shapes, strict=True):
        mask = folder.mask(stem)
        if shape != mask.shape:
            raise InputError(
                f"{path}: image {stem!r} is {shape[1]}x{shape[0]} but its mask is "
                f"{mask.shape[1]}x{mask.shape[0]}, expected equal sizes"
            )
        counts = np.bincount(mask.ravel(), minlength=256)
        strange = [v for v in np.flatnonzero(counts) if v >= info.classes.count and v != IGNORE_ID]
        if strange:
            found = ", ".join(f"{v} ({counts[v]} px)" for v in strange[:5])
            raise InputError(
                f"{path}/masks/{stem}.png has mask values {found}, expected 0..{info.classes.count - 1} or "
                f"{IGNORE_ID} to ignore: map them with `prepare --map` or list the class in dataset.json"
            )
    return folder


def _content(folder: PairFolder, stem: str) -> bytes:
    image = folder.image(stem)
    return str(image.shape).encode() + image.tobytes() + folder.mask(stem).tobytes()


def pair_digests(folder: PairFolder) -> dict[str, str]:
    """Stem -> 16 hexadecimal digits of a sha256 over the pixels of image and mask."""
    return {stem: hashlib.sha256(_content(folder, stem)).hexdigest()[:16] for stem in folder.stems}


def fingerprint(folder: PairFolder) -> str:
    """sha256 over stems, pixels and class table: equal exactly when training would see equal data."""
    digest = hashlib.sha256(json.dumps(folder.info.classes.to_json()).encode())
    for stem in folder.stems:
        digest.update(f"{stem} ".encode() + _content(folder, stem))
    return digest.hexdigest()
