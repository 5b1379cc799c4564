#!/usr/bin/env python3
"""Fine-tune ControlNet over a frozen natural-image backbone on annotated EM slices."""

import argparse
from pathlib import Path

from natural2nanoscale.cli import CONTROLNET_RUN, Parser, at_least, main_guard, parse_resumable, size


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="folder with train/ and val/ (default: data, filled with the phantom)")
    add("--out", type=Path, default=CONTROLNET_RUN, help="run folder")
    add("--backbone", default="auto", help="auto, embedded, a diffusers folder, a .safetensors file, or a hub id")
    add(
        "--tokenizer",
        type=Path,
        help="folder of the tokenizer, for a backbone in one file (default: cached or beside it)",
    )
    add("--controlnet-init", type=Path, help="run folder or ControlNet in diffusers' layout to start from")
    add("--prompts", type=Path, help="text file, one prompt per line (default: 37 prompts for EM)")
    add("--epochs", type=at_least(1), default=600, help="passes over the training slices")
    add("--max-steps", type=at_least(1), help="optimiser steps, in place of --epochs")
    add("--batch-size", type=at_least(1), default=2, help="slices that pass at once, per process")
    add("--accumulate", type=at_least(1), default=1, metavar="N", help="batches per step; their gradients add up")
    add("--crop", type=size, metavar="WxH", help="training window in pixels (default: the backbone's)")
    add("--lr", type=at_least(0.0, float), help="learning rate (default: the backbone's)")
    add("--max-weight", type=at_least(1.0, float), help="of noisy timesteps in the loss (default: the backbone's)")
    add("--rotation", type=at_least(0.0, float), default=16.0, help="largest angle in degrees")
    add("--noise", type=at_least(0.0, float), default=4.0, help="largest Gaussian noise in grey levels")
    add(
        "--latent-variants",
        type=at_least(0),
        default=16,
        metavar="K",
        help="augmented windows per slice whose latents are cached; 0 encodes at every step",
    )
    add(
        "--condition",
        choices=("mask", "mask+edges"),
        default="mask",
        help="what the ControlNet sees: the classes' colours, or with their boundaries and the slices' edges on them",
    )
    add(
        "--prompt-dropout",
        type=at_least(0.0, float),
        default=0.0,
        metavar="P",
        help="share of samples with the empty prompt; of use when slices are drawn with --guidance above 1",
    )
    add("--clip", type=at_least(1e-6, float), default=1.0, help="largest norm of the gradient")
    add(
        "--unlock-decoder",
        type=at_least(0.0, float),
        nargs="?",
        const=0.1,
        default=0.0,
        metavar="FACTOR",
        help="let the U-Net's decoder learn, at FACTOR (0.1 if not given) times the learning rate; 0 keeps it frozen",
    )
    add("--gradient-checkpointing", action="store_true", help="less memory, more time, the same gradients")
    add("--compile", action="store_true", help="torch.compile; minutes at the start, less time per step on a GPU")
    add(
        "--judge",
        action="store_true",
        help="train a small U-Net on the training slices first; whatever ControlNet draws slices from the validation "
        "masks in which it sees most of them is kept as the best checkpoint",
    )
    add("--seed", type=at_least(0), default=0, help="seed of everything that is drawn")
    add("--checkpoint-every", type=at_least(1), default=1000, metavar="STEPS", help="steps between checkpoints")
    add(
        "--checkpoint-minutes",
        type=at_least(0.0, float),
        default=10.0,
        metavar="MINUTES",
        help="and minutes between them, whichever come first; a first one after one minute; 0 counts steps alone",
    )
    add("--keep", type=at_least(1), default=2, metavar="N", help="newest checkpoints that stay")
    add("--sample-every", type=at_least(1), default=1000, metavar="STEPS", help="steps between looks at samples")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the frozen U-Net")
    add("--resume", action="store_true", help="go on with the run in --out, from step 0 where it has no checkpoint yet")
    return parse_resumable(parser)


def main(args: argparse.Namespace) -> None:
    from natural2nanoscale.diffusion.command import train_controlnet
    from natural2nanoscale.phantom.volume import write_default

    make_judge = None
    if args.judge:
        from natural2nanoscale.segmentation.judge import train_judge as make_judge

    train_controlnet(args, make_judge, write_default)


if __name__ == "__main__":
    main_guard(parse_arguments, main)
