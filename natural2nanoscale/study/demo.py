"""The whole loop at embedded scale, from a few slices to a table: a small study with a short report."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from natural2nanoscale.cli import at_least, data_root, size
from natural2nanoscale.errors import InputError
from natural2nanoscale.study.experiments import Place, run_study
from natural2nanoscale.study.presets import DEMO

BUDGET = DEMO.budgets["demo"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `demo`; the defaults are those of its preset."""
    add, n = parser.add_argument, {"metavar": "N"}
    add("--out", type=Path, default=Path("runs/demo"), help="run folder; a stopped demo goes on in it")
    add("--data", type=Path, help="prepared data root to draw slices from (default: a phantom)")
    add("--backbone", default="auto", help="auto, embedded, a diffusers folder, a .safetensors file, or a hub id")
    add("--crop", type=size, metavar="WxH", help="ControlNet's window in pixels")
    counts, shares = at_least(1), at_least(0.0, float)
    for flag, kind, default, shown, text in (
        ("--slices", counts, DEMO.slices, {}, "annotated slices to learn from"),
        ("--redraws", counts, DEMO.redraws, {}, "repetitions with other slices and ControlNets"),
        ("--seeds", counts, DEMO.seeds, {}, "U-Nets per condition and redraw"),
        ("--seed", at_least(0), DEMO.seed, {}, "seed of everything that is drawn"),
        ("--controlnet-steps", counts, DEMO.controlnet_steps, n, "fine-tuning steps"),
        ("--per-mask", counts, int(max(DEMO.ratios)), n, "synthetic slices per mask"),
        ("--unet-width", counts, BUDGET.width, n, "channels at the top of the U-Net"),
        ("--unet-steps", counts, BUDGET.max_steps, n, "steps of every U-Net"),
        ("--unet-batch", at_least(2), BUDGET.batch_size, n, "windows per step"),
        ("--unet-crop", size, BUDGET.crop, {"metavar": "WxH"}, "the U-Nets' window in pixels"),
        ("--unet-lr", shares, BUDGET.learning_rate, {"metavar": "LR"}, "the U-Nets' highest learning rate"),
        ("--class-balance", shares, BUDGET.class_balance, {}, "weight of rare classes in the U-Nets' loss"),
        ("--validations", counts, BUDGET.max_steps // BUDGET.validate_every, n, "looks at the validation slices"),
    ):
        add(flag, type=kind, default=default, help=text, **shown)
    add("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> None:
    """The verb `demo`."""
    if args.validations > args.unet_steps:
        raise InputError(f"--validations {args.validations} are more than --unet-steps {args.unet_steps}")
    budget = replace(
        BUDGET,
        width=args.unet_width,
        max_steps=args.unet_steps,
        batch_size=args.unet_batch,
        crop=args.unet_crop,
        learning_rate=args.unet_lr,
        class_balance=args.class_balance,
        validate_every=args.unet_steps // args.validations,
    )
    preset = replace(
        DEMO,
        budgets={"demo": budget},
        ratios=(float(args.per_mask),),
        slices=args.slices,
        redraws=args.redraws,
        seeds=args.seeds,
        seed=args.seed,
        controlnet_steps=args.controlnet_steps,
        crop=args.crop,
    )
    where, pool = "the phantom", preset.phantom.train
    if args.data:
        from natural2nanoscale.data.folders import open_pairs

        where = data_root(args.data) / "train"
        pool = len(open_pairs(where).stems)
    if pool < args.slices:
        raise InputError(f"{where} has {pool} slices, expected at least --slices {args.slices}: ask for fewer")
    # as they were asked for, so that a resumed demo names the flag that has changed
    elsewhere = ("verb", "out", "data", "backbone", "device")
    settings = {name: value for name, value in vars(args).items() if name not in elsewhere}
    run_study(preset, Place(args.out, args.data, args.backbone, args.device), settings)
