"""Slices on the device, the order in which training takes them, and their augmentation in batch.

Order and augmentation are functions of (seed, epoch, index) alone: they depend on no batch size, no worker
and no interruption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from natural2nanoscale.data.augment import place_windows
from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.draws import permutations, sample_seeds, uniform
from natural2nanoscale.segmentation.augmentation import augment
from natural2nanoscale.segmentation.schedule import slices_per_step
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices


class DeviceSlices:
    """All slices as uint8 on the device: slices of one shape are one tensor.

    An index counts the slices or, with `enlarge_to`, the entries of the enlarged set.
    """

    def __init__(self, slices: Slices, device: torch.device, enlarge_to: int | None = None):
        pairs, by_shape = (slices.images, slices.masks), {}  # shape -> indices
        place = []  # of every slice: which shape, and its row in that shape's tensors
        for index, image in enumerate(slices.images):
            members = by_shape.setdefault(image.shape, [])
            place.append((list(by_shape).index(image.shape), len(members)))
            members.append(index)
        self.tensors = [  # images and masks (n,H,W) uint8 of every shape
            [torch.from_numpy(np.stack([pictures[row] for row in rows])).to(device) for pictures in pairs]
            for rows in by_shape.values()
        ]
        self.device = device
        self.place = torch.tensor(place)
        self.fixed = torch.tensor(enlarge(slices, enlarge_to)) if enlarge_to else None  # (slice, copy) of every entry
        if self.fixed is not None:
            self.place = self.place[self.fixed[:, 0]]

    def groups(self, indices: torch.Tensor) -> Iterator[tuple[torch.Tensor, bool, torch.Tensor, torch.Tensor]]:
        """The slices of indices (B,) int64, shape by shape, entries of an enlarged set that stay as they are apart.

        Yields (positions in `indices` (b,), whether they stay as they are, images (b,H,W) uint8, masks (b,H,W) uint8).
        """
        kind, row = self.place[indices].unbind(1)
        unchanged = torch.zeros_like(kind) if self.fixed is None else (self.fixed[indices, 1] == 0).long()
        alike = 2 * kind + unchanged
        for key in alike.unique().tolist():
            positions = (alike == key).nonzero().squeeze(1)
            rows = row[positions].to(self.device)
            yield positions, bool(key % 2), *(tensor[rows] for tensor in self.tensors[key // 2])

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """All slices once, at most `size` at a time: indices (b,), images (b,H,W) uint8, masks (b,H,W) uint8."""
        for indices in torch.arange(len(self.place)).split(size):
            for positions, _, grey, masks in self.groups(indices):
                yield indices[positions], grey, masks


def enlarge(slices: Slices, size: int) -> list[tuple[int, int]]:
    """The (slice, copy) of every entry of a set whose real slices are enlarged to `size` entries.

    Copy 0 is the slice itself. Every slice has equally many copies, to within one; where the last ones do not
    serve all slices they serve evenly spaced ones. The synthetic slices follow, as they are.
    """
    copies, rest = divmod(size, slices.real)
    entries = [(index, copy) for copy in range(copies) for index in range(slices.real)]
    entries += [(turn * slices.real // rest, copies) for turn in range(rest)]
    return entries + [(index, 0) for index in range(slices.real, len(slices))]


def draw_batch(step: int, count: int, real: int, settings: Settings) -> torch.Tensor:
    """The (epoch, index) pairs of optimiser step `step`, counted from 0, as (B,2) int64.

    The first `real` indices are real. Plain: each epoch is a permutation of the set, cut into batches; the last one
    may be smaller. With `balance` or `full_batches` every step is full, and the order goes on into the next epoch's
    permutation; with `balance` real and synthetic slices are drawn from permutations of their own. With
    `finetune_after` every step is full as well, and from that step on all slices are real.
    """
    size, seed, tune = slices_per_step(settings, count), settings.seed, settings.finetune_after
    if settings.balance is None and tune is None:
        if settings.full_batches:
            return _stream("order", 0, count, step * size, size, seed)
        epoch, turn = divmod(step, math.ceil(count / size))
        return _stream("order", 0, count, epoch * count + turn * size, min(size, count - turn * size), seed)
    share = round((settings.balance or 0.0) * size)  # real slices of a step that mixes both
    mixed = step if tune is None else min(step, tune)  # steps so far that were mixed
    wanted = share if tune is None or step < tune else size  # real slices of this one
    some = _stream("real", 0, real, mixed * share + (step - mixed) * size, wanted, seed)
    others = _stream("synthetic", real, count - real, mixed * (size - share), size - wanted, seed)
    return torch.cat([some, others])


def _stream(name: str, first: int, count: int, start: int, size: int, seed: int) -> torch.Tensor:
    """From place `start`, `size` of an endless row of permutations of the `count` indices that begin at `first`:
    (epoch, index) pairs (size,2) int64."""
    if not size:
        return torch.empty(0, 2, dtype=torch.int64)
    places = torch.arange(start, start + size)
    epochs, turns = places // count, places % count
    orders = permutations(count, torch.arange(start // count, (start + size - 1) // count + 1), seed, name)
    return torch.stack([epochs, first + orders[epochs - epochs[0], turns]], dim=1)


def read_batch(pool: DeviceSlices, samples: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The augmented slices of (epoch, index) pairs (B,2) int64, each by its own draws, whatever else is in the batch.

    An entry of an enlarged set is augmented as its slice would be in the epoch of that copy's number, at every
    visit alike; only the place of its window, with `crop`, is drawn anew.
    Returns images (B,1,h,w) float32 in [-1,1] and targets (B,h,w) int64.
    """
    places, images, masks = [], [], []
    for positions, unchanged, grey, ids in pool.groups(samples[:, 1]):
        chosen = samples[positions]
        augmentation = "none" if unchanged else settings.augment
        shape = (grey.shape[1], grey.shape[2])
        size = (settings.crop[1], settings.crop[0]) if settings.crop else shape
        values, centers = encode_gray(grey, 1), None
        if pool.fixed is not None and settings.crop:
            draws = uniform(sample_seeds(chosen, settings.seed, "window"), 3)
            _, centers = place_windows(draws, shape, size, 0.0)
        if augmentation != "none" or settings.crop:
            keys = chosen if pool.fixed is None else pool.fixed[chosen[:, 1]].flip(1)
            seeds = sample_seeds(keys, settings.seed, "augment")
            values, ids = augment(values, ids, augmentation, seeds, size, settings.angle, centers)
        places.append(positions)
        images.append(values)
        masks.append(ids.long())
    if len(places) == 1:
        return images[0], masks[0]
    back = torch.cat(places).argsort().to(pool.device)
    return torch.cat(images)[back], torch.cat(masks)[back]
