"""Class masks of slices of any size, by one trained U-Net or by several whose answers are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.errors import InputError
from natural2nanoscale.segmentation.schedule import micro_batch_size
from natural2nanoscale.segmentation.unet import UNet

TILE = 2048  # pixels: a longer side is cut
MARGIN = 128  # pixels within which the answers of neighbouring tiles pass over into one another


def tile_weights(length: int, tile: int = TILE, margin: int = MARGIN) -> list[tuple[int, int, torch.Tensor]]:
    """How a side of `length` pixels is cut: (start, stop) of every tile, and what its pixels count (stop-start,).

    Tiles of `tile` pixels, evenly spaced, of which neighbours share at least 2 x `margin`; a side that is not longer
    is one tile. The weights of a pixel add up to 1. They rise from 0 within the tiles' overlap; the half margin at a
    tile's edge, whose surroundings are padding, counts nothing.
    """
    count = max(1, math.ceil((length - 2 * margin) / (tile - 2 * margin)))
    starts = [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]
    total, tiles = torch.zeros(length), []
    for start in starts:
        stop = min(start + tile, length)
        place = torch.arange(start, stop)
        inside = [place - start] * (start > 0) + [stop - 1 - place] * (stop < length)  # pixels up to the tile's edges
        ramps = [((steps + 0.5 - margin / 2) / margin).clamp(0, 1) for steps in inside]
        tiles.append((start, stop, torch.stack([torch.ones(stop - start), *ramps]).amin(0)))
        total[start:stop] += tiles[-1][2]
    return [(start, stop, weight / total[start:stop]) for start, stop, weight in tiles]


def slices_at_once(shapes: Sequence[tuple[int, int]], width: int, device: torch.device) -> int:
    """Slices of (height, width) `shapes` that a network of `width` takes at once: as many as their tiles allow."""
    return micro_batch_size(max(min(h, TILE) * min(w, TILE) for h, w in shapes), width, device)


@torch.inference_mode()
def in_bands(
    answer: Callable[[torch.Tensor], torch.Tensor], grey: torch.Tensor, tile: int = TILE, margin: int = MARGIN
) -> Iterator[tuple[int, torch.Tensor]]:
    """Grey values (B,H,W) uint8 -> from top to bottom, the first row of a band and the answers to it (B,K,rows,W).

    `answer` maps a tile (B,h,w) to (B,K,h,w), which may be changed afterwards; sides longer than `tile` pixels are cut
    as `tile_weights` says. The norms see a tile instead of the slice, so the answer is not exactly that of the whole.
    One row of tiles is in memory at a time.
    """
    rows, columns = (tile_weights(length, tile, margin) for length in grey.shape[1:])
    begun = None  # what tiles above have said of the band's first rows
    for number, (top, bottom, weight) in enumerate(rows):
        band = None
        for left, right, across in columns:
            part = answer(grey[:, top:bottom, left:right])
            part *= (weight[:, None] * across).to(part.device)
            if band is None:
                band = part.new_zeros(*part.shape[:2], bottom - top, grey.shape[2])
            band[..., left:right] += part
        if begun is not None:
            band[:, :, : begun.shape[2]] += begun
        end = rows[number + 1][0] if number + 1 < len(rows) else bottom
        begun = band[:, :, end - top :].clone()
        yield top, band[:, :, : end - top]


def shares(models: Sequence[UNet], grey: torch.Tensor, flips: bool = False) -> torch.Tensor:
    """Grey values (B,H,W) uint8 -> probabilities (B,K,H,W) float32: the models' mean and, with `flips`, that over the
    slice and its three mirror images. InputError where they are not finite: the mask would be all of class 0."""
    views = ((), (-1,), (-2,), (-2, -1)) if flips else ((),)
    total = 0.0
    for dims in views:
        images = encode_gray(grey.flip(dims), 1)
        total = total + sum(model(images).softmax(1) for model in models).flip(dims)
    if not total.isfinite().all():
        raise InputError(
            "the U-Nets' answer is not finite, and no mask is made of it: train them anew with a lower --lr, or "
            "with --precision float32"
        )
    return total / (len(views) * len(models))


def predict_bands(
    models: Sequence[UNet], grey: torch.Tensor, flips: bool = False, tile: int = TILE, margin: int = MARGIN
) -> Iterator[tuple[int, torch.Tensor]]:
    """`in_bands` of the probabilities that `shares` gives."""
    return in_bands(partial(shares, models, flips=flips), grey, tile, margin)


def predict_mask(models: Sequence[UNet], grey: torch.Tensor, tile: int = TILE, margin: int = MARGIN) -> torch.Tensor:
    """Grey values (B,H,W) uint8 -> class ids (B,H,W) uint8: the likeliest by `predict_bands`."""
    bands = predict_bands(models, grey, False, tile, margin)
    return torch.cat([band.argmax(1).to(torch.uint8) for _, band in bands], dim=1)
