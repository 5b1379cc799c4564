"""Which mask belongs to which slice where their names differ: by what the names have in common."""

from __future__ import annotations

import re
from collections import defaultdict

from natural2nanoscale.errors import InputError

IMAGE_WORDS = {"image", "images", "img", "imgs", "im", "raw", "em", "sem", "tem", "input", "data", "ome", "slice"}
MASK_WORDS = {
    "mask", "masks", "label", "labels", "lbl", "seg", "segmentation", "segmented", "gt", "groundtruth", "ground",
    "truth", "annotation", "annotations", "annotated", "anno", "ann", "manual", "target", "ome", "slice",
}  # fmt: skip


def words_of(stem: str) -> tuple[str, ...]:
    """Words and numbers of a name; numbers without leading zeros, so that 1 is 001."""
    words = re.findall(r"\d+|[^\W\d_]+", stem.lower())
    return tuple(str(int(word)) if word.isdecimal() else word for word in words)


def match_names(images: list[str], masks: list[str]) -> tuple[dict[str, str], str, list[str]]:
    """Mask of every image whose names have their telling part in common, how that was found, and what is ambiguous.

    nnU-Net's channel number _0000 is part of the images' names or not: what pairs more.
    """
    stripped = {stem: stem.removesuffix("_0000") for stem in images}
    ways = [{stem: stem for stem in images}] + [stripped] * all(stem.endswith("_0000") for stem in images)
    return max((_match(way, masks) for way in ways), key=lambda found: len(found[0]))


def _match(images: dict[str, str], masks: list[str]) -> tuple[dict[str, str], str, list[str]]:
    """As above, of images by the names that count.

    Words for images and masks ("image", "label") do not tell slices apart, nor does a word that all names of one side
    have and none of the other, as long as the other side has no such word.
    """
    keys = [_keys(images, IMAGE_WORDS), _keys({stem: stem for stem in masks}, MASK_WORDS)]
    words = [{word for key in side.values() for word in key} for side in keys]
    common = [set.intersection(*map(set, side.values())) if side else set() for side in keys]
    extra = [{w for w in common[i] if not w.isdecimal()} - words[1 - i] for i in (0, 1)]
    if bool(extra[0]) != bool(extra[1]):
        side = 0 if extra[0] else 1
        keys[side] = {stem: tuple(w for w in key if w not in extra[side]) for stem, key in keys[side].items()}
    groups = [defaultdict(list), defaultdict(list)]
    for group, side in zip(groups, keys, strict=True):
        for stem, key in side.items():
            group[key].append(stem)
    shared = [(stems, groups[1][key]) for key, stems in groups[0].items() if key and key in groups[1]]
    ambiguous = [f"{', '.join(a)} with {', '.join(b)}" for a, b in shared if len(a) > 1 or len(b) > 1]
    pairs = {a[0]: b[0] for a, b in shared}
    told = next((f"such as {image} with {mask}" for image, mask in pairs.items() if image != mask), "")
    return pairs, told, ambiguous


def _keys(names: dict[str, str], words: set[str]) -> dict[str, tuple[str, ...]]:
    """The words of every name without those that only say what kind of file it is."""
    keys = {stem: words_of(name) for stem, name in names.items()}
    return {stem: tuple(word for word in key if word not in words) or key for stem, key in keys.items()}


def counted_from(stems: list[str], pages: int, told: int | None) -> int | None:
    """The number, 0 or 1, that files with these names give to the first page of a stack; None if they number none.

    Unless it is told, a file that is numbered 0 or `pages`, the last page if counted from 1, must tell it.
    """
    last = [re.search(r"(\d+)\D*$", stem) for stem in stems]
    if not all(last) or told is not None:
        return told if all(last) else None
    numbers = {int(found[1]) for found in last}
    if not numbers & {0, pages}:
        raise InputError(
            f"file names such as {stems[0]!r} may count the {pages} pages of a stack from 0 or, as Fiji does, from 1: "
            "pass `--count-from 0` or `--count-from 1`"
        )
    return int(0 not in numbers)
