#!/usr/bin/env python3
"""Train U-Nets, one per seed, on real slices, synthetic ones or both, and score them on the test slices."""

import argparse
from pathlib import Path

from natural2nanoscale.cli import UNET_RUN, Parser, at_least, main_guard, parse_resumable, refuse_torchrun, size
from natural2nanoscale.data.roots import data_root
from natural2nanoscale.segmentation.settings import AUGMENTATIONS, Settings, recommended_help


def parse_arguments() -> argparse.Namespace:
    default = Settings()
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with train/, val/ and test/ (default: data, filled with the phantom)",
    )
    add("--synthetic", type=Path, metavar="DIR", help="folder of synthetic slices (default: DATA/synthetic)")
    add(
        "--synthetic-ratio",
        type=at_least(0.0, float),
        metavar="R",
        help="synthetic slices per real one, added to the real ones (default: 0, or 1 with --synthetic or --no-real)",
    )
    add("--no-real", action="store_true", help="train on the synthetic slices alone")
    add(
        "--balance",
        type=at_least(0.0, float),
        metavar="SHARE",
        help="share of every batch that is real, such as 0.5 (default: as in the set)",
    )
    add(
        "--augment",
        choices=tuple(AUGMENTATIONS),
        default=default.augment,
        help="rotation is the paper's, elastic rotates and deforms, paper-all is all that the paper tried, nnunet "
        "nnU-Net's defaults (default: %(default)s)",
    )
    add(
        "--angle",
        type=at_least(0.0, float),
        default=default.angle,
        metavar="DEGREES",
        help="largest rotation either way (default: %(default)g)",
    )
    add(
        "--enlarge-to",
        type=at_least(1),
        metavar="N",
        help="augment once and for all, to N slices from the real ones (default: anew at every visit)",
    )
    add(
        "--mode",
        choices=("joint", "pretrain-finetune"),
        default="joint",
        help="pretrain-finetune: half of the steps on synthetic slices (with --balance on both), then on real ones",
    )
    add("--crop", type=size, metavar="WxH", help=f"train on windows of this size {recommended_help('crop')}")
    add("--epochs", type=at_least(1), metavar="N", help=f"passes over the training slices {recommended_help('epochs')}")
    add("--max-steps", type=at_least(1), metavar="N", help="optimiser steps, in place of --epochs")
    add("--batch-size", type=at_least(1), metavar="N", help=f"slices per step {recommended_help('batch_size')}")
    add("--micro-batch", type=at_least(1), metavar="N", help="slices per forward pass (default: what fits)")
    add("--width", type=at_least(1), metavar="N", help=f"channels of the first stage {recommended_help('width')}")
    add("--depth", type=at_least(1), metavar="N", help=f"halvings of the resolution {recommended_help('depth')}")
    add("--lr", type=at_least(0.0, float), help=f"learning rate {recommended_help('learning_rate')}")
    add(
        "--decay",
        action=argparse.BooleanOptionalAction,
        help=f"let the learning rate rise and fall to 0: good for short trainings {recommended_help('decay')}",
    )
    add(
        "--class-balance",
        type=at_least(0.0, float),
        metavar="B",
        help=f"pixels weigh (share of their class)^-B in the loss; 0.5 helps rare classes "
        f"{recommended_help('class_balance')}",
    )
    add(
        "--validate-every",
        type=at_least(1),
        metavar="STEPS",
        help="(default: once per epoch, less often where that takes more than a twentieth of the time)",
    )
    add(
        "--patience",
        type=at_least(0),
        metavar="N",
        help=f"validations without a better one until training stops, 0 for never {recommended_help('patience')}",
    )
    add(
        "--select",
        choices=("loss", "miou"),
        help=f"validation score that names the best weights {recommended_help('select_by')}",
    )
    add("--compile", action="store_true", help="torch.compile; about a minute at the start, less time per step")
    add(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default=default.precision,
        help="of the arithmetic; auto is bfloat16 where the device computes in it (default: %(default)s)",
    )
    add("--seeds", type=at_least(1), default=3, metavar="N", help="networks to train (default: %(default)s)")
    add("--seed", type=at_least(0), default=default.seed, metavar="N", help="the first seed (default: %(default)s)")
    add(
        "--checkpoint-every",
        type=at_least(1),
        default=default.checkpoint_every,
        metavar="STEPS",
        help="(default: %(default)s)",
    )
    add(
        "--checkpoint-minutes",
        type=at_least(0.0, float),
        default=default.checkpoint_minutes,
        metavar="MINUTES",
        help="and minutes, whichever come first; a first one after one minute; 0 counts steps alone "
        "(default: %(default)g)",
    )
    add("--out", type=Path, default=UNET_RUN, metavar="RUN", help="run folder (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add("--resume", action="store_true", help="go on with the run in --out, from step 0 where it has no checkpoint yet")
    return parse_resumable(parser)


def main(args: argparse.Namespace) -> None:
    refuse_torchrun()
    from natural2nanoscale.phantom.volume import write_default
    from natural2nanoscale.segmentation.command import plan_synthetic, train_unet

    plan_synthetic(args)  # refuses what is out of order before any data is made
    train_unet(args, data_root(args.data, make_default=write_default))


if __name__ == "__main__":
    main_guard(parse_arguments, main)
