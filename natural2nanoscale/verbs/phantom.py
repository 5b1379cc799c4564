"""The verb `phantom`: write the embedded dataset, a procedural FIB-SEM phantom."""

from __future__ import annotations

import argparse
from pathlib import Path

from natural2nanoscale.cli import add_settings, command, settings_from
from natural2nanoscale.phantom.volume import PhantomSettings, write_phantom


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="new data root")
    add_settings(parser, PhantomSettings)


def run(args: argparse.Namespace) -> None:
    settings = settings_from(args, PhantomSettings)
    write_phantom(args.out, settings)
    print(
        f"{args.out}: {settings.train} training, {settings.val} validation and {settings.test} test slices of "
        f"{settings.size[0]}x{settings.size[1]}, seed {settings.seed}; "
        f"next: {command('python train_controlnet.py', data=args.out)}"
    )
