"""Class masks of slices of any size, by one trained U-Net or by several whose answers are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import EllipsisType

import torch

from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.errors import InputError
from natural2nanoscale.segmentation.schedule import micro_batch_size
from natural2nanoscale.segmentation.unet import UNet

Index = tuple[EllipsisType, slice, slice]
TILE = 2048  # pixels: a longer side is cut
MARGIN = 128  # pixels of a tile that are looked at and thrown away where it meets a neighbour


def tile_spans(length: int, tile: int = TILE, margin: int = MARGIN) -> list[tuple[int, int, int, int]]:
    """How a side of `length` pixels is cut: (start, stop) of every tile and (first, last) of what it answers for.

    Tiles of `tile` pixels, evenly spaced, of which neighbours share at least 2 x `margin`; the answers meet in the
    middle of what is shared and cover every pixel once. A side that is not longer than a tile is one.
    """
    if length <= tile:
        return [(0, length, 0, length)]
    count = math.ceil((length - 2 * margin) / (tile - 2 * margin))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    seams = [(left + tile + right) // 2 for left, right in zip(starts, starts[1:], strict=False)]
    ends = zip([0, *seams], [*seams, length], strict=True)
    return [(start, start + tile, *end) for start, end in zip(starts, ends, strict=True)]


def tiles(shape: tuple[int, int], tile: int = TILE, margin: int = MARGIN) -> Iterator[tuple[Index, Index, Index]]:
    """How slices of `shape` = (H,W) are cut: indices of a tile in the slice, of its answer in the tile, and in the
    slice. For a slice that is no larger than a tile all three stand for the whole."""
    for top, bottom, first_row, last_row in tile_spans(shape[0], tile, margin):
        for left, right, first, last in tile_spans(shape[1], tile, margin):
            window = ..., slice(top, bottom), slice(left, right)
            answer = ..., slice(first_row - top, last_row - top), slice(first - left, last - left)
            yield window, answer, (..., slice(first_row, last_row), slice(first, last))


def slices_at_once(shapes: Sequence[tuple[int, int]], width: int, device: torch.device) -> int:
    """Slices of (height, width) `shapes` that a network of `width` takes at once: as many as their tiles allow."""
    return micro_batch_size(max(min(h, TILE) * min(w, TILE) for h, w in shapes), width, device)


@torch.inference_mode()
def predict_mask(models: Sequence[UNet], grey: torch.Tensor, tile: int = TILE, margin: int = MARGIN) -> torch.Tensor:
    """Grey values (B,H,W) uint8 -> class ids (B,H,W) uint8: the likeliest by the mean of the models' probabilities.

    Sides longer than `tile` pixels are cut into tiles that overlap by at least 2 x `margin`. The norms then see a
    tile instead of the slice, so the answer is not exactly that of the whole. InputError where it is not finite.
    """
    ids = torch.empty_like(grey)
    for window, answer, place in tiles(grey.shape[1:], tile, margin):
        shares = sum(model(encode_gray(grey[window], 1)).softmax(1) for model in models)
        if not shares.isfinite().all():  # else all would be class 0
            raise InputError(
                "the U-Nets' answer is not finite, and no mask is made of it: train them anew with a lower --lr, or "
                "with --precision float32"
            )
        ids[place] = shares.argmax(1)[answer].to(torch.uint8)
    return ids
