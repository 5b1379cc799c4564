"""What all of this is for: masks of slices that nobody has annotated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from natural2nanoscale.data.folders import evenly_spaced, read_info
from natural2nanoscale.data.prepare.intensity import to_bytes
from natural2nanoscale.data.prepare.pairing import list_pages
from natural2nanoscale.data.prepare.sources import Page, Reader
from natural2nanoscale.data.sheets import colored, overlay, sheet
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import make_folder, save_png, sha256
from natural2nanoscale.records import read_lines
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.schemas import SEGMENT_ROW
from natural2nanoscale.segmentation.evaluation import trained_seeds
from natural2nanoscale.segmentation.inference import predict_mask
from natural2nanoscale.segmentation.unet import WEIGHTS_NAME, UNetInfo, load_unet
from natural2nanoscale.signals import Interrupted, StopSignal

SHOWN = 6  # slices on the contact sheet


def segment_slices(unets: Path, images: Path, out: Path, device: torch.device, max_pixels: int) -> None:
    """A mask for every slice of a folder or stack by the U-Nets of a run; makes only what is missing in `out`.

    Raises InputError for unusable slices, of which none has more than `max_pixels`, and Interrupted after a signal.
    """
    folders = trained_seeds(unets)
    networks = [load_unet(folder, device) for folder in folders]
    models, info = [model for model, _ in networks], networks[0][1]
    with Reader(max_pixels) as reader, Reader(max_pixels) as masks:
        images = images / "images" if (images / "dataset.json").is_file() else images
        pages = list_pages(images, reader, "--images")
        twice = [stem for stem, count in Counter(page.stem for page in pages).items() if count > 1]
        if twice:
            raise InputError(f"{images} holds several slices that are named {twice[0]!r}: rename one of them")
        rule = grey_rule(reader.image(pages[0])[0].dtype == np.uint8, info.intensity_window, converted_window(images))
        config = {
            "kind": "masks",
            "settings": {"images": str(images.resolve()), "grey": rule},
            "networks": {folder.parent.name: sha256(folder / WEIGHTS_NAME) for folder in folders},
            "classes": info.classes.to_json(),
        }
        run = open_run(out, config, (out / "config.json").is_file(), at_once=False)
        run.drop_log_after(0)  # rows have no step: this only drops a line that a kill cut short
        make_folder(run.path / "masks")
        rows = read_lines(run.path / "log.jsonl", SEGMENT_ROW)
        rows = {row["image"]: row for row in rows if len(row["pixels"]) == info.classes.count}
        missing = [page for page in pages if not made(run, page, rows)]
        print(f"{len(pages)} slices, {len(missing)} to segment, by {len(models)} U-Net(s)")
        print(f"on {device}, in {models[0].precision}")
        print(RULES[rule].format(*(info.intensity_window or ())))
        with StopSignal() as stop, tqdm(missing, desc="segmenting", unit="slice") as bar:
            for count, page in enumerate(bar):
                if stop.requested:
                    to_go = f"with {len(missing) - count} slices to go"
                    raise Interrupted(f"{to_go}: the same command goes on", stop.number)
                grey, clipped = read_slice(reader, page, info, rule)
                mask = predict_mask(models, torch.tensor(grey, device=device)[None])[0].cpu().numpy()
                save_png(run.path / "masks" / f"{page.stem}.png", mask)
                pixels = np.bincount(mask.ravel(), minlength=info.classes.count).tolist()
                rows[page.stem] = {"image": page.stem, "file": stamp(page), "pixels": pixels, "clipped": clipped}
                rows[page.stem]["sha256"] = sha256(run.path / "masks" / f"{page.stem}.png")
                run.log(rows[page.stem])
        pictures = []
        for page in evenly_spaced(pages, SHOWN):
            grey = read_slice(reader, page, info, rule)[0]
            file = masks.pages_of(run.path / "masks" / f"{page.stem}.png", page.stem)[0]
            step = max(1, grey.shape[1] // 1024)  # the sheet is small
            grey, mask = grey[::step, ::step], masks.mask(file).values[::step, ::step]
            pictures.append([grey, colored(mask, info.classes), overlay(grey, mask, info.classes)])
    sheet(pictures, run.path / "contact.png", ["image", "mask", "overlay"], width=448)
    pixels = np.sum([rows[page.stem]["pixels"] for page in pages], axis=0)  # (K,)
    for name, share in zip(info.classes.names, pixels / pixels.sum(), strict=True):
        print(f"{name:>20}: {100 * share:.2f} % of all pixels")
    clipped = sum(rows[page.stem]["clipped"] for page in pages) / pixels.sum()
    if clipped > 0.02:
        print(f"note: {100 * clipped:.1f} % of the pixels lie outside the grey values of the training set and became 0")
        print("      or 255: slices of another scale are another task, look at the contact sheet")
    print(f"masks of class ids in {run.path}/masks; look at {run.path}/contact.png; pixels per slice in log.jsonl")


RULES = {  # what happens to grey values before the network sees them
    "as they are": "8-bit grey values are taken as they are",
    "converted": "8-bit grey values are taken as converted already: the U-Nets learned from deeper ones, {:g} to {:g}",
    "window": "grey values {:g} to {:g} become 0 to 255, as in the training set",
}


def grey_rule(bytes_: bool, window: tuple[float, float] | None, converted: tuple[float, float] | None) -> str:
    """A name of RULES for slices of 8 bits or more, the training set's window and that of a pair folder they lie in.

    8-bit slices have passed a window already when their folder says so, or when the window is none of 8-bit values.
    """
    if window is None:
        if not bytes_:
            raise InputError(
                "the slices have more than 8 bits, but the U-Nets learned from 8-bit slices and know no grey window: "
                "convert the slices to 8 bits as those were"
            )
        return "as they are"
    eight_bit = 0 <= window[0] and 2 <= window[1] <= 255
    return "converted" if bytes_ and (converted == window or not eight_bit) else "window"


def converted_window(images: Path) -> tuple[float, float] | None:
    """The window that the slices of a pair folder have passed; None for any other folder."""
    return read_info(images.parent).intensity_window if (images.parent / "dataset.json").is_file() else None


def stamp(page: Page) -> list[int]:
    """Size and time of a slice's file: what tells a new one under an old name."""
    status = page.file.stat()
    return [status.st_size, status.st_mtime_ns]


def made(run: RunFolder, page: Page, rows: dict[str, dict]) -> bool:
    """Whether the slice's mask is there, as it was written, and was made from this very file."""
    row, mask = rows.get(page.stem), run.path / "masks" / f"{page.stem}.png"
    return bool(row) and row["file"] == stamp(page) and mask.is_file() and row.get("sha256") == sha256(mask)


def read_slice(reader: Reader, page: Page, info: UNetInfo, rule: str) -> tuple[np.ndarray, int]:
    """The slice as the U-Nets know slices, (H,W) uint8, and how many pixels lay outside their window."""
    pixels, _ = reader.image(page)
    if rule != "window":
        if pixels.dtype != np.uint8:
            raise InputError(f"{page} has more than 8 bits, unlike the slices before it: convert all to one depth")
        return pixels, 0
    low, high = info.intensity_window
    return to_bytes(pixels, (low, high)), int(((pixels < low) | (pixels > high)).sum())
