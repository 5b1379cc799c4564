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
from natural2nanoscale.data.folders import GENERATION, DatasetInfo, PairFolder, natural_order
from natural2nanoscale.data.roots import digests_of
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.controlnet import latent_moments
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.diffusion.synthetic_folder import (
    Image,
    Request,
    begin,
    check_continues,
    describe,
    manifest_row,
    most_planned,
    plan_image,
    plan_images,
    refuse_strangers,
    standing_rows,
)
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import append_lines, save_png, sha256, write_json, write_lines
from natural2nanoscale.locks import locked
from natural2nanoscale.records import read_lines
from natural2nanoscale.schemas import MANIFEST_ROW
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

    What is there as its line says is left alone, what is not is made anew. Until all slices that were ever asked for
    are there, generation.json holds what dataset.json will say. Raises InputError when `out` was made with other
    settings, another ControlNet, backbone or source, while another process writes there, and for slices that are not
    finite or blank, which are never written; Interrupted after a requested stop.
    """
    info = describe(backbone, controlnet, source, request)
    check_continues(out, info)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        check_continues(out, info)  # another call may have begun it
        return _synthesize(out, backbone, controlnet, source, request, batch_size, info)


def _synthesize(
    out: Path,
    backbone: Backbone,
    controlnet: ControlNetModel,
    source: PairFolder,
    request: Request,
    batch_size: int,
    info: DatasetInfo,
) -> int:
    digests, masks = digests_of(source), {stem: source.mask(stem) for stem in source.stems}

    def row_of(name: str, copy: int) -> dict:
        return manifest_row(plan_image(name, copy, request.prompts, request.seed), info, request, digests)

    most, call = most_planned(out, request.per_mask, request.call)
    planned = plan_images(source.stems, request.per_mask, request.prompts, request.seed)
    whole = plan_images(source.stems, most, request.prompts, request.seed)
    refuse_strangers(out, whole)
    done = standing_rows(out, row_of, masks)
    missing, rows = [image for image in planned if image.stem not in done], in_order(done)
    if not missing and (out / "dataset.json").is_file():
        if read_lines(out / "manifest.jsonl", MANIFEST_ROW) != rows:
            write_lines(out / "manifest.jsonl", rows)
        return 0
    begin(out, info, most, call)
    write_lines(out / "manifest.jsonl", rows)

    embeds = dict(zip(request.prompts, encode_prompts(backbone, request.prompts), strict=True))
    empty = encode_prompts(backbone, [""])
    missing.sort(key=lambda image: masks[image.source].shape)  # equal sizes share a batch; the sort is stable
    new = len(missing)
    with StopSignal() as stop, tqdm(total=new, desc="synthesis", unit="image") as bar:
        while missing and not stop.requested:
            shape = masks[missing[0].source].shape
            batch = [image for image in missing[:batch_size] if masks[image.source].shape == shape]
            drawn = Drawn(
                [masks[image.source] for image in batch],
                [source.image(image.source) for image in batch],
                torch.stack([embeds[image.prompt] for image in batch]),
                empty,
                [image.seed for image in batch],
            )
            slices = draw_slices(backbone, controlnet, drawn, source.info.classes.colors, request.settings)
            refuse_blank(batch, slices)
            rows = []
            for image, pixels in zip(batch, slices, strict=True):
                file = f"{image.stem}.png"
                save_png(out / "masks" / file, masks[image.source])
                save_png(out / "images" / file, pixels)
                rows.append(row_of(image.source, image.copy) | {"sha256": sha256(out / "images" / file)})
            append_lines(out / "manifest.jsonl", rows)
            done |= {image.stem: row for image, row in zip(batch, rows, strict=True)}
            del missing[: len(batch)]
            bar.update(len(batch))
    if missing:
        raise Interrupted(f"with {len(missing)} images to go: the same command makes them", stop.number)
    if all(image.stem in done for image in whole):
        write_json(out / "dataset.json", info.to_json())
        (out / GENERATION).unlink()
    return new


def in_order(rows: dict[str, dict]) -> list[dict]:
    """Lines of manifest.jsonl as people order their files."""
    return sorted(rows.values(), key=lambda row: natural_order(row["file"]))


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
