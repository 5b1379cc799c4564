"""The verb `segment`: mask every slice of a folder, stack or volume with the U-Nets of a run."""

import argparse
from pathlib import Path

from natural2nanoscale.cli import add_settings, settings_from
from natural2nanoscale.segmentation.settings import Segmentation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    slices = "folder of slices, a stack, or a volume: file.mrc, file.h5:/raw, vol.zarr/0"
    add("run", type=Path, help="folder of a U-Net run; the probabilities of its networks are averaged")
    add("--images", type=Path, required=True, metavar="PATH", help=slices)
    add("--out", type=Path, required=True, metavar="DIR", help="folder for masks/; a stopped call goes on in it")
    add_settings(parser, Segmentation)
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.device import select_device
    from natural2nanoscale.segmentation.segment import segment_slices

    settings = settings_from(args, Segmentation, run=args.run, images=args.images, out=args.out)
    segment_slices(settings, select_device(args.device))
