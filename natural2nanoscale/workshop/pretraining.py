"""Trains the embedded backbone on dead-leaves images: a tiny Stable Diffusion in diffusers' classes and folder layout.

python -m natural2nanoscale backbone --out runs/backbone     -> runs/backbone/backbone/{vae,unet,...}
"""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from natural2nanoscale.checkpoints import State
from natural2nanoscale.data.encoders import normalize
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.seeds import generator_for, seed_for
from natural2nanoscale.workshop.architecture import (
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    make_vae,
    write_backbone,
)
from natural2nanoscale.workshop.images import SHAPES, encode_bank, tokenize, with_mirror_images
from natural2nanoscale.workshop.recipe import PretrainingSettings


def warm_cosine(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Learning rate: linear warm-up, then a half cosine to zero."""
    return peak * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def vae_loss(pixels: Tensor, decoded: Tensor, posterior, kl_weight: float) -> Tensor:
    """L1 of pixels and of their differences to the right and lower neighbours (which keep fine texture from fading),
    squared error, and the KL divergence of the posterior from N(0, 1) per latent value."""
    error = decoded - pixels  # (B, 3, H, W)
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges + kl_weight * kl


def noise_loss(
    unet, scheduler, latents: Tensor, states: Tensor, noise: Tensor, t: Tensor, snr_gamma: float, max_weight: float
) -> Tensor:
    """E w(t) |eps - eps_theta(x_t, t, c)|^2; latents, noise (B, C, h, w), t (B,).

    w = gamma / SNR where SNR > gamma (Hang et al. 2023), and 1 / SNR up to max_weight where SNR < 1: there tone and
    colour are decided, which a plain loss hardly sees, and what a caption says of them would be left unread.
    """
    noisy = scheduler.add_noise(latents, noise, t)
    error = (unet(noisy, t, states).sample.float() - noise).square().mean(dim=(1, 2, 3))
    alpha_bar = scheduler.alphas_cumprod[t.cpu()].to(error)
    snr = alpha_bar / (1 - alpha_bar)
    return (error * (snr_gamma / snr).clamp(max=1) * (1 / snr).clamp(1, max_weight)).mean()


class Loop:
    """The steps that a model still has to learn: it goes on from the run's checkpoint of its name, and saves there."""

    def __init__(self, run: RunFolder, name: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int,
                 settings: PretrainingSettings, before: int = 0):  # fmt: skip
        """before: steps of other loops that the log counts first."""
        self.run, self.name, self.model, self.optimizer = run, name, model, optimizer
        self.steps, self.settings, self.before = steps, settings, before
        self.state, self.started = State(SimpleNamespace(step=0), **{name: model}, optimizer=optimizer), time.time()
        run.restore(self.state, name)
        first = self.state.counts.step
        if first < steps:  # else the log may have lines of later loops
            run.drop_log_after(before + first)
        self.bar = tqdm(range(first, steps), name, initial=first, total=steps)

    def learn(self, step: int, loss: Tensor, *rates: float) -> None:
        """One gradient step at the learning rates of the optimiser's groups, given at their highest."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = warm_cosine(step, self.steps, rate)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def keep(self, step: int, **row: Tensor) -> None:
        """Log the row and save, when it is time."""
        step += 1
        if step % 50 == 0:
            row = {key: value.item() for key, value in row.items()}
            seconds = time.time() - self.started
            self.run.log({"stage": self.name, "step": self.before + step, **row, "seconds": seconds})
            self.bar.set_postfix({key: f"{value:.3f}" for key, value in row.items()})
        if step % self.settings.save_every == 0 or step == self.steps:
            self.state.counts.step = step
            self.run.save(self.state, name=self.name)


def train_vae(settings: PretrainingSettings, bank: dict, run: RunFolder, device: torch.device) -> AutoencoderKL:
    """Trains the autoencoder, going on from the run's checkpoint "vae" if there is one; returns it rounded to fp16."""
    torch.manual_seed(seed_for(settings.seed, "vae"))
    vae = make_vae().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    loop = Loop(run, "vae", vae, optimizer, settings.vae_steps, settings)
    for step in loop.bar:
        # a batch of crops, turned and mirrored: every draw is a function of (seed, step)
        rng = np.random.default_rng(seed_for(settings.seed, "vae batch", step))
        images, _ = bank[SHAPES[int(rng.random() < 0.3)]]
        crop, (height, width) = settings.vae_crop, images.shape[2:]
        crops = []
        for _ in range(settings.vae_batch_size):
            n, y, x = rng.integers(len(images)), rng.integers(height - crop + 1), rng.integers(width - crop + 1)
            piece = torch.rot90(images[n, :, y : y + crop, x : x + crop], int(rng.integers(4)), (1, 2))
            crops.append(piece.flip(2) if rng.random() < 0.5 else piece)
        pixels = normalize(torch.stack(crops)).to(device)

        # one gradient step
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator_for(settings.seed, "vae noise", step))
        latents = posterior.mean + posterior.std * noise.to(device)
        loss = vae_loss(pixels, vae.decode(latents).sample, posterior, settings.kl_weight)
        loop.learn(step, loss, settings.vae_learning_rate)
        loop.keep(step, loss=loss, posterior_std=posterior.std.mean(), latent_std=latents.std())
    return vae.half().float().eval().requires_grad_(False)  # users run the fp16-rounded weights


