"""The three scripts at Stable Diffusion 1.5's real size on a CPU: `python tests/benchmarks/full_size.py`.

Random weights of its architecture (4 GB), slices of 512x512, one training step with --gradient-checkpointing, one image
in two steps, one step of a U-Net; then one denoising step beside diffusers' pipeline, number for number. CLIP's own
vocabulary is built from the wheel of open-clip-torch where that is installed. Each stage is a process of its own, whose
time and peak of memory are printed. Most of the time goes to the two sample strips that training draws, of 20 steps
each. Memory and disk need about 15 GB.

On two cores with AMX that others used as well, so with the frozen U-Net in bfloat16: weights 27 s (4.6 GB), training
260 s (13.8 GB), generation 54 s (6.4 GB), the segmentation U-Net 40 s (2.3 GB), the comparison in float32 72 s
(10.2 GB), where no pixel differs from the pipeline's.
"""

import argparse
import gzip
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from backbones import TOKENS, make_parts, pipeline

ROOT = Path(__file__).resolve().parents[2]
SIDE = 512  # pixels


def clip_tokenizer(folder: Path) -> None:
    """CLIP's 49,408 tokens where open-clip-torch brings them, else as many, of which letters alone mean something."""
    from transformers import CLIPTokenizer

    found = importlib.util.find_spec("open_clip")
    if found is None:
        print("CLIP's vocabulary is left out: open-clip-torch, which brings it, is not installed")
        letters, merges = [token for token in TOKENS if not token.startswith("<|")], []
        words = [*letters, *(f"unused{i}" for i in range(49406 - len(letters)))]
    else:
        words, merges = clip_words(Path(found.submodule_search_locations[0]))
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    assert len(vocabulary) == 49408, len(vocabulary)
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(folder)


def clip_words(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """CLIP's words, but for those of start and end, and the merges that make them."""
    lines = gzip.decompress((folder / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [256 + i for i in range(256 - len(printable))]  # CLIP's characters for the bytes that cannot be printed
    symbols = [chr(code) for code in (*printable, *others)]
    return [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges)], merges


def write_backbone(work: Path) -> None:
    """All parts of Stable Diffusion 1.5 in diffusers' layout, weights at random."""
    from diffusers import DDPMScheduler

    from natural2nanoscale.diffusion.stable_diffusion import STABLE_DIFFUSION_15

    folder = work / "backbone"
    clip_tokenizer(folder / "tokenizer")
    for name, part in zip(("unet", "vae", "text_encoder"), make_parts(STABLE_DIFFUSION_15), strict=True):
        part.save_pretrained(folder / name)
    DDPMScheduler(**STABLE_DIFFUSION_15.scheduler).save_pretrained(folder / "scheduler")


def write_data(work: Path) -> None:
    """One slice of the phantom in each part, and one prompt."""
    from natural2nanoscale.data.classes import Classes
    from natural2nanoscale.data.folders import DatasetInfo, write_pairs
    from natural2nanoscale.phantom.volume import volume

    info = DatasetInfo("phantom", "prepared", Classes.named("background", "cytoplasm", "nucleus"))
    for seed, part in enumerate(("train", "val", "test")):
        images, masks = volume(1, SIDE, SIDE, seed=seed)
        write_pairs(work / "data" / part, info, [(f"{part}_0", images[0], masks[0])])
    (work / "prompts.txt").write_text("electron microscopy of a cell\n")


def compare(work: Path) -> None:
    """One denoising step and the decoder, by `sample` and by diffusers' pipeline, in float32 from the same noise."""
    from diffusers import StableDiffusionControlNetPipeline

    from natural2nanoscale.data.encoders import encode_mask
    from natural2nanoscale.data.folders import open_pairs
    from natural2nanoscale.diffusion.backbone import encode_prompts, load_backbone
    from natural2nanoscale.diffusion.sampling import sample, sampling_scheduler
    from natural2nanoscale.diffusion.saving import load_trained
    from natural2nanoscale.diffusion.settings import SamplingSettings

    backbone = load_backbone(str(work / "backbone"), torch.device("cpu"))
    controlnet, backbone = load_trained(work / "run", backbone)
    source = open_pairs(work / "data" / "train")
    conditioning = encode_mask(torch.from_numpy(source.mask(source.stems[0]))[None], source.info.classes.colors)
    noise = torch.randn((1, 4, SIDE // 8, SIDE // 8), generator=torch.Generator().manual_seed(0))
    prompt = "electron microscopy of a cell"
    embeds, empty = encode_prompts(backbone, [prompt]), encode_prompts(backbone, [""])
    ours = sample(backbone, controlnet, noise, conditioning, embeds, empty, SamplingSettings(steps=1))
    theirs = pipeline(StableDiffusionControlNetPipeline, backbone, controlnet, sampling_scheduler(backbone))(
        prompt, image=conditioning, num_inference_steps=1, guidance_scale=1.0, latents=noise, output_type="pt"
    ).images  # (1,3,H,W) in [0,1]
    difference = ((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max().item()
    print(f"one denoising step: largest difference from the pipeline {difference:.1e} of a range of 1")
    assert theirs.std() > 0 and difference < 1e-4


def stage(name: str, work: Path, *words: object) -> None:
    """Run python with these words in a process of its own; print its time and the most memory it held."""
    started = time.perf_counter()
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": found, "HF_HUB_OFFLINE": "1"}
    with (work / "log.txt").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        log.seek(0)
        told = log.read()
    seconds, peak = time.perf_counter() - started, used.ru_maxrss / 1e6
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{name} failed:\n{told}")
    for line in told.splitlines():
        if line.startswith(("CLIP's", "one denoising step:")):
            print(line)
    print(f"{name}: {seconds:.0f} s, peak {peak:.1f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("weights", "compare"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="an empty folder on a disk with 15 GB (default: a temporary one)")
    args = parser.parse_args()
    if args.stage:
        (write_backbone if args.stage == "weights" else compare)(args.work)
        return
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        work, data = Path(work), ("--data", "data")
        write_data(work)
        here = Path(__file__).resolve()
        stage("weights", work, here, "--stage", "weights", "--work", work)
        stage(
            "train_controlnet.py, 1 step", work, ROOT / "train_controlnet.py", *data, "--backbone", "backbone",
            "--out", "run", "--prompts", "prompts.txt", "--max-steps", 1, "--batch-size", 1, "--latent-variants", 1,
            "--gradient-checkpointing", "--device", "cpu",
        )  # fmt: skip
        stage(
            "generate.py, 1 image in 2 steps", work, ROOT / "generate.py", *data, "--controlnet", "run",
            "--prompts", "prompts.txt", "--steps", 2, "--batch-size", 1, "--device", "cpu",
        )  # fmt: skip
        stage(
            "train_unet.py, 1 step", work, ROOT / "train_unet.py", *data, "--synthetic-ratio", 1.0, "--out", "unet",
            "--max-steps", 1, "--seeds", 1, "--device", "cpu",
        )  # fmt: skip
        stage("one denoising step, float32", work, here, "--stage", "compare", "--work", work)


if __name__ == "__main__":
    main()
