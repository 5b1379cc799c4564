"""Supervised training of a U-Net: one flat loop (paper 4.3 and 4.4)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from natural2nanoscale.charts import plot_progress
from natural2nanoscale.checkpoints import SavingTimer, State
from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import SkippedSteps, add_finite, gradient_norm
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.segmentation.batches import (
    DeviceSlices,
    check,
    draw_batch,
    micro_batch_size,
    plan_steps,
    read_batch,
    set_size,
    steps_between_validations,
)
from natural2nanoscale.segmentation.inference import slices_at_once, tiles
from natural2nanoscale.segmentation.metrics import confusion, iou, jsonable, mean_present
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.segmentation.unet import (
    UNet,
    UNetInfo,
    initialize,
    move_to,
    normalize,
    save_unet,
    select_precision,
)
from natural2nanoscale.signals import Interrupted, StopSignal


@dataclass
class Counts:
    """What a training counts, and its checkpoints hold."""

    step: int = 0
    useless: int = 0  # validations since the best one
    best: dict = field(default_factory=dict)  # the line of the best one


@dataclass(frozen=True)
class Trained:
    """A trained network with its best weights, in eval mode."""

    model: UNet
    info: UNetInfo
    best: dict  # the line of the best validation: step, loss, val_loss, val_miou, val_iou
    rows: list[dict]  # the lines of all validations
    steps: int  # optimiser steps taken, fewer than planned when training stopped early


def learning_rate(step: int, total_steps: int, settings: Settings) -> float:
    """Of optimiser step `step`, counted from 0: constant (paper 4.4), or with `decay` up and down again."""
    if not settings.decay:
        return settings.learning_rate
    rise = min(1.0, (step + 1) / (0.1 * total_steps))
    return settings.learning_rate * rise * (1 + math.cos(math.pi * step / total_steps)) / 2


def is_better(row: dict, best: dict, select_by: str) -> bool:
    """Whether a validation beats the best one so far ({} before the first)."""
    if select_by == "loss":
        return not best or row["val_loss"] < best["val_loss"]
    return not best or row["val_miou"] > best["val_miou"]


def class_weights(training: Slices, balance: float) -> torch.Tensor:
    """Weight of every class in the loss, (K,) float32: its share of the labelled pixels to the power -balance,
    scaled so that a pixel weighs 1 on average. 0 weighs all alike, 1 all classes alike."""
    pixels = sum(np.bincount(mask.ravel(), minlength=256)[: training.classes.count] for mask in training.masks)
    share = torch.from_numpy(pixels / pixels.sum()).float()
    weights = torch.where(share > 0, share.clamp(min=1e-6) ** -balance, 1.0)
    return weights / (weights * share).sum()


def accumulate_gradient(
    model: torch.nn.Module, parts: Iterable[tuple[torch.Tensor, torch.Tensor]], weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave in .grad the gradient of the weighted mean cross-entropy over all labelled pixels of all parts.

    `parts` are micro-batches (images (b,1,h,w), targets (b,h,w) int64), `weights` (K,) those of the classes.
    The loss is summed over the parts and divided once by the summed weights, so the result is that of one
    large batch, however it is cut, and a part without any labelled pixel adds nothing. Returns the summed
    loss and the summed weights, on the device.
    """
    loss_sum, weight_sum = 0.0, 0.0
    for images, masks in parts:
        logits = model(images)
        loss = F.cross_entropy(logits, masks, weights, ignore_index=IGNORE_ID, reduction="sum")
        loss.backward()
        loss_sum = loss_sum + loss.detach()
        weight_sum = weight_sum + (torch.bincount(masks.flatten(), minlength=IGNORE_ID)[: len(weights)] * weights).sum()
    gradients = [parameter.grad for parameter in model.parameters()]
    torch._foreach_div_(gradients, weight_sum.clamp(min=1e-6))
    return loss_sum, weight_sum


@torch.inference_mode()
def validate(model: UNet, pool: DeviceSlices, count: int, micro_batch: int) -> tuple[float, torch.Tensor]:
    """Mean cross-entropy over all labelled pixels and confusion matrix (K,K) of unaugmented slices, whole where they
    are no larger than a tile."""
    model.eval()
    loss_sum = torch.zeros((), device=pool.device)
    matrix = torch.zeros(model.classes, model.classes, dtype=torch.int64, device=pool.device)
    for start in range(0, count, micro_batch):
        for _, _, grey, masks in pool.groups(torch.arange(start, min(start + micro_batch, count))):
            for window, answer, place in tiles(grey.shape[1:]):
                logits = model(normalize(grey[window]))[answer]
                loss_sum += F.cross_entropy(logits, masks[place].long(), ignore_index=IGNORE_ID, reduction="sum")
                matrix += confusion(masks[place], logits.argmax(1), model.classes)
    return (loss_sum / matrix.sum().clamp(min=1)).item(), matrix.cpu()


