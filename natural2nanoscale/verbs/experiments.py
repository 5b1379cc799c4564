"""The verb `experiments`: studies of what synthetic slices are worth, the paper's and their controls."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

from natural2nanoscale.cli import add_settings, at_least, flags_of, settings_from, size
from natural2nanoscale.study.experiments import EXPERIMENTS, described
from natural2nanoscale.study.presets import LOOKS, PRESETS, Place, Preset

OF_UNETS = {"unet_width": "width", "unet_batch": "batch_size", "unet_crop": "crop"}  # argument -> field of a budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = " ".join(f"{name}: {described(name)[1]}" for name in EXPERIMENTS)
    add = parser.add_argument
    add("--preset", choices=tuple(PRESETS), default="embedded", help="budgets of everything that no flag says")
    add("--only", nargs="+", choices=tuple(EXPERIMENTS), metavar="NAME", dest="experiments", help=names)
    add("--ratios", nargs="+", type=at_least(0.01, float), metavar="R",
        help="added slices per annotated one in figure6, table2, budget, split and order")  # fmt: skip
    add_study_arguments(parser)


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the demo as well; what is not given is as the preset has it."""
    add = parser.add_argument
    add_settings(parser, Place)
    add_settings(parser, Preset)
    add("--unet-steps", type=steps_or_pilot, metavar="N",
        help="steps of every U-Net, or `pilot`: as many as all slices of the pool take until their validation is flat "
        "(default: a pilot with --data, but not in the demo and with --preset paper; else the preset's)")  # fmt: skip
    add("--unet-width", type=at_least(1), metavar="N", help="channels at the top of the U-Nets")
    add("--unet-batch", type=at_least(2), metavar="N", help="windows per step of the U-Nets")
    add("--unet-crop", type=size, metavar="WxH", help="the U-Nets' window in pixels")


def steps_or_pilot(text: str) -> int | str:
    return text if text == "pilot" else at_least(1)(text)


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.study.study import run_study

    given = {
        name: tuple(sorted(set(value))) if isinstance(value, list) else value
        for name, value in vars(args).items()
        if value is not None
    }
    fields = ("experiments", "ratios", *flags_of(Preset))
    preset = replace(PRESETS[args.preset], **{name: given[name] for name in fields if name in given})
    changes = {field: given[name] for name, field in OF_UNETS.items() if name in given}
    preset = replace(preset, budgets={name: replace(budget, **changes) for name, budget in preset.budgets.items()})
    steps = args.unet_steps or ("pilot" if args.data and args.preset not in ("demo", "paper") else None)
    if steps == "pilot":
        preset = replace(preset, pilot=True)
    elif steps:
        budget = preset.budgets[preset.budget]
        preset = preset.with_budget(replace(budget, max_steps=steps, validate_every=math.ceil(steps / LOOKS)))
    run_study(preset, settings_from(args, Place))
