"""Grey slices to pseudo-RGB and back, and class masks to colours (paper 4.2 and 4.2.1)."""

from __future__ import annotations

from functools import lru_cache

import torch

from natural2nanoscale.data.classes import color_table
from natural2nanoscale.data.edges import class_boundaries

EDGE_SHADE = 0.7  # how much of its colour a pixel loses to the strongest edge


def normalize(values: torch.Tensor) -> torch.Tensor:
    """Values in 0..255 of any shape and kind -> float32 in [-1,1], what every network takes.

    A fixed map and not the training set's mean and deviation: those would differ between the real and the
    synthetic set, and two U-Nets that are compared would see the same test slice differently.
    """
    return values.to(torch.float32) / 127.5 - 1.0


def encode_gray(gray: torch.Tensor, channels: int = 3) -> torch.Tensor:
    """Three times the grey channel (paper 4.2): (B,H,W) in 0..255 -> (B,channels,H,W) float32 in [-1,1]."""
    return normalize(gray).unsqueeze(1).expand(-1, channels, -1, -1)


def decode_gray(pixel_values: torch.Tensor) -> torch.Tensor:
    """(B,3,H,W) float in [-1,1] -> (B,H,W) uint8: the channels' mean, so grey by construction."""
    gray = (pixel_values.float().mean(dim=1) + 1.0) * 127.5
    return gray.round().clamp(0, 255).to(torch.uint8)


def tint(pixel_values: torch.Tensor) -> torch.Tensor:
    """(B,3,H,W) float in [-1,1] -> (B,): mean difference of the strongest and the weakest channel, in grey levels; 0
    for grey pictures. A natural-image model that has not learned the slices colours them."""
    return (pixel_values.float().amax(1) - pixel_values.float().amin(1)).mean((1, 2)) * 127.5


def encode_mask(
    mask: torch.Tensor, colors: tuple[tuple[int, int, int], ...], edges: torch.Tensor | None = None
) -> torch.Tensor:
    """Class ids (B,H,W) -> conditioning (B,3,H,W) float32 in [0,1]; the ignore id becomes black.

    With `edges` (B,H,W) uint8 of `image_edges`, zeros where none are known, these and the boundaries of the classes
    darken the colours, by EDGE_SHADE at most. Darken, because white may be a class; not to black, because a class two
    pixels thin is all boundary.
    """
    conditioning = _table(colors, mask.device)[mask.long()].permute(0, 3, 1, 2)
    if edges is None:
        return conditioning
    light = 1 - EDGE_SHADE * edges.masked_fill(class_boundaries(mask), 255) / 255  # (B,H,W) in [0.3,1]
    return conditioning * light.unsqueeze(1)


@lru_cache
def _table(colors: tuple[tuple[int, int, int], ...], device: torch.device) -> torch.Tensor:
    """Colours (256,3) in [0,1] by id; kept on the device, which else would be waited for at every step."""
    return torch.from_numpy(color_table(colors)).to(device, torch.float32) / 255.0
