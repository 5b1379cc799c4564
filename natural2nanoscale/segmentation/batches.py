"""Slices on the device, the order in which training takes them, and their augmentation in batch.

Order and augmentation are functions of (seed, epoch, index) alone: they depend on no batch size, no worker
and no interruption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from natural2nanoscale.data.augment import draw_window, warp
from natural2nanoscale.runs import generator_for, permutation_for
from natural2nanoscale.segmentation.mixing import Slices
from natural2nanoscale.segmentation.settings import MAX_ANGLE, Settings
from natural2nanoscale.segmentation.unet import normalize

BYTES_PER_PIXEL_AND_WIDTH = 120  # of float32 activations and gradients in one training pass


class DeviceSlices:
    """All slices as uint8 on the device: slices of one shape are one tensor."""

    def __init__(self, slices: Slices, device: torch.device):
        by_shape: dict[tuple[int, int], list[int]] = {}
        self.place = []  # of every slice: its shape and its row in that shape's tensors
        for index, image in enumerate(slices.images):
            members = by_shape.setdefault(image.shape, [])
            self.place.append((image.shape, len(members)))
            members.append(index)
        self.images = {shape: _stack(slices.images, rows, device) for shape, rows in by_shape.items()}
        self.masks = {shape: _stack(slices.masks, rows, device) for shape, rows in by_shape.items()}
        self.device = device

    def groups(self, indices: list[int]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """The slices of `indices`, shape by shape.

        Yields (positions in `indices`, images (B,H,W) uint8, masks (B,H,W) uint8).
        """
        by_shape: dict[tuple[int, int], list[int]] = {}
        for position, index in enumerate(indices):
            by_shape.setdefault(self.place[index][0], []).append(position)
        for shape, positions in by_shape.items():
            rows = torch.tensor([self.place[indices[p]][1] for p in positions], device=self.device)
            yield positions, self.images[shape][rows], self.masks[shape][rows]


def _stack(arrays: list[np.ndarray], rows: list[int], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.stack([arrays[row] for row in rows])).to(device)


def slices_per_step(settings: Settings, count: int) -> int:
    """How many slices a step takes from a set of `count`: the batch size or, if smaller, all."""
    return settings.batch_size if settings.full_batches else min(settings.batch_size, count)


def draw_batch(step: int, count: int, real: int, settings: Settings) -> list[tuple[int, int]]:
    """The (epoch, index) pairs of optimiser step `step`, counted from 0.

    Plain: each epoch is a permutation of the set, cut into batches; the last one may be smaller. With
    `balance` or `full_batches` every step is full, and the order goes on into the next epoch's permutation;
    with `balance` real and synthetic slices are drawn from permutations of their own.
    """
    size = slices_per_step(settings, count)
    if settings.balance is None and not settings.full_batches:
        epoch, turn = divmod(step, math.ceil(count / size))
        order = permutation_for(count, settings.seed, "order", epoch)
        return [(epoch, index) for index in order[turn * size : (turn + 1) * size]]
    if settings.balance is None:
        return _stream("order", 0, count, step, size, settings.seed)
    share = round(settings.balance * size)
    return _stream("real", 0, real, step, share, settings.seed) + _stream(
        "synthetic", real, count - real, step, size - share, settings.seed
    )


def _stream(name: str, first: int, count: int, step: int, size: int, seed: int) -> list[tuple[int, int]]:
    """Step `step` of an endless row of permutations of the `count` indices that begin at `first`."""
    batch: list[tuple[int, int]] = []
    while len(batch) < size:
        epoch, turn = divmod(step * size + len(batch), count)
        order = permutation_for(count, seed, name, epoch)[turn : turn + size - len(batch)]
        batch += [(epoch, first + index) for index in order]
    return batch


def read_batch(
    pool: DeviceSlices, samples: list[tuple[int, int]], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The augmented slices of (epoch, index) pairs.

    Returns images (B,1,h,w) float32 in [-1,1] and targets (B,h,w) int64.
    """
    images, masks = [], []
    angle = MAX_ANGLE if settings.augment == "rotation" else 0.0
    for positions, grey, ids in pool.groups([index for _, index in samples]):
        shape = (grey.shape[1], grey.shape[2])
        values = normalize(grey)
        if angle or settings.crop:
            size = (settings.crop[1], settings.crop[0]) if settings.crop else shape
            windows = [
                draw_window(generator_for(settings.seed, "augment", *samples[p]), shape, size, angle) for p in positions
            ]
            angles = torch.tensor([window[0] for window in windows], device=pool.device)
            centers = torch.tensor([window[1] for window in windows], device=pool.device)
            values, ids = warp(values, ids, angles, centers, size)
        images.append(values)
        masks.append(ids.long())
    return torch.cat(images), torch.cat(masks)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic on GPUs made for it; float32 elsewhere."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def micro_batch_size(pixels: int, width: int, device: torch.device) -> int:
    """Slices of `pixels` pixels per forward pass: what should fit, at least one.

    Taken from the device's whole memory, not from what is free, so that it is the same on every start.
    """
    budget = 2**30  # a larger micro-batch is no faster on a CPU
    if device.type == "cuda":
        budget = torch.cuda.get_device_properties(device).total_memory // 2
    return max(1, budget // (BYTES_PER_PIXEL_AND_WIDTH * width * pixels))
