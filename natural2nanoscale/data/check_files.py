"""What files of the microscope are understood as: the folder that `prepare` would make of them, without making it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import PARTS, DatasetInfo, evenly_spaced
from natural2nanoscale.data.prepare.codes import LabelRule
from natural2nanoscale.data.prepare.convert import Pair, assign_parts, find_pairs, safe_stems
from natural2nanoscale.data.prepare.intensity import to_bytes
from natural2nanoscale.data.prepare.pairing import cropped, is_folder, list_pages
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader, readers_of
from natural2nanoscale.data.prepare.survey import label_rule, read_masks, survey
from natural2nanoscale.data.readers.opening import SUFFIXES, split_container

LOOKED_AT = 32  # slices, evenly spaced: a volume is understood in seconds
ROUND_TRIPS, WINDOW = 4, 512  # slices that pass a VAE, and pixels of each either way

RoundTrip = Callable[[np.ndarray], np.ndarray]  # a slice (H,W) uint8 through a VAE and back


def holds_slices(path: Path) -> bool:
    """Whether a path is a file or container of slices, or a folder of such: no data root, and no pair folder."""
    if not is_folder(path):
        return split_container(path)[0].exists()
    if (path / "dataset.json").is_file() or any((path / part).is_dir() for part in PARTS):
        return False
    return bool({file.suffix.lower() for file in path.iterdir()} & {*SUFFIXES, ".zarr"})


@dataclass(frozen=True)
class Preview:
    """Slices of files in the form of a PairFolder; each is read when it is asked for. Without a rule masks are None."""

    info: DatasetInfo
    pairs: dict[str, Pair]
    images: Reader
    masks: Reader
    rule: LabelRule | None

    @property
    def stems(self) -> tuple[str, ...]:
        return tuple(self.pairs)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple(image.size[::-1] for image, _mask in self.pairs.values())

    def image(self, stem: str) -> np.ndarray:
        return to_bytes(self.images.image(self.pairs[stem][0])[0], self.info.intensity_window)

    def mask(self, stem: str) -> np.ndarray | None:
        return self.rule and self.rule.apply(self.masks.mask(self.pairs[stem][1]))


@contextmanager
def preview(settings: Preparation, masked: bool) -> Iterator[tuple[int, Preview, dict[str, Preview]]]:
    """How many slices there are, up to LOOKED_AT of them, and these by the parts that they would be in.

    Prints what is understood. Raises InputError as `prepare` would.
    """
    with readers_of(settings) as (images, masks):
        if masked:
            pairs = find_pairs(settings, images, masks)
        else:
            pages = cropped(list_pages(settings.images, images, "--images"), settings.crop_bottom)
            pairs = [(page, page) for page in pages]
        count, slices = len(pairs), [image for image, _mask in pairs]
        tell_source(slices, images)
        parts = assign_parts(settings, pairs)[0] if masked else ["train"] * count
        chosen = evenly_spaced(list(zip(pairs, parts, safe_stems(slices), strict=True)), LOOKED_AT)
        if len(chosen) < count:
            print(f"looked at {len(chosen)} of them, evenly spaced")
        rule, classes = None, Classes.named("a", "b")  # which nothing shows
        if masked:
            kept, codes = read_masks(settings, [pair for pair, _part, _stem in chosen], masks)
            chosen = [entry for entry in chosen if entry[0] in set(kept)]
            rule = label_rule(settings, codes)
            classes = rule.classes
        window, _nm = survey(settings, [pair for pair, *_ in chosen], [part for _, part, _ in chosen], images)
        info = DatasetInfo(settings.images.name, "prepared", classes, window)
        whole = Preview(info, {stem: pair for pair, _part, stem in chosen}, images, masks, rule)
        of_part = {
            part: replace(whole, pairs={stem: pair for pair, of, stem in chosen if of == part}) for part in PARTS
        }
        yield count, whole, of_part


def tell_source(pages: Sequence[Page], images: Reader) -> None:
    """Print number, size, type and axes."""
    source = images.open(pages[0].path)
    sizes = Counter(f"{page.size[0]}x{page.size[1]}" for page in pages)
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
