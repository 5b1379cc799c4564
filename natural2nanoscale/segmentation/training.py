"""Supervised training of a U-Net: one flat loop (paper 4.3 and 4.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.finite import gradient_norm
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.segmentation.batches import DeviceSlices, draw_batch, read_batch
from natural2nanoscale.segmentation.monitor import Monitor, Trained
from natural2nanoscale.segmentation.schedule import check, schedule_of
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.segmentation.unet import UNet, initialize, move_to, select_precision
from natural2nanoscale.signals import StopSignal


def train(
    training: Slices,
    validation: Slices,
    settings: Settings,
    device: torch.device,
    folder: RunFolder | None = None,
    label: str | None = None,
) -> Trained:
    """Train one U-Net; with `folder` go on from the checkpoint that may be there, and keep log, checkpoints and best/.

    `label` names it on the progress bar, in place of its seed. Raises Interrupted after a requested stop, once the
    state is saved, and InputError for unusable data or a loss that is no longer finite.
    """
    check(training, validation, settings)
    schedule = schedule_of(training, validation, settings, device)
    pool = DeviceSlices(training, device, settings.enlarge_to)
    weights = class_weights(training, settings.class_balance).to(device)
    precision = select_precision(settings.precision, device)
    model = UNet(training.classes.count, settings.width, settings.depth, precision)
    initialize(model, generator_for(settings.seed, "weights"))
    move_to(model, device)
    network = torch.compile(model, dynamic=False) if settings.compile else model  # the same weights
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    monitor = Monitor(model, optimizer, validation, schedule, settings, folder)
    label, taken = label or f"U-Net seed {settings.seed}", monitor.counts.step
    bar = tqdm(total=schedule.total_steps, initial=taken, desc=label, unit="step")
    with StopSignal() as stop, bar:
        while not monitor.ended:
            step = monitor.counts.step
            samples = draw_batch(step, schedule.slices, schedule.real, settings)  # (epoch, index) of slices, (B,2)
            parts = (read_batch(pool, part, settings) for part in samples.split(schedule.micro_batch))  # augmented
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = learning_rate(step, schedule.total_steps, settings)
            loss, weight = accumulate_gradient(network, parts, weights)  # predict, loss, backward
            monitor.skipped.guard(gradient_norm(model.parameters()))
            optimizer.step()
            monitor.look(loss, weight, bar)
            monitor.save(stop)
    return monitor.finish(training)


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


def learning_rate(step: int, total_steps: int, settings: Settings) -> float:
    """Of optimiser step `step`, counted from 0: constant (paper 4.4), or with `decay` up and down again."""
    if not settings.decay:
        return settings.learning_rate
    rise = min(1.0, (step + 1) / (0.1 * total_steps))
    return settings.learning_rate * rise * (1 + math.cos(math.pi * step / total_steps)) / 2
