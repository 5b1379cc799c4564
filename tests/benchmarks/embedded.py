"""Time of a fine-tuning step and of a sample on the embedded backbone: `python tests/benchmarks/embedded.py`.

Batch 2 and one slice of the phantom's default size. The last two lines are what the package promises for two
cores of a current server CPU: at most 100 ms and 1 s. Before them: where a step's time goes, and what one run of
the VAE over the same two slices takes, which cached latents spare.
"""

import platform
import time

import torch

from natural2nanoscale.data.classes import palette
from natural2nanoscale.data.encoders import encode_mask
from natural2nanoscale.diffusion.backbone import encode_prompts, load_backbone
from natural2nanoscale.diffusion.controlnet import Batch, Denoiser, denoising_loss, latent_moments, make_controlnet
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.phantom.volume import PhantomSettings, volume

KINDS = {  # part of an operation's name in torch: what it is
    "conv": "convolutions", "mm": "matrix products", "attention": "attention", "silu": "activations",
    "gelu": "activations", "norm": "norms", "adam": "Adam",
}  # fmt: skip


def milliseconds(function, repeats: int) -> float:
    """Median time of a call, after two calls that do not count."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times[2:])[repeats // 2]


def shares(function, repeats: int) -> dict[str, float]:
    """Each kind of operation's share of the time that is spent in operations, largest first."""
    with torch.profiler.profile() as profiler:
        for _ in range(repeats):
            function()
    events = profiler.key_averages()
    times = dict.fromkeys([*KINDS.values(), "others"], 0.0)
    for event in events:
        times[next((name for part, name in KINDS.items() if part in event.key), "others")] += event.self_cpu_time_total
    total = sum(times.values())
    return {name: times[name] / total for name in sorted(times, key=times.get, reverse=True)}


def main() -> None:
    width, height = PhantomSettings().size
    backbone = load_backbone("embedded", torch.device("cpu"))
    controlnet = make_controlnet(backbone)
    optimizer = torch.optim.Adam(controlnet.parameters(), lr=1e-4, fused=True)
    _, masks = volume(2, height, width, seed=0)
    conditioning = encode_mask(torch.from_numpy(masks), palette(3))
    shape = (
        backbone.unet.config.in_channels,
        height // backbone.downsampling,
        width // backbone.downsampling,
    )
    latents, noise = torch.randn(2, *shape), torch.randn(2, *shape)
    pixels = torch.rand(2, 3, height, width) * 2 - 1
    embeds = encode_prompts(backbone, ["a dark cell", "a grey nucleus"])
    timesteps = torch.tensor([100, 700])

    def step() -> None:
        denoiser = Denoiser(backbone.unet, controlnet, backbone.scheduler)
        denoising_loss(denoiser, Batch(latents, noise, timesteps, embeds, conditioning)).backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def draw() -> None:
        sample(backbone, controlnet, noise[:1], conditioning[:1], embeds[:1], embeds[1:], SamplingSettings(steps=20))

    def encode() -> None:
        latent_moments(backbone, pixels)

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"slices of {width}x{height}")
    print(f"VAE, batch 2: {milliseconds(encode, 15):.0f} ms")
    print(", ".join(f"{name} {100 * share:.0f} %" for name, share in shares(step, 10).items()))
    print(f"fine-tuning step, batch 2: {milliseconds(step, 15):.0f} ms")
    print(f"20-step sample: {milliseconds(draw, 5):.0f} ms")


if __name__ == "__main__":
    main()
