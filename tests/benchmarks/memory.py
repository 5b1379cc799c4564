"""What fine-tuning over Stable Diffusion 1.5 asks of a card, counted without the card and without the weights:
`pip install -e ".[bench]" && python tests/benchmarks/memory.py`.

Memory counted on small windows, as `needed_bytes` says; the plan before a training measures it, on the card itself.
Hours as operations (multiplications and additions of convolutions, products and attention, forward and backward)
divided by what a card would sustain; nothing is timed.
"""

import copy

import torch
from diffusers import ControlNetModel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import make_controlnet, predict_noise
from natural2nanoscale.diffusion.memory import blank_batch
from natural2nanoscale.diffusion.settings import FineTuning

SLICES, EPOCHS = 233, 600  # the paper's training set, and about its training
SUSTAINED = (10, 30, 100)  # 10^12 operations per second


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
        predict_noise(backbone.unet, controlnet, *blank_batch(backbone, 1, height, width))
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


def step_operations(unet: torch.nn.Module, controlnet: torch.nn.Module, settings: FineTuning) -> int:
    """Operations of one step; unet and controlnet on the meta device, where nothing is computed."""
    for model in (unet, controlnet):
        (
            model.enable_gradient_checkpointing
            if settings.gradient_checkpointing
            else model.disable_gradient_checkpointing
        )()
    batch, (width, height) = settings.batch_size, settings.crop
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        latents = torch.zeros(batch, unet.config.in_channels, height // 8, width // 8)
        timesteps = torch.zeros(batch, dtype=torch.int64)
        prompt = torch.zeros(batch, 77, unet.config.cross_attention_dim)
        mask = torch.zeros(batch, 3, height, width)
        down, middle = controlnet(latents, timesteps, prompt, mask, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        unet(latents, timesteps, prompt, **residuals).sample.sum().backward()
    return counter.get_total_flops()


def main() -> None:
    from training import stable_diffusion  # which needs accelerate

    backbone = stable_diffusion(torch.device("cpu"))
    controlnet = make_controlnet(backbone)
    shells = [copy.deepcopy(model).float().to("meta") for model in (backbone.unet, controlnet)]
    hours = " | ".join(f"hours at {rate} TFLOP/s" for rate in SUSTAINED)
    print(f"| 512x512, bfloat16, {EPOCHS} epochs of {SLICES} slices | memory | TFLOP per step | steps | {hours} |")
    print("|---|" + "--:|" * (3 + len(SUSTAINED)))
    for batch_size, checkpointing, compiled in ((2, True, False), (2, False, False), (8, False, True)):
        options = {"batch_size": batch_size, "gradient_checkpointing": checkpointing, "compile": compiled}
        settings = FineTuning((512, 512), 1e-5, epochs=EPOCHS, **options)
        needed = needed_bytes(backbone, controlnet, SLICES * settings.latent_variants, settings)
        operations, steps = step_operations(*shells, settings), settings.total_steps(SLICES)
        took = " | ".join(f"{operations * steps / rate / 1e12 / 3600:.1f}" for rate in SUSTAINED)
        flags = f"--batch-size {batch_size}" + " --gradient-checkpointing" * checkpointing + " --compile" * compiled
        print(f"| {flags} | {needed / 1e9:.1f} GB | {operations / 1e12:.1f} | {steps} | {took} |", flush=True)


if __name__ == "__main__":
    main()
