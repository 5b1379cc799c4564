"""Any EM pictures to train/, val/ and test/ pair folders: pairing, splitting, converting, tiling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.folders import PARTS, UNLABELLED, DatasetInfo, write_images, write_pairs
from natural2nanoscale.data.prepare import splits
from natural2nanoscale.data.prepare.codes import LabelRule
from natural2nanoscale.data.prepare.intensity import to_bytes
from natural2nanoscale.data.prepare.pairing import (
    apart,
    check_sizes,
    class_folders,
    crop_bottom,
    fitting,
    is_folder,
    join_folders,
    list_pages,
    one_mask_of_many,
    pair_pages,
)
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader, readers_of
from natural2nanoscale.data.prepare.survey import label_rule, read_masks, survey
from natural2nanoscale.data.prepare.unlabelled import unlabelled_pages
from natural2nanoscale.data.sheets import contact_sheet
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import new_folder, refuse_non_empty

Pair = tuple[Page, Page]  # a slice and its mask


def prepare(settings: Preparation) -> None:
    """Write the data root `settings.out`: a pair folder per part, and a contact sheet.

    Prints what it decides. Everything is read and checked before anything is written, and the root is
    renamed into place at the end. Raises InputError for whatever cannot be converted without guessing.
    """
    out = settings.out.resolve()
    refuse_non_empty(out)
    with readers_of(settings) as (images, masks):
        pairs = find_pairs(settings, images, masks)
        pairs, codes = read_masks(settings, pairs, masks)
        parts, description = assign_parts(settings, pairs)
        pairs = [pair for pair, part in zip(pairs, parts, strict=True) if part]
        parts = [part for part in parts if part]
        slices = [image for image, _mask in pairs]
        stems = safe_stems(slices)
        rule = label_rule(settings, codes)
        window, pixel_size = survey(settings, pairs, parts, images)
        unlabelled = ()
        if settings.unlabelled:
            unlabelled = unlabelled_pages(settings, slices, parts, description, window, images)
        info = DatasetInfo(out.name, "prepared", rule.classes, window, pixel_size, description)

        with new_folder(out, fresh=True) as root:
            folders = {}
            for part in dict.fromkeys(parts):
                chosen = [(s, p) for s, p, of in zip(stems, pairs, parts, strict=True) if of == part]
                part_info = replace(info, split=description | {"part": part, "slices": len(chosen)})
                items = convert(settings, chosen, part, rule, window, images, masks)
                folders[part] = write_pairs(root / part, part_info, items)
            if unlabelled:
                chosen = [(stem, (page, None)) for stem, page in zip(safe_stems(unlabelled), unlabelled, strict=True)]
                items = convert(settings, chosen, UNLABELLED, rule, window, images, masks)
                split = description | {"part": UNLABELLED, "slices": len(chosen)}
                write_images(root / UNLABELLED, replace(info, split=split, transductive=settings.transductive), items)
            contact_sheet(folders, root / "contact.png")


def find_pairs(settings: Preparation, images: Reader, masks: Reader) -> list[Pair]:
    """All pairs of slice and mask, large enough for the tiles; nothing is decoded yet."""
    slices, folders = list_pages(settings.images, images, "--images"), class_folders(settings.masks)
    masks.options = replace(masks.options, shape=images.open(slices[-1].path).shape)
    if settings.images.resolve() == settings.masks.resolve():
        slices, labels = apart(slices)
    elif folders and not settings.one_hot:
        raise InputError(
            f"{settings.masks} holds the folders {', '.join(folder.name for folder in folders[:8])}: pass `--one-hot` "
            "if each has the masks of one class, or name one of them"
        )
    else:
        labels = join_folders(folders, masks) if folders else list_pages(settings.masks, masks, "--masks")
    if settings.one_hot and not folders:
        labels = one_mask_of_many(slices, labels)
    single = [len({page.path for page in pages}) == 1 for pages in (slices, labels)]
    by_index = all(single) and not is_folder(settings.images) and not is_folder(settings.masks)
    pairs = pair_pages(slices, labels, by_index, settings.only_pairs)
    pairs = crop_bottom(pairs, settings.crop_bottom)
    check_sizes(pairs)
    large = set(fitting(settings, [image for image, _mask in pairs]))
    return [pair for pair in pairs if pair[0] in large]


def assign_parts(settings: Preparation, pairs: list[Pair]) -> tuple[list[str | None], dict]:
    """Part of every pair (None: discarded as gap), and the description for dataset.json."""
    val, test, seed = settings.val, settings.test, settings.seed
    stems = [image.stem for image, _mask in pairs]
    description = {"rule": settings.rule, "val": val, "test": test}
    if settings.rule == "block":
        gap = splits.default_gap(len(pairs)) if settings.gap is None else settings.gap
        parts = splits.split_blocks(len(pairs), val, test, gap)
        description |= {"gap": gap}
        if gap == 0:
            print("note: no gap between the blocks, so neighbours are in training and in test: pass --gap 1 if you can")
    elif settings.rule == "random":
        parts = splits.split_random(stems, val, test, seed)
        description |= {"seed": seed}
    else:
        groups = splits.groups_of([image.path.name for image, _mask in pairs], settings.group)
        parts = splits.split_groups(groups, val, test, seed, settings.val_groups, settings.test_groups)
        members = {
            part: sorted({g for g, of in zip(groups, parts, strict=True) if of == part}) for part in PARTS
        }
        description |= {"seed": seed, "group": settings.group, "groups": members}
    if settings.size:
        description |= {"size": list(settings.size), "tiles": settings.tiles}
    counts = ", ".join(f"{parts.count(part)} {part}" for part in PARTS)
    print(f"split by {settings.rule}: {counts} slices" + (f", {parts.count(None)} in gaps" if None in parts else ""))
    if settings.rule == "random":
        print("note: at random, neighbours in a stack come to training and to test, which flatters the scores")
    for part, names in description.get("groups", {}).items():
        print(f"  {part}: {', '.join(names)}")
    return parts, description


def safe_stems(pages: list[Page]) -> list[str]:
    """File stems of letters, digits and . _ - + = only, so that no name can leave its folder."""
    stems = [re.sub(r"[^\w.+=-]", "_", page.stem).lstrip(".") or "_" for page in pages]
    stems = [stem.encode()[:180].decode(errors="ignore") for stem in stems]  # names end at 255 bytes
    first: dict[str, Page] = {}
    for stem, page in zip(stems, pages, strict=True):
        if first.setdefault(stem, page) is not page:
            raise InputError(f"{page} and {first[stem]} would both be named {stem!r}: rename one of them")
    return stems


def convert(
    settings: Preparation,
    chosen: list[tuple[str, tuple[Page, Page | None]]],
    part: str,
    rule: LabelRule,
    window: tuple[float, float] | None,
    images: Reader,
    masks: Reader,
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, str]]:
    """(stem, image, mask or None, digest) of every tile of a part, one slice in memory at a time."""
    outside = total = 0
    for stem, (image_page, mask_page) in chosen:
        pixels, _unequal = images.image(image_page)
        if window:
            outside += int(((pixels < window[0]) | (pixels > window[1])).sum())
            total += pixels.size
        image, mask = to_bytes(pixels, window), rule.apply(masks.mask(mask_page)) if mask_page else None
        if settings.size is None:
            yield stem, image, mask, slice_digest(pixels)
            continue
        width, height = settings.size
        for x, y in tile_corners(image.shape, settings.size, settings.tiles):
            cut = np.s_[y : y + height, x : x + width]
            part_of_mask = None if mask is None else mask[cut]
            yield f"{stem}_y{y:04d}_x{x:04d}", image[cut], part_of_mask, slice_digest(pixels[cut])
    if total and outside / total > 0.02:
        print(
            f"note: {100 * outside / total:.1f} % of the pixels of {part} lie outside the training part's "
            "grey window and become 0 or 255: compare the parts in contact.png, or pass --window LOW,HIGH"
        )


def tile_corners(shape: tuple[int, int], size: tuple[int, int], limit: int | None) -> list[tuple[int, int]]:
    """Top left (x, y) of as many tiles of (width, height) as fit side by side in (H,W), centred.

    With a limit, so many of them that lie nearest to the centre. Row by row.
    """
    (height, width), (w, h) = shape, size
    columns, rows = width // w, height // h
    left, top = (width - columns * w) // 2, (height - rows * h) // 2
    corners = [(left + column * w, top + row * h) for row in range(rows) for column in range(columns)]

    def from_centre(corner: tuple[int, int]) -> float:
        return (corner[0] + w / 2 - width / 2) ** 2 + (corner[1] + h / 2 - height / 2) ** 2

    return sorted(sorted(corners, key=from_centre)[:limit], key=lambda corner: (corner[1], corner[0]))
