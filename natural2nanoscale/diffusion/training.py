"""Fine-tuning ControlNet on pair folders: one flat loop (paper 4.2 and 4.4)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale.data.encoders import encode_mask
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts
from natural2nanoscale.diffusion.controlnet import denoising_loss, make_controlnet
from natural2nanoscale.diffusion.latents import LatentCache
from natural2nanoscale.diffusion.validation import Validation
from natural2nanoscale.errors import InputError
from natural2nanoscale.plots import plot_progress
from natural2nanoscale.runs import (
    Interrupted,
    RunFolder,
    StopSignal,
    generator_for,
    load_optimizer_tensors,
    optimizer_tensors,
    permutation_for,
)


@dataclass(frozen=True)
class FineTuning:
    """Settings of the loop; the defaults are the paper's (4.4) where it names them."""

    crop: tuple[int, int]  # width, height of the training windows in pixels
    learning_rate: float  # 1e-5 for Stable Diffusion 1.5; a backbone carries its own
    epochs: int = 600
    max_steps: int | None = None  # replaces epochs
    batch_size: int = 2
    rotation: float = 16.0  # degrees, uniform in [-rotation, rotation]; corners mirror image and mask alike
    noise: float = 4.0  # Gaussian noise in grey levels; each window draws its own strength in [0, noise]
    latent_variants: int = 16  # augmented windows per slice whose latents are cached; 0 encodes every step
    max_weight: float = 1.0  # largest weight of a noisy timestep in the loss; 1 is the plain loss
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0
    checkpoint_every: int = 1000  # steps
    sample_every: int = 1000  # steps between sample strips and validations

    def total_steps(self, slices: int) -> int:
        """Optimiser steps for a training set of that many slices."""
        return self.max_steps or self.epochs * -(-slices // self.batch_size)


MAY_CHANGE = ("epochs", "max_steps", "checkpoint_every", "sample_every")


def fine_tune(
    run: RunFolder,
    backbone: Backbone,
    train: PairFolder,
    val: PairFolder,
    prompts: list[str],
    settings: FineTuning,
    resume: bool = False,
    initial: ControlNetModel | None = None,
) -> ControlNetModel:
    """Train a ControlNet over the frozen backbone; everything is kept in `run`. Returns the trained model.

    `initial` is trained on; without it the ControlNet starts as a copy of the U-Net's encoder.

    Raises Interrupted after a requested stop, once the state is saved, and InputError when the loss is no
    longer finite.
    """
    device, colors = backbone.device, train.info.classes.colors
    controlnet = (initial or make_controlnet(backbone, settings.seed)).train()
    optimizer = torch.optim.Adam(controlnet.parameters(), lr=settings.learning_rate, fused=True)
    step = 0
    if resume:
        checkpoint = run.load_checkpoint()
        if checkpoint is None:
            raise InputError(f"--resume finds no checkpoint in {run.path}: remove the folder and start anew")
        load_controlnet_weights(controlnet, checkpoint.path / "controlnet")
        load_optimizer_tensors(optimizer, checkpoint.tensors)
        step = checkpoint.step
        run.drop_log_after(step)

    cache = LatentCache(backbone, train, settings)
    prompt_embeds = encode_prompts(backbone, prompts)  # (P,L,D), once for all
    judge = Validation(backbone, val, prompts, settings)
    steps_per_epoch = -(-len(train.stems) // settings.batch_size)
    total_steps = settings.total_steps(len(train.stems))

    def save(at_step: int) -> None:
        run.save_checkpoint(
            at_step,
            optimizer_tensors(optimizer),
            {"seconds": round(time.monotonic() - started, 1)},
            lambda folder: save_controlnet(controlnet, folder / "controlnet", backbone, train, settings, at_step),
        )

    started = time.monotonic()
    if step == 0:
        judge.write_samples(controlnet, run.path / "samples", 0)
    losses: list[torch.Tensor] = []
    with StopSignal() as stop, tqdm(total=total_steps, initial=step, desc="ControlNet", unit="step") as bar:
        while step < total_steps:
            # which slices: a permutation that depends on seed and epoch alone
            epoch, position = divmod(step, steps_per_epoch)
            order = permutation_for(len(train.stems), settings.seed, "order", epoch)
            indices = order[position * settings.batch_size :][: settings.batch_size]

            # what is drawn for each of them: prompt, timestep, noise, and a sample of the VAE's posterior
            mean, std, masks, share = cache.batch(indices, epoch)
            draws = [generator_for(settings.seed, "draw", epoch, index) for index in indices]
            chosen = [int(torch.randint(len(prompts), (1,), generator=g)) for g in draws]
            timesteps = torch.cat(
                [torch.randint(backbone.scheduler.config.num_train_timesteps, (1,), generator=g) for g in draws]
            ).to(device)
            noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in draws]).to(device)
            posterior = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in draws]).to(device)
            latents = mean + std * posterior

            # the gradient step: only ControlNet moves
            loss = denoising_loss(
                backbone.unet,
                controlnet,
                backbone.scheduler,
                latents,
                noise,
                timesteps,
                prompt_embeds[chosen],
                encode_mask(masks, colors),
                settings.max_weight,
                share,
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(controlnet.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            bar.update()
            losses.append(loss.detach())

            # log, look, save
            saving = step % settings.checkpoint_every == 0 or step == total_steps or stop.requested
            if step % 20 == 0 or saving:
                mean_loss = torch.stack(losses).mean().item()  # the only wait for the device
                losses.clear()
                if not np.isfinite(mean_loss):  # before anything is saved
                    raise InputError(
                        f"the loss of {run.path} became {mean_loss} by step {step}: start with a lower --lr"
                    )
                run.log({"step": step, "epoch": epoch, "loss": round(mean_loss, 5)})
                bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
            if step % settings.sample_every == 0 or step == total_steps:
                run.log({"step": step, "validation_loss": judge.loss(controlnet)})
                judge.write_samples(controlnet, run.path / "samples", step)
                plot_progress(run.path / "progress.png", run.read_log(), [["loss", "validation_loss"]])
            if saving:
                save(step)
            if stop.requested and step < total_steps:
                raise Interrupted(f"at step {step} of {total_steps}: go on with --resume --out {run.path}")
    return controlnet.eval()


def save_controlnet(
    controlnet: ControlNetModel,
    folder: Path,
    backbone: Backbone,
    train: PairFolder,
    settings: FineTuning,
    step: int,
) -> None:
    """Write diffusers' own format, with a card that says what it was made from."""
    controlnet.save_pretrained(folder, safe_serialization=True)
    classes = ", ".join(
        f"{name} = RGB {color}" for name, color in zip(train.info.classes.names, train.info.classes.colors, strict=True)
    )
    facts = "\n".join(f"- {key}: {value}" for key, value in asdict(settings).items())
    (folder / "README.md").write_text(
        f"# ControlNet for {train.info.name}\n\nSteered by colour-coded class masks ({classes}) over the frozen "
        f"backbone `{backbone.name}` (weights {backbone.fingerprint[:12]}), fine-tuned for {step} steps on "
        f"{len(train.stems)} slices.\n\n{facts}\n",
        encoding="utf-8",
    )


def load_controlnet_weights(controlnet: ControlNetModel, folder: Path) -> None:
    """Copy saved weights into the existing parameters, whose memory format stays as it is."""
    saved = ControlNetModel.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    controlnet.load_state_dict(saved.state_dict())


def load_trained(run: Path, backbone: Backbone) -> ControlNetModel:
    """The newest ControlNet of a run folder, in eval mode, in float32 on the backbone's device."""
    checkpoint = RunFolder(run).load_checkpoint()
    if checkpoint is None:
        raise InputError(f"{run} holds no checkpoint yet: let train_controlnet.py run to its first one")
    controlnet = make_controlnet(backbone)
    load_controlnet_weights(controlnet, checkpoint.path / "controlnet")
    return controlnet.requires_grad_(False).eval()
