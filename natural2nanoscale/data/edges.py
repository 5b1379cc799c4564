"""Boundaries of classes and edges of slices, to be drawn onto the colours of a mask (the paper's future work)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from natural2nanoscale.data.classes import IGNORE_ID

# Sobel's (1,2,1) and (-1,0,1), each convolved with (1,4,6,4,1): a smoothing of sigma 1 pixel. Whole numbers, so sums
# over grey values are exact in float32, whatever the device and whatever is added to all of them.
SMOOTH = (1, 6, 15, 20, 15, 6, 1)
SLOPE = (-1, -4, -5, 0, 5, 4, 1)
GRAY_LEVEL = sum(SMOOTH) * sum(SLOPE[4:])  # slope in the middle of a step of one grey level
SHARE = 0.85  # of a slice's pixels are flatter than half an edge: shows membranes, organelles and chromatin


def image_edges(gray: torch.Tensor) -> torch.Tensor:
    """Soft edge maps: (B,H,W) grey values in 0..255 -> (B,H,W) uint8, 0 where flat, towards 255 where steep.

    A slope counts in proportion to those of its own slice, so that brightness and contrast do not matter; with
    p its square and q the quantile SHARE of the slice's squares it is drawn as p / (p + q), which strong steps
    between resin and tissue saturate, leaving fine structure visible.
    """
    planes = F.pad(gray.to(torch.float32).unsqueeze(1), (3, 3, 3, 3), mode="replicate").squeeze(1)
    along_x = _filtered(_filtered(planes, SMOOTH, 1), SLOPE, 2)
    along_y = _filtered(_filtered(planes, SMOOTH, 2), SLOPE, 1)
    squares = along_x.square() + along_y.square()  # (B,H,W)
    flat = squares.flatten(1)
    quantile = flat.kthvalue(1 + int(SHARE * (flat.shape[1] - 1)), dim=1).values  # torch.quantile stops at 16 million
    quantile = quantile.clamp(min=GRAY_LEVEL**2).view(-1, 1, 1)  # rounding to 8 bits is no structure
    return (255 * squares / (squares + quantile)).round().to(torch.uint8)


def _filtered(planes: torch.Tensor, weights: tuple[int, ...], dim: int) -> torch.Tensor:
    length = planes.shape[dim] - len(weights) + 1
    return sum(weight * planes.narrow(dim, i, length) for i, weight in enumerate(weights))


def class_boundaries(mask: torch.Tensor) -> torch.Tensor:
    """(B,H,W) class ids -> (B,H,W) bool: pixels among whose 3x3 neighbours are two classes.

    Lines are two pixels wide, one on either side. The ignore id is no class and has no boundary.
    """
    ids = mask.to(torch.float32).unsqueeze(1)
    highest = F.max_pool2d(ids.masked_fill(ids == IGNORE_ID, -torch.inf), 3, 1, 1)
    lowest = -F.max_pool2d((-ids).masked_fill(ids == IGNORE_ID, -torch.inf), 3, 1, 1)
    return (highest > lowest).squeeze(1)
