"""Slices drawn from masks, into a synthetic folder: makes what is missing there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale.data.edges import image_edges
from natural2nanoscale.data.encoders import decode_gray, encode_gray, encode_mask
from natural2nanoscale.data.folders import (
    GENERATION,
    PairFolder,
    natural_order,
)
from natural2nanoscale.data.roots import digests_of
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.controlnet import latent_moments
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.diffusion.synthetic_folder import (
    Request,
    begin,
    check_continues,
    describe,
    manifest_row,
    plan_images,
    read_manifest,
)
from natural2nanoscale.files import append_lines, save_png, write_json, write_lines
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.signals import Interrupted, StopSignal


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

    What is there already is left alone. Until all slices that were ever asked for are there, generation.json holds
    what dataset.json will say. Raises InputError when `out` was made with other settings, another ControlNet, backbone
    or source; Interrupted after a requested stop.
    """
    info = describe(backbone, controlnet, source, request)
    check_continues(out, info)
    planned = plan_images(source.stems, request.per_mask, request.prompts, request.seed)
    done = read_manifest(out)
    missing = [image for image in planned if image.stem not in done]
    if not missing and (out / "dataset.json").is_file():
        return 0
    most = begin(out, info, request.per_mask, request.call)
    # rows of a killed run whose pictures are not whole are dropped; theirs are made again
    write_lines(out / "manifest.jsonl", sorted(done.values(), key=lambda row: natural_order(row["file"])))

    embeds = dict(zip(request.prompts, encode_prompts(backbone, request.prompts), strict=True))
    empty, digests = encode_prompts(backbone, [""]), digests_of(source)
    masks = {stem: source.mask(stem) for stem in source.stems}
    images = {stem: source.image(stem) for stem in source.stems}
    missing.sort(key=lambda image: masks[image.source].shape)  # equal sizes share a batch; the sort is stable
    new = len(missing)
    with StopSignal() as stop, tqdm(total=new, desc="synthesis", unit="image") as bar:
        while missing and not stop.requested:
            shape = masks[missing[0].source].shape
            batch = [image for image in missing[:batch_size] if masks[image.source].shape == shape]
            del missing[: len(batch)]
            drawn = Drawn(
                [masks[image.source] for image in batch],
                [images[image.source] for image in batch],
                torch.stack([embeds[image.prompt] for image in batch]),
                empty,
                [image.seed for image in batch],
            )
            slices = draw_slices(backbone, controlnet, drawn, source.info.classes.colors, request.settings)
            for image, pixels in zip(batch, slices, strict=True):
                save_png(out / "masks" / f"{image.stem}.png", masks[image.source])
                save_png(out / "images" / f"{image.stem}.png", pixels)
            append_lines(out / "manifest.jsonl", [manifest_row(image, info, request, digests) for image in batch])
            bar.update(len(batch))
    if missing:
        raise Interrupted(f"with {len(missing)} images to go: the same command makes them", stop.number)
    now = read_manifest(out)
    if all(image.stem in now for image in plan_images(source.stems, most, request.prompts, request.seed)):
        write_json(out / "dataset.json", info.to_json())
        (out / GENERATION).unlink()
    return new


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
    return decode_gray(pixel_values)[:, :height, :width].cpu().numpy()
