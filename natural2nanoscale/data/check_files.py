"""What files of the microscope are understood as, before anything is made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.folders import PARTS, evenly_spaced
from natural2nanoscale.data.prepare.codes import LabelRule
from natural2nanoscale.data.prepare.convert import find_pairs
from natural2nanoscale.data.prepare.intensity import Histogram, information_bar, to_bytes
from natural2nanoscale.data.prepare.pairing import crop_bottom, is_folder, list_pages
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.data.prepare.survey import grey_window, label_rule, read_masks
from natural2nanoscale.data.readers.opening import SUFFIXES, split_container
from natural2nanoscale.data.sheets import colored, overlay, sheet

LOOKED_AT = 32  # slices, evenly spaced: a volume is understood in seconds
SHOWN = 6  # on the contact sheet
ROUND_TRIPS, WINDOW = 4, 512  # slices that pass a VAE, and pixels of each either way

RoundTrip = Callable[[np.ndarray], np.ndarray]  # a slice (H,W) uint8 through a VAE and back


def holds_slices(path: Path) -> bool:
    """Whether a path is a file or container of slices, or a folder of such: no data root, and no pair folder."""
    if not is_folder(path):
        return split_container(path)[0].exists()
    if (path / "dataset.json").is_file() or any((path / part).is_dir() for part in PARTS):
        return False
    return bool({file.suffix.lower() for file in path.iterdir()} & {*SUFFIXES, ".zarr"})


def report_files(
    settings: Preparation, masked: bool, contact: Path, round_trip: RoundTrip | None = None
) -> tuple[int, list[str]]:
    """Print what the slices, and with `masked` the masks, are understood as, and write a contact sheet.

    Returns how many there are, and what should be looked at. Raises InputError as `prepare` would.
    """
    masks = Reader(settings.max_pixels, None, settings.axes, settings.one_hot, settings.alpha, True)
    with Reader(settings.max_pixels, settings.channel, settings.axes) as images, masks:
        if masked:
            pairs = find_pairs(settings, images, masks)
        else:
            pages = list_pages(settings.images, images, "--images")
            pairs = [(page, page) for page in pages]
            pairs = crop_bottom(pairs, settings.crop_bottom) if settings.crop_bottom else pairs
        tell_source(pairs[0][0], [page for page, _ in pairs], images)
        count, pairs, codes = len(pairs), evenly_spaced(pairs, LOOKED_AT), []
        if len(pairs) < count:
            print(f"looked at {len(pairs)} of them, evenly spaced")
        if masked:
            pairs, codes = read_masks(settings, pairs, masks)
        rule = label_rule(settings, codes) if masked else None
        window, warnings = look_at([page for page, _ in pairs], settings, images)
        warnings += tell_classes(pairs, masks, rule) if rule else []
        shown = []
        for page, mask in evenly_spaced(pairs, SHOWN):
            grey = to_bytes(images.image(page)[0], window)
            ids = rule.apply(masks.mask(mask)) if rule else None
            shown.append([grey, colored(ids, rule.classes), overlay(grey, ids, rule.classes)] if rule else [grey])
    sheet(shown, contact, ["image", "mask", "overlay"][: len(shown[0])])
    if round_trip:
        tell_round_trip([row[0] for row in shown], round_trip)
    return count, warnings


def tell_source(first: Page, pages: Sequence[Page], images: Reader) -> None:
    """Print number, size, type, axes and pixel size."""
    source = images.open(first.path)
    sizes = Counter(f"{page.size[0]}x{page.size[1]}" for page in pages)
    told = ", ".join(f"{size} ({n})" for size, n in sizes.most_common(4)) + ", more sizes" * (len(sizes) > 4)
    print(f"{len(pages)} slices, {told}, {source.kind} of {source.bits} bits, {source.dtype}")
    layout = getattr(source, "layout", None)
    if layout:
        print(f"axes {layout.axes} of {' x '.join(map(str, source.shape))}, as understood from {first.path}")
    nm = images.pixel_size(first)
    print(f"pixel size: {nm:g} nm" if nm else "pixel size: the file does not say it")


def look_at(
    pages: Sequence[Page], settings: Preparation, images: Reader
) -> tuple[tuple[float, float] | None, list[str]]:
    """Print grey values, and what they become; returns the window, and warnings of blank and repeated slices."""
    histogram, blank, digests, lowest, highest, kinds = Histogram(), [], {}, [], [], set()
    for page in pages:
        pixels, _ = images.image(page)
        histogram.add(pixels)
        kinds.add(pixels.dtype == np.uint8)
        lowest.append(pixels.min())
        highest.append(pixels.max())
        if lowest[-1] == highest[-1]:
            blank.append(page.stem)
        else:
            digests.setdefault(slice_digest(pixels), []).append(page.stem)
        if page is pages[0]:
            rows = 0 if settings.crop_bottom else information_bar(pixels)
    print(f"grey values: {min(lowest):g} to {max(highest):g}")
    window = grey_window(settings, True in kinds, histogram)
    same = [stems for stems in digests.values() if len(stems) > 1]
    warnings = []
    if len(kinds) > 1:
        warnings.append("some slices have 8 bits and others more: convert all to one depth")
    if rows:
        warnings.append(f"the lowest {rows} rows look like an information bar: pass `--crop-bottom {rows}`")
    if blank:
        warnings.append(f"{len(blank)} slices are blank, such as {blank[0]!r}: leave them out")
    if same:
        warnings.append(f"{len(same)} slices are there more than once, such as {' and '.join(map(repr, same[0][:2]))}")
    return window, warnings


def tell_classes(pairs: Sequence[tuple[Page, Page]], masks: Reader, rule: LabelRule) -> list[str]:
    """Print the share of every class; returns warnings of classes that never occur."""
    pixels = sum(np.bincount(rule.apply(masks.mask(mask)).ravel(), minlength=256) for _, mask in pairs)
    names = dict(enumerate(rule.classes.names)) | ({IGNORE_ID: "ignored"} if pixels[IGNORE_ID] else {})
    print("classes: " + ", ".join(f"{name} {100 * pixels[i] / pixels.sum():.2f} %" for i, name in names.items()))
    return [f"no pixel looked at is {name}" for i, name in names.items() if not pixels[i]]


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
