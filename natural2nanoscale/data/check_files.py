"""What files of the microscope are understood as: the folder that `prepare` would make of them, without making it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from natural2nanoscale.cli import DATA
from natural2nanoscale.data.folders import PARTS, evenly_spaced
from natural2nanoscale.data.prepare.convert import Conversion, conversion, find_pairs
from natural2nanoscale.data.prepare.pairing import can_be_read, cropped, is_folder, list_pages
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader, readers_of
from natural2nanoscale.data.prepare.splits import assign_parts
from natural2nanoscale.data.prepare.survey import read_masks

LOOKED_AT = 32  # slices, evenly spaced: a volume is understood in seconds
ROUND_TRIPS, WINDOW = 4, 512  # slices that pass a VAE, and pixels of each either way

RoundTrip = Callable[[np.ndarray], np.ndarray]  # a slice (H,W) uint8 through a VAE and back


def holds_slices(path: Path) -> bool:
    """Whether a path should be a file, container or folder of slices: no data root or pair folder, nor where the
    default one would be."""
    if is_folder(path) and ((path / "dataset.json").is_file() or any((path / part).is_dir() for part in PARTS)):
        return False
    return path != DATA or (is_folder(path) and any(map(can_be_read, path.iterdir())))


@contextmanager
def preview(settings: Preparation, masked: bool) -> Iterator[tuple[int, Conversion]]:
    """How many slices there are, and up to LOOKED_AT of them as `prepare` would convert them.

    Prints what is understood. Raises InputError as `prepare` would.
    """
    with readers_of(settings) as (images, masks):
        if masked:
            pairs = find_pairs(settings, images, masks)
        else:
            pages = cropped(list_pages(settings.images, images, "slices"), settings.crop_bottom)
            pairs = [(page, page) for page in pages]
        count, codes = len(pairs), []
        tell_source([image for image, _mask in pairs], images)
        if masked and count <= LOOKED_AT:  # as in `prepare`, blank masks are left out before the split
            pairs, codes = read_masks(settings, pairs, masks)
        slices = [image for image, _mask in pairs]
        parts = assign_parts(settings, slices)[0] if masked else ["train"] * count
        part_of = dict(zip(slices, parts, strict=True))
        if count > LOOKED_AT:
            pairs = looked_at = evenly_spaced(pairs, LOOKED_AT)
            print(f"looked at {len(pairs)} of them, evenly spaced")
            if masked:
                pairs, codes = read_masks(settings, looked_at, masks)
            if len(pairs) < len(looked_at):
                print(f"note: the split above is of all {count} slices, `prepare` splits those with masks alone")
        yield count, conversion(settings, pairs, [part_of[image] for image, _mask in pairs], codes, images, masks)


def tell_source(pages: Sequence[Page], images: Reader) -> None:
    """Print number, size, type and axes."""
    source = images.open(pages[0].path)
    sizes = Counter(page.extent for page in pages)
    told = ", ".join(f"{size} ({n})" for size, n in sizes.most_common(4)) + ", more sizes" * (len(sizes) > 4)
    print(f"{len(pages)} slices, {told}, {source.kind} of {source.bits} bits, {source.dtype}")
    layout = getattr(source, "layout", None)
    if layout:
        print(f"axes {layout.axes} of {' x '.join(map(str, source.shape))}, as understood from {pages[0].path}")


def tell_round_trip(slices: Sequence[np.ndarray], round_trip: RoundTrip) -> None:
    """Print what a VAE keeps of slices (H,W) uint8, by the middle of a few: no ControlNet draws what it loses."""
    errors = []
    for image in evenly_spaced(slices, ROUND_TRIPS):
        size = [min(length, WINDOW) // 8 * 8 for length in image.shape]
        top, left = ((length - part) // 2 for length, part in zip(image.shape, size, strict=True))
        part = image[top : top + size[0], left : left + size[1]]
        if part.size:
            errors.append(np.square(round_trip(part).astype(float) - part).mean())
    if errors:
        psnr = [f"{10 * np.log10(255**2 / max(error, 1e-6)):.1f} dB" for error in (np.mean(errors), max(errors))]
        off = np.mean(errors) ** 0.5
        print(f"the VAE of the backbone keeps {psnr[0]} (PSNR; {psnr[1]} at worst): {off:.1f} grey levels are lost")
