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


def tile_weights(length: int, tile: int = TILE, margin: int = MARGIN) -> list[tuple[int, int, torch.Tensor]]:
    """Tiles (start, stop) of a side, as `tile_spans` cuts it, and what each of their pixels counts (stop-start,).

    The weights of a pixel add up to 1. They rise from 0 within the tiles' overlap; the half margin at a tile's edge,
    whose surroundings are padding, counts nothing.
    """
    spans = [(start, stop) for start, stop, *_ in tile_spans(length, tile, margin)]
    total, weights = torch.zeros(length), []
    for start, stop in spans:
        place = torch.arange(start, stop)
        inside = [place - start] * (start > 0) + [stop - 1 - place] * (stop < length)  # pixels up to the tile's edges
        ramps = [((steps + 0.5 - margin / 2) / margin).clamp(0, 1) for steps in inside]
        weights.append(torch.stack([torch.ones(stop - start), *ramps]).amin(0))
        total[start:stop] += weights[-1]
    return [(*span, weight / total[slice(*span)]) for span, weight in zip(spans, weights, strict=True)]


def shares(models: Sequence[UNet], grey: torch.Tensor, flips: bool = False) -> torch.Tensor:
    """Grey values (B,H,W) uint8 -> probabilities (B,K,H,W) float32: the models' mean and, with `flips`, that over the
    slice and its three mirror images. InputError where they are not finite: the mask would be all of class 0."""
    total, count = 0.0, 0
    for dims in ((), (-1,), (-2,), (-2, -1)) if flips else ((),):
        images = encode_gray(grey.flip(dims), 1)
        for model in models:
            total, count = total + model(images).softmax(1).flip(dims), count + 1
    if not total.isfinite().all():
        raise InputError(
            "the U-Nets' answer is not finite, and no mask is made of it: train them anew with a lower --lr, or "
            "with --precision float32"
        )
    return total / count


@torch.inference_mode()
def predict_bands(
    models: Sequence[UNet], grey: torch.Tensor, flips: bool = False, tile: int = TILE, margin: int = MARGIN
) -> Iterator[tuple[int, torch.Tensor]]:
    """Grey values (B,H,W) uint8 -> from top to bottom, the first row of a band and its probabilities (B,K,rows,W).

    Sides longer than `tile` pixels are cut into tiles that overlap by at least 2 x `margin`, where their answers pass
    over into one another. The norms see a tile instead of the slice, so the answer is not exactly that of the whole.
    One row of tiles is in memory at a time.
    """
    rows, columns = (tile_weights(length, tile, margin) for length in grey.shape[1:])
    begun = None  # what tiles above have said of the band's first rows
    for number, (top, bottom, weight) in enumerate(rows):
        band = None
        for left, right, across in columns:
            part = shares(models, grey[:, top:bottom, left:right], flips)
            part *= (weight[:, None] * across).to(part.device)
            if band is None:
                band = part.new_zeros(*part.shape[:2], bottom - top, grey.shape[2])
            band[..., left:right] += part
        if begun is not None:
            band[:, :, : begun.shape[2]] += begun
        end = rows[number + 1][0] if number + 1 < len(rows) else bottom
        begun = band[:, :, end - top :].clone()
        yield top, band[:, :, : end - top]


def predict_mask(models: Sequence[UNet], grey: torch.Tensor, tile: int = TILE, margin: int = MARGIN) -> torch.Tensor:
    """Grey values (B,H,W) uint8 -> class ids (B,H,W) uint8: the likeliest by `predict_bands`."""
    bands = predict_bands(models, grey, False, tile, margin)
    return torch.cat([band.argmax(1).to(torch.uint8) for _, band in bands], dim=1)
