"""What the fine-tuning loop looks at: validation loss and sample strips with everything fixed but ControlNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel

from natural2nanoscale.data.augment import inside, warp
from natural2nanoscale.data.encoders import color_table, decode_gray, encode_gray, encode_mask
from natural2nanoscale.data.folders import PairFolder, evenly_spaced
from natural2nanoscale.data.sheets import sheet
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.controlnet import Batch, Denoiser, denoising_loss, latent_moments
from natural2nanoscale.diffusion.sampling import sample
from natural2nanoscale.diffusion.settings import FineTuning, SamplingSettings
from natural2nanoscale.files import make_folder
from natural2nanoscale.seeds import generator_for

TIMESTEPS = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)


class Validation:
    """Fixed windows, timesteps, noise and prompts, so that what changes from step to step is ControlNet."""

    def __init__(
        self, backbone: Backbone, folder: PairFolder, prompts: list[str], settings: FineTuning, count: int = 4
    ):
        """From the middles of at most `count` slices of the folder, evenly spaced."""
        self.backbone, self.colors = backbone, folder.info.classes.colors
        size = settings.crop[1], settings.crop[0]
        windows, masks, real = [], [], []
        for stem in evenly_spaced(folder.stems, count):
            image, mask = folder.image(stem), folder.mask(stem)
            middle = [(length - w) // 2 + (w - 1) / 2 for length, w in zip(image.shape[::-1], size[::-1], strict=True)]
            place = torch.zeros(1), torch.tensor([middle]), size
            window, ids = warp(torch.from_numpy(image).float()[None, None], torch.from_numpy(mask)[None], *place)
            windows.append(window[:, 0])
            masks.append(ids)
            real.append(inside(image.shape, *place))
        self.windows, self.masks = torch.cat(windows), torch.cat(masks).to(backbone.device)
        # without the slices' edges, as generation does by default
        self.edges = torch.zeros_like(self.masks) if settings.condition == "mask+edges" else None
        self.latents = torch.cat(
            [latent_moments(backbone, encode_gray(w[None].to(backbone.device)))[0] for w in self.windows]
        )
        # what fills up a slice smaller than the window carries no loss, as in training
        share = F.avg_pool2d(torch.cat(real).float(), backbone.downsampling)[:, None]
        self.share = None if share.min() == 1 else share.to(backbone.device)
        shape = self.latents.shape[1:]
        generators = [generator_for(settings.seed, "validation", i) for i in range(len(self.windows))]
        self.noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(backbone.device)
        chosen = [int(torch.randint(len(prompts), (1,), generator=g)) for g in generators]
        self.prompt_embeds = encode_prompts(backbone, [prompts[i] for i in chosen])
        self.negative_embeds = encode_prompts(backbone, [""])

    def conditioning(self, part: slice) -> torch.Tensor:
        """(B,3,H,W) in [0,1] of some of the masks."""
        edges = None if self.edges is None else self.edges[part]
        return encode_mask(self.masks[part], self.colors, edges)

    @torch.no_grad()
    def loss(self, controlnet: ControlNetModel | None) -> float:
        """Mean denoising loss over the fixed timesteps; without a ControlNet that of the U-Net alone."""
        denoiser = Denoiser(self.backbone.unet, controlnet, self.backbone.scheduler)
        conditioning, losses = self.conditioning(slice(None)), []
        for timestep in TIMESTEPS:
            timesteps = torch.full((len(self.latents),), timestep, device=self.latents.device)
            drawn = self.latents, self.noise, timesteps, self.prompt_embeds, conditioning, self.share
            losses.append(denoising_loss(denoiser, Batch(*drawn)))
        return round(torch.stack(losses).mean().item(), 5)

    def draw(self, controlnet: ControlNetModel | None, count: int | None = None) -> np.ndarray:
        """Synthetic slices (B,H,W) uint8 from the first `count` masks, or all, with the same noise every time.

        They begin at pure noise, whatever the backbone recommends, and so show what was learned and nothing else.
        """
        count = count or len(self.masks)
        slices = []
        for first in range(0, count, 4):
            part = slice(first, min(first + 4, count))
            pixel_values = sample(
                self.backbone,
                controlnet,
                self.noise[part],
                self.conditioning(part),
                self.prompt_embeds[part],
                self.negative_embeds,
                SamplingSettings(strength=self.backbone.recommended.strength),
            )
            slices.append(decode_gray(pixel_values).cpu().numpy())
        return np.concatenate(slices)

    def write_samples(self, controlnet: ControlNetModel | None, folder: Path, step: int) -> None:
        """A strip real | mask | synthetic (the paper's Figure 4), without the mask where no ControlNet steers."""
        count = min(3, len(self.windows))
        make_folder(folder)
        real = self.windows.round().to(torch.uint8).numpy()
        masks = color_table(self.colors)[self.masks.cpu().numpy()]
        synthetic = self.draw(controlnet, count)
        columns = {"real": real, "mask": masks, "synthetic": synthetic}
        if controlnet is None:
            del columns["mask"]
        rows = [[column[i] for column in columns.values()] for i in range(count)]
        sheet(rows, folder / f"step-{step:06d}.png", list(columns))
