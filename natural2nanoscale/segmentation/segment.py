"""What all of this is for: masks of slices that nobody has annotated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from natural2nanoscale.checkpoints import refuse_changes
from natural2nanoscale.data.folders import DatasetInfo, evenly_spaced
from natural2nanoscale.data.prepare.pairing import cropped, list_pages
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.data.prepare.survey import pixel_size_of
from natural2nanoscale.data.readers.base import ReadOptions
from natural2nanoscale.data.sheets import colored, overlay, sheet
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import make_folder, new_file, save_png, sha256, write_json
from natural2nanoscale.records import read_config, read_lines
from natural2nanoscale.runs import RunFolder, open_run, refuse_begun
from natural2nanoscale.schemas import SEGMENT_ROW
from natural2nanoscale.segmentation.evaluation import trained_seeds
from natural2nanoscale.segmentation.greys import RULES, grey_rule, images_of, read_slice, strips
from natural2nanoscale.segmentation.inference import predict_bands
from natural2nanoscale.segmentation.masks import assemble, write_areas
from natural2nanoscale.segmentation.settings import Segmentation
from natural2nanoscale.segmentation.unet import WEIGHTS_NAME, UNet, UNetInfo, load_unet
from natural2nanoscale.signals import Interrupted, StopSignal

SHOWN = 6  # slices on the contact sheet


def segment_slices(settings: Segmentation, device: torch.device) -> None:
    """A mask for every slice of a folder, stack or volume; makes only what is missing in `settings.out`.

    Raises InputError for unusable slices, of another pixel size among them, and Interrupted after a signal.
    """
    folders = trained_seeds(settings.run)
    networks = [load_unet(folder, device) for folder in folders]
    models, info = [model for model, _ in networks], networks[0][1]
    images, described = images_of(settings.images)
    options = ReadOptions(settings.max_pixels, settings.channel, settings.axes, flip_y=settings.flip_y)
    with Reader(options) as reader:
        pages = list_slices(images, settings, reader)
        stamps = {page.stem: stamp(page) for page in pages}  # before they are read: one replaced since is made anew
        pixel_size = slice_pixel_size(described, settings, pages, reader)
        refuse_other_scale(settings, pixel_size, info.pixel_size_nm)
        passed = described and described.intensity_window
        rule = grey_rule(reader.image(pages[0])[0].dtype == np.uint8, info.intensity_window, passed)
        names = ("channel", "axes", "crop_bottom", "flip_y", "rescale", "flips")
        how = {n: getattr(settings, n) for n in names if getattr(settings, n) != getattr(Segmentation, n)}
        config = {
            "kind": "masks",
            "settings": {"images": str(images.resolve()), "grey": rule} | how,
            "networks": {folder.parent.name: sha256(folder / WEIGHTS_NAME) for folder in folders},
            "classes": info.classes.to_json(),
        }
        run, rows = open_masks(settings, config)
        mine = pages[settings.shard[0] - 1 :: settings.shard[1]] if settings.shard else pages
        missing = [page for page in mine if not made(settings, page, rows)]
        print(f"{len(mine)} slices, {len(missing)} to segment, by {len(models)} U-Net(s)")
        print(f"on {device}, in {models[0].precision}")
        print(RULES[rule].format(*(info.intensity_window or ())))
        with StopSignal() as stop, tqdm(missing, desc="segmenting", unit="slice") as bar:
            for count, page in enumerate(bar):
                if stop.requested:
                    to_go = f"with {len(missing) - count} slices to go"
                    raise Interrupted(f"{to_go}: the same command goes on", stop.number)
                grey, clipped = read_slice(reader, page, info, rule)
                mask = segment_slice(models, grey, settings, page)
                if settings.overlay:
                    tinted = np.concatenate([overlay(grey[rows_], mask[rows_], info.classes) for rows_ in strips(grey)])
                    save_png(file_of(settings, page, "overlays"), tinted)
                save_png(file_of(settings, page), mask)
                pixels = [int((mask == i).sum()) for i in range(info.classes.count)]
                row = {"image": page.stem, "file": stamps[page.stem], "pixels": pixels, "clipped": clipped}
                rows[page.stem] = row | {"sha256": sha256(file_of(settings, page))}
                run.log(rows[page.stem])
        if settings.shard:
            print("once all shards are made, the same call without --shard adds areas.csv and contact.png")
            return
        show_masks(settings, pages, reader, info, rule)
    finish(settings, pages, rows, info, pixel_size)


def list_slices(images: Path, settings: Segmentation, reader: Reader) -> list[Page]:
    """All slices of the source, without the rows that are cut off."""
    pages = list_pages(images, reader, "--images")
    twice = [stem for stem, count in Counter(page.stem for page in pages).items() if count > 1]
    if twice:
        raise InputError(f"{settings.images} holds several slices that are named {twice[0]!r}: rename one of them")
    if settings.format != "png" and len({page.size for page in pages}) > 1:
        raise InputError(f"--format {settings.format} needs slices of one size, those of {settings.images} differ")
    return cropped(pages, settings.crop_bottom)


def slice_pixel_size(
    described: DatasetInfo | None, settings: Segmentation, pages: Sequence[Page], reader: Reader
) -> float | None:
    """Nanometres per pixel of the slices: as given, as the pair folder they lie in says, or as all files say."""
    if settings.pixel_size_nm is None and described:
        return described.pixel_size_nm
    first = {page.path: page for page in reversed(pages)}
    return pixel_size_of(settings, {reader.pixel_size(page): page for page in first.values()})


def refuse_other_scale(settings: Segmentation, pixel_size: float | None, learned: float | None) -> None:
    """Raise InputError where slices, rescaled as asked, are more than a tenth coarser or finer than those of the
    training set; nothing is known where either does not say its pixel size."""
    if pixel_size and learned and not 1 / 1.1 <= pixel_size / settings.rescale / learned <= 1.1:
        raise InputError(
            f"{settings.images} has {pixel_size:g} nm per pixel, but the U-Nets learned from {learned:g} nm: pass "
            f"`--rescale {pixel_size / learned:.3g}`, or --pixel-size NM if the file says it wrongly"
        )


def open_masks(settings: Segmentation, config: dict) -> tuple[RunFolder, dict[str, dict]]:
    """The run folder that logs the call, and all lines so far by slice.

    Shards log on their own, so that they may run at the same time; all masks lie together.
    """
    out, path = settings.out, settings.out
    others = sorted(file.parent for file in out.glob("shards/*/config.json"))
    begun = (out / "config.json").is_file()
    if settings.shard:
        if not (begun or others):
            refuse_begun(out)
        else:
            first = out if begun else others[0]  # whose masks these lie beside
            refuse_changes(first, read_config(first), config, (), "name another folder with --out")
        path = out / "shards" / "{}-of-{}".format(*settings.shard)
    elif others and not begun:
        write_json(out / "config.json", read_config(others[0]))
    run = open_run(path, config, (path / "config.json").is_file())
    run.drop_log_after(0)  # rows have no step: this only drops a line that a kill cut short
    same = [other for other in {out, *others} if all(read_config(other).get(key) == config[key] for key in config)]
    logs = [row for folder in [*same, path] for row in read_lines(folder / "log.jsonl", SEGMENT_ROW)]
    for kind in kinds(settings):
        make_folder(out / kind)
    return run, {row["image"]: row for row in logs if len(row["pixels"]) == len(config["classes"])}


def kinds(settings: Segmentation) -> list[str]:
    """The folders that get a file per slice."""
    return ["masks"] + ["overlays"] * settings.overlay + ["probabilities"] * settings.probabilities


def file_of(settings: Segmentation, page: Page, kind: str = "masks") -> Path:
    """Where a slice's file of one of `kinds` lies."""
    return settings.out / kind / f"{page.stem}.{'npy' if kind == 'probabilities' else 'png'}"


