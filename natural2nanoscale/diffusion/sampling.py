"""The guided sampling loop over diffusers' schedulers, and slices drawn by it from their masks (paper 4.2.3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from PIL import Image, ImageFilter

from natural2nanoscale.data.edges import image_edges
from natural2nanoscale.data.encoders import decode_gray, encode_gray, encode_mask, tint
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import computed_once, decode_latents, latent_moments, predict_noise
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.errors import InputError
from natural2nanoscale.seeds import generator_for

Scheduler = DDIMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler


def sampling_scheduler(backbone: Backbone, sampler: str = "ddim") -> Scheduler:
    """DDIM, DPM-Solver++ 2M or UniPC with the backbone's betas and Stable Diffusion's steps: no latent is clipped."""
    config = backbone.scheduler.config
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    if sampler == "unipc":
        return UniPCMultistepScheduler.from_config(config)
    return DDIMScheduler.from_config(config, clip_sample=False, steps_offset=1, set_alpha_to_one=False)


def sample(
    backbone: Backbone,
    controlnet: ControlNetModel | None,
    noise: torch.Tensor,
    controlnet_cond: torch.Tensor,
    prompt_embeds: torch.Tensor,
    negative_embeds: torch.Tensor,
    settings: SamplingSettings,
    generators: list[torch.Generator] | None = None,
    real_latents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw slices from masks, or without a ControlNet from noise and prompt alone: a pure function of its noise.

    noise (B,C,h,w): standard normal start; controlnet_cond (B,3,H,W) in [0,1] with H, W multiples of
    `backbone.grid`; prompt_embeds (B,L,D), negative_embeds (1,L,D) of the empty prompt; generators: one
    per image, CPU, asked only when eta > 0; real_latents (B,C,h,w) of the masks' own slices, needed only when
    `settings.start` is below 1. Returns pixel_values (B,3,H,W), about [-1,1].
    """
    unet, device, guided = backbone.unet, backbone.device, settings.guidance > 1.0
    embeds, cond = prompt_embeds, controlnet_cond
    if guided:  # both halves in one batch: without the prompt, and with it
        embeds, cond = torch.cat([negative_embeds.expand_as(embeds), embeds]), torch.cat([cond, cond])
    scheduler = sampling_scheduler(backbone, settings.sampler)
    scheduler.set_timesteps(settings.steps, device=device)
    first = settings.steps - settings.steps_taken
    timesteps = scheduler.timesteps[first:]
    if settings.sampler != "ddim":
        scheduler.set_begin_index(first)  # else they look it up, for which a GPU is waited for
    latents = noise.to(device) * scheduler.init_noise_sigma
    if first > 0:
        latents = scheduler.add_noise(real_latents, noise.to(device), timesteps[:1])
    with torch.no_grad(), computed_once(unet, controlnet, embeds, cond):
        for timestep in timesteps:
            inputs = torch.cat([latents, latents]) if guided else latents
            output = predict_noise(unet, controlnet, inputs, timestep, embeds, cond, settings.strength)
            if guided:
                without, with_prompt = output.chunk(2)
                output = without + settings.guidance * (with_prompt - without)
            options = {}
            if settings.eta > 0:
                fresh = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
                options = {"eta": settings.eta, "variance_noise": fresh.to(latents)}
            latents = scheduler.step(output, timestep, latents, return_dict=False, **options)[0]
    return decode_latents(backbone, latents)


@dataclass(frozen=True)
class Drawn:
    """What slices of one size are drawn from: masks (H,W) uint8, their own slices (H,W) uint8 where settings look at
    them, prompts (B,L,D) with the empty one (1,L,D), the seed of each one's noise and, where settings keep some of a
    slice, what is doubted in its mask, `Shapes.doubt`."""

    masks: list[np.ndarray]
    images: list[np.ndarray]
    prompt_embeds: torch.Tensor
    negative_embeds: torch.Tensor
    seeds: list[int]
    doubts: list[np.ndarray] = field(default_factory=list)


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
    or `settings.detail` for what the VAE loses of them: that is added, as it has lost as much of the drawn slice. Where
    `settings.keep` is above 0, they stand but where their masks are doubted most. Sizes off the backbone's grid are
    filled up by mirror images, and cropped back. InputError for what is not finite.
    """
    height, width = drawn.masks[0].shape
    down, right = -height % backbone.grid, -width % backbone.grid

    def pad(slices: list[np.ndarray]) -> torch.Tensor:
        filled = [np.pad(pixels, ((0, down), (0, right)), mode="symmetric") for pixels in slices]
        return torch.from_numpy(np.stack(filled)).to(backbone.device)

    masks, edges, real, real_latents = pad(drawn.masks), None, None, None
    if settings.condition == "mask+boundaries":
        edges = torch.zeros_like(masks)
    elif settings.condition == "mask+edges":
        grays = torch.from_numpy(np.stack(drawn.images)).to(backbone.device)
        edges = pad(list(image_edges(grays).cpu().numpy()))
    if settings.sees_slice:
        real = encode_gray(pad(drawn.images))
    if settings.start < 1 or settings.detail:
        real_latents = latent_moments(backbone, real)[0]
    shape = backbone.unet.config.in_channels, *(length // backbone.downsampling for length in masks.shape[1:])
    generators = [generator_for(seed, "noise") for seed in drawn.seeds]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    given = encode_mask(masks, colors, edges), drawn.prompt_embeds, drawn.negative_embeds
    pixel_values = sample(backbone, controlnet, noise, *given, settings, generators, real_latents)
    if settings.detail:
        pixel_values = pixel_values + real - decode_latents(backbone, real_latents)
    if not pixel_values.isfinite().all():
        raise InputError(
            "the slices that were drawn are not finite, and are not written: try --precision fp32, or a lower "
            "--strength or --guidance; else the ControlNet or the backbone is damaged"
        )
    pixel_values = pixel_values[:, :, :height, :width]
    if settings.keep:
        shares = np.stack([redrawn(doubt, settings.keep) for doubt in drawn.doubts])[:, None]
        pixel_values = real[:, :, :height, :width].lerp(pixel_values, torch.from_numpy(shares).to(pixel_values))
    return decode_gray(pixel_values).cpu().numpy(), tint(pixel_values).cpu().numpy()


def redrawn(doubt: np.ndarray, keep: float) -> np.ndarray:
    """From what is doubted in a mask, (H,W) uint8, how much of each pixel comes from the drawn slice, (H,W) float32 in
    [0,1]: all of those that are not among the share `keep` of the surest, two pixels more, and a soft border."""
    drawn = Image.fromarray(np.where(doubt >= 256 * keep, 255, 0).astype(np.uint8))
    return np.asarray(drawn.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.GaussianBlur(2)), np.float32) / 255
