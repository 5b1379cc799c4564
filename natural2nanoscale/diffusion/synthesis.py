"""Slices drawn from masks, into a synthetic folder: makes what is missing there."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale.data.edges import image_edges
from natural2nanoscale.data.encoders import decode_gray, encode_gray, encode_mask
from natural2nanoscale.data.folders import GENERATION, DatasetInfo, PairFolder
from natural2nanoscale.data.roots import digests_of
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.controlnet import latent_moments
from natural2nanoscale.diffusion.manifest import (
    MANIFEST,
    SHARDS,
    in_order,
    lines_of,
    manifest_row,
    refuse_strangers,
    standing_rows,
)
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.diffusion.synthetic_folder import (
    Image,
    Request,
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
from natural2nanoscale.locks import locked
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.signals import Interrupted, StopSignal

WRITERS, MOST_WAITING = 4, 64  # threads that write, and images that wait for them


@dataclass(frozen=True)
class Drawn:
    """What slices of one size are drawn from: masks (H,W) uint8, their own slices (H,W) uint8, prompts (B,L,D) with the
    empty one (1,L,D), and the seed of each one's noise."""

    masks: list[np.ndarray]
    images: list[np.ndarray]
    prompt_embeds: torch.Tensor
    negative_embeds: torch.Tensor
    seeds: list[int]


def synthesize(
    out: Path,
    backbone: Backbone,
    controlnet: ControlNetModel,
    source: PairFolder,
    request: Request,
    batch_size: int = 4,
) -> int:
    """Draw what is requested from the masks of `source` into the pair folder `out`; return how many slices were new.

    What is there as its line says is left alone, what is not is made anew. Until all slices that were ever asked for
    are there, generation.json holds what dataset.json will say. Raises InputError when `out` was made with other
    settings, another ControlNet, backbone or source, while another process writes there, and for slices that are not
    finite or blank, which are never written; Interrupted after a requested stop.
    """
    info = describe(backbone, controlnet, source, request)
    check_continues(out, info)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, out / request.lock):
        check_continues(out, info)  # another call may have begun it
        masks, digests = {stem: source.mask(stem) for stem in source.stems}, digests_of(source)

        def row_of(name: str, copy: int) -> dict:
            return manifest_row(plan_image(name, copy, request.prompts, request.seed), info, request, digests)

        most, call = most_planned(out, request.per_mask, request.call)
        whole = plan_images(source.stems, most, request.prompts, request.seed)
        refuse_strangers(out, whole)
        done = standing_rows(out, row_of, masks)
        missing = [image for image in request.images(source.stems) if image.stem not in done]
        if not missing and (out / "dataset.json").is_file():
            if lines_of(out / MANIFEST) != in_order(done):
                write_lines(out / MANIFEST, in_order(done))
            return 0
        begin(out, info, most, call, request)
        own = {Path(row["file"]).stem for row in lines_of(out / request.manifest)}
        write_lines(out / request.manifest, in_order({stem: row for stem, row in done.items() if stem in own}))
        new = draw_missing(out, backbone, controlnet, source, request, missing, masks, row_of, batch_size)
        finish(out, info, request, whole, standing_rows(out, row_of, masks, tell=False))
    return new


def draw_missing(
    out: Path,
    backbone: Backbone,
    controlnet: ControlNetModel,
    source: PairFolder,
    request: Request,
    missing: list[Image],
    masks: dict[str, np.ndarray],
    row_of: Callable[[str, int], dict],
    batch_size: int,
) -> int:
    """Draw the images that are missing, slices of one size together, and write each with its line; return how many."""
    if controlnet.dtype != backbone.unet.dtype:  # once, not at every step as while it learns
        controlnet = copy.deepcopy(controlnet).to(backbone.unet.dtype)
    embeds = dict(zip(request.prompts, encode_prompts(backbone, request.prompts), strict=True))
    empty = encode_prompts(backbone, [""])
    missing.sort(key=lambda image: masks[image.source].shape)  # equal sizes share a batch; the sort is stable
    new = len(missing)
    with StopSignal() as stop, Writing(out, request.manifest) as writing, tqdm(total=new, desc="synthesis") as bar:
        while missing and not stop.requested:
            shape = masks[missing[0].source].shape
            batch = [image for image in missing[:batch_size] if masks[image.source].shape == shape]
            del missing[: len(batch)]
            drawn = Drawn(
                [masks[image.source] for image in batch],
                [source.image(image.source) for image in batch],
                torch.stack([embeds[image.prompt] for image in batch]),
                empty,
                [image.seed for image in batch],
            )
            slices = draw_slices(backbone, controlnet, drawn, source.info.classes.colors, request.settings)
            refuse_blank(batch, slices)
            for image, pixels in zip(batch, slices, strict=True):
                writing.write(masks[image.source], pixels, row_of(image.source, image.copy))
            bar.update(len(batch))
    if missing:
        raise Interrupted(f"with {len(missing)} images to go: the same command makes them", stop.number)
    return new


