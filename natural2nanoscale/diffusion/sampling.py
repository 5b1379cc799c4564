"""The guided sampling loop over diffusers' schedulers: a pure function of its noise (paper 4.2.3)."""

from __future__ import annotations

import torch
from diffusers import ControlNetModel, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import computed_once, decode_latents, predict_noise
from natural2nanoscale.diffusion.settings import SamplingSettings

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
    """Draw slices from masks, or without a ControlNet from noise and prompt alone.

    noise (B,C,h,w): standard normal start; controlnet_cond (B,3,H,W) in [0,1] with H, W multiples of
    `backbone.grid`; prompt_embeds (B,L,D), negative_embeds (1,L,D) of the empty prompt; generators: one
    per image, CPU, asked only when eta > 0; real_latents (B,C,h,w) of the masks' own slices, needed only when
    `settings.start` is below 1. Returns pixel_values (B,3,H,W), about [-1,1].
    """
    unet, device = backbone.unet, backbone.device
    scheduler = sampling_scheduler(backbone, settings.sampler)
    scheduler.set_timesteps(settings.steps, device=device)
    guided = settings.guidance > 1.0
    batch = noise.shape[0]
    embeds, cond = prompt_embeds, controlnet_cond
    if guided:  # both halves in one batch: without the prompt, and with it
        embeds = torch.cat([negative_embeds.expand(batch, -1, -1), prompt_embeds])
        cond = torch.cat([cond, cond])

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