def segment_slice(models: Sequence[UNet], grey: np.ndarray, settings: Segmentation, page: Page) -> np.ndarray:
    """Grey values (H,W) uint8 -> class ids (H,W) uint8; its probabilities are written where they are asked for.

    With `rescale` the networks see the slice at that size, and each pixel takes the answer that lies where it does.
    """
    height, width = grey.shape
    seen = grey
    if settings.rescale != 1:
        size = [max(1, round(length * settings.rescale)) for length in (width, height)]
        seen = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    rows, columns = (
        ((np.arange(length) + 0.5) * of / length).astype(int) for length, of in zip(grey.shape, seen.shape, strict=True)
    )
    seen = torch.tensor(seen, device=next(models[0].parameters()).device)
    mask, shape = np.empty(grey.shape, np.uint8), (models[0].classes, height, width)
    with ExitStack() as stack:
        if settings.probabilities:
            room = 2 * int(np.prod(shape, dtype=np.int64))
            file = stack.enter_context(new_file(file_of(settings, page, "probabilities"), room))
            written = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        for top, band in predict_bands(models, seen[None], settings.flips):
            lines = slice(*np.searchsorted(rows, (top, top + band.shape[2])))
            likeliest = band[0].argmax(0).to(torch.uint8).cpu().numpy()
            mask[lines] = likeliest[rows[lines] - top][:, columns]
            if settings.probabilities:
                written[:, lines] = band[0].cpu().numpy()[:, rows[lines] - top][..., columns]
        if settings.probabilities:
            written.flush()
            del written  # Windows renames no file that is mapped
    return mask


