"""What fine-tuning over Stable Diffusion 1.5 asks of a card, counted without the card and without the weights:
`pip install -e ".[bench]" && python tests/benchmarks/memory.py`.

Memory as the plan before a training says it. Hours as operations (multiplications and additions of convolutions,
products and attention, forward and backward) divided by what a card would sustain; nothing is timed.
"""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode
from training import stable_diffusion

from natural2nanoscale.diffusion.controlnet import make_controlnet
from natural2nanoscale.diffusion.memory import needed_bytes
from natural2nanoscale.diffusion.settings import FineTuning

SLICES, EPOCHS = 233, 600  # the paper's training set, and about its training
SUSTAINED = (10, 30, 100)  # 10^12 operations per second


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
