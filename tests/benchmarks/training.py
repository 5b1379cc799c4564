"""Speed and memory of a fine-tuning step: `pip install -e ".[bench]" && python tests/benchmarks/training.py`.

Ours is `fine_tune` itself, timed by the seconds in its log. The reference does at every step what diffusers' example
for ControlNet does, written anew: VAE and text encoder run each time, ControlNet and the optimiser (AdamW as torch
has it) are prepared by accelerate, the frozen parts have the precision of the run, attention is SDPA, nothing is
compiled. It is spared what the example does beside that: reading, resizing and augmenting pictures. A second
reference has the latents cached, so that the share of the cache is seen; ours pays for the cache once, with one
run of the VAE per window, which are as many as the epochs in which they are seen for the first time.

Aims: 1.8 in float32, 2 with each side at its best precision. Both are missed. On two idle cores with AMX: 1.63 and
1.65 in float32, 1.40 twice in bfloat16, 1.43 and 1.40 each at its best; with --compile 1.65, 1.51 and 1.51. On two
cores of Zen 3, which do not compute in bfloat16, 1.75 and 1.82 with --compile. Where the time goes, by `embedded.py`
and torch's profiler: convolutions forward and backward, attention and matrix products are two thirds of our step,
spread over all layers, the norms a seventh, and the reference computes the very same ones. The cache spares us its VAE,
24 of 95 ms in float32 and 14 of 83 in bfloat16: beside a reference whose latents are cached too we are 1.2 times as
fast. Layers of 32 to 96 channels are too small for bfloat16 to help us, 58 and 59 ms a step; it helps the reference's
VAE.

With CUDA: Stable Diffusion 1.5's size with random weights, 512x512, bfloat16. Without: the embedded backbone,
224x128, float32 and, where the CPU computes in it, bfloat16. Same slices and batch for all. The last line is samples
per second of ours, in the last setting of the table, divided by the reference's, each at its best precision.
"""

import argparse
import copy
import gc
import platform
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch.utils.data import DataLoader
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.encoders import encode_gray, encode_mask
from natural2nanoscale.data.folders import DatasetInfo, PairFolder, write_pairs
from natural2nanoscale.device import native_bfloat16
from natural2nanoscale.diffusion.backbone import EMBEDDED, Backbone, Recommended, load_backbone
from natural2nanoscale.diffusion.batches import TrainingData, augmented_window
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.training import fine_tune
from natural2nanoscale.phantom.volume import volume
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.workshop.architecture import make_scheduler

BATCH, WARM_UP = 2, 20
PROMPT = "electron microscopy of a cell"


def stable_diffusion(device: torch.device) -> Backbone:
    """All parts at Stable Diffusion 1.5's size, weights at random, placed as `load_backbone` places them."""
    with torch.device(device):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        )  # fmt: skip
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    for part in (vae, unet, text_encoder):
        part.requires_grad_(False).eval()
    unet.to(torch.bfloat16)
    for part in (vae, unet):
        part.to(memory_format=torch.channels_last)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", model_max_length=77)
    parts = vae, unet, text_encoder, tokenizer, make_scheduler()
    return Backbone("stable-diffusion-size", *parts, Recommended(), "random", torch.bfloat16)


def make_backbone(device: torch.device, dtype: torch.dtype) -> Backbone:
    return stable_diffusion(device) if device.type == "cuda" else load_backbone("embedded", device, dtype)


def ours(device: torch.device, dtype: torch.dtype, folders: list[PairFolder], steps: int, options: dict) -> float:
    """Seconds per step of `fine_tune`, looks and checkpoints between the steps left out."""
    backbone = make_backbone(device, dtype)
    settings = FineTuning(
        backbone.recommended.crop, 1e-5, batch_size=BATCH, latent_variants=1, max_steps=WARM_UP + steps, **options
    )
    with tempfile.TemporaryDirectory() as out:
        run = RunFolder(Path(out))
        fine_tune(run, backbone, TrainingData(*folders, [PROMPT]), settings)
        seconds = {row["step"]: row["seconds"] for row in run.read_log() if "seconds" in row}
    return (seconds[WARM_UP + steps] - seconds[WARM_UP]) / steps


