"""The verb `calibrate`: which synthetic slices to mix in, and how many, judged on validation slices."""

from __future__ import annotations

import argparse
from pathlib import Path

from natural2nanoscale.cli import CONTROLNET_RUN, DATA, add_settings, settings_from
from natural2nanoscale.study.presets import Grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, default=DATA, metavar="DIR", help="data root; the choice goes to DIR/calibration.json")
    add("--controlnet", type=Path, default=CONTROLNET_RUN, metavar="RUN", help="run of train_controlnet.py")
    add("--checkpoint", default="newest", help="newest, best (of a run with --judge), or one such as step-001000")
    add("--backbone", help="(default: the one that the ControlNet was trained over)")
    add("--out", type=Path, default=Path("runs/calibration"), help="run folder; a stopped calibration goes on in it")
    add_settings(parser, Grid)
    add("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.study.calibration import calibrate

    grid = settings_from(args, Grid)
    calibrate(args.data, args.controlnet, args.checkpoint, args.backbone, args.out, grid, args.device)
