"""Augmented windows of slices, and the cache of their latents that feeds the fine-tuning loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from natural2nanoscale.data.augment import covering_centers, draw_window, inside, warp
from natural2nanoscale.data.edges import image_edges
from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.device import to_device
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import latent_moments
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.distributed import is_main
from natural2nanoscale.seeds import generator_for


def augmented_windows(
    image: np.ndarray,
    mask: np.ndarray,
    settings: FineTuning,
    index: int,
    variants: range,
    edges: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Windows of one slice: (V,H,W) float32 grey values in 0..255, (V,H,W) uint8 class ids, (V,H,W) bool: what is no
    mirror image, and (V,H,W) uint8 of the slice's edge map `edges` (H,W), which noise leaves alone, or None.

    Window v of slice `index` is a function of (seed, index, v) alone. The first ones stand unrotated on a
    grid that holds every pixel of the slice; the others are drawn (paper 4.4: crop, rotation, noise).
    """
    size = settings.crop[1], settings.crop[0]
    fixed = covering_centers(image.shape, size)
    angles, centers, noise = [], [], []
    for variant in variants:
        generator = generator_for(settings.seed, "window", index, variant)
        angle, center = draw_window(generator, image.shape, size, settings.rotation)
        if variant < len(fixed):
            angle, center = 0.0, fixed[variant]
        strength = settings.noise * torch.rand(1, generator=generator)
        angles.append(angle)
        centers.append(center)
        noise.append(strength * torch.randn(size, generator=generator))
    count = len(variants)
    planes = image[None] if edges is None else np.stack([image, edges])
    images = torch.from_numpy(planes).float().expand(count, -1, -1, -1)
    masks = torch.from_numpy(mask).expand(count, -1, -1)
    turns, centers = torch.tensor(angles), torch.tensor(centers)
    images, masks = warp(images, masks, turns, centers, size)
    drawn = None if edges is None else images[:, 1].round().to(torch.uint8)
    return (images[:, 0] + torch.stack(noise)).clamp(0, 255), masks, inside(image.shape, turns, centers, size), drawn


def variants_kept(shapes: Sequence[tuple[int, int]], settings: FineTuning) -> int:
    """How many windows of each slice are cached: the setting, or twice as many as jointly hold the largest slice, so
    that as many are drawn; 0: none."""
    size = settings.crop[1], settings.crop[0]
    cover = max(len(covering_centers(shape, size)) for shape in shapes)
    return max(settings.latent_variants, 2 * cover) if settings.latent_variants else 0


class LatentCache:
    """Posterior mean and std of the latents of augmented windows, on the backbone's device; the windows' masks, edges
    and what carries loss, on the host.

    Keeping both moments, not one drawn sample, keeps the posterior's noise fresh at every visit. With
    `latent_variants` = 0 nothing is kept: each visit of epoch e encodes window e. Where a slice is smaller than the
    window, the mirror images that fill it up carry no loss; the corners of rotated windows of larger ones do.
    """

    def __init__(self, backbone: Backbone, folder: PairFolder, settings: FineTuning):
        self.backbone, self.settings = backbone, settings
        self.images, self.masks = folder.load()
        self.edges: list[np.ndarray | None] = [None] * len(self.images)
        if settings.condition == "mask+edges":  # of whole slices, as at generation
            grays = (torch.from_numpy(image)[None].to(backbone.device) for image in self.images)
            self.edges = [image_edges(gray)[0].cpu().numpy() for gray in grays]
        size = settings.crop[1], settings.crop[0]
        self.variants = variants_kept(folder.shapes, settings)
        self.padded = [height < size[0] or width < size[1] for height, width in folder.shapes]
        self.entries: list[tuple[torch.Tensor, ...]] = []  # per slice: mean, std, masks, share of loss, edges if seen
        if self.variants:
            for index in tqdm(range(len(self.images)), desc="caching latents", leave=False, disable=not is_main()):
                self.entries.append(self._encode(index, range(self.variants)))

    def _encode(self, index: int, variants: range) -> tuple[torch.Tensor, ...]:
        means, stds, masks, shares, edges = [], [], [], [], []
        for first in range(variants.start, variants.stop, 4):  # a few at a time: activations of the VAE are large
            some = range(first, min(first + 4, variants.stop))
            windows, ids, real, drawn = augmented_windows(
                self.images[index], self.masks[index], self.settings, index, some, self.edges[index]
            )
            mean, std = latent_moments(self.backbone, encode_gray(windows.to(self.backbone.device)))
            means.append(mean)
            stds.append(std)
            masks.append(ids)
            real = real if self.padded[index] else torch.ones_like(real)
            shares.append(F.avg_pool2d(real.float(), self.backbone.downsampling)[:, None])
            edges += [] if drawn is None else [drawn]
        return tuple(torch.cat(parts) for parts in (means, stds, masks, shares, edges) if parts)

    def batch(
        self, indices: list[int], epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Window (epoch mod variants) of each slice: mean, std (B,C,h,w), masks (B,H,W), the share (B,1,h,w) in
        [0,1] of each latent that carries loss, or None where all do, and edges (B,H,W) uint8, or None where the
        ControlNet sees none."""
        if self.variants:
            variant = epoch % self.variants
            picked = [tuple(part[variant] for part in self.entries[index]) for index in indices]
        else:
            picked = [tuple(p[0] for p in self._encode(index, range(epoch, epoch + 1))) for index in indices]
        mean, std, masks, share, *drawn = (torch.stack(parts) for parts in zip(*picked, strict=True))
        device = self.backbone.device
        share = to_device(share, device) if any(self.padded) else None
        return mean, std, to_device(masks, device), share, to_device(drawn[0], device) if drawn else None
