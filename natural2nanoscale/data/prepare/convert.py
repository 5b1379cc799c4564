"""Any EM pictures to train/, val/ and test/ pair folders: pairing, splitting, converting, tiling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.folders import UNLABELLED, DatasetInfo, write_images, write_pairs
from natural2nanoscale.data.prepare.codes import LabelRule, PageCodes
from natural2nanoscale.data.prepare.intensity import to_bytes
from natural2nanoscale.data.prepare.pairing import (
    Pair,
    apart,
    check_sizes,
    class_folders,
    cropped,
    fitting,
    is_folder,
    join_folders,
    list_pages,
    one_mask_of_many,
    pair_pages,
)
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader, readers_of
from natural2nanoscale.data.prepare.splits import assign_parts
from natural2nanoscale.data.prepare.survey import label_rule, read_masks, survey
from natural2nanoscale.data.prepare.unlabelled import unlabelled_pages
from natural2nanoscale.data.sheets import contact_sheet
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import new_folder, refuse_non_empty


def prepare(settings: Preparation) -> None:
    """Write the data root `settings.out`: a pair folder per part, and a contact sheet.

    Prints what it decides. Everything is read and checked before anything is written, and the root is
    renamed into place at the end. Raises InputError for whatever cannot be converted without guessing.
    """
    out = settings.out.resolve()
    refuse_non_empty(out)
    with readers_of(settings) as (images, masks):
        pairs, codes = read_masks(settings, find_pairs(settings, images, masks), masks)
        parts, split = assign_parts(settings, [image for image, _mask in pairs])
        used = [i for i, part in enumerate(parts) if part]
        made = conversion(settings, [pairs[i] for i in used], [parts[i] for i in used], codes, images, masks)
        more = {}
        if settings.unlabelled:
            slices = [image for image, _mask in made.pairs.values()]
            pages = unlabelled_pages(settings, slices, list(made.parts.values()), split, images)
            more = {stem: (page, None) for stem, page in zip(safe_stems(pages), pages, strict=True)}
        with new_folder(out, fresh=True) as root:
            folders = {}
            for part in dict.fromkeys(made.parts.values()):
                chosen = made.of(part)
                info = replace(made.info, split=split | {"part": part, "slices": len(chosen.pairs)})
                folders[part] = write_pairs(root / part, info, chosen.tiles(part))
            if more:
                info = replace(made.info, split=split | {"part": UNLABELLED, "slices": len(more)})
                items = replace(made, pairs=more).tiles(UNLABELLED)
                write_images(root / UNLABELLED, replace(info, transductive=settings.transductive), items)
            contact_sheet(folders, root / "contact.png")


@dataclass(frozen=True)
class Conversion:
    """Slices of files in the form of a PairFolder, each converted when it is asked for; masks may be None.

    parts: "train", "val", "test" or None by stem.
    """

    settings: Preparation
    info: DatasetInfo
    rule: LabelRule | None
    pairs: dict[str, tuple[Page, Page | None]]
    parts: dict[str, str | None]
    images: Reader
    masks: Reader

    @property
    def stems(self) -> tuple[str, ...]:
        return tuple(self.pairs)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple(image.size[::-1] for image, _mask in self.pairs.values())

    def of(self, part: str) -> Conversion:
        """The slices of one part."""
        return replace(self, pairs={stem: pair for stem, pair in self.pairs.items() if self.parts[stem] == part})

    def image(self, stem: str) -> np.ndarray:
        return to_bytes(self.images.image(self.pairs[stem][0])[0], self.info.intensity_window)

    def mask(self, stem: str) -> np.ndarray | None:
        mask = self.pairs[stem][1]
        return self.rule.apply(self.masks.mask(mask)) if mask and self.rule else None

    def tiles(self, part: str) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, str]]:
        """(stem, image, mask, digest) of every tile of a part, one slice in memory at a time."""
        window, outside, total = self.info.intensity_window, 0, 0
        for stem, (page, _mask) in self.pairs.items():
            pixels, mask = self.images.image(page)[0], self.mask(stem)
            if window:
                outside += int(((pixels < window[0]) | (pixels > window[1])).sum())
                total += pixels.size
            image = to_bytes(pixels, window)
            if self.settings.size is None:
                yield stem, image, mask, slice_digest(pixels)
                continue
            width, height = self.settings.size
            for x, y in tile_corners(image.shape, self.settings.size, self.settings.tiles):
                cut = np.s_[y : y + height, x : x + width]
                ids = None if mask is None else mask[cut]
                yield f"{stem}_y{y:04d}_x{x:04d}", image[cut], ids, slice_digest(pixels[cut])
        if total and outside / total > 0.02:
            print(
                f"note: {100 * outside / total:.1f} % of the pixels of {part} lie outside the training part's "
                "grey window and become 0 or 255: compare the parts in contact.png, or pass --window LOW,HIGH"
            )


def conversion(
    settings: Preparation, pairs: list[Pair], parts: list[str | None], codes: list[PageCodes], images: Reader,
    masks: Reader,
) -> Conversion:  # fmt: skip
    """How slices and masks become a pair folder: reads all slices once. Without `codes` of masks there are none."""
    stems = safe_stems([image for image, _mask in pairs])
    rule = label_rule(settings, codes) if codes else None
    window, pixel_size = survey(settings, pairs, parts, images)
    classes = rule.classes if rule else Classes((), ())
    info = DatasetInfo(settings.out.resolve().name, "prepared", classes, window, pixel_size)
    of_stem = [dict(zip(stems, values, strict=True)) for values in (pairs, parts)]
    return Conversion(settings, info, rule, *of_stem, images, masks)


def find_pairs(settings: Preparation, images: Reader, masks: Reader) -> list[Pair]:
    """All pairs of slice and mask, large enough for the tiles; nothing is decoded yet."""
    slices, folders = list_pages(settings.images, images, "--images"), class_folders(settings.masks)
    source = images.open(slices[-1].path)
    masks.options = replace(masks.options, shape=source.shape, said=source.said)
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
    pairs = pair_pages(slices, labels, by_index, settings.only_pairs, settings.count_from)
    rows = settings.crop_bottom  # of every slice, and of every mask that is as high as its slice
    masks_of = [cropped([mask], rows)[0] if mask.size == image.size else mask for image, mask in pairs]
    pairs = list(zip(cropped([image for image, _mask in pairs], rows), masks_of, strict=True))
    check_sizes(pairs)
    large = set(fitting(settings, [image for image, _mask in pairs]))
    return [pair for pair in pairs if pair[0] in large]


def safe_stems(pages: list[Page]) -> list[str]:
    """File stems of letters, digits and . _ - + = only, so that no name can leave its folder."""
    stems = [re.sub(r"[^\w.+=-]", "_", page.stem).lstrip(".") or "_" for page in pages]
    stems = [stem.encode()[:180].decode(errors="ignore") for stem in stems]  # names end at 255 bytes
    first: dict[str, Page] = {}
    for stem, page in zip(stems, pages, strict=True):
        if first.setdefault(stem, page) is not page:
            raise InputError(f"{page} and {first[stem]} would both be named {stem!r}: rename one of them")
    return stems


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
