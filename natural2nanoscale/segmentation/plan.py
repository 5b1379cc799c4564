"""What a training will take: slices, steps, memory, disk and time, said before it begins."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from natural2nanoscale.checkpoints import disk_need
from natural2nanoscale.device import Cost, duration, gigabytes, measure
from natural2nanoscale.segmentation.schedule import schedule_of
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.segmentation.training import accumulate_gradient
from natural2nanoscale.segmentation.unet import UNet, move_to


def print_plan(
    training: Slices, validation: Slices, tests: int, settings: Settings, seeds: int, device: torch.device
) -> None:
    """Say what is going to happen, before it takes time; `tests` is the number of test slices."""
    with torch.device("meta"):
        network = UNet(training.classes.count, settings.width, settings.depth)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    schedule = schedule_of(training, validation, settings, device)
    sizes = ", ".join(f"{width}x{height}" for height, width in training.shapes[:3])
    more = " and others" if len(training.shapes) > 3 else ""
    synthetic = len(training) - training.real
    print(f"train on  {training.real} real + {synthetic} synthetic slices of {sizes}{more}")
    if settings.enlarge_to:
        print(f"enlarged  to {schedule.slices} slices by the augmentation {settings.augment}")
    print(f"judge on  {len(validation)} validation and {tests} test slices")
    print(f"classes   {', '.join(training.classes.names)}")
    print(f"network   U-Net of width {settings.width} and depth {settings.depth}: {parameters:,} parameters")
    height, width = schedule.window
    at_once = min(schedule.micro_batch, schedule.per_step)
    cost = blank_cost(training, settings, (at_once, height, width), device)
    took = duration(schedule.total_steps * math.ceil(schedule.per_step / at_once) * cost.seconds)
    print(f"memory    about {gigabytes(cost.peak)} with {at_once} of {width}x{height} at once")
    # the weights, the best ones and Adam's two moments; in the end the best ones of every seed once more
    print(f"disk      {disk_need(16 * parameters, keep=2)}, for each seed")
    print(
        f"length    at most {schedule.total_steps} steps, {schedule.per_epoch} per epoch, about {took} and what "
        f"validation takes,\n          for each of {seeds} seed(s), on {device}"
    )
    print(f"precision {settings.precision}, with float32 weights and scores")
    print(f"validated every {schedule.validate_every} steps")
    if settings.finetune_after is not None:
        first = "both kinds" if settings.balance else "synthetic slices"
        print(f"order     {settings.finetune_after} steps on {first}, then real slices alone")


def blank_cost(training: Slices, settings: Settings, shape: tuple[int, int, int], device: torch.device) -> Cost:
    """Memory and time of one forward and backward pass with its optimiser step, on blank windows of shape (B,H,W), and
    beside it room for the training slices, which lie on the device."""
    model = move_to(UNet(training.classes.count, settings.width, settings.depth, settings.precision), device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.zeros(shape, device=device)[:, None]
    masks, weights = torch.zeros(shape, dtype=torch.int64, device=device), torch.ones(model.classes, device=device)

    def step() -> None:
        accumulate_gradient(model, [(images, masks)], weights)
        optimizer.step()
        optimizer.zero_grad()

    cost = measure(step, device)
    pool = 2 * sum(image.size for image in training.images)  # image and mask, a byte each
    return replace(cost, peak=None if cost.peak is None else cost.peak + pool)
