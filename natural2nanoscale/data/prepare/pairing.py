"""Which pages a source holds, and which mask belongs to which slice."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from PIL import Image

from natural2nanoscale.data.folders import natural_order, stems_of
from natural2nanoscale.data.prepare.names import IMAGE_WORDS, MASK_WORDS, counted_from, match_names, words_of
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.data.readers.opening import SUFFIXES, VENDORS, is_zarr, refuse_suffix, split_container
from natural2nanoscale.errors import InputError

Pair = tuple[Page, Page]  # a slice and its mask
KINDS = "PNG, TIFF, MRC, HDF5, Zarr or NumPy"


def list_pages(path: Path, reader: Reader, role: str) -> list[Page]:
    """All slices under `path` in natural order: a folder of slices and stacks, one file, or a container path.

    A lone stack gives slice_0000, slice_0001, ...; a stack in a folder gives <its stem>_0000 and so on.
    """
    file, inner = split_container(path)
    if is_folder(file):
        files, within = _files_of(file, role), f":/{inner}" if inner else ""
        return [page for stem, one in files.items() for page in reader.pages_of(Path(f"{one}{within}"), stem)]
    if not file.exists():
        raise InputError(f"{file} ({role}) does not exist: name a folder of slices, a stack or a volume ({KINDS})")
    if not file.is_dir() and file.suffix.lower() not in SUFFIXES:
        refuse_suffix(file)
    pages = reader.pages_of(path, "slice")
    stem = file.stem if not inner else f"{file.stem}_{inner.strip('/').replace('/', '_')}"
    return [replace(pages[0], stem=stem)] if len(pages) == 1 else pages


def is_folder(path: Path) -> bool:
    """Whether a path names a folder of files, and not a stack or volume."""
    return path.is_dir() and not is_zarr(split_container(path)[0])


def can_be_read(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES or is_zarr(file)


def _files_of(folder: Path, role: str) -> dict[str, Path]:
    """Readable files of a folder by stem, in natural order; hidden ones are none. Macs write accents as signs of their
    own, other systems do not: the stems are those of the latter."""
    files = {unicodedata.normalize("NFC", stem): file for stem, file in stems_of(folder, can_be_read).items()}
    others = [file for file in sorted(folder.iterdir()) if not (can_be_read(file) or file.is_dir())]
    kinds = Counter(file.suffix.lower() or "no suffix" for file in others if not file.name.startswith("."))
    vendors = [file for file in others if file.suffix.lower() in VENDORS]
    if not files:
        if vendors or folder.suffix.lower() in VENDORS:  # such as a folder of N5
            refuse_suffix((*vendors, folder)[0])
        found = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(4)) or "no file"
        raise InputError(
            f"{folder} ({role}) holds no slice that can be read ({KINDS}), found {found}: name the folder that holds "
            "the slices themselves"
        )
    if vendors:
        told = sorted({file.suffix.lower() for file in vendors})
        print(f"note: left aside in {folder}: " + ", ".join(f"{kinds[kind]} {kind}" for kind in told))
    return files


def pair_pages(
    images: list[Page], masks: list[Page], by_index: bool, only_pairs: bool, count_from: int | None
) -> list[Pair]:
    """Pairs in the images' order: by page number where each source is a single file, else by name.

    Names are equal, or have their telling part in common, which is printed. What lacks its partner is an error that
    lists some of both sides, or left out with `only_pairs`.
    """
    if by_index:
        if len(images) != len(masks):
            several = ", or pass `--one-hot` if each slice has one mask per class"
            raise InputError(
                f"{images[0].path} has {len(images)} page(s) but {masks[0].path} has {len(masks)}, expected one mask "
                f"per slice: make the stacks equally long{several if len(masks) % len(images) == 0 else ''}"
            )
        return list(zip(images, masks, strict=True))
    images, masks = _numbered_alike(images, masks, count_from), _numbered_alike(masks, images, count_from)
    of_mask = {page.stem: page for page in masks}
    partner = {page.stem: page.stem for page in images if page.stem in of_mask}
    if len(partner) < max(len(images), len(masks)):
        partner = _partners_by_common_part(images, masks, partner)
    pairs = [(page, of_mask[partner[page.stem]]) for page in images if page.stem in partner]
    taken = set(partner.values())
    lonely = [page.stem for page in images if page.stem not in partner], [stem for stem in of_mask if stem not in taken]
    if (lonely[0] or lonely[1]) and not (only_pairs and pairs):
        shown = [", ".join(side[:3]) + (", ..." if len(side) > 3 else "") or "none" for side in lonely]
        count, first, second = len(lonely[0]), [page.stem for page in images], list(of_mask)
        shifted = lonely in ((first[:count], second[-count:]), (first[-count:], second[:count]))
        others = ", or leave these out with `--only-pairs`" if pairs else ""
        others = " (do both sides count from the same number?)" if pairs and shifted else others
        raise InputError(
            f"{len(pairs)} pairs of matching names; {len(lonely[0])} images without a mask ({shown[0]}) and "
            f"{len(lonely[1])} masks without an image ({shown[1]}): give image and mask the same name{others}"
        )
    if lonely[0] or lonely[1]:
        print(f"left out without a partner: {len(lonely[0])} images and {len(lonely[1])} masks")
    return pairs


def _numbered_alike(stack: list[Page], files: list[Page], count_from: int | None) -> list[Page]:
    """The pages of one side; where they are a stack's and the other side is files, counted as the files are."""
    lone = len({page.path for page in stack}) == 1 < len(stack) and len({page.path for page in files}) > 1
    first = counted_from([page.stem for page in files], len(stack), count_from) if lone else None
    if first is None:
        return stack
    print(f"numbers in file names are taken for pages of {stack[0].path}, counted from {first}")
    stems = [page.stem.rpartition("_") for page in stack]
    return [
        replace(page, stem=f"{name}_{int(number) + first:04d}")
        for page, (name, _, number) in zip(stack, stems, strict=True)
    ]


