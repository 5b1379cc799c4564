"""Which pages a source holds, and which mask belongs to which slice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from natural2nanoscale.data.folders import IMAGE_SUFFIXES, stems_of
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.errors import InputError


def list_pages(path: Path, reader: Reader, role: str) -> list[Page]:
    """All slices under `path` in natural order: a folder of single-page files and stacks, or one file.

    A lone stack gives slice_0000, slice_0001, ...; a stack in a folder gives <its stem>_0000 and so on.
    """
    if path.is_dir():
        files = stems_of(path)
        if not files:
            others = Counter(file.suffix.lower() or "no suffix" for file in path.iterdir() if file.is_file())
            found = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(4)) or "no file"
            raise InputError(
                f"{path} ({role}) holds no PNG or TIFF picture, found {found}: name the folder that holds "
                "the slices themselves, saved as .png, .tif or .tiff"
            )
        return [page for stem, file in files.items() for page in reader.pages_of(file, stem)]
    if not path.exists():
        raise InputError(f"{path} ({role}) does not exist: name a folder of PNG or TIFF slices, or a TIFF stack")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{path} ({role}) is no folder, .png, .tif or .tiff file: convert it to one of these")
    pages = reader.pages_of(path, "slice")
    return [Page(path.stem, path, 0, 1, pages[0].size)] if len(pages) == 1 else pages


def pair_pages(images: list[Page], masks: list[Page], by_index: bool, only_pairs: bool) -> list[tuple[Page, Page]]:
    """Pairs of equal stem, in the images' order; by page number where each source is a single file.

    What lacks its partner is an error that lists some of both sides, or left out with `only_pairs`.
    """
    if by_index:
        if len(images) != len(masks):
            raise InputError(
                f"{images[0].path} has {len(images)} page(s) but {masks[0].path} has {len(masks)}, expected "
                "one mask per slice: make the stacks equally long"
            )
        return list(zip(images, masks, strict=True))
    of_mask = {page.stem: page for page in masks}
    stems = {page.stem for page in images}
    pairs = [(page, of_mask[page.stem]) for page in images if page.stem in of_mask]
    lonely = (
        [s for s in (p.stem for p in images) if s not in of_mask],
        [s for s in of_mask if s not in stems],
    )
    if (lonely[0] or lonely[1]) and not (only_pairs and pairs):
        shown = [", ".join(side[:3]) + (", ..." if len(side) > 3 else "") or "none" for side in lonely]
        raise InputError(
            f"{len(pairs)} pairs of equal stem; {len(lonely[0])} images without a mask ({shown[0]}) and "
            f"{len(lonely[1])} masks without an image ({shown[1]}): give image and mask the same name"
            + (", or leave these out with --only-pairs" if pairs else "")
        )
    if lonely[0] or lonely[1]:
        print(f"left out without a partner: {len(lonely[0])} images and {len(lonely[1])} masks")
    return pairs


def check_sizes(pairs: list[tuple[Page, Page]]) -> None:
    for image, mask in pairs:
        if image.size != mask.size:
            raise InputError(
                f"{image} is {image.size[0]}x{image.size[1]} but its mask {mask} is "
                f"{mask.size[0]}x{mask.size[1]}, expected equal sizes"
            )
