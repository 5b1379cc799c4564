"""What fine-tuning draws: the slices of each step, and for each of them a window, a prompt, a timestep and noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from natural2nanoscale import distributed
from natural2nanoscale.data.augment import covering_centers, draw_window, inside, warp
from natural2nanoscale.data.edges import image_edges
from natural2nanoscale.data.encoders import encode_gray, encode_mask
from natural2nanoscale.data.folders import ImageFolder, PairFolder
from natural2nanoscale.device import to_device
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.controlnet import Batch, latent_moments
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.seeds import generator_for, permutation_for


@dataclass(frozen=True)
class TrainingData:
    """What a ControlNet learns from, and what is looked at as it does."""

    train: PairFolder
    val: PairFolder
    prompts: list[str]


class WithoutMasks(PairFolder):
    """Slices whose masks do not exist, or are not to be looked at: all pixels are of class 0."""

    def mask(self, stem: str) -> np.ndarray:
        return np.zeros(self.shapes[self.stems.index(stem)], np.uint8)

    @classmethod
    def of(cls, *folders: ImageFolder) -> WithoutMasks:
        """The slices of several folders as one."""
        files = {f"{i}/{stem}": folder.image_files[stem] for i, folder in enumerate(folders) for stem in folder.stems}
        shapes = tuple(shape for folder in folders for shape in folder.shapes)
        return cls(folders[0].path, folders[0].info, tuple(files), files, shapes)


class Batches:
    """Every draw is a function of (seed, epoch, slice) alone: not of batch size, processes or interruptions."""

    def __init__(self, backbone: Backbone, data: TrainingData, settings: FineTuning, step: int):
        """For a training that goes on from `step`; encodes what it will visit."""
        self.backbone, self.settings = backbone, settings
        self.colors, self.slices = data.train.info.classes.colors, len(data.train.stems)
        self.cache = LatentCache(backbone, data.train, settings, step)
        self.prompt_embeds = encode_prompts(backbone, [*data.prompts, ""])  # (P+1,L,D), once for all; the last is empty

    def of_step(self, step: int) -> tuple[int, list[int]]:
        """The epoch of an optimiser step and its slices: a part of the epoch's permutation."""
        epoch, position = divmod(step, self.settings.steps_per_epoch(self.slices))
        order = permutation_for(self.slices, self.settings.seed, "order", epoch)
        return epoch, order[position * self.settings.slices_per_step :][: self.settings.slices_per_step]

    def of_process(self, indices: list[int]) -> Iterator[list[int]]:
        """This process's share of a step's slices, as many at once as a batch holds."""
        mine, size = indices[distributed.rank() :: distributed.world_size()], self.settings.batch_size
        yield from (mine[first : first + size] for first in range(0, len(mine), size))

    def draw(self, indices: list[int], epoch: int) -> Batch:
        """A window of each slice, its prompt, timestep and noise, and a sample of the VAE's posterior."""
        settings, empty = self.settings, len(self.prompt_embeds) - 1
        mean, std, masks, share, edges = self.cache.batch(indices, epoch)
        generators = [generator_for(settings.seed, "draw", epoch, index) for index in indices]
        steps = self.backbone.scheduler.config.num_train_timesteps
        chosen = torch.cat([torch.randint(empty, (1,), generator=g) for g in generators])
        timesteps = torch.cat([torch.randint(steps, (1,), generator=g) for g in generators])
        noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators])
        posterior = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators])
        for i, generator in enumerate(generators):
            if torch.rand(1, generator=generator) < settings.prompt_dropout:
                chosen[i] = empty
            if edges is not None and torch.rand(1, generator=generator) < settings.edge_dropout:
                edges[i] = 0
        chosen, timesteps, noise, posterior = (
            to_device(drawn, self.backbone.device) for drawn in (chosen, timesteps, noise, posterior)
        )
        conditioning = encode_mask(masks, self.colors, edges)
        return Batch(mean + std * posterior, noise, timesteps, self.prompt_embeds[chosen], conditioning, share)


