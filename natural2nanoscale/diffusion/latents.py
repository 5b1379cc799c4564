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


def variants_visited(shapes: Sequence[tuple[int, int]], settings: FineTuning, step: int = 0) -> list[int]:
    """Which of them a training that goes on from `step` visits, in ascending order: epoch e visits variant e modulo
    their number, however long the training is."""
    count, per_epoch = variants_kept(shapes, settings), settings.steps_per_epoch(len(shapes))
    epochs = range(step // per_epoch, -(-settings.total_steps(len(shapes)) // per_epoch))
    return sorted({epoch % count for epoch in epochs[:count]})  # none where none are kept


class LatentCache:
    """Posterior mean and std of the latents of augmented windows, on the backbone's device; the windows' masks, edges
    and what carries loss, on the host.

    Keeping both moments, not one drawn sample, keeps the posterior's noise fresh at every visit. With
    `latent_variants` = 0 nothing is kept: each visit of epoch e encodes window e. Where a slice is smaller than the
    window, the mirror images that fill it up carry no loss; the corners of rotated windows of larger ones do.
    """

    def __init__(self, backbone: Backbone, folder: PairFolder, settings: FineTuning, step: int = 0):
        """For a training that goes on from `step`: only what it still visits is encoded."""
        self.backbone, self.settings = backbone, settings
        self.images, self.masks = folder.load()
        self.edges: list[np.ndarray | None] = [None] * len(self.images)
        if settings.condition == "mask+edges":  # of whole slices, as at generation
            grays = (torch.from_numpy(image)[None].to(backbone.device) for image in self.images)
            self.edges = [image_edges(gray)[0].cpu().numpy() for gray in grays]
        size = settings.crop[1], settings.crop[0]
        self.variants = variants_kept(folder.shapes, settings)
        self.padded = [height < size[0] or width < size[1] for height, width in folder.shapes]
        self.entries: dict[int, tuple[torch.Tensor, ...]] = {}  # of each variant, row by slice, as `_encode` gives them
        # Slices that pass the VAE together: a few, as its activations are large, and always the same ones, so that a
        # window's latents are the same bits whichever variants a run still visits.
        groups = [range(first, min(first + 4, len(self.images))) for first in range(0, len(self.images), 4)]
        visited = variants_visited(folder.shapes, settings, step)
        total = len(visited) * len(self.images)
        with tqdm(total=total, desc="caching latents", unit="window", leave=False, disable=not is_main()) as bar:
            for variant in visited:
                parts = []
                for group in groups:
                    parts.append(self._encode(group, variant))
                    bar.update(len(group))
                self.entries[variant] = tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _encode(self, indices: Sequence[int], variant: int) -> tuple[torch.Tensor, ...]:
        """Window `variant` of some slices: mean, std, masks, share of loss and, if the ControlNet sees any, edges."""
        windows, masks, real, edges = zip(
            *(
                augmented_windows(
                    self.images[i], self.masks[i], self.settings, i, range(variant, variant + 1), self.edges[i]
                )
                for i in indices
            ),
            strict=True,
        )
        mean, std = latent_moments(self.backbone, encode_gray(torch.cat(windows).to(self.backbone.device)))
        real = [inner if self.padded[i] else torch.ones_like(inner) for i, inner in zip(indices, real, strict=True)]
        share = F.avg_pool2d(torch.cat(real).float(), self.backbone.downsampling)[:, None]
        seen = () if edges[0] is None else (torch.cat(edges),)
        return mean, std, torch.cat(masks), share, *seen

    def batch(
        self, indices: list[int], epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Window (epoch mod variants) of each slice: mean, std (B,C,h,w), masks (B,H,W), the share (B,1,h,w) in
        [0,1] of each latent that carries loss, or None where all do, and edges (B,H,W) uint8, or None where the
        ControlNet sees none."""
        if self.variants:
            kept = self.entries[epoch % self.variants]
            mean, std, masks, share, *drawn = (torch.stack([part[i] for i in indices]) for part in kept)
        else:
            fresh = [self._encode([i], epoch) for i in indices]
            mean, std, masks, share, *drawn = (torch.cat(parts) for parts in zip(*fresh, strict=True))
        device = self.backbone.device
        share = to_device(share, device) if any(self.padded) else None
        return mean, std, to_device(masks, device), share, to_device(drawn[0], device) if drawn else None
