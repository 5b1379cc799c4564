"""Slices without masks that a training may look at: all of a source but for those that are held out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.prepare.pairing import cropped, fitting, list_pages
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.errors import InputError


def unlabelled_pages(
    settings: Preparation, labelled: Sequence[Page], parts: Sequence[str], split: dict, images: Reader
) -> list[Page]:
    """The slices of --unlabelled, read once; those that are held out are counted, and left out unless `transductive`.

    Held out is what has the pixels of a validation or test slice, what lies within the split's gap of such in the
    source's order or by the numbers in file names, and what belongs to a held-out group. split: of `assign_parts`.
    """
    expected = images.image(labelled[0])[0].dtype
    pages = list_pages(settings.unlabelled, images, "--unlabelled")
    pages = fitting(settings, cropped(pages, settings.crop_bottom))
    held = [page for page, part in zip(labelled, parts, strict=True) if part != "train"]
    digests = {_digest(images.image(page)[0]) for page in held} - {None}
    numbers, gap, left_out = defaultdict(list), split.get("gap", 0), set()
    for name, number in map(_numbered, held):
        numbers[name].append(number)
    for i, page in enumerate(pages):
        pixels, _unequal = images.image(page)
        if pixels.dtype != expected:
            raise InputError(
                f"{page} is of type {pixels.dtype} but the slices with masks of {expected}: convert all to one type"
            )
        name, number = _numbered(page)
        if _digest(pixels) in digests:
            left_out |= {*range(i - gap, i + gap + 1)} & {*range(len(pages))}
        if any(abs(number - other) <= gap for other in numbers[name]) or _in_group(page, split):
            left_out.add(i)
    kept = [page for i, page in enumerate(pages) if settings.transductive or i not in left_out]
    if not kept:
        raise InputError(
            f"all {len(pages)} slices of {settings.unlabelled} are validation or test slices or next to such: name "
            "others with --unlabelled, or pass `--transductive` if training may see them"
        )
    near = f"are validation or test slices{f', or lie within {gap} of such' if gap else ''}"
    verb = "held out and kept" if settings.transductive else "left out"
    print(f"unlabelled: {len(kept)} slices" + (f"; {verb}: {len(left_out)} that {near}" if left_out else ""))
    return kept


def _digest(pixels: np.ndarray) -> str | None:
    """None for slices of one grey value, which are equal by chance."""
    return slice_digest(pixels) if np.ptp(pixels) else None


def _numbered(page: Page) -> tuple[object, int]:
    """A name without its last number, and that number; for a page of a stack the stack and the place in it."""
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", page.stem)
    if page.pages > 1 or not match:
        return page.path.resolve(), page.index
    return (match[1], match[3]), int(match[2])


def _in_group(page: Page, split: dict) -> bool:
    """Whether a file name tells a group that is held out."""
    found = re.search(split["group"], page.path.name) if "group" in split else None
    return bool(found) and any(found[1] in split["groups"][part] for part in ("val", "test"))
