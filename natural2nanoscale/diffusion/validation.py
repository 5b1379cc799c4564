"""What a fine-tuning is looked at by: validation loss and sample strips with everything fixed but what learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel

from natural2nanoscale.data.augment import inside, warp
from natural2nanoscale.data.encoders import color_table, decode_gray, encode_gray, encode_mask
from natural2nanoscale.data.folders import evenly_spaced
from natural2nanoscale.data.sheets import sheet
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.batches import TrainingData
from natural2nanoscale.diffusion.controlnet import Batch, Denoiser, denoising_loss, latent_moments
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import FineTuning, SamplingSettings
from natural2nanoscale.files import make_folder
from natural2nanoscale.seeds import generator_for

TIMESTEPS = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
SHOWN = 3  # slices in a strip


class Validation:
    """Fixed windows, timesteps, noise and prompts, so that what changes from step to step is what learns."""

    def __init__(
        self,
        backbone: Backbone,
        controlnet: ControlNetModel | None,
        data: TrainingData,
        settings: FineTuning,
        count: int = 4,
    ):
        """Of the middles of at most `count` validation slices, evenly spaced; without a ControlNet nothing steers."""
        self.backbone, self.controlnet, self.colors = backbone, controlnet, data.val.info.classes.colors
        size = settings.crop[::-1]
        windows, masks, real = [], [], []
        for stem in evenly_spaced(data.val.stems, count):
            image, mask = data.val.image(stem), data.val.mask(stem)
            middle = [(image.shape[i] - size[i]) // 2 + (size[i] - 1) / 2 for i in (1, 0)]  # x, y
            place = torch.zeros(1), torch.tensor([middle]), size
            window, ids = warp(torch.from_numpy(image).float()[None, None], torch.from_numpy(mask)[None], *place)
            windows.append(window[:, 0])
            masks.append(ids)
            real.append(inside(image.shape, *place))
        self.windows, self.masks = torch.cat(windows), torch.cat(masks).to(backbone.device)
        # without the slices' edges, as generation does by default
        edges = torch.zeros_like(self.masks) if settings.condition == "mask+edges" else None
        self.conditioning = encode_mask(self.masks, self.colors, edges)
        self.latents = torch.cat(
            [latent_moments(backbone, encode_gray(w[None].to(backbone.device)))[0] for w in self.windows]
        )
        # what fills up a slice smaller than the window carries no loss, as in training
        share = F.avg_pool2d(torch.cat(real)[:, None].float(), backbone.downsampling)
        self.share = None if share.min() == 1 else share.to(backbone.device)
        generators = [generator_for(settings.seed, "validation", i) for i in range(len(self.windows))]
        noise = [torch.randn(self.latents.shape[1:], generator=g) for g in generators]
        self.noise = torch.stack(noise).to(backbone.device)
        chosen = [data.prompts[int(torch.randint(len(data.prompts), (1,), generator=g))] for g in generators]
        self.prompt_embeds = encode_prompts(backbone, chosen)
        self.negative_embeds = encode_prompts(backbone, [""])

    @torch.no_grad()
    def loss(self) -> float:
        """Mean denoising loss over the fixed timesteps."""
        denoiser, losses = Denoiser(self.backbone.unet, self.controlnet, self.backbone.scheduler), []
        for timestep in TIMESTEPS:
            timesteps = torch.full((len(self.latents),), timestep, device=self.latents.device)
            drawn = self.latents, self.noise, timesteps, self.prompt_embeds, self.conditioning, self.share
            losses.append(denoising_loss(denoiser, Batch(*drawn)))
        return round(torch.stack(losses).mean().item(), 5)

    def draw(self, count: int | None = None) -> np.ndarray:
        """Synthetic slices (B,H,W) uint8 from the first `count` masks, or all, with the same noise every time.

        They begin at pure noise, whatever the backbone recommends, and so show what was learned and nothing else.
        """
        settings = SamplingSettings(strength=self.backbone.recommended.strength)
        given = (part[:count].split(4) for part in (self.noise, self.conditioning, self.prompt_embeds))
        slices = [
            decode_gray(sample(self.backbone, self.controlnet, *parts, self.negative_embeds, settings))
            for parts in zip(*given, strict=True)
        ]
        return torch.cat(slices).cpu().numpy()

    def write_strip(self, folder: Path, step: int) -> None:
        """A strip real | mask | synthetic (the paper's Figure 4), without the mask where no ControlNet steers."""
        make_folder(folder)
        columns = {"real": self.windows.round().to(torch.uint8).numpy()}
        if self.controlnet is not None:
            columns["mask"] = color_table(self.colors)[self.masks.cpu().numpy()]
        columns["synthetic"] = self.draw(SHOWN)
        rows = list(zip(*columns.values(), strict=False))  # as many as are drawn
        sheet(rows, folder / f"step-{step:06d}.png", list(columns))
