"""Masks to a synthetic pair folder with a manifest: makes what is missing, and each image again from its line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale.data.edges import image_edges
from natural2nanoscale.data.encoders import decode_gray, encode_gray, encode_mask
from natural2nanoscale.data.folders import GENERATION, DatasetInfo, PairFolder, fingerprint, natural_order
from natural2nanoscale.data.roots import digests_of
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts, weights_hash
from natural2nanoscale.diffusion.controlnet import latent_moments
from natural2nanoscale.diffusion.manifest import (
    Image,
    begin,
    check_continues,
    most_planned,
    plan_image,
    plan_images,
    refuse_strangers,
    standing_rows,
)
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import append_lines, make_folder, save_png, sha256, write_json, write_lines
from natural2nanoscale.locks import locked
from natural2nanoscale.records import read_lines
from natural2nanoscale.schemas import MANIFEST_ROW
from natural2nanoscale.seeds import generator_for, seed_for
from natural2nanoscale.signals import Interrupted, StopSignal


def synthesize(
    out: Path,
    backbone: Backbone,
    controlnet: ControlNetModel,
    source: PairFolder,
    prompts: list[str],
    settings: SamplingSettings,
    per_mask: int = 1,
    batch_size: int = 4,
    seed: int = 0,
    learned: dict | None = None,
    call: str | None = None,
) -> int:
    """Make `per_mask` slices from every mask of `source` in the pair folder `out`; return how many were new.

    learned: what the ControlNet was trained on, as its run's config.json says.
    What is there as its line says is left alone, what is not is made anew. Until all slices that were ever asked for
    are there, generation.json holds what dataset.json will say, and `call`, the command that makes the rest. Raises
    InputError when `out` was made with other settings, another ControlNet, backbone or source, while another process
    writes there, and for images that are not finite or blank, which are never written; Interrupted after a requested
    stop.
    """
    info = DatasetInfo(
        name=f"{source.info.name} synthetic",
        origin="synthetic",
        classes=source.info.classes,
        intensity_window=source.info.intensity_window,
        pixel_size_nm=source.info.pixel_size_nm,
        split={
            "rule": "synthesis",
            "source": {"part": source.path.name, "fingerprint": fingerprint(source)},
            "controlnet": weights_hash(controlnet),
            "backbone": backbone.fingerprint,
            "precision": backbone.precision,
            "sampler": "ddim",
            **asdict(settings),
            "seed": seed,
            "prompts": seed_for(*prompts),
        },
        learned=learned or {},
    )
    check_continues(out, info)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        check_continues(out, info)  # another call may have begun it
        making = Making(out, info, backbone, controlnet, source, prompts, settings, seed)
        return making.make(per_mask, batch_size, call)


@dataclass(frozen=True)
class Making:
    """What all images of a synthetic folder have in common."""

    out: Path
    info: DatasetInfo
    backbone: Backbone
    controlnet: ControlNetModel
    source: PairFolder
    prompts: list[str]
    settings: SamplingSettings
    seed: int

    def make(self, per_mask: int, batch_size: int, call: str | None) -> int:
        """Make what is missing; the folder is locked."""
        out, stems = self.out, self.source.stems
        masks = {stem: self.source.mask(stem) for stem in stems}
        most, call = most_planned(out, per_mask, call)
        planned = plan_images(stems, per_mask, self.prompts, self.seed)
        whole = plan_images(stems, most, self.prompts, self.seed)
        refuse_strangers(out, whole)
        row_of = self.rows()
        done = standing_rows(out, row_of, masks)
        missing = [image for image in planned if image.stem not in done]
        count, rows = len(missing), sorted(done.values(), key=lambda row: natural_order(row["file"]))
        if not missing and (out / "dataset.json").is_file():
            if read_lines(out / "manifest.jsonl", MANIFEST_ROW) != rows:
                write_lines(out / "manifest.jsonl", rows)
            return 0
        begin(out, self.info, most, call)
        make_folder(out / "images")
        make_folder(out / "masks")
        write_lines(out / "manifest.jsonl", rows)

        embeds = dict(zip(self.prompts, encode_prompts(self.backbone, self.prompts), strict=True))
        negative = encode_prompts(self.backbone, [""])
        missing.sort(key=lambda image: masks[image.source].shape)  # equal sizes share a batch; the sort is stable
        with StopSignal() as stop, tqdm(total=len(missing), desc="synthesis", unit="image") as bar:
            while missing and not stop.requested:
                shape = masks[missing[0].source].shape
                batch = [image for image in missing[:batch_size] if masks[image.source].shape == shape]
                slices = draw_slices(
                    self.backbone,
                    self.controlnet,
                    [self.source.image(image.source) for image in batch],
                    [masks[image.source] for image in batch],
                    self.info.classes.colors,
                    torch.stack([embeds[image.prompt] for image in batch]),
                    negative,
                    [image.seed for image in batch],
                    self.settings,
                )
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
            write_json(out / "dataset.json", self.info.to_json())
            (out / GENERATION).unlink()
        return count

    def rows(self) -> Callable[[str, int], dict]:
        """What manifest.jsonl says of an image, given its mask and copy, but for the hash of its file."""
        digests = digests_of(self.source)
        shared = {name: self.info.split[name] for name in ("precision", "sampler")} | asdict(self.settings)

        def row(source: str, copy: int) -> dict:
            image = plan_image(source, copy, self.prompts, self.seed)
            return {
                "file": f"{image.stem}.png",
                "seed": image.seed,
                "prompt": image.prompt,
                "source": source,
                "source_digest": digests.get(source),
                "checkpoint": self.info.split["controlnet"],
                **shared,
            }

        return row


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
    images: list[np.ndarray],
    masks: list[np.ndarray],
    colors: tuple[tuple[int, int, int], ...],
    prompt_embeds: torch.Tensor,
    negative_embeds: torch.Tensor,
    seeds: list[int],
    settings: SamplingSettings,
) -> np.ndarray:
    """Masks (H,W) of one size -> slices (B,H,W) uint8. Each image's noise is a function of its seed alone.

    The masks' own slices `images` are looked at only when `settings.start` is below 1 or `settings.condition` asks for
    their edges. Sizes off the backbone's grid are filled up by mirror images, and cropped back.
    """
    height, width = masks[0].shape
    down, right = -height % backbone.grid, -width % backbone.grid

    def pad(slices: list[np.ndarray]) -> torch.Tensor:
        filled = [np.pad(pixels, ((0, down), (0, right)), mode="symmetric") for pixels in slices]
        return torch.from_numpy(np.stack(filled)).to(backbone.device)

    padded = pad(masks)
    edges = None
    if settings.condition == "mask+boundaries":
        edges = torch.zeros_like(padded)
    elif settings.condition == "mask+edges":
        grays = torch.from_numpy(np.stack(images)).to(backbone.device)
        edges = pad(list(image_edges(grays).cpu().numpy()))
    conditioning = encode_mask(padded, colors, edges)
    real_latents = latent_moments(backbone, encode_gray(pad(images)))[0] if settings.start < 1 else None
    shape = (
        backbone.unet.config.in_channels,
        padded.shape[1] // backbone.downsampling,
        padded.shape[2] // backbone.downsampling,
    )
    generators = [generator_for(seed, "noise") for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    pixel_values = sample(
        backbone, controlnet, noise, conditioning, prompt_embeds, negative_embeds, settings, generators, real_latents
    )
    if not pixel_values.isfinite().all():
        raise InputError(
            "the slices that were drawn are not finite, and are not written: try --precision fp32, or a lower "
            "--strength or --guidance; else the ControlNet or the backbone is damaged"
        )
    return decode_gray(pixel_values)[:, :height, :width].cpu().numpy()
