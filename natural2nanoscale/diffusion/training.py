"""Fine-tuning ControlNet on pair folders (paper 4.2 and 4.4) and, before it, the U-Net on slices without masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel

from natural2nanoscale import distributed
from natural2nanoscale.checkpoints import Checkpoint, disk_need
from natural2nanoscale.data.folders import fingerprint
from natural2nanoscale.data.roots import learned_by_run
from natural2nanoscale.diffusion.backbone import Backbone, weights_hash
from natural2nanoscale.diffusion.batches import Batches, TrainingData, WithoutMasks, variants_visited
from natural2nanoscale.diffusion.controlnet import Denoiser, denoising_loss, make_controlnet, predict_noise, unlock
from natural2nanoscale.diffusion.memory import idle_parts, moved, plan
from natural2nanoscale.diffusion.parts import ADAPTED, ADAPTED_FILE
from natural2nanoscale.diffusion.progress import Learner, Progress
from natural2nanoscale.diffusion.saving import freeze, load_part, load_weights, save_part, save_trained
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import make_folder
from natural2nanoscale.finite import add_finite
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.seeds import seed_for

PROMPT_DROPOUT = 0.1  # in `adapt`: share of samples with the empty prompt, which guidance needs


def fine_tune(
    run: RunFolder,
    backbone: Backbone,
    data: TrainingData,
    settings: FineTuning,
    resume: bool = False,
    initial: ControlNetModel | None = None,
    agreement: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> ControlNetModel:
    """Train a ControlNet over the backbone, `initial` or else a copy of the U-Net's encoder; return it. Everything is
    kept in `run`; with `resume` it goes on from the newest checkpoint there, or from step 0 where there is none.

    The given backbone stays as it is, also with `unlock_decoder`, which trains a copy. `agreement` gets slices (B,H,W)
    uint8 drawn from pure noise and the validation masks (B,H,W) uint8 that they were drawn from, and says how well they
    agree, at least 0, the more the better; the weights with the best agreement are kept as checkpoints/best.
    In a process group each process takes its share of a step's slices; the first one alone looks and writes.
    Raises Interrupted after a requested stop, once the state is saved, and InputError for a loss that is not finite.
    """
    controlnet = (initial or make_controlnet(backbone, settings.seed)).train()
    groups = [{"params": list(controlnet.parameters()), "lr": settings.learning_rate}]
    if settings.unlock_decoder:
        backbone = unlock(backbone, "decoder")
        decoder = [parameter for parameter in backbone.unet.parameters() if parameter.requires_grad]
        groups.append({"params": decoder, "lr": settings.unlock_decoder * settings.learning_rate})
    learner = Learner(backbone, controlnet, groups, settings)
    checkpoint = restore(run, learner) if resume else None
    if checkpoint:
        load_weights(checkpoint.path, controlnet, backbone)
    refuse_unlike_processes(run, learner, data, settings)
    slices, step = len(data.train.stems), learner.counts.step
    if step >= settings.total_steps(slices):
        print(f"{run.path} is at step {step} of {settings.total_steps(slices)}: nothing is left to do")
        return controlnet.eval()
    print(planned(learner, data, settings))
    needed = 3 * sum(parameter.nbytes for parameter in learner.parameters)  # the weights and Adam's two moments
    print(f"disk: {disk_need(needed, settings.keep)}")

    def save_model(folder: Path) -> None:
        transductive = learned_by_run(run.path).transductive
        save_trained(folder, controlnet, backbone, data.train, settings, learner.counts.step, transductive)

    predict = predict_noise
    if settings.compile:
        mode = "reduce-overhead" if backbone.device.type == "cuda" else None
        predict = torch.compile(predict_noise, dynamic=False, mode=mode)
        for parameter in learner.parameters:  # a CUDA graph overwrites what it gave: gradients add up in our tensors
            parameter.grad = torch.zeros_like(parameter)
    batches = Batches(backbone, data, settings, step)
    denoiser = Denoiser(backbone.unet, controlnet, backbone.scheduler, settings.max_weight, predict)
    with Progress(run, learner, data, settings, save_model, agreement) as progress:
        take_steps(learner, batches, denoiser, progress)
    return controlnet.eval()


def adapt(
    run: RunFolder, backbone: Backbone, images: WithoutMasks, data: TrainingData, settings: FineTuning
) -> Backbone:
    """The backbone with a U-Net of which `settings.adapt_part` has learned `images` for `settings.adapt` steps.

    Plain denoising with random prompts; the learning rate falls linearly to zero. What is done of it is kept in the
    folder ADAPTED of the ControlNet's `run`, and found there; of `data` it takes the prompts and the validation slices
    that show how it goes. The given backbone stays as it is. Raises like `fine_tune`.
    """
    part, data = settings.adapt_part, replace(data, train=images)
    plain = {"condition": "mask", "prompt_dropout": PROMPT_DROPOUT, "compile": False}
    settings = replace(settings, max_steps=settings.adapt, **plain)
    unlocked = unlock(backbone, part)
    learning = [parameter for parameter in unlocked.unet.parameters() if parameter.requires_grad]
    groups = [{"params": learning, "lr": settings.adapt_learning_rate}]
    learner = Learner(unlocked, None, groups, settings)
    run = RunFolder(run.path / ADAPTED, within=run)
    if distributed.is_main():  # on other machines there may be no run
        make_folder(run.path)
    checkpoint = restore(run, learner)
    if checkpoint:
        load_part(checkpoint.path / ADAPTED_FILE, unlocked, part)
    refuse_unlike_processes(run, learner, data, settings)
    if learner.counts.step < settings.adapt:
        print(f"adapting {part} of {backbone.name} to slices without masks: {planned(learner, data, settings)}")

        def save_model(folder: Path) -> None:
            save_part(folder / ADAPTED_FILE, unlocked, part)

        batches = Batches(backbone, data, settings, learner.counts.step)
        denoiser = Denoiser(unlocked.unet, None, backbone.scheduler, settings.max_weight)
        with Progress(run, learner, data, settings, save_model, label="adaptation") as progress:
            take_steps(learner, batches, denoiser, progress, settings.adapt_learning_rate)
    return freeze(unlocked)


def take_steps(
    learner: Learner, batches: Batches, denoiser: Denoiser, progress: Progress, falling: float | None = None
) -> None:
    """All steps that are left. falling: a learning rate that falls to zero, in place of those that are given."""
    counts, settings, device = learner.counts, batches.settings, learner.backbone.device
    with moved(idle_parts(learner.backbone, settings), torch.device("cpu")):
        while counts.step < progress.total:
            # the gradient: batches add up, each by its share of the slices, to that of one large batch
            epoch, indices = batches.of_step(counts.step)
            step_loss = torch.zeros((), device=device)
            for mine in batches.of_process(indices):
                loss = denoising_loss(denoiser, batches.draw(mine, epoch)) * (len(mine) / len(indices))
                loss.backward()
                step_loss += loss.detach()
            distributed.add_up_gradients(learner.parameters, step_loss)

            # the step: nothing moves but what learns
            if falling is not None:
                for group in learner.optimizer.param_groups:
                    group["lr"] = falling * (1 - counts.step / progress.total)
            learner.skipped.guard(torch.nn.utils.clip_grad_norm_(learner.parameters, settings.clip))
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=not settings.compile)
            counts.step += 1
            add_finite(learner.losses, torch.stack([step_loss, torch.ones_like(step_loss)]))

            progress.look(epoch)
            progress.save()


def restore(run: RunFolder, learner: Learner) -> Checkpoint | None:
    """Bring back the state of a run's newest checkpoint, if one was ever completed; its weights are still to come."""
    checkpoint = run.restore(learner.state)
    if distributed.is_main():
        run.drop_log_after(learner.counts.step)
    return checkpoint


def planned(learner: Learner, data: TrainingData, settings: FineTuning) -> str:
    """The `plan` of what is left to do."""
    slices, step = len(data.train.stems), learner.counts.step
    windows = slices * len(variants_visited(data.train.shapes, settings, step))
    steps = settings.total_steps(slices) - step
    return plan(learner.backbone, learner.controlnet, slices, windows, steps, settings)


def refuse_unlike_processes(run: RunFolder, learner: Learner, data: TrainingData, settings: FineTuning) -> None:
    """Raise InputError unless all processes start from the same."""
    if distributed.world_size() == 1:
        return
    backbone = learner.backbone
    weights = weights_hash(*filter(None, (backbone.unet, learner.controlnet)))
    start = learner.counts.step, weights, backbone.fingerprint, backbone.precision, fingerprint(data.train), settings
    if not distributed.same(seed_for(*start, *data.prompts)):
        raise distributed.agreed(
            InputError(
                f"the processes differ in arguments, slices of {data.train.path}, weights of {backbone.name} or of the "
                f"ControlNet to start from, precision or checkpoints of {run.path}, expected the same: start all "
                "with the same command and give every machine the same files"
            )
        )
