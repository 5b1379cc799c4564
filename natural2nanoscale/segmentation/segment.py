"""The verb `segment`: what all of this is for, masks of slices that nobody has annotated."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from natural2nanoscale.data.contact import colored, overlay, sheet
from natural2nanoscale.data.folders import read_gray, save_png
from natural2nanoscale.data.intensity import to_bytes
from natural2nanoscale.data.pairing import list_pages
from natural2nanoscale.data.sources import Page, Reader
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import Interrupted, StopSignal, open_run, select_device
from natural2nanoscale.segmentation.evaluation import trained_seeds
from natural2nanoscale.segmentation.inference import predict_mask
from natural2nanoscale.segmentation.unet import UNetInfo, load_unet

SHOWN = 6  # slices on the contact sheet


def run_segment(args: argparse.Namespace) -> None:
    """The verb `segment`: a mask for every slice of args.images; makes only what is missing in args.out."""
    device = select_device(args.device)
    networks = [load_unet(best) for best in trained_seeds(args.run)]
    models, info = [model.to(device) for model, _ in networks], networks[0][1]
    with Reader(args.max_pixels) as reader:
        pages = list_pages(args.images, reader, "--images")
        read_slice(reader, pages[0], info)  # what cannot be read is refused before anything is written
        config = {
            "kind": "masks",
            "settings": {"images": str(args.images.resolve()), "trained": [info.trained for _, info in networks]},
            "classes": info.classes.to_json(),
            "intensity_window": info.intensity_window,
        }
        run = open_run(args.out, config, (args.out / "config.json").is_file())
        run.drop_log_after(0)  # rows have no step: this only drops a line that a kill cut short
        done = {row["image"] for row in run.read_log() if (run.path / "masks" / f"{row['image']}.png").is_file()}
        missing = [page for page in pages if page.stem not in done]
        (run.path / "masks").mkdir(exist_ok=True)
        print(f"{len(pages)} slices, {len(missing)} to segment, by {len(models)} U-Net(s) on {device}")
        with StopSignal() as stop, tqdm(missing, desc="segmenting", unit="slice") as bar:
            for made, page in enumerate(bar):
                if stop.requested:
                    raise Interrupted(f"with {len(missing) - made} slices to go: the same command goes on")
                grey = torch.tensor(read_slice(reader, page, info), device=device)
                mask = predict_mask(models, grey[None])[0].cpu().numpy()
                save_png(run.path / "masks" / f"{page.stem}.png", mask)
                run.log(
                    {"image": page.stem, "pixels": np.bincount(mask.ravel(), minlength=info.classes.count).tolist()}
                )
        rows = []
        for page in pages[:: max(1, len(pages) // SHOWN)][:SHOWN]:
            grey, mask = read_slice(reader, page, info), read_gray(run.path / "masks" / f"{page.stem}.png")
            rows.append([grey, colored(mask, info.classes), overlay(grey, mask, info.classes)])
    sheet(rows, run.path / "contact.png", ["image", "mask", "overlay"], width=448)
    pixels = np.sum(list({row["image"]: row["pixels"] for row in run.read_log()}.values()), axis=0)  # (K,)
    for name, share in zip(info.classes.names, pixels / pixels.sum(), strict=True):
        print(f"{name:>20}: {100 * share:.2f} % of all pixels")
    print(f"masks of class ids in {run.path}/masks; look at {run.path}/contact.png; pixels per slice in log.jsonl")


def read_slice(reader: Reader, page: Page, info: UNetInfo) -> np.ndarray:
    """The slice as the U-Net knows slices: (H,W) uint8, deeper grey values through the window of its training set."""
    pixels, _ = reader.image(page)
    window = info.intensity_window
    if pixels.dtype == np.uint8 and (window is None or window[1] > 255):
        return pixels
    if window is None:
        raise InputError(
            f"{page} has more than 8 bits, but the U-Net learned from 8-bit slices and knows no grey window: "
            "convert the slices to 8 bits as those were"
        )
    return to_bytes(pixels, window)
