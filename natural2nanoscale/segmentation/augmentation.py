"""What --augment does to the slices of a batch: all of them at once, on the device, each by its own draws."""

from __future__ import annotations

from collections.abc import Callable

import torch

from natural2nanoscale.data.augment import (
    ELASTIC_SIGMA,
    ELASTIC_STRENGTH,
    blur,
    change_contrast,
    change_gamma,
    elastic_offsets,
    lower_resolution,
    place_windows,
    warp,
)
from natural2nanoscale.draws import normal, uniform
from natural2nanoscale.segmentation.settings import AUGMENTATIONS

# The paper states the angle alone (4.3). Chosen here: flips of half of the samples along either axis, and these.
MAX_SHIFT = 0.1  # of height and width, in whole pixels
MAX_NOISE = 10 / 127.5  # standard deviation, 10 of 255 grey levels; each sample draws its own up to this
DRAWS = 3 + 23  # uniform numbers that every sample draws, used or not; the first ones place its window


def augment(
    values: torch.Tensor,
    ids: torch.Tensor,
    kind: str,
    seeds: torch.Tensor,
    size: tuple[int, int],
    max_angle: float,
    centers: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of `size` = (height, width), changed as AUGMENTATIONS[kind] says.

    values (B,1,H,W) float32 in [-1,1] and ids (B,H,W) integer of slices, seeds (B,) int64 on the CPU: a sample's draws
    are a function of its seed alone. Rotations are uniform in [-max_angle, max_angle] degrees; centers (B,2) float
    puts the windows elsewhere than drawn.
    Returns (B,1,h,w) float32 and (B,h,w). All geometry is one interpolation, ids take the nearest; what lies
    beyond the slice is its mirror image. Values stay in [-1,1], but for "nnunet", which clips nothing.
    """
    parts, device = AUGMENTATIONS[kind], values.device
    if kind == "nnunet":
        max_angle = 15.0 if max(size) > 1.5 * min(size) else 180.0
    elif "rotation" not in parts:
        max_angle = 0.0
    draws = uniform(seeds, DRAWS)
    angles, drawn = place_windows(draws[:, :3], values.shape[-2:], size, max_angle)
    centers, draws = drawn if centers is None else centers, draws[:, 3:].float()
    seeds, side = seeds.to(device), min(values.shape[-2:])
    scales = torch.where(draws[:, 0:2] < 0.5, -1.0, 1.0) if "flips" in parts else torch.ones(len(draws), 2)
    if "shifts" in parts:
        reach = MAX_SHIFT * torch.tensor([values.shape[-1], values.shape[-2]])
        centers = centers + ((2 * draws[:, 2:4] - 1) * reach).round()
    if kind == "nnunet":
        angles = angles * (draws[:, 4] < 0.2)
        scales = scales * torch.where(draws[:, 5:6] < 0.2, 0.7 + 0.7 * draws[:, 6:7], 1.0)  # 1.4: smaller objects
        deviation, mean = torch.std_mean(values, (1, 2, 3), keepdim=True)  # of whole slices
    offsets = None
    if "elastic" in parts:
        offsets = elastic_offsets(~seeds, size, ELASTIC_SIGMA * side, ELASTIC_STRENGTH * side)
    angles, centers, scales = (geometry.float().to(device) for geometry in (angles, centers, scales))
    values, ids = warp(values, ids, angles, centers, size, scales, offsets)
    if "noise" in parts:
        values = add_noise(values, (MAX_NOISE * draws[:, 7]).to(device), seeds).clamp(-1, 1)
    if kind == "nnunet":
        standardized = (values - mean) / deviation.clamp(min=1e-6)  # nnU-Net's strengths are meant for these
        values = nnunet_intensities(standardized, draws[:, 8:], seeds) * deviation + mean
    return values, ids


def add_noise(values: torch.Tensor, deviations: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """(B,1,h,w) plus Gaussian noise of `deviations` (B,), a function of seeds (B,) int64 on the same device."""
    fields = normal(~seeds, values[0].numel()).view_as(values)  # ~: other numbers than the sample's own draws
    return values + deviations.view(-1, 1, 1, 1) * fields


def nnunet_intensities(values: torch.Tensor, draws: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """nnU-Net's changes of intensity, in its order and with its probabilities for one channel.

    values (B,1,h,w) of slices of mean 0 and deviation 1; draws (B,15) in [0,1) say who is changed and how much.
    """
    values = values.clone()

    def change(share: float, draw: torch.Tensor, function: Callable, *strengths: torch.Tensor) -> None:
        rows = (draw < share).nonzero().squeeze(1)
        if len(rows):
            chosen = rows.to(values.device)
            values[chosen] = function(values[chosen], *(strength[rows].to(values.device) for strength in strengths))

    def around_one(draw: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """Half of the draws give factors below 1, half above."""
        return torch.where(draw < 0.5, low + 2 * draw * (1 - low), 1 + (2 * draw - 1) * (high - 1))

    noise, blurred, bright, contrast, coarse, inverted, gamma = draws[:, :7].unbind(1)  # who
    sigma, factor, spread, scale, curve, bend = draws[:, 7:13].unbind(1)  # how much
    change(0.1, noise, add_noise, 0.1 * sigma, seeds)
    change(0.2 * 0.5, blurred, blur, 0.5 + 0.5 * draws[:, 13:15])  # 0.5: each channel on its own, and we have one
    change(0.15, bright, lambda x, f: x * f.view(-1, 1, 1, 1), around_one(factor, 0.75, 1.25))
    change(0.15, contrast, change_contrast, around_one(spread, 0.75, 1.25))
    change(0.25 * 0.5, coarse, lower_resolution, 0.5 + 0.5 * scale)
    change(0.1, inverted, lambda x, g: -change_gamma(-x, g), around_one(curve, 0.7, 1.5))
    change(0.3, gamma, change_gamma, around_one(bend, 0.7, 1.5))
    return values
