"""One look at all slices and masks before anything is written: classes, grey window, pixel size, blank masks."""

from __future__ import annotations

import numpy as np

from natural2nanoscale.data.prepare.codes import LabelRule, PageCodes, codes_of
from natural2nanoscale.data.prepare.intensity import Histogram, information_bar
from natural2nanoscale.data.prepare.labels import decide_labels
from natural2nanoscale.data.prepare.pairing import Pair, one_hot_names
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.errors import InputError

MANY_CODES = 4096  # different values or colours in one mask that ask for a verdict before all are counted


def read_masks(
    settings: Preparation, pairs: list[Pair], masks: Reader
) -> tuple[list[Pair], list[PageCodes]]:
    """The pairs whose masks are annotated, and the values and colours of these; blank masks are named and left out."""
    codes, mapping = [], settings.mapping or {}
    for _image, page in pairs:
        codes.append(codes_of(page, masks.mask(page), mapping))
        if len(codes[-1].counts) > MANY_CODES:  # as it looks, refused
            decide_labels(codes, settings.classes, settings.colors, mapping, settings.labels_from)
    blank = [set(page.counts) == {0} for page in codes]
    if settings.blank == "background" or not any(blank) or all(blank):
        return pairs, codes
    named = [str(image.stem) for (image, _mask), empty in zip(pairs, blank, strict=True) if empty]
    shown = ", ".join(named[:10]) + ", ..." * (len(named) > 10)
    print(
        f"note: {len(named)} of {len(pairs)} masks hold nothing but 0 and are left out as not annotated: {shown}; pass "
        "`--blank background` if they are background"
    )
    kept = [i for i, empty in enumerate(blank) if not empty]
    return [pairs[i] for i in kept], [codes[i] for i in kept]


def label_rule(settings: Preparation, codes: list[PageCodes]) -> LabelRule:
    """How masks become class ids; prints what was decided."""
    names = settings.classes
    if settings.one_hot and not names:
        found = {value for page in codes for value in page.counts}
        names = one_hot_names(settings.masks, max(found), 0 in found)
    shift = settings.labels_from or int(settings.one_hot and all(0 not in page.counts for page in codes))
    rule = decide_labels(codes, names, settings.colors, settings.mapping, shift)
    for note in rule.notes:
        print(note)
    return rule


def survey(
    settings: Preparation, pairs: list[Pair], parts: list[str | None], images: Reader
) -> tuple[tuple[float, float] | None, float | None]:
    """Read all slices once: which grey values become 0 and 255, and the pixel size in nm if the files say it."""
    histogram, kinds, colored, sizes, ends = Histogram(), {}, [], {}, set()
    for (page, _mask), part in zip(pairs, parts, strict=True):
        pixels, unequal = images.image(page)
        kinds.setdefault(pixels.dtype, page)
        sizes.setdefault(images.pixel_size(page), page)
        ends |= {pixels.min(), pixels.max()}
        if unequal:
            colored.append(page)
        if part == "train":
            histogram.add(pixels)
        if page is pairs[0][0] and not settings.crop_bottom and (rows := information_bar(pixels)):
            print(f"note: the lowest {rows} rows of {page} look like an information bar: pass `--crop-bottom {rows}`")
    if len(kinds) > 1:
        (first, page), (second, other) = list(kinds.items())[:2]
        raise InputError(f"{page} is of type {first} but {other} of {second}: convert all slices to one type")
    if colored:
        print(f"{len(colored)} colour images such as {colored[0]} became grey by the mean of their channels")
    print(f"stored grey values: {min(ends):g} to {max(ends):g}")
    return grey_window(settings, np.dtype(np.uint8) in kinds, histogram), pixel_size_of(settings, sizes)


def pixel_size_of(settings: Preparation, sizes: dict[float | None, Page]) -> float | None:
    """--pixel-size, or what all files say; nothing where they differ."""
    if settings.pixel_size_nm is not None:
        return settings.pixel_size_nm
    if len(sizes) > 1:
        told = ", ".join(
            f"{size:g} nm ({page})" if size else f"none ({page})" for size, page in list(sizes.items())[:3]
        )
        print(f"note: the files say different pixel sizes, {told}: pass --pixel-size NM if you know it")
        return None
    found = next(iter(sizes))
    if found is not None:
        print(f"pixel size: {found:g} nm, as the files say")
    return found


def grey_window(settings: Preparation, eight_bit: bool, histogram: Histogram) -> tuple[float, float] | None:
    """The grey values that become 0 and 255; None for 8-bit slices, which stay as they are."""
    if settings.window:
        window = settings.window
    elif eight_bit and settings.percentiles is None:
        return None
    else:
        percentiles = settings.percentiles or Preparation.default_percentiles
        window = histogram.percentiles(percentiles)
        print(f"percentiles {percentiles[0]:g} and {percentiles[1]:g} of the training part:", end=" ")
    print(f"grey values {window[0]:g} to {window[1]:g} become 0 to 255")
    return window
