"""How long a training is and in which portions it takes its slices; what cannot be trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from natural2nanoscale.data.roots import refuse_other_classes
from natural2nanoscale.errors import InputError
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices, refuse_unlabelled

BYTES_PER_PIXEL_AND_WIDTH = 120  # of float32 activations and gradients in one training pass


def check(training: Slices, validation: Slices, settings: Settings) -> None:
    """Raise InputError for data and settings that cannot be trained on."""
    refuse_other_classes("the validation set", validation.classes, "the training set", training.classes)
    for name, slices in (("training", training), ("validation", validation)):
        refuse_unlabelled(slices, f"the {name} set")
    if settings.crop is None and len(training.shapes) > 1:
        (h0, w0), (h1, w1) = training.shapes[0], training.shapes[-1]
        raise InputError(
            f"the training slices have {len(training.shapes)} different sizes, from {w0}x{h0} to {w1}x{h1}, "
            f"expected one: train on windows with --crop WxH, such as --crop {w0}x{h0}"
        )
    synthetic, size = len(training) - training.real, slices_per_step(settings, set_size(training, settings))
    for flag, given in (("--balance", settings.balance), ("--mode pretrain-finetune", settings.finetune_after)):
        if given is not None and not (training.real and synthetic):
            raise InputError(
                f"{flag} needs real and synthetic slices, found {training.real} real and {synthetic} "
                "synthetic: leave it out, or mix both with --synthetic-ratio"
            )
    if settings.balance is not None and not 0 < round(settings.balance * size) < size:
        raise InputError(
            f"--balance {settings.balance:g} of batches of {size} leaves no slice for one of the two "
            "kinds, expected at least one of each: change --balance or raise --batch-size"
        )
    if settings.enlarge_to is not None:
        if not 0 < training.real <= settings.enlarge_to:
            raise InputError(
                f"--enlarge-to {settings.enlarge_to} of {training.real} real slices, expected real slices and a "
                "number that is not below theirs: raise it or leave it out"
            )
        if settings.augment == "none":
            raise InputError("--enlarge-to without --augment repeats the slices: add --augment rotation")


@dataclass(frozen=True)
class Schedule:
    """How long a training is, and in which portions it takes its slices."""

    slices: int  # in an epoch
    real: int  # of these
    per_step: int  # slices
    per_epoch: int  # steps
    total_steps: int  # at most
    validate_every: int  # steps
    window: tuple[int, int]  # (height, width) of what the network sees
    micro_batch: int  # windows per forward pass, at most


def schedule_of(training: Slices, validation: Slices, settings: Settings, device: torch.device) -> Schedule:
    """The schedule of a training on slices that `check` has let pass."""
    count = set_size(training, settings)
    per_epoch, total_steps = plan_steps(count, settings)
    height, width = settings.crop[::-1] if settings.crop else training.shapes[0]
    return Schedule(
        slices=count,
        real=count - (len(training) - training.real),
        per_step=slices_per_step(settings, count),
        per_epoch=per_epoch,
        total_steps=total_steps,
        validate_every=steps_between_validations(training, validation, settings),
        window=(height, width),
        micro_batch=settings.micro_batch or micro_batch_size(height * width, settings.width, device),
    )


def set_size(training: Slices, settings: Settings) -> int:
    """How many slices an epoch takes."""
    return len(training) if settings.enlarge_to is None else settings.enlarge_to + len(training) - training.real


def plan_steps(count: int, settings: Settings) -> tuple[int, int]:
    """Optimiser steps per epoch and in all, for a training set of `count` slices."""
    per_epoch = math.ceil(count / slices_per_step(settings, count))
    return per_epoch, settings.max_steps or settings.epochs * per_epoch


def slices_per_step(settings: Settings, count: int) -> int:
    """How many slices a step takes from a set of `count`: the batch size or, if smaller, all."""
    return settings.batch_size if settings.full_batches else min(settings.batch_size, count)


def steps_between_validations(training: Slices, validation: Slices, settings: Settings) -> int:
    """After how many steps the validation slices are looked at: as set, else once per epoch or, where that would take
    more than a twentieth of the training's time, less often.

    Counted in pixels and not in seconds, so that it is the same on every machine: per pixel a step takes at least
    2.5 times as long as a look, which goes forward alone (measured on one core: 2.5 to 3.3).
    """
    if settings.validate_every:
        return settings.validate_every
    count = set_size(training, settings)
    window = settings.crop[0] * settings.crop[1] if settings.crop else math.prod(training.shapes[0])
    seen = slices_per_step(settings, count) * window
    looked_at = sum(mask.size for mask in validation.masks)
    return max(plan_steps(count, settings)[0], math.ceil(looked_at / (0.05 * 2.5 * seen)))


def micro_batch_size(pixels: int, width: int, device: torch.device) -> int:
    """Slices of `pixels` pixels per forward pass: what should fit, at least one.

    Taken from the device's whole memory, not from what is free, so that it is the same on every start.
    """
    budget = 2**30  # a larger micro-batch is no faster on a CPU
    if device.type == "cuda":
        budget = torch.cuda.get_device_properties(device).total_memory // 2
    return max(1, budget // (BYTES_PER_PIXEL_AND_WIDTH * width * pixels))
