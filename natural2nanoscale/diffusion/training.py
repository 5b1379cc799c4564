"""Fine-tuning ControlNet on pair folders: one flat loop (paper 4.2 and 4.4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale import distributed
from natural2nanoscale.charts import plot_progress
from natural2nanoscale.checkpoints import SavingTimer, State, disk_need
from natural2nanoscale.data.encoders import encode_mask
from natural2nanoscale.data.folders import PairFolder, fingerprint
from natural2nanoscale.device import to_device
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts, weights_hash
from natural2nanoscale.diffusion.controlnet import denoising_loss, make_controlnet, predict_noise, unlock_decoder
from natural2nanoscale.diffusion.latents import LatentCache, variants_visited
from natural2nanoscale.diffusion.memory import idle_parts, moved, plan
from natural2nanoscale.diffusion.saving import load_weights, save_trained
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.validation import Validation
from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import SkippedSteps, add_finite
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.seeds import generator_for, permutation_for, seed_for
from natural2nanoscale.signals import Interrupted, StopSignal


@dataclass
class Counts:
    """What a training counts, and its checkpoints hold."""

    step: int = 0
    best: float = -1.0  # mask agreement
    seconds: float = 0.0  # of training, over all calls


JUDGED_MASKS = 8  # of val/, evenly spaced, from which slices are drawn for the mask agreement


def fine_tune(
    run: RunFolder,
    backbone: Backbone,
    train: PairFolder,
    val: PairFolder,
    prompts: list[str],
    settings: FineTuning,
    resume: bool = False,
    initial: ControlNetModel | None = None,
    agreement: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> ControlNetModel:
    """Train a ControlNet over the backbone; everything is kept in `run`. Returns the trained model.

    The given backbone stays as it is, also with `unlock_decoder`, which trains a copy. `agreement` gets slices
    (B,H,W) uint8 drawn from pure noise and the validation masks (B,H,W) uint8 that they were drawn from, and says how
    well they agree, at least 0, the more the better; the weights with the best agreement so far are kept as
    checkpoints/best.

    `initial` is trained on; without it the ControlNet starts as a copy of the U-Net's encoder. With `resume` it goes on
    from the newest checkpoint, or from step 0 where none was ever completed.

    In a process group each process takes its share of a step's slices; the first one alone looks and writes.

    Raises Interrupted after a requested stop, once the state is saved, and InputError when the loss is no
    longer finite.
    """
    main = distributed.is_main()
    device, colors = backbone.device, train.info.classes.colors
    controlnet = (initial or make_controlnet(backbone, settings.seed)).train()
    groups = [{"params": list(controlnet.parameters())}]
    if settings.unlock_decoder:
        backbone = unlock_decoder(backbone)
        decoder = [parameter for parameter in backbone.unet.parameters() if parameter.requires_grad]
        groups.append({"params": decoder, "lr": settings.unlock_decoder * settings.learning_rate})
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.Adam(groups, lr=settings.learning_rate, fused=True)
    counts, losses = Counts(), torch.zeros(2, device=device)  # losses: sum and number since the last line of the log
    skipped = SkippedSteps(optimizer, device)
    state = State(counts, optimizer=optimizer, losses=losses, skipped=skipped.counts)
    checkpoint = run.restore(state) if resume else None
    if checkpoint:
        load_weights(checkpoint.path, controlnet, backbone)
    if resume and main:
        run.drop_log_after(counts.step)
    if distributed.world_size() > 1:
        weights = weights_hash(controlnet, *([backbone.unet] if settings.unlock_decoder else []))
        start = counts.step, weights, backbone.fingerprint, backbone.precision, fingerprint(train), str(settings)
        if not distributed.same(seed_for(*start, *prompts)):
            raise distributed.agreed(
                InputError(
                    f"the processes differ in arguments, slices of {train.path}, weights of {backbone.name} or of the "
                    f"ControlNet to start from, precision or checkpoints of {run.path}, expected the same: start all "
                    "with the same command and give every machine the same files"
                )
            )

    slices, total_steps = len(train.stems), settings.total_steps(len(train.stems))
    if counts.step >= total_steps:
        print(f"{run.path} is at step {counts.step} of {total_steps}: nothing is left to do")
        return controlnet.eval()
    windows = slices * len(variants_visited(train.shapes, settings, counts.step))
    print(plan(backbone, controlnet, slices, windows, total_steps - counts.step, settings))
    trained = sum(parameter.nbytes for parameter in parameters)
    print(f"disk: {disk_need(3 * trained, settings.keep)}")  # the weights and Adam's two moments
    cache = LatentCache(backbone, train, settings, counts.step)
    prompt_embeds = encode_prompts(backbone, [*prompts, ""])  # (P+1,L,D), once for all; the last one is empty
    validation = Validation(backbone, val, prompts, settings)
    judged = Validation(backbone, val, prompts, settings, JUDGED_MASKS) if agreement else None

    predict = predict_noise
    if settings.compile:
        predict = torch.compile(predict_noise, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
        for parameter in parameters:  # a CUDA graph overwrites what it gave: gradients are added into tensors of ours
            parameter.grad = torch.zeros_like(parameter)

    def save_model(folder: Path) -> None:
        save_trained(folder, controlnet, backbone, train, settings, counts.step)

    started, timer = time.monotonic() - counts.seconds, SavingTimer(settings.checkpoint_minutes, first=counts.step == 0)
    if main and counts.step == 0:
        validation.write_samples(controlnet, run.path / "samples", 0)
    with (
        StopSignal() as stop,
        tqdm(total=total_steps, initial=counts.step, desc="ControlNet", unit="step", disable=not main) as bar,
        moved(idle_parts(backbone, settings), torch.device("cpu")),
    ):
        while counts.step < total_steps:
            # which slices: a permutation that depends on seed and epoch alone, dealt to the processes
            epoch, position = divmod(counts.step, settings.steps_per_epoch(slices))
            order = permutation_for(slices, settings.seed, "order", epoch)
            indices = order[position * settings.slices_per_step :][: settings.slices_per_step]
            mine = indices[distributed.rank() :: distributed.world_size()]

            # the gradient: batches add up, each by its share of the slices, to that of one large batch
            step_loss = torch.zeros((), device=device)
            for first in range(0, len(mine), settings.batch_size):
                batch = mine[first : first + settings.batch_size]

                # what is drawn for each slice: prompt, timestep, noise, and a sample of the VAE's posterior
                mean, std, masks, share, edges = cache.batch(batch, epoch)
                draws = [generator_for(settings.seed, "draw", epoch, index) for index in batch]
                chosen = torch.cat([torch.randint(len(prompts), (1,), generator=g) for g in draws])
                timesteps = torch.cat(
                    [torch.randint(backbone.scheduler.config.num_train_timesteps, (1,), generator=g) for g in draws]
                )
                noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in draws])
                posterior = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in draws])
                for i, generator in enumerate(draws):
                    if torch.rand(1, generator=generator) < settings.prompt_dropout:
                        chosen[i] = len(prompts)
                    if edges is not None and torch.rand(1, generator=generator) < settings.edge_dropout:
                        edges[i] = 0
                chosen, timesteps, noise, posterior = (
                    to_device(drawn, device) for drawn in (chosen, timesteps, noise, posterior)
                )

                loss = denoising_loss(
                    backbone.unet,
                    controlnet,
                    backbone.scheduler,
                    mean + std * posterior,
                    noise,
                    timesteps,
                    prompt_embeds[chosen],
                    encode_mask(masks, colors, edges),
                    settings.max_weight,
                    share,
                    predict,
                )
                loss = loss * (len(batch) / len(indices))
                loss.backward()
                step_loss += loss.detach()
            distributed.add_up_gradients(parameters, step_loss)

            # the step: only ControlNet moves, and the decoder where it is unlocked
            skipped.guard(torch.nn.utils.clip_grad_norm_(parameters, settings.clip))
            optimizer.step()
            optimizer.zero_grad(set_to_none=not settings.compile)
            counts.step += 1
            bar.update()
            add_finite(losses, torch.stack([step_loss, torch.ones_like(step_loss)]))
            skipped.refuse_too_many(counts.step, run.path, "start again with a lower --lr, or with --precision fp32")

            # log, look, save: the first process, for which the others wait where all meet next; its clock is theirs
            step, ended = counts.step, counts.step == total_steps
            signal, due = distributed.highest(stop.number, main and timer.due())
            logging = step % 20 == 0 or step % settings.checkpoint_every == 0 or ended or signal
            saving = step % settings.checkpoint_every == 0 or ended or signal or due
            if logging or saving:
                mean_loss = (losses[0] / losses[1].clamp(min=1)).item()  # this waits for the device: not at every step
                if not np.isfinite(mean_loss):  # before anything is saved
                    raise distributed.agreed(
                        InputError(f"the loss of {run.path} became {mean_loss} by step {step}: start with a lower --lr")
                    )
                counts.seconds = round(time.monotonic() - started, 2)
            if logging:
                losses.zero_()
                if main:
                    run.log({"step": step, "epoch": epoch, "loss": round(mean_loss, 5), "seconds": counts.seconds})
                bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
            if main and (step % settings.sample_every == 0 or ended):
                row = {"step": step, "validation_loss": validation.loss(controlnet)}
                with moved([backbone.vae], device):
                    validation.write_samples(controlnet, run.path / "samples", step)
                    if judged:
                        # from masks that nothing learned from, and pure noise: no slice that the judge knows
                        score = agreement(judged.draw(controlnet), judged.masks.cpu().numpy())
                        row["mask_agreement"] = round(score, 5)
                run.log(row)
                plot_progress(
                    run.path / "progress.png", run.read_log(), [["loss", "validation_loss"], ["mask_agreement"]]
                )
                if row.get("mask_agreement", -1.0) > counts.best:
                    counts.best = row["mask_agreement"]
                    run.save(State(counts), save_model, "best")
            if main and saving:
                run.save(state, save_model, keep=settings.keep)
                timer.saved()
            if signal and not ended:
                distributed.any_process(False)  # nobody leaves before the state is saved: torchrun would end the rest
                message = f"at step {step} of {total_steps}: go on with --resume --out {run.path}"
                raise distributed.agreed(Interrupted(message, signal))
    return controlnet.eval()