def train_unet(settings: PretrainingSettings, bank: dict, vae, run: RunFolder, device: torch.device) -> None:
    """Trains the U-Net on the VAE's latents; writes the backbone folder at each checkpoint."""
    bank = {shape: with_mirror_images(*drawn) for shape, drawn in bank.items()}
    latent_bank = {shape: encode_bank(vae, images) for shape, (images, _) in bank.items()}
    moments = latent_bank[SHAPES[0]]
    variance = moments[0].float().var() + moments[1].float().square().mean()
    vae.register_to_config(scaling_factor=round(variance.rsqrt().item(), 5))  # latents of unit variance
    scheduler, tokenizer = make_scheduler(), make_tokenizer()
    token_bank = {shape: tokenize(tokenizer, texts) for shape, (_, texts) in bank.items()}
    no_caption = tokenize(tokenizer, [""])

    torch.manual_seed(seed_for(settings.seed, "unet"))
    unet = make_unet().to(device, memory_format=torch.channels_last)
    # The text encoder stays as it is drawn: at random its states tell all words apart, which the U-Net learns to read.
    # When it learned as well, its states grew alike within 2,500 steps, and captions had no effect on anything.
    text_encoder = make_text_encoder(tokenizer).half().float().to(device).eval().requires_grad_(False)
    readers = [parameter for name, parameter in unet.named_parameters() if ".attn2." in name]  # of the captions
    others = [parameter for name, parameter in unet.named_parameters() if ".attn2." not in name]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": readers}], betas=(0.9, 0.99), weight_decay=1e-3)
    loop = Loop(run, "unet", unet, optimizer, settings.unet_steps, settings, before=settings.vae_steps)
    for step in loop.bar:
        # a batch of latents, sampled anew from their posteriors, with captions
        rng = np.random.default_rng(seed_for(settings.seed, "unet batch", step))
        shape = SHAPES[int(rng.random() < 0.3)]
        means, stds = latent_bank[shape]
        count = max(settings.batch_size * SHAPES[0][0] * SHAPES[0][1] // (shape[0] * shape[1]), 1)
        index = torch.from_numpy(rng.integers(len(means), size=count))
        draws = generator_for(settings.seed, "unet noise", step)
        spread, noise = torch.randn(2, count, *means.shape[1:], generator=draws)
        noise = noise + settings.noise_offset * torch.randn(count, means.shape[1], 1, 1, generator=draws)
        latents = (means[index].float() + stds[index].float() * spread) * vae.config.scaling_factor
        tokens = token_bank[shape][index]
        tokens[torch.from_numpy(rng.random(count) < settings.caption_dropout)] = no_caption
        t = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count * 1000).long()  # stratified

        # one gradient step
        latents, noise = (x.to(device, memory_format=torch.channels_last) for x in (latents, noise))
        states = text_encoder(tokens.to(device)).last_hidden_state  # (B, L, 64)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = noise_loss(
                unet, scheduler, latents, states, noise, t.to(device), settings.snr_gamma, settings.max_weight
            )
        peak = settings.unet_learning_rate
        loop.learn(step, loss, peak, settings.caption_rate * peak)
        loop.keep(step, loss=loss)
    write_backbone(run.path / "backbone", vae, unet, text_encoder, tokenizer, scheduler)
