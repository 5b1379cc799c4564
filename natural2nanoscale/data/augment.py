"""Joint augmentation of slices and masks, in batch on the device, every draw keyed by the sample's seed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from natural2nanoscale.draws import normal

# Of elastic deformation, in shares of the slice's shorter side. Simard et al. (2003) smooth by 4 of 29 pixels and move
# by 1.4 (4.8 %); Ronneberger et al. (2015) move by 10 of 512 pixels (2 %) on a 3x3 grid. Here: the latter's strength,
# smoothed a little less than by either, so that a crop of a slice is bent as well and not only shifted.
ELASTIC_SIGMA = 0.1
ELASTIC_STRENGTH = 0.02


def warp(
    images: torch.Tensor,
    masks: torch.Tensor,
    angles: torch.Tensor,
    centers: torch.Tensor,
    size: tuple[int, int],
    scales: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a rotated window of `size` = (height, width) pixels out of every slice and its mask.

    images (B,C,H,W) float, masks (B,H,W) integer ids, angles (B,) in degrees, counter-clockwise;
    centers (B,2): the window's centre (x, y) in pixels of the slice, pixel centres at integers;
    scales (B,2): pixels of the slice per pixel of the window along the window's x and y. Above 1 everything
    looks smaller, below 0 it is mirrored; None is 1.
    offsets (B,2,h,w): how far from there, in pixels of the slice along its x and y, each pixel is taken; None is 0.
    Images are interpolated linearly, masks take the nearest id, so no new mask value can appear. What
    lies outside the slice is its mirror image, in image and mask alike.
    Returns (B,C,h,w) float and (B,h,w) of the masks' dtype. grid_sample's coordinates in [-1,1] are rounded,
    so positions are exact to 1e-4 pixels.
    """
    height, width = images.shape[-2:]
    source_x, source_y = _sources(angles, centers, size, images.device, scales)
    if offsets is not None:
        source_x, source_y = source_x + offsets[:, 0], source_y + offsets[:, 1]
    grid = torch.stack([(2 * source_x + 1) / width - 1, (2 * source_y + 1) / height - 1], dim=-1)
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    planes = masks.unsqueeze(1).to(torch.float32)
    ids = F.grid_sample(planes, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return warped, ids.squeeze(1).round().to(masks.dtype)


def inside(shape: tuple[int, int], angles: torch.Tensor, centers: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B,h,w) bool: which pixels of the windows that `warp` cuts out of slices of `shape` are no mirror images."""
    x, y = _sources(angles, centers, size, angles.device)
    return (x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)


def _sources(
    angles: torch.Tensor,
    centers: torch.Tensor,
    size: tuple[int, int],
    device: torch.device,
    scales: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y (B,h,w), in pixels of the slice, of every pixel of the windows."""
    h, w = size
    rows = torch.arange(h, device=device, dtype=torch.float32) - (h - 1) / 2
    columns = torch.arange(w, device=device, dtype=torch.float32) - (w - 1) / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")  # (h,w) offsets from the window's centre
    turn = torch.deg2rad(angles.to(torch.float32)).view(-1, 1, 1)
    cos, sin = torch.cos(turn), torch.sin(turn)
    if scales is not None:
        x, y = x * scales[:, 0].view(-1, 1, 1), y * scales[:, 1].view(-1, 1, 1)  # (B,h,w)
    return centers[:, 0].view(-1, 1, 1) + cos * x - sin * y, centers[:, 1].view(-1, 1, 1) + sin * x + cos * y


def draw_window(
    generator: torch.Generator, shape: tuple[int, int], size: tuple[int, int], max_angle: float
) -> tuple[float, tuple[float, float]]:
    """Draw one window: an angle in [-max_angle, max_angle] and a centre (x, y).

    `shape` and `size` are (height, width) of slice and window. Positions are uniform over all whole-pixel
    ones at which the unrotated window lies in the slice, first and last included, so windows jointly reach
    every pixel; a window larger than the slice is centred, to the pixel, and filled up by
    mirror images.
    """
    angles, centers = place_windows(torch.rand(1, 3, generator=generator, dtype=torch.float64), shape, size, max_angle)
    return angles.item(), tuple(centers[0].tolist())


def place_windows(
    draws: torch.Tensor, shape: tuple[int, int], size: tuple[int, int], max_angle: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows of `draw_window` for draws (B,3) float64 in [0,1): angles (B,) and centres (B,2), both float64."""
    slack = torch.tensor([shape[1] - size[1], shape[0] - size[0]], device=draws.device)  # along x, then y
    offsets = torch.where(slack > 0, (draws[:, 1:] * (slack + 1)).floor(), (slack / 2).floor().double())
    return (2 * draws[:, 0] - 1) * max_angle, offsets + (torch.tensor([size[1], size[0]], device=draws.device) - 1) / 2


def elastic_offsets(seeds: torch.Tensor, size: tuple[int, int], sigma: float, strength: float) -> torch.Tensor:
    """Random smooth displacements (B,2,h,w) float32 along x and y, for seeds (B,) int64 and `size` = (h,w).

    White noise under a Gaussian of deviation `sigma` pixels, scaled so that each component's deviation is `strength`
    pixels (Simard, Steinkraus and Platt 2003). The noise stands on a grid of spacing sigma: the smoothed field's
    deviation then ripples by 1e-4, and two small products of matrices give it at every pixel.
    """
    kernels = []  # (h,rows) and (w,columns): what a point of the grid adds to a pixel
    for length in size:
        points = torch.arange(-4, math.ceil(length / sigma) + 5, device=seeds.device) * sigma  # 4 sigma beyond
        pixels = torch.arange(length, device=seeds.device)
        kernels.append(torch.exp(-0.5 * ((pixels[:, None] - points) / sigma) ** 2))
    rows, columns = (kernel.shape[1] for kernel in kernels)
    noise = normal(seeds, 2 * rows * columns).view(-1, 2, rows, columns)
    return kernels[0] @ noise @ kernels[1].T * (strength / math.sqrt(math.pi))  # per axis the squares sum to sqrt(pi)


def covering_centers(shape: tuple[int, int], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Centres (x, y) of the fewest evenly spaced windows of `size` that jointly hold all of `shape`."""

    def along(length: int, window: int) -> list[float]:
        count = max(1, math.ceil(length / window))
        slack = length - window
        offsets = [round(i * slack / (count - 1)) for i in range(count)] if count > 1 else [slack // 2]
        return [offset + (window - 1) / 2 for offset in offsets]

    return [(x, y) for y in along(shape[0], size[0]) for x in along(shape[1], size[1])]


def blur(images: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of (B,1,h,w) by sigmas (B,2) > 0 in pixels along y and x, at most 1; edges are repeated."""
    count, radius = len(images), 4  # four of the largest sigma
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.exp(-0.5 * (offsets / sigmas.unsqueeze(-1)) ** 2)  # (B,2,9)
    kernels = (kernels / kernels.sum(-1, keepdim=True)).to(images.dtype)
    planes = F.pad(images.transpose(0, 1), (radius,) * 4, mode="replicate")  # (1,B,h+8,w+8): a channel per sample
    planes = F.conv2d(planes, kernels[:, 0].view(count, 1, -1, 1), groups=count)
    return F.conv2d(planes, kernels[:, 1].view(count, 1, 1, -1), groups=count).transpose(0, 1)


def lower_resolution(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """(B,1,h,w) as if taken with `factors` (B,) in (0,1] times as many pixels per axis: nearest down, linear up."""
    for _ in range(2):  # along x and, transposed, along y
        length = images.shape[-1]
        kept = (length * factors).round().clamp(min=1).view(-1, 1)  # pixels that remain
        place = torch.arange(length, device=images.device) + 0.5
        place = (place * kept / length - 0.5).clamp(min=0)  # (B,w) of every pixel among those that remain
        below = place.floor()
        ends = [((end + 0.5) * length / kept).long() for end in (below, torch.minimum(below + 1, kept - 1))]
        low, high = (images.gather(-1, end.view(-1, 1, 1, length).expand_as(images)) for end in ends)
        images = torch.lerp(low, high, (place - below).view(-1, 1, 1, length)).transpose(2, 3)
    return images


def change_contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Scale (B,1,h,w) about each mean by `factors` (B,), kept within each minimum and maximum."""
    mean, low, high = images.mean((1, 2, 3), True), images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
    return torch.clamp((images - mean) * factors.view(-1, 1, 1, 1) + mean, low, high)


def change_gamma(images: torch.Tensor, gammas: torch.Tensor) -> torch.Tensor:
    """Raise (B,1,h,w), stretched to [0,1], to the power `gammas` (B,); each keeps its mean and deviation."""
    low, high = images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
    curved = ((images - low) / (high - low).clamp(min=1e-6)) ** gammas.view(-1, 1, 1, 1)
    std, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)
    curved_std, curved_mean = torch.std_mean(curved, (1, 2, 3), keepdim=True)
    return (curved - curved_mean) * (std / curved_std.clamp(min=1e-6)) + mean
