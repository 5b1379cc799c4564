#!/usr/bin/env python3
"""Generate synthetic slices, with known labels, from the masks of the training part."""

import argparse
from pathlib import Path

from natural2nanoscale.cli import CONTROLNET_RUN, Parser, at_least, main_guard, refuse_torchrun


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="folder whose train/ holds the masks (default: data)")
    add("--controlnet", type=Path, default=CONTROLNET_RUN, help="run of train_controlnet.py")
    add("--checkpoint", default="newest", help="newest, best (of a run with --judge), or one such as step-001000")
    add("--out", type=Path, help="synthetic pair folder (default: DATA/synthetic)")
    add("--backbone", help="(default: the one that the ControlNet was trained over)")
    add("--tokenizer", type=Path, help="folder of the tokenizer, for a backbone in one file (default: as in training)")
    add("--prompts", type=Path, help="text file, one prompt per line (default: 37 prompts for EM)")
    add("--per-mask", type=at_least(1), default=1, metavar="N", help="images per mask")
    add("--steps", type=at_least(1), default=20, help="sampling steps")
    add("--guidance", type=at_least(1.0, float), default=1.0, help="guidance scale; 1 is none")
    add("--strength", type=at_least(0.0, float), help="scale of the mask's influence (default: the backbone's)")
    add("--eta", type=at_least(0.0, float), default=0.0, help="0 is deterministic DDIM, 1 as noisy as DDPM")
    add(
        "--start",
        type=at_least(0.0, float),
        help="share of the steps taken; below 1 they begin at the mask's real slice (default: the backbone's)",
    )
    add(
        "--edges",
        choices=("none", "real"),
        default="none",
        help="of the mask's real slice, for a ControlNet trained with --condition mask+edges",
    )
    add("--batch-size", type=at_least(1), default=4, help="images drawn at once; does not change them")
    add("--seed", type=at_least(0), default=0, help="seed of noise and prompts")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the U-Net and ControlNet")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    refuse_torchrun()
    from natural2nanoscale.diffusion.command import generate
    from natural2nanoscale.phantom.volume import write_default

    generate(args, write_default)


if __name__ == "__main__":
    main_guard(parse_arguments, main)