def reference(device: torch.device, dtype: torch.dtype, folder: PairFolder, steps: int, cached: bool) -> float:
    """Seconds per step of the reference recipe."""
    backbone = make_backbone(device, dtype)
    scale = backbone.vae.config.scaling_factor
    vae, unet, text_encoder = (
        copy.deepcopy(part).to(dtype=dtype, memory_format=torch.contiguous_format)
        for part in (backbone.vae, backbone.unet, backbone.text_encoder)
    )
    scheduler, recommended = backbone.scheduler, backbone.recommended
    tokens = backbone.tokenizer(
        PROMPT, padding="max_length", max_length=backbone.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids[0]
    del backbone

    AcceleratorState._reset_state()  # else it keeps the precision of the measurement before
    accelerator = Accelerator(mixed_precision="bf16" if dtype == torch.bfloat16 else "no", cpu=device.type == "cpu")
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=recommended.conditioning_embedding_out_channels
    ).float()
    controlnet.train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-5)
    samples, settings = [], FineTuning(recommended.crop, 1e-5)
    for index, (image, mask) in enumerate(zip(*folder.load(), strict=True)):
        window, ids = augmented_window(image, mask, settings, index, 0)[:2]
        pixels = encode_gray(window[None])[0].contiguous()
        if cached:
            with torch.no_grad():
                posterior = vae.encode(pixels[None].to(device, dtype)).latent_dist
            pixels = torch.stack([posterior.mean[0], posterior.std[0]]).float().cpu()
        samples.append((pixels, encode_mask(ids[None], folder.info.classes.colors)[0].contiguous(), tokens))
    loader = DataLoader(samples, batch_size=BATCH, shuffle=True)
    controlnet, optimizer, loader = accelerator.prepare(controlnet, optimizer, loader)

    done, started = 0, 0.0
    while done < WARM_UP + steps:
        for pixels, conditioning, ids in loader:
            if done == WARM_UP:
                synchronize(device)
                started = time.perf_counter()
            with torch.no_grad():
                if cached:
                    latents = pixels[:, 0] + pixels[:, 1] * torch.randn_like(pixels[:, 0])
                else:
                    latents = vae.encode(pixels.to(dtype)).latent_dist.sample()
                latents = latents.to(dtype) * scale
                hidden = text_encoder(ids)[0]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), device=device)
            noisy = scheduler.add_noise(latents, noise, timesteps)
            down, middle = controlnet(
                noisy, timesteps, encoder_hidden_states=hidden, controlnet_cond=conditioning, return_dict=False
            )
            prediction = unet(
                noisy,
                timesteps,
                encoder_hidden_states=hidden,
                down_block_additional_residuals=[sample.to(dtype) for sample in down],
                mid_block_additional_residual=middle.to(dtype),
                return_dict=False,
            )[0]
            accelerator.backward(F.mse_loss(prediction.float(), noise.float()))
            accelerator.clip_grad_norm_(controlnet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == WARM_UP + steps:
                break
    synchronize(device)
    return (time.perf_counter() - started) / steps


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="that are timed, a multiple of 20")
    parser.add_argument("--rounds", type=int, default=1, help="of all measurements in turn; the fastest counts")
    parser.add_argument("--compile", action="store_true", help="the compiled setting also on a CPU")
    args = parser.parse_args()
    if args.steps < 20 or args.steps % 20:
        parser.error("--steps: expected a multiple of 20, as the log has a line every 20 steps")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"default": {}}
    if device.type == "cuda":
        settings = {"low memory": {"gradient_checkpointing": True}, "default": {}}
    if device.type == "cuda" or args.compile:
        settings["compiled"] = {"compile": True}
    dtypes = [torch.bfloat16] if device.type == "cuda" else [torch.float32]
    if device.type == "cpu" and native_bfloat16(device):
        dtypes.append(torch.bfloat16)
    width, height = (512, 512) if device.type == "cuda" else (224, 128)
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}; batch {BATCH} of {width}x{height}")

    with tempfile.TemporaryDirectory() as data:
        images, masks = volume(10, height, width, seed=0)
        info = DatasetInfo("phantom", "phantom", Classes.named("background", "cytoplasm", "nucleus"))
        pairs = [(f"slice_{i}", image, mask) for i, (image, mask) in enumerate(zip(images, masks, strict=True))]
        folders = [write_pairs(Path(data) / "train", info, pairs[:8]), write_pairs(Path(data) / "val", info, pairs[8:])]
        measurements = {}
        for dtype in dtypes:
            label = str(dtype).removeprefix("torch.")
            for name, cached in (("reference", False), ("reference, latents cached", True)):
                measured = partial(reference, device, dtype, folders[0], args.steps, cached)
                measurements[f"{name}, {label}"] = measured
            for name, options in settings.items():
                measurements[f"ours, {name}, {label}"] = partial(ours, device, dtype, folders, args.steps, options)
        times: dict[str, float] = {}
        peaks: dict[str, int] = {}
        for _ in range(args.rounds):
            for name, measure in measurements.items():
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                times[name] = min(measure(), times.get(name, float("inf")))
                gc.collect()
                if device.type == "cuda":
                    peaks[name] = torch.cuda.max_memory_allocated()
                    torch.cuda.empty_cache()

    print("| | ms per step | samples per second | peak memory |\n|---|--:|--:|--:|")
    for name, seconds in times.items():
        peak = f"{peaks[name] / 1e9:.1f} GB" if name in peaks else "-"
        print(f"| {name} | {1000 * seconds:.0f} | {BATCH / seconds:.2f} | {peak} |")
    kinds = ("reference", "reference, latents cached", f"ours, {list(settings)[-1]}")
    best = {kind: min(seconds for name, seconds in times.items() if name.rpartition(", ")[0] == kind) for kind in kinds}
    for label in [str(dtype).removeprefix("torch.") for dtype in dtypes]:
        print(f"ratio in {label}: {times[f'{kinds[0]}, {label}'] / times[f'{kinds[2]}, {label}']:.2f}")
    print(f"ratio with the reference's latents cached: {best[kinds[1]] / best[kinds[2]]:.2f}")
    print(f"ratio: {best[kinds[0]] / best[kinds[2]]:.2f}")


if __name__ == "__main__":
    main()
