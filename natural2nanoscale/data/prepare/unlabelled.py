"""Slices without masks that a training may look at: all of a source but for those that are held out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.prepare.pairing import cropped, fitting, list_pages
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.errors import InputError


def unlabelled_pages(
    settings: Preparation,
    labelled: Sequence[Page],
    parts: Sequence[str],
    description: dict,
    window: tuple[float, float] | None,
    images: Reader,
) -> list[Page]:
    """The slices of --unlabelled, read once; those that are held out are counted, and left out unless `transductive`.

    Held out is what has the pixels of a validation or test slice, what lies within the split's gap of such in the
    source's order or by the numbers in file names, and what belongs to a held-out group.
    """
    pages = list_pages(settings.unlabelled, images, "--unlabelled")
    pages = fitting(settings, cropped(pages, settings.crop_bottom))
    held = [page for page, part in zip(labelled, parts, strict=True) if part != "train"]
    digests = {_digest(images.image(page)[0]) for page in held} - {None}
    numbers = {}
    for page in held:
        numbers.setdefault(_numbered(page)[0], []).append(_numbered(page)[1])
    eight_bit = window is None or images.image(labelled[0])[0].dtype == np.uint8
    gap, left_out = description.get("gap", 0), set()
    for i, page in enumerate(pages):
        pixels, _unequal = images.image(page)
        if (pixels.dtype == np.uint8) != eight_bit:
            depth, other = ("more", "8 bits") if eight_bit else ("8 bits", "more")
            raise InputError(f"{page} has {depth} but the slices with masks have {other}: convert all to one depth")
        if _digest(pixels) in digests:
            left_out |= set(range(i - gap, i + gap + 1)) & set(range(len(pages)))
        name, number = _numbered(page)
        if any(abs(number - other) <= gap for other in numbers.get(name, ())) or _in_group(page, description):
            left_out.add(i)
    if settings.transductive or not left_out:
        also = f", {len(left_out)} of them validation or test slices or next to such" if left_out else ""
        print(f"unlabelled: {len(pages)} slices{also}")
        return pages
    near = f", or lie within {gap} of such" if gap else ""
    kept = len(pages) - len(left_out)
    print(f"unlabelled: {kept} slices; left out {len(left_out)} that are validation or test{near}")
    if len(left_out) == len(pages):
        raise InputError(
            f"all {len(pages)} slices of {settings.unlabelled} are validation or test slices or next to such: name "
            "others with --unlabelled, or pass `--transductive` if training may see them"
        )
    return [page for i, page in enumerate(pages) if i not in left_out]


def _digest(pixels: np.ndarray) -> str | None:
    """None for slices of one grey value, which are equal by chance."""
    return slice_digest(pixels) if np.ptp(pixels) else None


def _numbered(page: Page) -> tuple[object, int]:
    """A name without its last number, and that number; for a page of a stack the stack and the place in it."""
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", page.stem)
    if page.pages > 1 or not match:
        return page.path.resolve(), page.index
    return (match[1], match[3]), int(match[2])


def _in_group(page: Page, description: dict) -> bool:
    """Whether a file name tells a group that is held out."""
    found = re.search(description["group"], page.path.name) if "group" in description else None
    return bool(found) and any(found[1] in description["groups"][part] for part in ("val", "test"))
