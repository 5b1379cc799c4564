"""The verb `convert`: turn a ControlNet's original file into a diffusers folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from natural2nanoscale.cli import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help=".safetensors, .ckpt or .pth of a ControlNet")
    parser.add_argument("--out", type=Path, required=True, help="new folder, for --controlnet-init of a training")


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.diffusion.convert import convert, write
    from natural2nanoscale.files import refuse_non_empty

    refuse_non_empty(args.out)
    controlnet = convert(args.file)
    write(controlnet, args.out, args.file.name)
    print(f"ControlNet in {args.out}; next: {command('python train_controlnet.py', controlnet_init=args.out)}")
