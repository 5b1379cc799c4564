"""Fine-tuning ControlNet on pair folders: one flat loop (paper 4.2 and 4.4)."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale import distributed
from natural2nanoscale.data.encoders import encode_mask
from natural2nanoscale.data.folders import PairFolder, fingerprint
from natural2nanoscale.device import to_device
from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts, weights_hash
from natural2nanoscale.diffusion.controlnet import denoising_loss, make_controlnet, predict_noise, unlock_decoder
from natural2nanoscale.diffusion.latents import LatentCache, variants_kept
from natural2nanoscale.diffusion.memory import moved, plan
from natural2nanoscale.diffusion.saving import load_weights, save_trained
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.validation import Validation
from natural2nanoscale.errors import InputError
from natural2nanoscale.plots import plot_progress
from natural2nanoscale.runs import Interrupted, RunFolder, StopSignal, load_optimizer_tensors, optimizer_tensors
from natural2nanoscale.seeds import generator_for, permutation_for, seed_for

JUDGED_MASKS = 8  # of train/, evenly spaced, from which slices are drawn for the mask agreement


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

    The given backbone stays as it is, also with `unlock_decoder`, which trains a copy. `agreement` gets synthetic
    slices (B,H,W) uint8 and the masks (B,H,W) uint8 they were drawn from and says how well they agree, at least
    0, the more the better; the weights with the best agreement so far are kept as checkpoints/best.

    `initial` is trained on; without it the ControlNet starts as a copy of the U-Net's encoder.

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
    step, best, seconds = 0, -1.0, 0.0  # best: mask agreement
    if resume:
        checkpoint = run.load_checkpoint()
        if checkpoint is None:
            remedy = "remove the folder and start anew"
            if distributed.world_size() > 1:
                remedy = f"process {distributed.rank()} needs a copy of the run folder on its machine"
            raise InputError(f"--resume finds no checkpoint in {run.path}: {remedy}")
        load_weights(checkpoint.path, controlnet, backbone)
        load_optimizer_tensors(optimizer, checkpoint.tensors)
        step, best, seconds = checkpoint.step, checkpoint.state["best"], checkpoint.state["seconds"]
        if main:
            run.drop_log_after(step)
    if distributed.world_size() > 1:
        weights = weights_hash(controlnet, *([backbone.unet] if settings.unlock_decoder else []))
        start = step, weights, backbone.fingerprint, backbone.precision, fingerprint(train), str(settings), *prompts
        if not distributed.same(seed_for(*start)):
            raise distributed.agreed(
                InputError(
                    f"the processes differ in arguments, slices of {train.path}, weights of {backbone.name} or of the "
                    f"ControlNet to start from, precision or checkpoints of {run.path}, expected the same: start all "
                    "with the same command and give every machine the same files"
                )
            )

    slices, total_steps = len(train.stems), settings.total_steps(len(train.stems))
    windows = slices * variants_kept(train.shapes, settings)
    print(plan(backbone, controlnet, slices, windows, total_steps - step, settings))
    cache = LatentCache(backbone, train, settings)
    prompt_embeds = encode_prompts(backbone, [*prompts, ""])  # (P+1,L,D), once for all; the last one is empty
    validation = Validation(backbone, val, prompts, settings)
    judged = Validation(backbone, train, prompts, settings, JUDGED_MASKS) if agreement else None

    predict = predict_noise
    if settings.compile:
        predict = torch.compile(predict_noise, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
        for parameter in parameters:  # a CUDA graph overwrites what it gave: gradients are added into tensors of ours
            parameter.grad = torch.zeros_like(parameter)

    def save(name: str | None = None) -> None:
        state = {"best": best, "seconds": round(seconds + time.monotonic() - started, 1)}
        tensors = optimizer_tensors(optimizer) if name is None else {}
        run.save_checkpoint(
            step, tensors, state, lambda folder: save_trained(folder, controlnet, backbone, train, settings, step),
            name, settings.keep,
        )  # fmt: skip

    started = time.monotonic()
    if main and step == 0:
        validation.write_samples(controlnet, run.path / "samples", 0)
    losses: list[torch.Tensor] = []
    # the prompts are encoded, and so are the slices where they are cached: their encoders give way
    idle = [backbone.text_encoder, *([backbone.vae] if cache.variants else [])]
    with (
        StopSignal() as stop,
        tqdm(total=total_steps, initial=step, desc="ControlNet", unit="step", disable=not main) as bar,
        moved(idle, torch.device("cpu")),
    ):
        while step < total_steps:
            # which slices: a permutation that depends on seed and epoch alone, dealt to the processes
            epoch, position = divmod(step, settings.steps_per_epoch(slices))
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
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=not settings.compile)
            step += 1
            bar.update()
            losses.append(step_loss)

            # log, look, save: the first process, for which the others wait where all meet next
            stopping = distributed.any_process(stop.requested)
            saving = step % settings.checkpoint_every == 0 or step == total_steps or stopping
            if step % 20 == 0 or saving:
                mean_loss = torch.stack(losses).mean().item()  # this waits for the device: not at every step
                losses.clear()
                if not np.isfinite(mean_loss):  # before anything is saved
                    raise distributed.agreed(
                        InputError(f"the loss of {run.path} became {mean_loss} by step {step}: start with a lower --lr")
                    )
                elapsed = round(seconds + time.monotonic() - started, 2)
                if main:
                    run.log({"step": step, "epoch": epoch, "loss": round(mean_loss, 5), "seconds": elapsed})
                bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
            if main and (step % settings.sample_every == 0 or step == total_steps):
                row = {"step": step, "validation_loss": validation.loss(controlnet)}
                with moved([backbone.vae], device):
                    validation.write_samples(controlnet, run.path / "samples", step)
                    if judged:
                        drawn = judged.draw(controlnet, start=backbone.recommended.start)  # as generation does
                        score = agreement(drawn, judged.masks.cpu().numpy())
                        row["mask_agreement"] = round(score, 5)
                run.log(row)
                plot_progress(
                    run.path / "progress.png", run.read_log(), [["loss", "validation_loss"], ["mask_agreement"]]
                )
                if row.get("mask_agreement", -1.0) > best:
                    best = row["mask_agreement"]
                    save("best")
            if main and saving:
                save()
            if stopping and step < total_steps:
                distributed.any_process(False)  # nobody leaves before the state is saved: torchrun would end the rest
                raise distributed.agreed(
                    Interrupted(f"at step {step} of {total_steps}: go on with --resume --out {run.path}")
                )
    return controlnet.eval()
