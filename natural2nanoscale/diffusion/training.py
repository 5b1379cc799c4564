"""Fine-tuning ControlNet on pair folders: one flat loop (paper 4.2 and 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel

from natural2nanoscale import distributed
from natural2nanoscale.checkpoints import State, disk_need
from natural2nanoscale.data.folders import fingerprint
from natural2nanoscale.diffusion.backbone import Backbone, weights_hash
from natural2nanoscale.diffusion.batches import Batches, TrainingData
from natural2nanoscale.diffusion.controlnet import Denoiser, denoising_loss, predict_noise
from natural2nanoscale.diffusion.latents import variants_visited
from natural2nanoscale.diffusion.memory import idle_parts, moved, plan
from natural2nanoscale.diffusion.progress import Counts, Learner, Looks, Progress
from natural2nanoscale.diffusion.saving import load_weights, save_trained
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import SkippedSteps, add_finite
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.seeds import seed_for


def fine_tune(
    run: RunFolder,
    backbone: Backbone,
    data: TrainingData,
    settings: FineTuning,
    resume: bool = False,
    initial: ControlNetModel | None = None,
    agreement: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> ControlNetModel:
    """Train a ControlNet over the backbone; everything is kept in `run`. Returns the trained model.

    The given backbone stays as it is, also with `unlock_decoder`, which trains a copy. `initial` is trained on; without
    it the ControlNet starts as a copy of the U-Net's encoder. With `resume` it goes on from the newest checkpoint, or
    from step 0 where none was ever completed. `agreement` gets slices (B,H,W) uint8 drawn from pure noise and the
    validation masks (B,H,W) uint8 that they were drawn from, and says how well they agree, at least 0, the more the
    better; the weights with the best agreement so far are kept as checkpoints/best.

    In a process group each process takes its share of a step's slices; the first one alone looks and writes.

    Raises Interrupted after a requested stop, once the state is saved, and InputError when the loss is no longer
    finite.
    """
    learner = Learner.begin(backbone, settings, initial)
    backbone, slices = learner.backbone, len(data.train.stems)
    counts, losses = Counts(), torch.zeros(2, device=backbone.device)  # sum and number since the log's last line
    skipped = SkippedSteps(learner.optimizer, backbone.device)
    state = State(counts, optimizer=learner.optimizer, losses=losses, skipped=skipped.counts)
    if resume:
        restore(run, state, learner)
    if distributed.world_size() > 1:
        refuse_unlike_processes(run, learner, data, settings, counts.step)
    total_steps = settings.total_steps(slices)
    if counts.step >= total_steps:
        print(f"{run.path} is at step {counts.step} of {total_steps}: nothing is left to do")
        return learner.controlnet.eval()
    windows = slices * len(variants_visited(data.train.shapes, settings, counts.step))
    print(plan(backbone, learner.controlnet, slices, windows, total_steps - counts.step, settings))
    trained = sum(parameter.nbytes for parameter in learner.parameters)
    print(f"disk: {disk_need(3 * trained, settings.keep)}")  # the weights and Adam's two moments

    batches = Batches(backbone, data, settings, counts.step)
    denoiser = make_denoiser(learner, settings)
    looks = Looks(learner, data, settings, run.path / "samples", agreement)

    def save_model(folder: Path) -> None:
        save_trained(folder, learner.controlnet, backbone, data.train, settings, counts.step)

    progress = Progress(run, state, settings, total_steps, looks, save_model)
    with progress, moved(idle_parts(backbone, settings), torch.device("cpu")):
        while counts.step < total_steps:
            # the gradient: batches add up, each by its share of the slices, to that of one large batch
            epoch, indices = batches.of_step(counts.step)
            step_loss = torch.zeros((), device=backbone.device)
            for mine in batches.of_process(indices):
                batch = batches.draw(mine, epoch)
                loss = denoising_loss(denoiser, batch) * (len(mine) / len(indices))
                loss.backward()
                step_loss += loss.detach()
            distributed.add_up_gradients(learner.parameters, step_loss)

            # the step: only ControlNet moves, and the decoder where it is unlocked
            skipped.guard(torch.nn.utils.clip_grad_norm_(learner.parameters, settings.clip))
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=not settings.compile)
            counts.step += 1
            add_finite(losses, torch.stack([step_loss, torch.ones_like(step_loss)]))
            skipped.refuse_too_many(counts.step, run.path)

            progress.look(epoch)
            progress.save()
    return learner.controlnet.eval()


def restore(run: RunFolder, state: State, learner: Learner) -> None:
    """Bring a run's newest checkpoint back, where one was ever completed."""
    checkpoint = run.restore(state)
    if checkpoint:
        load_weights(checkpoint.path, learner.controlnet, learner.backbone)
    if distributed.is_main():
        run.drop_log_after(state.counts.step)


def make_denoiser(learner: Learner, settings: FineTuning) -> Denoiser:
    """What predicts the noise of a batch, compiled if asked."""
    backbone, predict = learner.backbone, predict_noise
    if settings.compile:
        mode = "reduce-overhead" if backbone.device.type == "cuda" else None
        predict = torch.compile(predict_noise, dynamic=False, mode=mode)
        for parameter in learner.parameters:  # a CUDA graph overwrites what it gave: gradients add up in our tensors
            parameter.grad = torch.zeros_like(parameter)
    return Denoiser(backbone.unet, learner.controlnet, backbone.scheduler, settings.max_weight, predict)


def refuse_unlike_processes(
    run: RunFolder, learner: Learner, data: TrainingData, settings: FineTuning, step: int
) -> None:
    """Raise InputError unless all processes start from the same."""
    backbone = learner.backbone
    weights = weights_hash(learner.controlnet, *([backbone.unet] if settings.unlock_decoder else []))
    start = step, weights, backbone.fingerprint, backbone.precision, fingerprint(data.train), str(settings)
    if not distributed.same(seed_for(*start, *data.prompts)):
        raise distributed.agreed(
            InputError(
                f"the processes differ in arguments, slices of {data.train.path}, weights of {backbone.name} or of the "
                f"ControlNet to start from, precision or checkpoints of {run.path}, expected the same: start all "
                "with the same command and give every machine the same files"
            )
        )
