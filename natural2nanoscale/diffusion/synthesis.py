"""Masks to a synthetic pair folder with a manifest: makes what is missing, and each image again from its line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale.data.edges import image_edges
from natural2nanoscale.data.encoders import decode_gray, encode_gray, encode_mask
from natural2nanoscale.data.folders import (
    GENERATION,
    DatasetInfo,
    PairFolder,
    fingerprint,
    natural_order,
    read_generation,
    read_info,
)
from natural2nanoscale.data.roots import digests_of
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts, weights_hash
from natural2nanoscale.diffusion.controlnet import latent_moments
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import append_lines, holds_nothing, save_png, write_json, write_lines
from natural2nanoscale.records import read_lines
from natural2nanoscale.seeds import generator_for, seed_for
from natural2nanoscale.signals import Interrupted, StopSignal


@dataclass(frozen=True)
class Image:
    """One synthetic image to be made: the `copy`-th slice from the mask `source`."""

    source: str
    copy: int
    seed: int
    prompt: str

    @property
    def stem(self) -> str:
        return f"{self.source}_s{self.copy:03d}"


def plan_images(stems: tuple[str, ...], per_mask: int, prompts: list[str], seed: int) -> list[Image]:
    """Every image with its own seed and prompt: functions of (seed, mask, copy), whatever else is made."""
    images = []
    for source in stems:
        for copy in range(per_mask):
            image_seed = seed_for(seed, "image", source, copy)
            draw = torch.randint(len(prompts), (1,), generator=generator_for(image_seed, "prompt"))
            images.append(Image(source, copy, image_seed, prompts[int(draw)]))
    return images


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
    What is there already is left alone. Until all slices that were ever asked for are there, generation.json holds
    what dataset.json will say, and `call`, the command that makes the rest. Raises InputError when `out` was made with
    other settings, another ControlNet, backbone or source; Interrupted after a requested stop.
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
    digests = digests_of(source)
    check_continues(out, info)
    planned = plan_images(source.stems, per_mask, prompts, seed)
    done = read_manifest(out)
    missing = [image for image in planned if image.stem not in done]
    if not missing and (out / "dataset.json").is_file():
        return 0
    whole = plan_images(source.stems, begin(out, info, per_mask, call), prompts, seed)
    (out / "images").mkdir(exist_ok=True)
    (out / "masks").mkdir(exist_ok=True)
    # rows of a killed run whose pictures are not whole are dropped; theirs are made again
    rows = sorted(done.values(), key=lambda row: natural_order(row["file"]))
    write_lines(out / "manifest.jsonl", rows)

    prompt_embeds = dict(zip(prompts, encode_prompts(backbone, prompts), strict=True))
    negative_embeds = encode_prompts(backbone, [""])
    masks = {stem: source.mask(stem) for stem in source.stems}
    images = {stem: source.image(stem) for stem in source.stems}
    missing.sort(key=lambda image: masks[image.source].shape)  # equal sizes share a batch; the sort is stable
    with StopSignal() as stop, tqdm(total=len(missing), desc="synthesis", unit="image") as bar:
        while missing and not stop.requested:
            shape = masks[missing[0].source].shape
            batch = [image for image in missing[:batch_size] if masks[image.source].shape == shape]
            del missing[: len(batch)]
            slices = draw_slices(
                backbone,
                controlnet,
                [images[image.source] for image in batch],
                [masks[image.source] for image in batch],
                source.info.classes.colors,
                torch.stack([prompt_embeds[image.prompt] for image in batch]),
                negative_embeds,
                [image.seed for image in batch],
                settings,
            )
            for image, pixels in zip(batch, slices, strict=True):
                save_png(out / "masks" / f"{image.stem}.png", masks[image.source])
                save_png(out / "images" / f"{image.stem}.png", pixels)
            append_lines(
                out / "manifest.jsonl",
                [
                    {
                        "file": f"{image.stem}.png",
                        "seed": image.seed,
                        "prompt": image.prompt,
                        "source": image.source,
                        "source_digest": digests.get(image.source),
                        "checkpoint": info.split["controlnet"],
                        "precision": info.split["precision"],
                        "sampler": "ddim",
                        **asdict(settings),
                    }
                    for image in batch
                ],
            )
            bar.update(len(batch))
    if missing:
        raise Interrupted(f"with {len(missing)} images to go: the same command makes them", stop.number)
    now = read_manifest(out)
    if all(image.stem in now for image in whole):
        write_json(out / "dataset.json", info.to_json())
        (out / GENERATION).unlink()
    return len(planned) - len([image for image in planned if image.stem in done])


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
    return decode_gray(pixel_values)[:, :height, :width].cpu().numpy()


def check_continues(out: Path, info: DatasetInfo) -> None:
    """Refuse to mix: `out` must be new, or a folder that was begun with what `info` says."""
    begun = begun_with(out)
    if begun is None:
        return
    before = begun.to_json()
    now = json.loads(json.dumps(info.to_json()))
    if before["origin"] != "synthetic":
        raise InputError(f"{out} holds a dataset of origin {before['origin']}: name another folder with --out")
    changed = [key for key in now["split"] if before["split"].get(key) != now["split"][key]]
    changed += [key for key in ("classes",) if before[key] != now[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"{out} was made with another {key} ({before['split'].get(key)}, now {now['split'].get(key)}): "
            "repeat the old settings to go on, or name another folder with --out"
        )


def begun_with(out: Path) -> DatasetInfo | None:
    """What a pair folder says, complete or not; None where nothing stands yet. InputError for anything else."""
    if holds_nothing(out):
        return None
    if (out / GENERATION).is_file() and not (out / "dataset.json").is_file():
        return read_generation(out)[0]
    return read_info(out)


def begin(out: Path, info: DatasetInfo, per_mask: int, call: str | None) -> int:
    """Make `out`, or go on with it, as a folder that is not complete; return how many slices per mask would make it so.

    They are the most that were ever asked for: a call for fewer does not complete what one before it has begun.
    """
    complete = out / "dataset.json"
    if (out / GENERATION).is_file() and not complete.is_file():
        _, most, call_for_most = read_generation(out)
        if most > per_mask:
            per_mask, call = most, call_for_most
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / GENERATION, info.to_json() | {"per_mask": per_mask, "call": call})
    complete.unlink(missing_ok=True)
    return per_mask


def read_manifest(out: Path) -> dict[str, dict]:
    """Lines of manifest.jsonl by stem, those whose image and mask both stand."""
    file = out / "manifest.jsonl"
    rows = {}
    for row in read_lines(file):
        if (out / "images" / row["file"]).is_file() and (out / "masks" / row["file"]).is_file():
            rows[Path(row["file"]).stem] = row
    return rows
