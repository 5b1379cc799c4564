"""Dead-leaves images with their captions as tensors, and their latents: what the backbone's loops draw from."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from natural2nanoscale.data.encoders import normalize
from natural2nanoscale.workshop import dead_leaves
from natural2nanoscale.workshop.recipe import PretrainingSettings

SHAPES = ((128, 128), (128, 224))  # (height, width) of the two kinds of training images


def tokenize(tokenizer, texts: list[str]) -> Tensor:
    """Token ids (B, L) int64, padded to the encoder's length."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _draw(job: tuple[int, int, int, int]) -> tuple[np.ndarray, str]:
    return dead_leaves.draw(*job)


def image_bank(settings: PretrainingSettings) -> dict[tuple[int, int], tuple[Tensor, list[str]]]:
    """(height, width) -> images (N, 3, height, width) uint8 and their captions, drawn by all cores."""
    jobs = [(settings.seed, i, *shape) for shape, count in zip(SHAPES, (settings.images, settings.wide_images),
                                                               strict=True) for i in range(count)]  # fmt: skip
    ignore = signal.signal, (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked for them
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), *ignore) as pool:
        drawn = list(tqdm(pool.imap(_draw, jobs, chunksize=32), "drawing dead leaves", len(jobs)))
    bank = {}
    for shape in SHAPES:
        chosen = [(image, text) for image, text in drawn if image.shape[:2] == shape]
        images = torch.from_numpy(np.stack([image for image, _ in chosen])).permute(0, 3, 1, 2).contiguous()
        bank[shape] = images, [text for _, text in chosen]
    return bank


def with_mirror_images(images: Tensor, captions: list[str]) -> tuple[Tensor, list[str]]:
    """images (N, 3, H, W) -> (2N, 3, H, W), the second half mirrored left to right, and so are its captions."""
    other = {"left": "right", "right": "left"}
    mirrored = [" ".join(other.get(word, word) for word in caption.split(" ")) for caption in captions]
    return torch.cat([images, images.flip(3)]), captions + mirrored


@torch.no_grad()
def encode_bank(vae, images: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and std of images (N, 3, H, W) uint8, as fp16 on the CPU: (N, C, H/4, W/4) each."""
    means, stds = [], []
    for batch in tqdm(images.split(16), "encoding"):
        posterior = vae.encode(normalize(batch).to(vae.device)).latent_dist
        means.append(posterior.mean.half().cpu())
        stds.append(posterior.std.half().cpu())
    return torch.cat(means), torch.cat(stds)