def augmented_window(
    image: np.ndarray, mask: np.ndarray, settings: FineTuning, index: int, variant: int, edges: np.ndarray | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A window of a slice: (H,W) float32 grey values in 0..255, (H,W) uint8 class ids, (H,W) bool: what is no mirror
    image, and (H,W) uint8 of the slice's edge map `edges` (H,W), which noise leaves alone, or None.

    A function of (seed, index, variant) alone. The first variants stand unrotated on a grid that holds every pixel of
    the slice; the others are drawn (paper 4.4: crop, rotation, noise).
    """
    size, generator = settings.crop[::-1], generator_for(settings.seed, "window", index, variant)
    angle, center = draw_window(generator, image.shape, size, settings.rotation)
    fixed = covering_centers(image.shape, size)
    if variant < len(fixed):
        angle, center = 0.0, fixed[variant]
    noise = settings.noise * torch.rand(1, generator=generator) * torch.randn(size, generator=generator)
    place = torch.tensor([angle]), torch.tensor([center]), size
    planes = torch.from_numpy(image[None] if edges is None else np.stack([image, edges])).float()
    planes, ids = warp(planes[None], torch.from_numpy(mask)[None], *place)
    seen = None if edges is None else planes[0, 1].round().to(torch.uint8)
    return (planes[0, 0] + noise).clamp(0, 255), ids[0], inside(image.shape, *place)[0], seen


def variants_kept(shapes: Sequence[tuple[int, int]], settings: FineTuning) -> int:
    """How many windows of each slice are cached: the setting, or twice as many as jointly hold the largest slice, so
    that as many are drawn; 0: none."""
    cover = max(len(covering_centers(shape, settings.crop[::-1])) for shape in shapes)
    return max(settings.latent_variants, 2 * cover) if settings.latent_variants else 0


def variants_visited(shapes: Sequence[tuple[int, int]], settings: FineTuning, step: int = 0) -> list[int]:
    """Which of them a training that goes on from `step` visits, in ascending order: epoch e visits variant e modulo
    their number, however long the training is."""
    count, per_epoch = variants_kept(shapes, settings), settings.steps_per_epoch(len(shapes))
    epochs = range(step // per_epoch, -(-settings.total_steps(len(shapes)) // per_epoch))
    return sorted({epoch % count for epoch in epochs[:count]})  # none where none are kept


class LatentCache:
    """Posterior mean and std of the latents of augmented windows, on the backbone's device; the windows' masks, edges
    and what carries loss, on the host. Both moments, so that the posterior's noise is fresh at every visit.

    With `latent_variants` = 0 nothing is kept: each visit of epoch e encodes window e. Where a slice is smaller than
    the window, the mirror images that fill it up carry no loss; the corners of rotated windows of larger ones do.
    """

    def __init__(self, backbone: Backbone, folder: PairFolder, settings: FineTuning, step: int = 0):
        """For a training that goes on from `step`: only what it still visits is encoded."""
        self.backbone, self.settings = backbone, settings
        self.images, self.masks = folder.load()
        self.edges: list[np.ndarray | None] = [None] * len(self.images)
        if settings.condition == "mask+edges":  # of whole slices, as at generation
            grays = (torch.from_numpy(image)[None].to(backbone.device) for image in self.images)
            self.edges = [image_edges(gray)[0].cpu().numpy() for gray in grays]
        self.variants = variants_kept(folder.shapes, settings)
        self.padded = [height < settings.crop[1] or width < settings.crop[0] for height, width in folder.shapes]
        self.entries: dict[int, tuple[torch.Tensor, ...]] = {}  # of each variant, row by slice, as `_encode` gives them
        # Slices that pass the VAE together: a few, as its activations are large, and always the same ones, so that a
        # window's latents are the same bits whichever variants a run still visits.
        groups = [range(first, min(first + 4, len(self.images))) for first in range(0, len(self.images), 4)]
        visited = variants_visited(folder.shapes, settings, step)
        bar = {"desc": "caching latents", "unit": "variant", "leave": False, "disable": not distributed.is_main()}
        for variant in tqdm(visited, **bar):
            parts = zip(*(self._encode(group, variant) for group in groups), strict=True)
            self.entries[variant] = tuple(map(torch.cat, parts))

    def _encode(self, indices: Sequence[int], variant: int) -> tuple[torch.Tensor, ...]:
        """Window `variant` of some slices: mean, std, masks, share of loss and, if the ControlNet sees any, edges."""
        drawn = [
            augmented_window(self.images[i], self.masks[i], self.settings, i, variant, self.edges[i]) for i in indices
        ]
        windows, masks, real, edges = zip(*drawn, strict=True)
        mean, std = latent_moments(self.backbone, encode_gray(torch.stack(windows).to(self.backbone.device)))
        real = [inner if self.padded[i] else torch.ones_like(inner) for i, inner in zip(indices, real, strict=True)]
        share = F.avg_pool2d(torch.stack(real)[:, None].float(), self.backbone.downsampling)
        return mean, std, torch.stack(masks), share, *([] if edges[0] is None else [torch.stack(edges)])

    def batch(
        self, indices: list[int], epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Window (epoch mod variants) of each slice: mean, std (B,C,h,w), masks (B,H,W), the share (B,1,h,w) in
        [0,1] of each latent that carries loss, or None where all do, and edges (B,H,W) uint8, or None where the
        ControlNet sees none."""
        if self.variants:
            kept = self.entries[epoch % self.variants]
            mean, std, masks, share, *edges = (torch.stack([part[i] for i in indices]) for part in kept)
        else:
            fresh = zip(*(self._encode([i], epoch) for i in indices), strict=True)
            mean, std, masks, share, *edges = map(torch.cat, fresh)
        device = self.backbone.device
        share = to_device(share, device) if any(self.padded) else None
        return mean, std, to_device(masks, device), share, to_device(edges[0], device) if edges else None
