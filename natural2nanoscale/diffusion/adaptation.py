"""Adapting the backbone's U-Net to slices without masks, before a ControlNet learns to steer it: one flat loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from natural2nanoscale import distributed
from natural2nanoscale.checkpoints import State
from natural2nanoscale.diffusion.adapted import ADAPTED, WEIGHTS, WithoutMasks, frozen, load_part
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.batches import Batches, TrainingData
from natural2nanoscale.diffusion.controlnet import Denoiser, denoising_loss, part_state, unlock
from natural2nanoscale.diffusion.progress import Counts, Progress
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.validation import Validation
from natural2nanoscale.files import make_folder
from natural2nanoscale.finite import SkippedSteps, add_finite
from natural2nanoscale.runs import RunFolder

PROMPT_DROPOUT = 0.1  # share of samples with the empty prompt, which guidance needs


def adapt(
    run: RunFolder, backbone: Backbone, images: WithoutMasks, data: TrainingData, settings: FineTuning
) -> Backbone:
    """The backbone with a U-Net of which `settings.adapt_part` has learned `images` for `settings.adapt` steps.

    Plain denoising, with random prompts and nothing that steers; the learning rate falls linearly to zero. What is done
    of it is kept in the folder ADAPTED of the ControlNet's `run`, and found there; `data` says the prompts, and which
    validation slices show how it goes. The given backbone stays as it is. Raises like `training.fine_tune`.
    """
    part, total = settings.adapt_part, settings.adapt
    settings = replace(settings, max_steps=total, condition="mask", prompt_dropout=PROMPT_DROPOUT)
    learner = unlock(backbone, part)
    parameters = [parameter for parameter in learner.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.adapt_learning_rate, fused=True)
    counts, losses = Counts(), torch.zeros(2, device=backbone.device)
    skipped = SkippedSteps(optimizer, backbone.device)
    state = State(counts, optimizer=optimizer, losses=losses, skipped=skipped.counts)
    run = RunFolder(run.path / ADAPTED, within=run)
    checkpoint = run.restore(state)
    if checkpoint:
        load_part(checkpoint.path, learner, part)
        if distributed.is_main():
            run.drop_log_after(counts.step)
    if counts.step < total:
        make_folder(run.path)
        print(
            f"adapting {part} of the U-Net of {backbone.name}: {sum(p.numel() for p in parameters) / 1e6:.1f} million "
            f"weights learn {len(images.stems)} slices without masks for {total - counts.step} steps"
        )
        batches = Batches(backbone, replace(data, train=images), settings, counts.step)
        denoiser = Denoiser(learner.unet, None, backbone.scheduler, settings.max_weight)

        def save_model(folder: Path) -> None:
            save_file({k: v.cpu().contiguous() for k, v in part_state(learner.unet, part).items()}, folder / WEIGHTS)

        looks = Looks(learner, backbone, data, settings, run.path / "samples")
        with Progress(run, state, settings, total, looks, save_model, "adaptation") as progress:
            while counts.step < total:
                epoch, indices = batches.of_step(counts.step)
                step_loss = torch.zeros((), device=backbone.device)
                for mine in batches.of_process(indices):
                    loss = denoising_loss(denoiser, batches.draw(mine, epoch)) * (len(mine) / len(indices))
                    loss.backward()
                    step_loss += loss.detach()
                distributed.add_up_gradients(parameters, step_loss)

                for group in optimizer.param_groups:
                    group["lr"] = settings.adapt_learning_rate * (1 - counts.step / total)
                skipped.guard(torch.nn.utils.clip_grad_norm_(parameters, settings.clip))
                optimizer.step()
                optimizer.zero_grad()
                counts.step += 1
                add_finite(losses, torch.stack([step_loss, torch.ones_like(step_loss)]))
                skipped.refuse_too_many(counts.step, run.path)

                progress.look(epoch)
                progress.save()
    return frozen(learner, backbone)


class Looks:
    """What is looked at while a U-Net is adapted: validation slices' loss, and slices drawn from noise alone."""

    def __init__(self, learner: Backbone, backbone: Backbone, data: TrainingData, settings: FineTuning, samples: Path):
        self.learner, self.backbone, self.samples = learner, backbone, samples
        self.validation = Validation(backbone, data.val, data.prompts, settings)

    def strip(self, step: int) -> None:
        """Write a strip real | synthetic."""
        self.validation.backbone = frozen(self.learner, self.backbone)
        self.validation.write_samples(None, self.samples, step)

    def __call__(self, step: int) -> dict:
        """A strip, and what the log says of it."""
        self.strip(step)
        return {"validation_loss": self.validation.loss(None)}
