"""Slices of one size, drawn at once from their masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ControlNetModel

from natural2nanoscale.data.edges import image_edges
from natural2nanoscale.data.encoders import decode_gray, encode_gray, encode_mask, tint
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import decode_latents, latent_moments
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.errors import InputError
from natural2nanoscale.seeds import generator_for


@dataclass(frozen=True)
class Drawn:
    """What slices of one size are drawn from: masks (H,W) uint8, their own slices (H,W) uint8 where settings look at
    them, prompts (B,L,D) with the empty one (1,L,D), and the seed of each one's noise."""

    masks: list[np.ndarray]
    images: list[np.ndarray]
    prompt_embeds: torch.Tensor
    negative_embeds: torch.Tensor
    seeds: list[int]


def draw_slices(
    backbone: Backbone,
    controlnet: ControlNetModel,
    drawn: Drawn,
    colors: tuple[tuple[int, int, int], ...],
    settings: SamplingSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Slices (B,H,W) uint8 from masks of one size, and the `tint` (B,) that they had before they became grey. Each
    one's noise is a function of its seed alone.

    The masks' own slices are looked at only when `settings.start` is below 1, `settings.condition` asks for their edges
    or `settings.detail` for what the VAE loses of them: that is added, as it has lost as much of the drawn slice. Sizes
    off the backbone's grid are filled up by mirror images, and cropped back.
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
    if settings.detail:
        real = encode_gray(pad(drawn.images))
        pixel_values += real - decode_latents(backbone, latent_moments(backbone, real)[0])
    pixel_values = pixel_values[:, :, :height, :width]
    return decode_gray(pixel_values).cpu().numpy(), tint(pixel_values).cpu().numpy()
