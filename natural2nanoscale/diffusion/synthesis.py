"""Slices drawn from masks, into a synthetic folder: makes what is missing there."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale.data.folders import GENERATION, DatasetInfo, PairFolder
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.drawing import Drawn, draw_slices
from natural2nanoscale.diffusion.manifest import (
    HASHES,
    MANIFEST,
    MOST_TRIES,
    SHARDS,
    in_order,
    lines_of,
    manifest_row,
    refuse_strangers,
    standing_rows,
)
from natural2nanoscale.diffusion.shapes import Shapes
from natural2nanoscale.diffusion.synthetic_folder import (
    Image,
    Request,
    alone,
    begin,
    check_continues,
    describe,
    most_planned,
    plan_image,
    plan_images,
    publish,
)
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import append_lines, save_png, sha256, write_json, write_lines
from natural2nanoscale.signals import Interrupted, StopSignal

WRITERS, MOST_WAITING = 4, 64  # threads that write, and images that wait for them
# slices (B,H,W) and masks (B,H,W) uint8 -> masks in which doubtful pixels are ignored, and agreement (B,) in [0,1]
Check = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """What one call draws, by which networks, from which masks, and where it goes."""

    out: Path
    backbone: Backbone
    controlnet: ControlNetModel
    shapes: Shapes
    request: Request
    info: DatasetInfo
    check: Check | None

    def plan(self, source: str, copy: int, tries: int) -> Image:
        """The copy-th image from a mask, and how often it has been drawn by then."""
        return plan_image(source, copy, self.request.prompts, self.request.seed, tries)

    def row(self, source: str, copy: int, tries: int) -> dict:
        """Its line, but for what is found when it is drawn."""
        return manifest_row(self.plan(source, copy, tries), self.info, self.request, self.shapes)


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

    What is there as its line says is left alone, what is not is made anew. Until all slices that were ever asked for
    are there, generation.json holds what dataset.json will say. check: whoever `request.filter` names; an image that
    agrees less than it asks for is drawn again with other noise, MOST_TRIES times in all, then rejected.
    Raises InputError when `out` was made with other settings, another ControlNet, backbone or source, while another
    process writes there, and for slices that are not finite or blank, which are never written; Interrupted after a
    requested stop.
    """
    if (check is None) != (request.filter is None):
        raise ValueError("who checks the slices and what the request says of it belong together")
    shapes = Shapes(source, request.masks, request.seed, request.settings)
    info = describe(backbone, controlnet, source, request)
    task = Task(out, backbone, controlnet, shapes, request, info, check)
    check_continues(out, info)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, request):
        check_continues(out, info)  # another call may have begun it
        most, call = most_planned(out, request.per_mask, request.call)
        whole = plan_images(source.stems, most, request.prompts, request.seed)
        refuse_strangers(out, whole)
        done = standing_rows(out, source.stems, task.row)
        missing = [image for image in request.images(source.stems) if image.stem not in done]
        if not missing and (out / "dataset.json").is_file():
            if lines_of(out / MANIFEST) != in_order(done):
                write_lines(out / MANIFEST, in_order(done))
            return 0
        begin(out, info, most, call, request)
        own = {Path(row["file"]).stem for row in lines_of(out / request.manifest)}
        write_lines(out / request.manifest, in_order({stem: row for stem, row in done.items() if stem in own}))
        new = draw_missing(task, missing, batch_size)
        finish(out, info, request, whole, standing_rows(out, source.stems, task.row, tell=False))
    return new