def _partners_by_common_part(images: list[Page], masks: list[Page], equal: dict[str, str]) -> dict[str, str]:
    """Stem of the mask by that of the image, where the names' common part pairs more of them than equal names do."""
    found, told, ambiguous = match_names([page.stem for page in images], [page.stem for page in masks])
    if len(found) <= len(equal) or any(found.get(stem) != stem for stem in equal):
        return equal
    if ambiguous:
        raise InputError(
            f"the names of {len(ambiguous)} images and masks do not tell which belong together "
            f"({'; '.join(ambiguous[:10])}): give image and mask the same name"
        )
    print(f"{len(found)} pairs matched by the common part of their names, {told}")
    return found


def apart(pages: list[Page]) -> tuple[list[Page], list[Page]]:
    """Slices and masks that lie in one folder, as cell_1.png and cell_1_mask.png."""
    masks = [page for page in pages if MASK_WORDS & set(words_of(page.stem)) - IMAGE_WORDS]
    images = [page for page in pages if page not in masks]
    if not masks or not images:
        raise InputError(
            f"{pages[0].path.parent} is named by --images and by --masks, but no file name says what is a mask: "
            "put the masks in a folder of their own"
        )
    return images, masks


def one_mask_of_many(images: list[Page], masks: list[Page]) -> list[Page]:
    """One mask per slice out of files whose pages or channels are one class each, those of a slice in a row."""
    joined = []
    for _path, group in groupby(masks, lambda page: page.path):
        pages = list(group)
        slices = len(images) if len({page.path for page in masks}) == 1 else 1
        if len(pages) % slices or len(pages) == slices:
            raise InputError(
                f"{pages[0].path} has {len(pages)} masks for {slices} slices, expected one per slice and class with "
                "--one-hot: leave it out, or add the missing ones"
            )
        each = len(pages) // slices
        for start in range(0, len(pages), each):
            parts = tuple(pages[start : start + each])
            stem = f"slice_{start // each:04d}" if slices > 1 else parts[0].path.stem
            joined.append(replace(parts[0], stem=stem, parts=parts))
    return joined