def show_masks(settings: Segmentation, pages: Sequence[Page], reader: Reader, info: UNetInfo, rule: str) -> None:
    """contact.png: a few slices, their masks and overlays."""
    pictures = []
    with Reader(ReadOptions(settings.max_pixels)) as masks:
        for page in evenly_spaced(pages, SHOWN):
            grey, mask = read_slice(reader, page, info, rule)[0], read_mask(masks, file_of(settings, page))
            step = max(1, grey.shape[1] // 1024)  # the sheet is small
            grey, mask = grey[::step, ::step], mask[::step, ::step]
            pictures.append([grey, colored(mask, info.classes), overlay(grey, mask, info.classes)])
    sheet(pictures, settings.out / "contact.png", ["image", "mask", "overlay"], width=448)


def finish(
    settings: Segmentation, pages: Sequence[Page], rows: dict[str, dict], info: UNetInfo, pixel_size: float | None
) -> None:
    """What is made of all masks together, and what is said of them."""
    out = settings.out
    write_areas(out / "areas.csv", [(p.stem, rows[p.stem]["pixels"]) for p in pages], info.classes, pixel_size)
    pixels = np.sum([rows[page.stem]["pixels"] for page in pages], axis=0)  # (K,)
    for name, share in zip(info.classes.names, pixels / pixels.sum(), strict=True):
        print(f"{name:>20}: {100 * share:.2f} % of all pixels")
    clipped = sum(rows[page.stem]["clipped"] for page in pages) / pixels.sum()
    if clipped > 0.02:
        print(f"note: {100 * clipped:.1f} % of the pixels lie outside the grey values of the training set and became 0")
        print("      or 255: slices of another scale are another task, look at the contact sheet")
    if settings.format != "png":
        files, (width, height) = [file_of(settings, page) for page in pages], pages[0].size
        with Reader(ReadOptions(settings.max_pixels)) as masks:
            shape = len(pages), height, width
            print(assemble(out, settings.format, lambda i: read_mask(masks, files[i]), shape, pixel_size))
    print(f"masks of class ids in {out}/masks; look at {out}/contact.png; areas per slice and class in areas.csv")


def read_mask(reader: Reader, file: Path) -> np.ndarray:
    """Class ids (H,W) uint8 of a mask of ours."""
    return reader.read(reader.pages_of(file, file.stem)[0])[1]


def stamp(page: Page) -> list[int]:
    """Size and time of a slice's file: what tells a new one under an old name."""
    status = page.file.stat()
    return [status.st_size, status.st_mtime_ns]


def made(settings: Segmentation, page: Page, rows: dict[str, dict]) -> bool:
    """Whether all that is asked for is there, the mask as it was written, and was made from this very file."""
    row = rows.get(page.stem)
    there = all(file_of(settings, page, kind).is_file() for kind in kinds(settings))
    return bool(row) and row["file"] == stamp(page) and there and row.get("sha256") == sha256(file_of(settings, page))
