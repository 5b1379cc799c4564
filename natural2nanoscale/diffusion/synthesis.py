"""Slices drawn from masks, into a synthetic folder: makes what is missing there."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale.data.folders import DatasetInfo, PairFolder, fingerprint
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts, weights_hash
from natural2nanoscale.diffusion.request import Image, Request
from natural2nanoscale.diffusion.sampling import Drawn, draw_slices
from natural2nanoscale.diffusion.shapes import Shapes
from natural2nanoscale.diffusion.synthetic_folder import MANIFEST, MOST_TRIES, SyntheticFolder, in_order, lines_of
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import write_lines
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.signals import Interrupted, StopSignal

WRITERS, MOST_WAITING = 4, 64  # threads that write, and images that wait for them
# slices (B,H,W) and masks (B,H,W) uint8 -> masks in which doubtful pixels are ignored, and agreement (B,) in [0,1]
Check = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def synthesize(
    out: Path,
    backbone: Backbone,
    controlnet: ControlNetModel,
    source: PairFolder,
    request: Request,
    batch_size: int = 4,
    check: Check | None = None,
) -> int:
    """Draw what is requested from the masks of `source` into the pair folder `out`; return how many slices were new.

    What is there as its line says is left alone, what is not is made anew. check: whoever `request.filter` names; an
    image that agrees less than it asks for is drawn again with other noise, MOST_TRIES times in all, then rejected.
    Raises InputError when `out` was made with other settings, another ControlNet, backbone or source, while another
    process writes there, and for slices that are not finite or blank; Interrupted after a requested stop.
    """
    if (check is None) != (request.filter is None):
        raise ValueError("who checks the slices and what the request says of it belong together")
    shapes = Shapes(source, request.masks, request.seed, request.settings)
    folder = SyntheticFolder(out, request, shapes, describe(backbone, controlnet, source, request))
    folder.refuse_other()
    out.mkdir(parents=True, exist_ok=True)
    with folder.alone():
        folder.refuse_other()  # another call may have begun it
        most, call, planned = folder.most_asked()
        folder.refuse_strangers(planned)
        done = folder.standing()
        missing = [image for image in request.images(source.stems) if image.stem not in done]
        if not missing and (out / "dataset.json").is_file():
            if lines_of(out / MANIFEST) != in_order(done):
                write_lines(out / MANIFEST, in_order(done))
            return 0
        folder.begin(most, call, done)
        new = draw_missing(folder, backbone, controlnet, missing, batch_size, check)
        folder.finish(planned)
    return new


def describe(backbone: Backbone, controlnet: ControlNetModel, source: PairFolder, request: Request) -> DatasetInfo:
    """What dataset.json of a synthetic folder says: all that its pixels depend on."""
    split = {
        "rule": "synthesis",
        "source": {"part": source.path.name, "fingerprint": fingerprint(source)},
        "controlnet": weights_hash(controlnet),
        "backbone": backbone.fingerprint,
        "precision": backbone.precision,
        **asdict(request.settings),
        "masks": request.masks,
        "filter": request.filter,
        "seed": request.seed,
        "prompts": seed_for(*request.prompts),
    }
    info, learned = source.info, request.learned or {}
    facts = info.classes, info.intensity_window, info.pixel_size_nm, split
    return DatasetInfo(f"{info.name} synthetic", "synthetic", *facts, learned=learned)


def draw_missing(
    folder: SyntheticFolder,
    backbone: Backbone,
    controlnet: ControlNetModel,
    missing: list[Image],
    batch_size: int,
    check: Check | None,
) -> int:
    """Draw the images that are missing, slices of one size together, and write each with its line; return how many.

    They are written by a few threads while the next ones are drawn; what a thread raises is raised later on.
    """
    request, shapes = folder.request, folder.shapes
    if controlnet.dtype != backbone.dtype:  # once, not at every step as while it learns
        controlnet = copy.deepcopy(controlnet).to(backbone.dtype)
    embeds = dict(zip(request.prompts, encode_prompts(backbone, request.prompts), strict=True))
    empty, colors = encode_prompts(backbone, [""]), shapes.source.info.classes.colors
    missing.sort(key=lambda image: shapes.sizes[image.source])  # equal sizes share a batch; the sort is stable
    new, writes = 0, deque[Future]()
    progress = tqdm(total=len(missing), desc="synthesis")
    with StopSignal() as stop, ThreadPoolExecutor(WRITERS) as writers, progress as bar:
        while missing and not stop.requested:
            size = shapes.sizes[missing[0].source]
            batch = [image for image in missing[:batch_size] if shapes.sizes[image.source] == size]
            del missing[: len(batch)]
            masks = [shapes.mask(image.source, image.copy) for image in batch]
            drawn = Drawn(
                masks,
                [shapes.image(image.source, image.copy) for image in batch] if request.settings.sees_slice else [],
                torch.stack([embeds[image.prompt] for image in batch]),
                empty,
                [image.seed for image in batch],
                [shapes.doubt(image.source) for image in batch] if request.settings.keep else [],
            )
            slices, tints = draw_slices(backbone, controlnet, drawn, colors, request.settings)
            refuse_blank(batch, slices)
            kept, agreements = check(slices, np.stack(masks)) if check else (masks, [1.0] * len(batch))
            for i, (image, mask, ids, agreement) in enumerate(zip(batch, masks, kept, agreements, strict=True)):
                row = folder.row(image) | {"tint": min(round(float(tints[i]), 2), 255.0)}  # as its readers take it
                pictures = {"images": slices[i], "masks": ids}
                if check:
                    row["agreement"], pictures["conditioning"] = round(float(agreement), 4), mask
                    if agreement < request.filter["agreement"] and image.tries < MOST_TRIES:
                        missing.insert(0, request.image(image.source, image.copy, image.tries + 1))
                        continue
                    if agreement < request.filter["agreement"]:
                        row, pictures = row | {"rejected": True}, {}
                writes.append(writers.submit(folder.write, row, pictures))
                new += bool(pictures)
                bar.update()
            while len(writes) > MOST_WAITING:
                writes.popleft().result()
        for write in writes:
            write.result()
    if missing:
        raise Interrupted(f"with {len(missing)} images to go: the same command makes them", stop.number)
    return new


def refuse_blank(batch: list[Image], slices: np.ndarray) -> None:
    """Raise InputError for a slice (H,W) of one grey value: no picture of anything."""
    for image, pixels in zip(batch, slices, strict=True):
        if pixels.min() == pixels.max():
            raise InputError(
                f"the slice {image.stem} would be of one grey value, {pixels.min()}, and is not written: look at the "
                "samples of the ControlNet's training, lower --strength, or train anew"
            )
