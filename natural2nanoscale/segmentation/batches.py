"""Slices on the device, the order in which training takes them, and their augmentation in batch.

Order and augmentation are functions of (seed, epoch, index) alone: they depend on no batch size, no worker
and no interruption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from natural2nanoscale.data.augment import draw_window
from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.device import native_bfloat16
from natural2nanoscale.errors import InputError
from natural2nanoscale.seeds import generator_for, permutation_for
from natural2nanoscale.segmentation.augmentation import augment
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.segmentation.unet import normalize

BYTES_PER_PIXEL_AND_WIDTH = 120  # of float32 activations and gradients in one training pass


def check(training: Slices, validation: Slices, settings: Settings) -> None:
    """Raise InputError for data and settings that cannot be trained on."""
    if training.classes != validation.classes:
        raise InputError(
            f"training slices have classes {', '.join(training.classes.names)}, validation slices "
            f"{', '.join(validation.classes.names)}, or their colours differ: take both from one dataset"
        )
    for name, slices in (("training", training), ("validation", validation)):
        if all((mask == IGNORE_ID).all() for mask in slices.masks):
            raise InputError(f"no pixel of the {len(slices)} {name} masks carries a label: check the masks")
    if settings.crop is None and len(training.shapes) > 1:
        (h0, w0), (h1, w1) = training.shapes[0], training.shapes[-1]
        raise InputError(
            f"the training slices have {len(training.shapes)} different sizes, from {w0}x{h0} to {w1}x{h1}, "
            f"expected one: train on windows with --crop WxH, such as --crop {w0}x{h0}"
        )
    synthetic, size = len(training) - training.real, slices_per_step(settings, set_size(training, settings))
    for flag, given in (("--balance", settings.balance), ("--mode pretrain-finetune", settings.finetune_after)):
        if given is not None and not (training.real and synthetic):
            raise InputError(
                f"{flag} needs real and synthetic slices, found {training.real} real and {synthetic} "
                "synthetic: leave it out, or mix both with --synthetic-ratio"
            )
    if settings.balance is not None and not 0 < round(settings.balance * size) < size:
        raise InputError(
            f"--balance {settings.balance:g} of batches of {size} leaves no slice for one of the two "
            "kinds, expected at least one of each: change --balance or raise --batch-size"
        )
    if settings.enlarge_to is not None:
        if not 0 < training.real <= settings.enlarge_to:
            raise InputError(
                f"--enlarge-to {settings.enlarge_to} of {training.real} real slices, expected real slices and a "
                "number that is not below theirs: raise it or leave it out"
            )
        if settings.augment == "none":
            raise InputError("--enlarge-to without --augment repeats the slices: add --augment rotation")


class DeviceSlices:
    """All slices as uint8 on the device: slices of one shape are one tensor.

    An index counts the slices or, with `enlarge_to`, the entries of the enlarged set.
    """

    def __init__(self, slices: Slices, device: torch.device, enlarge_to: int | None = None):
        by_shape: dict[tuple[int, int], list[int]] = {}
        self.place = []  # of every slice: its shape and its row in that shape's tensors
        for index, image in enumerate(slices.images):
            members = by_shape.setdefault(image.shape, [])
            self.place.append((image.shape, len(members)))
            members.append(index)
        self.images = {shape: _stack(slices.images, rows, device) for shape, rows in by_shape.items()}
        self.masks = {shape: _stack(slices.masks, rows, device) for shape, rows in by_shape.items()}
        self.device = device
        self.fixed = enlarge(slices, enlarge_to) if enlarge_to else None  # (slice, copy) of every entry
        if self.fixed:
            self.place = [self.place[index] for index, _ in self.fixed]

    def original(self, index: int) -> bool:
        """Whether this is an entry of an enlarged set that stays as it is."""
        return self.fixed is not None and self.fixed[index][1] == 0

    def groups(self, indices: list[int]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """The slices of `indices`, shape by shape, originals apart from the others.

        Yields (positions in `indices`, images (B,H,W) uint8, masks (B,H,W) uint8).
        """
        alike: dict[tuple[tuple[int, int], bool], list[int]] = {}
        for position, index in enumerate(indices):
            alike.setdefault((self.place[index][0], self.original(index)), []).append(position)
        for (shape, _), positions in alike.items():
            rows = torch.tensor([self.place[indices[p]][1] for p in positions], device=self.device)
            yield positions, self.images[shape][rows], self.masks[shape][rows]


def _stack(arrays: list[np.ndarray], rows: list[int], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.stack([arrays[row] for row in rows])).to(device)


def enlarge(slices: Slices, size: int) -> list[tuple[int, int]]:
    """The (slice, copy) of every entry of a set whose real slices are enlarged to `size` entries.

    Copy 0 is the slice itself. Every slice has equally many copies, to within one; where the last ones do not
    serve all slices they serve evenly spaced ones. The synthetic slices follow, as they are.
    """
    copies, rest = divmod(size, slices.real)
    entries = [(index, copy) for copy in range(copies) for index in range(slices.real)]
    entries += [(turn * slices.real // rest, copies) for turn in range(rest)]
    return entries + [(index, 0) for index in range(slices.real, len(slices))]


def set_size(training: Slices, settings: Settings) -> int:
    """How many slices an epoch takes."""
    return len(training) if settings.enlarge_to is None else settings.enlarge_to + len(training) - training.real


def plan_steps(count: int, settings: Settings) -> tuple[int, int]:
    """Optimiser steps per epoch and in all, for a training set of `count` slices."""
    per_epoch = math.ceil(count / slices_per_step(settings, count))
    return per_epoch, settings.max_steps or settings.epochs * per_epoch


def slices_per_step(settings: Settings, count: int) -> int:
    """How many slices a step takes from a set of `count`: the batch size or, if smaller, all."""
    return settings.batch_size if settings.full_batches else min(settings.batch_size, count)


def draw_batch(step: int, count: int, real: int, settings: Settings) -> list[tuple[int, int]]:
    """The (epoch, index) pairs of optimiser step `step`, counted from 0; the first `real` indices are real.

    Plain: each epoch is a permutation of the set, cut into batches; the last one may be smaller. With
    `balance` or `full_batches` every step is full, and the order goes on into the next epoch's permutation;
    with `balance` real and synthetic slices are drawn from permutations of their own. With `finetune_after`
    every step is full as well, and from that step on all slices are real.
    """
    size, seed, tune = slices_per_step(settings, count), settings.seed, settings.finetune_after
    if settings.balance is None and tune is None:
        if settings.full_batches:
            return _stream("order", 0, count, step * size, size, seed)
        epoch, turn = divmod(step, math.ceil(count / size))
        order = permutation_for(count, seed, "order", epoch)
        return [(epoch, index) for index in order[turn * size : (turn + 1) * size]]
    share = round((settings.balance or 0.0) * size)  # real slices of a step that mixes both
    mixed = step if tune is None else min(step, tune)  # steps so far that were mixed
    wanted = share if tune is None or step < tune else size  # real slices of this one
    return _stream("real", 0, real, mixed * share + (step - mixed) * size, wanted, seed) + _stream(
        "synthetic", real, count - real, mixed * (size - share), size - wanted, seed
    )


def _stream(name: str, first: int, count: int, start: int, size: int, seed: int) -> list[tuple[int, int]]:
    """From place `start`, `size` of an endless row of permutations of the `count` indices that begin at `first`."""
    batch: list[tuple[int, int]] = []
    while len(batch) < size:
        epoch, turn = divmod(start + len(batch), count)
        order = permutation_for(count, seed, name, epoch)[turn : turn + size - len(batch)]
        batch += [(epoch, first + index) for index in order]
    return batch


def read_batch(
    pool: DeviceSlices, samples: list[tuple[int, int]], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The augmented slices of (epoch, index) pairs, each by its own draws, whatever else is in the batch.

    An entry of an enlarged set is augmented as its slice would be in the epoch of that copy's number, at every
    visit alike; only the place of its window, with `crop`, is drawn anew.
    Returns images (B,1,h,w) float32 in [-1,1] and targets (B,h,w) int64.
    """
    images, masks = [], []
    for positions, grey, ids in pool.groups([index for _, index in samples]):
        chosen = [samples[position] for position in positions]
        recipe = "none" if pool.original(chosen[0][1]) else settings.augment
        shape = (grey.shape[1], grey.shape[2])
        size = (settings.crop[1], settings.crop[0]) if settings.crop else shape
        values, centers = normalize(grey), None
        if pool.fixed and settings.crop:
            places = [draw_window(generator_for(settings.seed, "window", *key), shape, size, 0.0) for key in chosen]
            centers = torch.tensor([center for _, center in places])
        if recipe != "none" or settings.crop:
            keys = [pool.fixed[index][::-1] for _, index in chosen] if pool.fixed else chosen
            generators = [generator_for(settings.seed, "augment", *key) for key in keys]
            values, ids = augment(values, ids, recipe, generators, size, settings.angle, centers)
        images.append(values)
        masks.append(ids.long())
    return torch.cat(images), torch.cat(masks)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic on GPUs made for it; float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native_bfloat16(device))


def micro_batch_size(pixels: int, width: int, device: torch.device) -> int:
    """Slices of `pixels` pixels per forward pass: what should fit, at least one.

    Taken from the device's whole memory, not from what is free, so that it is the same on every start.
    """
    budget = 2**30  # a larger micro-batch is no faster on a CPU
    if device.type == "cuda":
        budget = torch.cuda.get_device_properties(device).total_memory // 2
    return max(1, budget // (BYTES_PER_PIXEL_AND_WIDTH * width * pixels))
