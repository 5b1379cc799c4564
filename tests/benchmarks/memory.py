"""What fine-tuning over Stable Diffusion 1.5 needs, as the plan before a training counts it, without its weights:
`pip install -e ".[bench]" && python tests/benchmarks/memory.py`. A CPU will do; nothing is trained.
"""

import torch
from training import stable_diffusion

from natural2nanoscale.diffusion.controlnet import make_controlnet
from natural2nanoscale.diffusion.memory import needed_bytes
from natural2nanoscale.diffusion.training import FineTuning

SLICES = 233  # the paper's


def main() -> None:
    backbone = stable_diffusion(torch.device("cpu"))
    controlnet = make_controlnet(backbone)
    for batch_size, checkpointing in ((2, True), (2, False), (8, False)):
        settings = FineTuning((512, 512), 1e-5, batch_size=batch_size, gradient_checkpointing=checkpointing)
        needed = needed_bytes(backbone, controlnet, SLICES * settings.latent_variants, settings)
        flag = ", --gradient-checkpointing" if checkpointing else ""
        print(f"512x512, bfloat16, --batch-size {batch_size}{flag}: {needed / 1e9:.1f} GB", flush=True)


if __name__ == "__main__":
    main()
