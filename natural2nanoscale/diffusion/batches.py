"""What fine-tuning draws: the slices of each step, and for each of them a window, a prompt, a timestep and noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from natural2nanoscale import distributed
from natural2nanoscale.data.encoders import encode_mask
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.device import to_device
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.controlnet import Batch
from natural2nanoscale.diffusion.latents import LatentCache
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.seeds import generator_for, permutation_for


@dataclass(frozen=True)
class TrainingData:
    """What a ControlNet learns from, and what is looked at as it does."""

    train: PairFolder
    val: PairFolder
    prompts: list[str]


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
