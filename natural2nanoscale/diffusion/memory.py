"""What fine-tuning needs of the device: measured beforehand, and parts that step aside while they are not used."""

from __future__ import annotations

from collections.abc import Iterator
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


def idle_parts(backbone: Backbone, settings: FineTuning) -> list[torch.nn.Module]:
    """What a step does not use: the prompts are encoded by then, and so are the slices where they are cached."""
    return [backbone.text_encoder, *([backbone.vae] if settings.latent_variants else [])]


def blank_batch(backbone: Backbone, batch: int, height: int, width: int) -> list[torch.Tensor]:
    """Noisy latents, timesteps, prompt states and masks as `predict_noise` takes them, all zero, on the device."""
    unet, side = backbone.unet, backbone.downsampling
    shapes = (
        ((batch, unet.config.in_channels, height // side, width // side), torch.float32),
        ((batch,), torch.int64),
        ((batch, backbone.tokenizer.model_max_length, unet.config.cross_attention_dim), backbone.dtype),
        ((batch, 3, height, width), torch.float32),
    )
    return [torch.zeros(shape, dtype=dtype, device=backbone.device) for shape, dtype in shapes]


def step_cost(backbone: Backbone, controlnet: ControlNetModel | None, slices: int, settings: FineTuning) -> Cost:
    """Memory and time of one batch of a training set of `slices`, by running blank ones: weights, what the backward
    pass keeps, gradients, and room for Adam's two moments. Uncompiled, and without the optimiser's arithmetic."""
    width, height = settings.crop
    inputs = blank_batch(backbone, min(slices, settings.batch_size), height, width)
    learn = [p for model in filter(None, (backbone.unet, controlnet)) for p in model.parameters() if p.requires_grad]
    moments = [torch.zeros_like(parameter) for parameter in learn for _ in range(2)]

    def step() -> None:
        if not settings.latent_variants:
            latent_moments(backbone, torch.zeros_like(inputs[-1]))
        predict_noise(backbone.unet, controlnet, *inputs).sum().backward()
        for parameter in learn:
            parameter.grad = None

    with moved(idle_parts(backbone, settings), torch.device("cpu")):
        cost = measure(step, backbone.device)
    del moments
    return cost


def plan(
    backbone: Backbone, controlnet: ControlNetModel | None, slices: int, windows: int, steps: int, settings: FineTuning
) -> str:
    """One line: what learns, for how long, and in how much memory. windows: those whose latents will be cached. It runs
    two blank batches, so a device that is too small says so here, before anything else has taken time."""
    parts = filter(None, (controlnet, backbone.unet, backbone.vae, backbone.text_encoder))
    weights = [(p.numel(), p.requires_grad) for part in parts for p in part.parameters()]
    learn, frozen = (sum(count for count, learns in weights if learns is flag) for flag in (True, False))
    cost = step_cost(backbone, controlnet, slices, settings)
    size = settings.crop[0] * settings.crop[1] // backbone.downsampling**2
    cache = 2 * 4 * backbone.unet.config.in_channels * size * windows  # mean and deviation of each latent, float32
    needed = gigabytes(cost.peak if cost.peak is None else cost.peak + cache)
    processes = distributed.world_size()
    return (
        f"{learn / 1e6:.1f} million weights learn, {frozen / 1e6:.1f} million stay frozen; {steps} steps of "
        f"{min(slices, settings.slices_per_step)} slices in about {needed} and "
        f"{duration(steps * settings.accumulate * cost.seconds)}"
    ) + f" in each of {processes} processes" * (processes > 1)


def out_of_memory_advice(settings: FineTuning) -> str:
    """The options that help, in the order in which to try them; what is in use already is left out."""
    slices = settings.batch_size * settings.accumulate
    advice = {
        "--gradient-checkpointing (the same gradients in more time)": not settings.gradient_checkpointing,
        f"--batch-size 1 --accumulate {slices} (the same gradients)": settings.batch_size > 1,
        "no --unlock-decoder": settings.unlock_decoder > 0,
        "--adapt-part attention (fewer weights adapt)": settings.adapt > 0 and settings.adapt_part == "all",
        f"a smaller --crop than {settings.crop[0]}x{settings.crop[1]}": True,
        "--latent-variants 0 (no cache of latents: more time)": settings.latent_variants > 0,
    }
    return ", then ".join(words for words, helps in advice.items() if helps)