def draw_missing(task: Task, missing: list[Image], batch_size: int) -> int:
    """Draw the images that are missing, slices of one size together, and write each with its line; return how many."""
    out, request, shapes, backbone, controlnet = task.out, task.request, task.shapes, task.backbone, task.controlnet
    if controlnet.dtype != backbone.unet.dtype:  # once, not at every step as while it learns
        controlnet = copy.deepcopy(controlnet).to(backbone.unet.dtype)
    embeds = dict(zip(request.prompts, encode_prompts(backbone, request.prompts), strict=True))
    empty, colors = encode_prompts(backbone, [""]), shapes.source.info.classes.colors
    missing.sort(key=lambda image: shapes.sizes[image.source])  # equal sizes share a batch; the sort is stable
    new = 0
    with (
        StopSignal() as stop,
        Writing(out, request.manifest) as writing,
        tqdm(total=len(missing), desc="synthesis") as bar,
    ):
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
            )
            slices, tints = draw_slices(backbone, controlnet, drawn, colors, request.settings)
            refuse_blank(batch, slices)
            kept, agreements = task.check(slices, np.stack(masks)) if task.check else (masks, [1.0] * len(batch))
            for i, (image, mask, ids, agreement) in enumerate(zip(batch, masks, kept, agreements, strict=True)):
                row = task.row(image.source, image.copy, image.tries) | {"tint": round(float(tints[i]), 2)}
                pictures = {"images": slices[i], "masks": ids}
                if task.check:
                    row["agreement"], pictures["conditioning"] = round(float(agreement), 4), mask
                    if agreement < request.filter["agreement"] and image.tries < MOST_TRIES:
                        missing.insert(0, task.plan(image.source, image.copy, image.tries + 1))
                        continue
                    if agreement < request.filter["agreement"]:
                        row, pictures = row | {"rejected": True}, {}
                writing.write(row, pictures)
                new += bool(pictures)
                bar.update()
    if missing:
        raise Interrupted(f"with {len(missing)} images to go: the same command makes them", stop.number)
    return new


def finish(out: Path, info: DatasetInfo, request: Request, whole: list[Image], rows: dict[str, dict]) -> bool:
    """Whether every slice that was ever asked for stands. If so `out` is made complete, by whichever call sees it: the
    shards' manifests become one, and dataset.json comes last."""
    if not all(image.stem in rows for image in whole):
        return False
    rejected = sum(bool(row.get("rejected")) for row in rows.values())
    if rejected == len(rows):
        raise InputError(
            f"all {rejected} slices in {out} were rejected, none agrees with its mask: lower --filter-agreement, train "
            "the ControlNet for longer, or leave --filter out, in another --out"
        )
    if request.filter:
        info = replace(info, split=info.split | {"rejected": rejected})
    publish(out, MANIFEST, write_lines, in_order(rows), request)
    publish(out, "dataset.json", write_json, info.to_json(), request)
    for file in (out / GENERATION, *out.glob(SHARDS)):
        file.unlink(missing_ok=True)
    return True


class Writing:
    """Within it slices are written by a few threads while the next ones are drawn; at its end all of them stand.

    A line comes into the manifest when all files of its slice stand. What a thread raises is raised by a later `write`
    or at the end.
    """

    def __init__(self, out: Path, manifest: str):
        self.out, self.manifest, self.lock = out, manifest, Lock()
        self.pool, self.waiting = ThreadPoolExecutor(WRITERS), deque[Future]()

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.pool.shutdown()  # waits
        while kind is None and self.waiting:
            self.waiting.popleft().result()

    def write(self, row: dict, pictures: dict[str, np.ndarray]) -> None:
        """Hand over the pictures (H,W) uint8 of a slice, by the folder that each goes to, with its line."""
        while len(self.waiting) >= MOST_WAITING:
            self.waiting.popleft().result()
        self.waiting.append(self.pool.submit(self._write, row, pictures))

    def _write(self, row: dict, pictures: dict[str, np.ndarray]) -> None:
        for part, pixels in pictures.items():
            file = self.out / part / row["file"]
            save_png(file, pixels)
            row |= {HASHES[part]: sha256(file)}
        with self.lock:
            append_lines(self.out / self.manifest, [row])


def refuse_blank(batch: list[Image], slices: np.ndarray) -> None:
    """Raise InputError for a slice (H,W) of one grey value: no picture of anything."""
    for image, pixels in zip(batch, slices, strict=True):
        if pixels.min() == pixels.max():
            raise InputError(
                f"the slice {image.stem} would be of one grey value, {pixels.min()}, and is not written: look at the "
                "samples of the ControlNet's training, lower --strength, or train anew"
            )