def train(
    training: Slices,
    validation: Slices,
    settings: Settings,
    device: torch.device,
    folder: RunFolder | None = None,
    resume: bool = False,
    progress: bool = True,
    label: str | None = None,
) -> Trained:
    """Train one U-Net; with `folder` keep log, checkpoints and best/ there, without it write nothing.

    `label` names it on the progress bar, in place of its seed.

    Raises Interrupted after a requested stop, once the state is saved, and InputError for unusable data or
    a loss that is no longer finite.
    """
    check(training, validation, settings)
    precision = select_precision(settings.precision, device)
    info = UNetInfo(settings.width, settings.depth, training.classes, training.intensity_window, precision=precision)
    model = UNet(training.classes.count, settings.width, settings.depth, precision)
    initialize(model, generator_for(settings.seed, "weights"))
    move_to(model, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    weights = class_weights(training, settings.class_balance).to(device)

    network = torch.compile(model, dynamic=False) if settings.compile else model  # the same weights
    pool, judge = DeviceSlices(training, device, settings.enlarge_to), DeviceSlices(validation, device)
    count = set_size(training, settings)
    real = count - (len(training) - training.real)
    per_epoch, total_steps = plan_steps(count, settings)
    validate_every = steps_between_validations(training, validation, settings)
    patience = settings.patience or math.inf
    height, width = (settings.crop[1], settings.crop[0]) if settings.crop else training.shapes[0]
    micro_batch = settings.micro_batch or micro_batch_size(height * width, settings.width, device)
    validation_batch = slices_at_once(validation.shapes, settings.width, device)

    # all that moves, and so is saved
    counts = Counts()
    best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_loss = torch.zeros(2, device=device)  # summed loss and weights since the last validation
    skipped = SkippedSteps(optimizer, device)
    state = State(
        counts, model=model, optimizer=optimizer, best=best_weights, train_loss=train_loss, skipped=skipped.counts
    )
    rows: list[dict] = []
    if folder and resume:
        folder.restore(state)
        folder.drop_log_after(counts.step)
        rows = folder.read_log()

    def look() -> dict:
        val_loss, matrix = validate(model, judge, len(validation), validation_batch)
        scores = iou(matrix)
        mean_loss = (train_loss[0] / train_loss[1].clamp(min=1e-6)).item()
        if not math.isfinite(mean_loss + val_loss):
            became = f"the loss became {mean_loss + val_loss} by step {counts.step}"
            raise InputError(f"{became}: start again with a lower --lr")
        return {
            "step": counts.step,
            "epoch": counts.step / per_epoch,
            "loss": mean_loss,
            "val_loss": val_loss,
            "val_miou": mean_present(scores),
            "val_iou": jsonable(scores),
            "seconds": round(time.monotonic() - started, 1),
        }

    def keep_best(row: dict) -> None:
        counts.best, counts.useless = row, 0
        for name, tensor in model.state_dict().items():
            best_weights[name].copy_(tensor)

    started, timer = time.monotonic(), SavingTimer(settings.checkpoint_minutes, first=counts.step == 0)
    label = label or f"U-Net seed {settings.seed}"
    bar = tqdm(total=total_steps, initial=counts.step, desc=label, unit="step", disable=not progress)
    with StopSignal() as stop, bar:
        while counts.step < total_steps and counts.useless < patience:
            # the gradient step: summed over micro-batches, divided once
            model.train()
            samples = draw_batch(counts.step, count, real, settings)
            cuts = range(0, len(samples), micro_batch)
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = learning_rate(counts.step, total_steps, settings)
            loss, weight = accumulate_gradient(
                network, (read_batch(pool, samples[cut : cut + micro_batch], settings) for cut in cuts), weights
            )
            skipped.guard(gradient_norm(model.parameters()))
            optimizer.step()
            counts.step += 1
            step = counts.step
            bar.update()
            add_finite(train_loss, torch.stack([loss, weight]))
            skipped.refuse_too_many(step, folder.path if folder else label, "start again with a lower --lr")

            # look at the validation slices and keep the best weights
            if step % validate_every == 0:
                row = look()
                train_loss.zero_()
                rows.append(row)
                counts.useless += 1
                if step <= (settings.finetune_after or 0):  # never stop before fine-tuning
                    counts.useless = 0
                if is_better(row, counts.best, settings.select_by):
                    keep_best(row)
                if folder:
                    folder.log(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", mIoU=f"{row['val_miou']:.3f}", refresh=False)

            # save; the state does not know of an end, so a longer training can go on from it
            ended = step == total_steps or counts.useless >= patience
            due = stop.requested or ended or step % settings.checkpoint_every == 0 or timer.due()
            if folder and due:
                folder.save(state)
                timer.saved()
            if stop.requested:
                where = f"{folder.path} is saved" if folder else "nothing is saved"
                raise Interrupted(f"at step {step} of {total_steps}, {where}: go on with --resume", stop.number)

    # the steps after the last regular validation count as well
    if counts.step % validate_every:
        row = look()
        rows.append(row)
        if is_better(row, counts.best, settings.select_by):
            keep_best(row)
    model.load_state_dict(best_weights)
    info = replace(info, trained={"seed": settings.seed, "steps": counts.step, "best": counts.best})
    if folder:
        plot_progress(folder.path / "progress.png", rows, [["loss", "val_loss"], ["val_miou"]])
        save_unet(folder.path / "best", model, info)
    return Trained(model.eval(), info, counts.best, rows, counts.step)
