"""The guided sampling loop over a DDIM scheduler: a pure function of its noise (paper 4.2.3)."""

from __future__ import annotations

import torch
from diffusers import ControlNetModel, DDIMScheduler

from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import decode_latents, hint_once, predict_noise
from natural2nanoscale.diffusion.settings import SamplingSettings


def ddim_scheduler(backbone: Backbone) -> DDIMScheduler:
    """DDIM with the backbone's betas and the settings of Stable Diffusion: latents are never clipped."""
    return DDIMScheduler.from_config(
        backbone.scheduler.config, clip_sample=False, steps_offset=1, set_alpha_to_one=False
    )


def sample(
    backbone: Backbone,
    controlnet: ControlNetModel,
    noise: torch.Tensor,
    controlnet_cond: torch.Tensor,
    prompt_embeds: torch.Tensor,
    negative_embeds: torch.Tensor,
    settings: SamplingSettings,
    generators: list[torch.Generator] | None = None,
    real_latents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw slices from masks.

    noise (B,C,h,w): standard normal start; controlnet_cond (B,3,H,W) in [0,1] with H, W multiples of
    `backbone.grid`; prompt_embeds (B,L,D), negative_embeds (1,L,D) of the empty prompt; generators: one
    per image, CPU, asked only when eta > 0; real_latents (B,C,h,w) of the masks' own slices, needed only when
    `settings.start` is below 1. Returns pixel_values (B,3,H,W), about [-1,1].
    """
    unet, device = backbone.unet, backbone.device
    scheduler = ddim_scheduler(backbone)
    scheduler.set_timesteps(settings.steps, device=device)
    guided = settings.guidance > 1.0
    batch = noise.shape[0]
    embeds, cond = prompt_embeds, controlnet_cond
    if guided:  # both halves in one batch: without the prompt, and with it
        embeds = torch.cat([negative_embeds.expand(batch, -1, -1), prompt_embeds])
        cond = torch.cat([cond, cond])

    timesteps = scheduler.timesteps[settings.steps - settings.steps_taken :]
    latents = noise.to(device) * scheduler.init_noise_sigma
    if len(timesteps) < settings.steps:
        latents = scheduler.add_noise(real_latents, noise.to(device), timesteps[:1])
    with torch.no_grad(), hint_once(controlnet, cond):
        for timestep in timesteps:
            inputs = torch.cat([latents, latents]) if guided else latents
            output = predict_noise(unet, controlnet, inputs, timestep, embeds, cond, settings.strength)
            if guided:
                without, with_prompt = output.chunk(2)
                output = without + settings.guidance * (with_prompt - without)
            fresh = None
            if settings.eta > 0:
                shape = latents.shape[1:]
                fresh = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(latents)
            latents = scheduler.step(
                output, timestep, latents, eta=settings.eta, variance_noise=fresh, return_dict=False
            )[0]
    return decode_latents(backbone, latents)