def class_folders(path: Path) -> list[Path]:
    """Folders of one class each below `path`, in natural order; none where slices lie in `path` itself."""
    if not is_folder(path) or any(map(can_be_read, path.iterdir())):
        return []
    folders = [one for one in path.iterdir() if is_folder(one) and not one.name.startswith(".")]
    folders = [folder for folder in folders if any(map(can_be_read, folder.iterdir()))]
    return sorted(folders, key=lambda folder: natural_order(folder.name)) if len(folders) > 1 else []


def join_folders(folders: list[Path], reader: Reader) -> list[Page]:
    """One mask per stem out of folders that hold the mask of one class each."""
    of_stem: dict[str, list[Page]] = {}
    for folder in folders:
        for page in list_pages(folder, reader, "--masks"):
            of_stem.setdefault(page.stem, []).append(page)
    short = [stem for stem, parts in of_stem.items() if len(parts) < len(folders)]
    if short:
        raise InputError(
            f"{folders[0].parent} has no mask of {short[0]!r} in some of {', '.join(f.name for f in folders)} "
            f"({len(short)} of {len(of_stem)} lack one): add empty masks there"
        )
    return [replace(parts[0], parts=tuple(parts)) for parts in of_stem.values()]


def one_hot_names(path: Path, classes: int, rest: bool) -> tuple[str, ...]:
    """Names of the classes of masks of one class each: of their folders, or numbered; rest: pixels are in none."""
    names = tuple(folder.name for folder in class_folders(path)) or tuple(f"class_{i}" for i in range(classes))
    return ("background" if "background" not in names else "rest", *names) if rest else names


def cropped(pages: list[Page], rows: int) -> list[Page]:
    """The slices, or masks, without their lowest rows."""

    def lower(page: Page) -> Page:
        size = page.size[0], page.size[1] - rows
        return replace(page, size=size, parts=tuple(replace(part, size=size) for part in page.parts))

    low = next((page for page in pages if page.size[1] <= rows), None)
    if low:
        raise InputError(f"{low} has {low.size[1]} rows, expected more than --crop-bottom {rows}: crop fewer")
    return [lower(page) for page in pages]


def fitting(settings: Preparation, pages: list[Page]) -> list[Page]:
    """The slices that are large enough for the tiles; InputError unless the others may be left out."""
    if settings.size is None:
        huge = next((page for page in pages if page.size[0] * page.size[1] > Image.MAX_IMAGE_PIXELS), None)
        if huge:
            raise InputError(f"{huge} is {huge.extent}, too large for one slice: pass --size")
        return pages
    width, height = settings.size
    large = [page for page in pages if page.size[0] >= width and page.size[1] >= height]
    small = [page for page in pages if page not in set(large)]
    if not large:
        raise InputError(f"all {len(small)} slices are smaller than tiles of {width}x{height}: pass a smaller --size")
    if small and not settings.skip_small:
        raise InputError(
            f"{small[0]} is {small[0].extent}, smaller than the tile of {width}x{height} "
            f"({len(small)} of {len(pages)} slices are): pass a smaller --size, or --skip-small"
        )
    if small:
        print(f"left out, smaller than {width}x{height}: {', '.join(page.stem for page in small)}")
    return large


def check_sizes(pairs: list[Pair]) -> None:
    for image, mask in pairs:
        if image.size != mask.size:
            higher = image.size[1] - mask.size[1] if image.size[0] == mask.size[0] else 0
            bar = f": if these are the rows of an information bar, pass `--crop-bottom {higher}`" * (higher > 0)
            turned = ": rows and columns are exchanged, save it transposed" * (image.size == mask.size[::-1])
            raise InputError(
                f"{image} is {image.extent} but its mask {mask} is {mask.extent}, expected equal sizes{bar}{turned}"
            )
