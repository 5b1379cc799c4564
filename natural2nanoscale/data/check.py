"""What a data root holds: counts, classes, grey values, and leaks between its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.data.digests import mask_hash
from natural2nanoscale.data.duplicates import near_duplicates
from natural2nanoscale.data.folders import PARTS, UNLABELLED, ImageFolder, PairFolder, open_images, open_pairs
from natural2nanoscale.data.roots import digests_of, refuse_other_classes
from natural2nanoscale.errors import InputError

NAMED = 10  # slices in one warning


@dataclass(frozen=True)
class PartSummary:
    """What a folder holds: pixel counts per class id (256,), grey values seen, a hash per stem.

    blank: stems of slices of one grey value, or without any label.
    """

    sizes: Counter
    pixels: np.ndarray
    greys: np.ndarray
    images: dict[str, bytes]
    masks: dict[str, bytes]
    blank: tuple[str, ...]


def open_root(data: Path) -> dict[str, PairFolder]:
    """The validated pair folders of a data root, or of the one pair folder that `data` itself is."""
    if not data.is_dir():
        raise InputError(
            f"{data} is no folder: make a data root with `python -m natural2nanoscale prepare` or `phantom`"
        )
    if (data / "dataset.json").is_file():
        return {data.name: open_pairs(data)}
    folders = {part: open_pairs(data / part) for part in (*PARTS, "synthetic") if (data / part).is_dir()}
    if not folders:
        raise InputError(
            f"{data} holds neither train/, val/, test/ nor a dataset.json: make a data root with "
            "`python -m natural2nanoscale prepare` or `phantom`"
        )
    first, *others = folders.values()
    for folder in others:
        refuse_other_classes(str(folder.path), folder.info.classes, str(first.path), first.info.classes)
    return folders


def summarize(folder: PairFolder) -> PartSummary:
    """Count everything in one pass over the folder, whose masks may be None."""
    sizes: Counter = Counter()
    pixels, greys = np.zeros(256, np.int64), np.zeros(256, np.int64)
    images, masks, blank = {}, {}, []
    for stem in folder.stems:
        image, mask = folder.image(stem), folder.mask(stem)
        if image.min() == image.max() or (mask is not None and mask.min() == IGNORE_ID):
            blank.append(stem)
        sizes[f"{image.shape[1]}x{image.shape[0]}"] += 1
        greys += np.bincount(image.ravel(), minlength=256)
        images[stem] = mask_hash(image)
        if mask is not None:
            pixels += np.bincount(mask.ravel(), minlength=256)
            if mask.min() < mask.max():  # masks of a single class may well be equal
                masks[stem] = mask_hash(mask)
    return PartSummary(sizes, pixels, greys, images, masks, tuple(blank))


def describe(part: str, folder: PairFolder, summary: PartSummary) -> str:
    """A few lines: count, sizes, class shares in percent, grey values."""
    sizes = ", ".join(f"{size} ({n})" for size, n in summary.sizes.most_common(4))
    more = f", {len(summary.sizes) - 4} more sizes" if len(summary.sizes) > 4 else ""
    lines = [f"{part}: {len(folder.stems)} slices, {sizes}{more}"]
    if summary.masks or summary.pixels.any():
        percent = 100 * summary.pixels / summary.pixels.sum()
        names = dict(enumerate(folder.info.classes.names)) | ({IGNORE_ID: "ignored"} if percent[IGNORE_ID] else {})
        lines.append("  classes: " + ", ".join(f"{name} {percent[i]:.2f} %" for i, name in names.items()))
    values, total = np.flatnonzero(summary.greys), summary.greys.sum()
    quantiles = np.searchsorted(np.cumsum(summary.greys) / total, (0.01, 0.5, 0.99))
    mean = (summary.greys * np.arange(256)).sum() / total
    spread = "/".join(map(str, quantiles))
    lines.append(f"  grey values: {values[0]} to {values[-1]}, mean {mean:.1f}, 1/50/99 % {spread}")
    return "\n".join(lines)


def warnings_of(folders: dict[str, PairFolder], summaries: dict[str, PartSummary]) -> list[str]:
    """What would make training or a score meaningless: leaks between parts, absent classes, flat images."""
    found = []
    for a, b in combinations(folders, 2):
        same = [stem for stem in folders[b].stems if stem in summaries[a].images]
        if same and "synthetic" not in (a, b):  # synthetic slices are named after their training masks
            found.append(f"{a} and {b} share {len(same)} stems such as {same[0]!r}: are they one slice?")
        found += _repeats(summaries[a].images, summaries[b].images, f"in {a} and {b}", "image")
        if {a, b} != {"train", "synthetic"}:
            found += _repeats(summaries[a].masks, summaries[b].masks, f"in {a} and {b}", "mask")
    for part, summary in summaries.items():
        copies = len(summary.images) - len(set(summary.images.values()))
        if copies:
            found.append(f"{part} holds {copies} images that are copies of others in it")
        if summary.blank:
            found.append(
                f"{part} has {len(summary.blank)} slices that are blank or unlabelled, as {summary.blank[0]!r}"
            )
        classes = folders[part].info.classes
        absent = [name for i, name in enumerate(classes.names) if not summary.pixels[i]]
        if absent and summary.pixels.any():
            found.append(f"{part} has no pixel of {', '.join(absent)}")
        if np.count_nonzero(summary.greys) < 16:
            found.append(f"{part} has only {np.count_nonzero(summary.greys)} grey values: was it converted well?")
        for value in (0, 255):
            share = 100 * summary.greys[value] / summary.greys.sum()
            if share > 20:
                found.append(f"{share:.0f} % of the pixels of {part} are {value}: clipped at conversion?")
    window = {folder.info.intensity_window for part, folder in folders.items() if part != "synthetic"}
    if len(window) > 1:
        found.append(f"the parts were converted by different grey windows: {sorted(map(str, window))}")
    return found


def alike_across(parts: dict[str, PairFolder]) -> list[str]:
    """The warning about slices of two parts that are more alike than neighbours are; equal ones are told elsewhere."""
    pairs = near_duplicates({part: folder for part, folder in parts.items() if part != "synthetic"})
    if not pairs:
        return []
    named = "; ".join(f"{a!r} and {b!r}" for a, b in pairs[: NAMED // 2])
    return [
        f"{len(pairs)} pairs of slices in two parts are more alike than neighbours of this stack are, such as {named}: "
        "saved twice, or shifted? scores would be too good"
    ]


def _repeats(first: dict[str, bytes], second: dict[str, bytes], where: str, kind: str) -> list[str]:
    stems = {found: stem for stem, found in first.items()}
    same = [(stems[found], stem) for stem, found in second.items() if found in stems]
    told = f"{len(same)} identical {kind}s {where}, such as {' and '.join(map(repr, same[0]))}" if same else ""
    return [f"{told}: scores would be too good"] if same else []


def tell_unlabelled(unlabelled: ImageFolder, folders: dict[str, PairFolder]) -> list[str]:
    """Print how many slices have no mask; returns a warning where some are held out and nobody said so."""
    known = set(digests_of(unlabelled).values())
    held = [digest for part in ("val", "test") if part in folders for digest in digests_of(folders[part]).values()]
    seen = sum(digest in known for digest in held)
    note = ", transductive: validation and test slices may be among them" if unlabelled.info.transductive else ""
    print(f"{UNLABELLED}: {len(unlabelled.stems)} slices without masks{note}")
    if not seen or unlabelled.info.transductive:
        return []
    return [f"{seen} validation and test slices are among the unlabelled ones: prepare these again with --unlabelled"]


def report(data: Path) -> list[str]:
    """Print the summary of a data root and its warnings; returns the warnings."""
    folders = open_root(data)
    split = next(iter(folders.values())).info.split
    said = {key: value for key, value in split.items() if key in ("rule", "gap", "seed", "group", "size")}
    if said:
        print("split: " + ", ".join(f"{key} {value}" for key, value in said.items()))
    standing = (data / UNLABELLED).is_dir()
    more = tell_unlabelled(open_images(data / UNLABELLED), folders) if standing else []
    return tell(folders, folders, more)


def tell(folders: dict[str, PairFolder], parts: dict[str, PairFolder], more: Sequence[str] = ()) -> list[str]:
    """Print summaries of folders, and warnings, with `more`, which it returns; slices of two parts are compared."""
    summaries = {name: summarize(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        print(describe(name, folder, summaries[name]))
    found = [*warnings_of(folders, summaries), *alike_across(parts), *more]
    for warning in found:
        print(f"warning: {warning}")
    if not found:
        print("no warnings")
    return found