def finish(out: Path, info: DatasetInfo, request: Request, whole: list[Image], rows: dict[str, dict]) -> bool:
    """Whether every slice that was ever asked for stands. If so `out` is made complete, by whichever call sees it: the
    shards' manifests become one, and dataset.json comes last."""
    if not all(image.stem in rows for image in whole):
        return False
    publish(out, MANIFEST, write_lines, in_order(rows), request)
    publish(out, "dataset.json", write_json, info.to_json(), request)
    for file in (out / GENERATION, *out.glob(SHARDS)):
        file.unlink(missing_ok=True)
    return True


class Writing:
    """Within it slices are written by a few threads while the next ones are drawn; at its end all of them stand.

    A line comes into the manifest when both files of its slice stand. What a thread raises is raised by a later `write`
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

    def write(self, mask: np.ndarray, pixels: np.ndarray, row: dict) -> None:
        """Hand over a slice (H,W) uint8 with its mask (H,W) uint8 and its line."""
        while len(self.waiting) >= MOST_WAITING:
            self.waiting.popleft().result()
        self.waiting.append(self.pool.submit(self._write, mask, pixels, row))

    def _write(self, mask: np.ndarray, pixels: np.ndarray, row: dict) -> None:
        save_png(self.out / "masks" / row["file"], mask)
        save_png(self.out / "images" / row["file"], pixels)
        row |= {"sha256": sha256(self.out / "images" / row["file"])}
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


def draw_slices(
    backbone: Backbone,
    controlnet: ControlNetModel,
    drawn: Drawn,
    colors: tuple[tuple[int, int, int], ...],
    settings: SamplingSettings,
) -> np.ndarray:
    """Slices (B,H,W) uint8 from masks of one size. Each one's noise is a function of its seed alone.

    The masks' own slices are looked at only when `settings.start` is below 1 or `settings.condition` asks for their
    edges. Sizes off the backbone's grid are filled up by mirror images, and cropped back.
    """
    height, width = drawn.masks[0].shape
    down, right = -height % backbone.grid, -width % backbone.grid

    def pad(slices: list[np.ndarray]) -> torch.Tensor:
        filled = [np.pad(pixels, ((0, down), (0, right)), mode="symmetric") for pixels in slices]
        return torch.from_numpy(np.stack(filled)).to(backbone.device)

    masks, edges = pad(drawn.masks), None
    if settings.condition == "mask+boundaries":
        edges = torch.zeros_like(masks)
    elif settings.condition == "mask+edges":
        grays = torch.from_numpy(np.stack(drawn.images)).to(backbone.device)
        edges = pad(list(image_edges(grays).cpu().numpy()))
    conditioning = encode_mask(masks, colors, edges)
    real_latents = latent_moments(backbone, encode_gray(pad(drawn.images)))[0] if settings.start < 1 else None
    side = backbone.downsampling
    shape = backbone.unet.config.in_channels, masks.shape[1] // side, masks.shape[2] // side
    generators = [generator_for(seed, "noise") for seed in drawn.seeds]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    prompts = drawn.prompt_embeds, drawn.negative_embeds
    pixel_values = sample(backbone, controlnet, noise, conditioning, *prompts, settings, generators, real_latents)
    if not pixel_values.isfinite().all():
        raise InputError(
            "the slices that were drawn are not finite, and are not written: try --precision fp32, or a lower "
            "--strength or --guidance; else the ControlNet or the backbone is damaged"
        )
    return decode_gray(pixel_values)[:, :height, :width].cpu().numpy()
