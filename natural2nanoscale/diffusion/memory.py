"""What fine-tuning needs of the device: an estimate beforehand, and parts that step aside while they are not used."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from diffusers import ControlNetModel
from torch.utils.checkpoint import checkpoint

from natural2nanoscale import distributed
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import predict_noise
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


def _blank_batch(backbone: Backbone, batch: int, height: int, width: int) -> list[torch.Tensor]:
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


def kept_bytes(backbone: Backbone, controlnet: ControlNetModel, height: int, width: int, checkpointing: bool) -> int:
    """Bytes that a prediction for one window of (height, width) pixels keeps for the backward pass, weights aside.

    Counted, by running it: what autograd saves and, with gradient checkpointing, the inputs of the layers that
    will be run again. Whether the models checkpoint gradients is to be set anew afterwards.
    """
    weights = {p.untyped_storage().data_ptr() for model in (backbone.unet, controlnet) for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by address; held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    def run_again_later(layer: torch.nn.Module, *inputs: torch.Tensor | None) -> torch.Tensor:
        for tensor in inputs:
            if isinstance(tensor, torch.Tensor):
                keep(tensor)
        return checkpoint(layer.__call__, *inputs, use_reentrant=False)

    for model in (backbone.unet, controlnet):
        model.disable_gradient_checkpointing()
        if checkpointing:
            model.enable_gradient_checkpointing(run_again_later)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predict_noise(backbone.unet, controlnet, *_blank_batch(backbone, 1, height, width))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def needed_bytes(backbone: Backbone, controlnet: ControlNetModel, windows: int, settings: FineTuning) -> int:
    """About how many bytes a step takes at its peak.

    The weights of U-Net and ControlNet; a gradient and Adam's two moments for each weight that learns, in float32;
    mean and deviation of `windows` cached latents; and what the backward pass asks for. The latter is counted on
    two small windows: the difference grows with the pixels of a batch, the rest (weights that autocast rounds, the
    prompt) is there once. Sample strips between the steps, and what the allocator wastes, are left out.
    """
    models = (backbone.unet, controlnet)
    weights = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
    trained = sum(p.numel() for model in models for p in model.parameters() if p.requires_grad)
    side, pixels = backbone.grid, settings.crop[0] * settings.crop[1]
    small, large = (kept_bytes(backbone, controlnet, side, n * side, settings.gradient_checkpointing) for n in (1, 2))
    activations = small + (large - small) * (settings.batch_size * pixels / side**2 - 1)
    latents = backbone.unet.config.in_channels * pixels // backbone.downsampling**2
    copies = 4 if settings.compile else 3  # a compiled pass leaves its gradients beside those that it adds them to
    return int(weights + copies * 4 * trained + 2 * 4 * latents * windows + activations)


def seconds_per_step(backbone: Backbone, controlnet: ControlNetModel, settings: FineTuning) -> float:
    """Time of a step's forward and backward passes, by running them: the second time counts. Uncompiled; the
    optimiser, and the VAE where nothing is cached, come on top."""
    width, height = settings.crop
    inputs = _blank_batch(backbone, settings.batch_size, height, width)
    for _ in range(2):
        started = time.perf_counter()
        predict_noise(backbone.unet, controlnet, *inputs).sum().backward()
        float(next(controlnet.parameters()).grad.sum())  # waits for the device
        seconds = time.perf_counter() - started
        for model in (backbone.unet, controlnet):
            model.zero_grad(set_to_none=True)
    return settings.accumulate * seconds


def set_checkpointing(models: Iterable[torch.nn.Module], on: bool) -> None:
    """Whether the models run their layers again in the backward pass."""
    for model in models:
        if on:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()


def duration(seconds: float) -> str:
    """For people: "40 s", "12 min" or "5.3 h"."""
    for length, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds:.0f} s"


def plan(
    backbone: Backbone, controlnet: ControlNetModel, slices: int, windows: int, steps: int, settings: FineTuning
) -> str:
    """One line: what learns, for how long, and in how much memory. `windows`: those whose latents are cached.

    It runs a batch or two, so a device that is too small says so here, before anything else has taken time.
    """
    parts = (controlnet, backbone.unet, backbone.vae, backbone.text_encoder)
    learn, frozen = (
        sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad is flag) for flag in (True, False)
    )
    needed = needed_bytes(backbone, controlnet, windows, settings)
    set_checkpointing((backbone.unet, controlnet), settings.gradient_checkpointing)
    took = steps * seconds_per_step(backbone, controlnet, settings)
    return (
        f"{learn / 1e6:.1f} million weights learn, {frozen / 1e6:.1f} million stay frozen; {steps} steps of "
        f"{min(slices, settings.slices_per_step)} slices in about {needed / 1e9:.1f} GB and {duration(took)}"
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
