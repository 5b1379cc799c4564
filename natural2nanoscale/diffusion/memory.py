"""What fine-tuning needs of the device: an estimate beforehand, and parts that step aside while they are not used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from diffusers import ControlNetModel

from natural2nanoscale import distributed
from natural2nanoscale.device import Cost, duration, gigabytes, measure
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import latent_moments, predict_noise
from natural2nanoscale.diffusion.settings import FineTuning


@contextmanager
def moved(modules: list[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Within it the modules are on `device`, afterwards where they were; those that are there already stay.

    After an error they stay where they are: on a GPU the way back would wait for all that is queued there, which
    never ends when another process is gone.
    """
    before = [next(module.parameters()).device for module in modules]
    for module in modules:
        module.to(device)
    yield
    for module, place in zip(modules, before, strict=True):
        module.to(place)


def blank_batch(backbone: Backbone, batch: int, height: int, width: int) -> list[torch.Tensor]:
    """Noisy latents, timesteps, prompt states and masks as `predict_noise` takes them, all zero, on the device."""
    unet, side = backbone.unet, backbone.downsampling
    return [
        torch.zeros(shape, dtype=dtype, device=backbone.device)
        for shape, dtype in (
            ((batch, unet.config.in_channels, height // side, width // side), torch.float32),
            ((batch,), torch.int64),
            ((batch, backbone.tokenizer.model_max_length, unet.config.cross_attention_dim), unet.dtype),
            ((batch, 3, height, width), torch.float32),
        )
    ]


def step_cost(backbone: Backbone, controlnet: ControlNetModel, slices: int, settings: FineTuning) -> Cost:
    """Memory and time of one batch of a training set of `slices`, by running blank ones: weights, what the backward
    pass keeps, gradients, and room for Adam's two moments. Uncompiled, and without the arithmetic of the optimiser.
    """
    width, height = settings.crop
    batch = min(slices, settings.batch_size)
    inputs, pixels = blank_batch(backbone, batch, height, width), (batch, 3, height, width)
    models = (backbone.unet, controlnet)
    moments = [torch.zeros_like(p) for model in models for p in model.parameters() if p.requires_grad for _ in range(2)]

    def step() -> None:
        if not settings.latent_variants:
            latent_moments(backbone, torch.zeros(pixels, device=backbone.device))
        predict_noise(*models, *inputs).sum().backward()
        for model in models:
            model.zero_grad(set_to_none=True)

    with moved(idle_parts(backbone, settings), torch.device("cpu")):
        cost = measure(step, backbone.device)
    del moments
    return cost


def idle_parts(backbone: Backbone, settings: FineTuning) -> list[torch.nn.Module]:
    """What a step does not use: the prompts are encoded by then, and so are the slices where they are cached."""
    return [backbone.text_encoder, *([backbone.vae] if settings.latent_variants else [])]


def set_checkpointing(models: Iterable[torch.nn.Module], on: bool) -> None:
    """Whether the models run their layers again in the backward pass."""
    for model in models:
        if on:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()


def plan(
    backbone: Backbone, controlnet: ControlNetModel, slices: int, windows: int, steps: int, settings: FineTuning
) -> str:
    """One line: what learns, for how long, and in how much memory. `windows`: those whose latents will be cached.

    It runs two blank batches, so a device that is too small says so here, before anything else has taken time.
    """
    parts = (controlnet, backbone.unet, backbone.vae, backbone.text_encoder)
    learn, frozen = (
        sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad is flag) for flag in (True, False)
    )
    set_checkpointing((backbone.unet, controlnet), settings.gradient_checkpointing)
    cost = step_cost(backbone, controlnet, slices, settings)
    size = settings.crop[0] * settings.crop[1] // backbone.downsampling**2
    cache = 2 * 4 * backbone.unet.config.in_channels * size * windows  # mean and deviation of each latent, float32
    needed = gigabytes(cost.peak if cost.peak is None else cost.peak + cache)
    return (
        f"{learn / 1e6:.1f} million weights learn, {frozen / 1e6:.1f} million stay frozen; {steps} steps of "
        f"{min(slices, settings.slices_per_step)} slices in about {needed} and "
        f"{duration(steps * settings.accumulate * cost.seconds)}"
        + (f" in each of {distributed.world_size()} processes" if distributed.world_size() > 1 else "")
    )


def out_of_memory_advice(settings: FineTuning) -> str:
    """The options that help, in the order in which to try them; what is in use already is left out."""
    advice = []
    if not settings.gradient_checkpointing:
        advice.append("--gradient-checkpointing (the same gradients in more time)")
    if settings.batch_size > 1:
        slices = settings.batch_size * settings.accumulate
        advice.append(f"--batch-size 1 --accumulate {slices} (the same gradients)")
    if settings.unlock_decoder:
        advice.append("no --unlock-decoder")
    advice.append(f"a smaller --crop than {settings.crop[0]}x{settings.crop[1]}")
    if settings.latent_variants:
        advice.append("--latent-variants 0 (no cache of latents: more time)")
    return ", then ".join(advice)
