"""The verb `segment`: mask every slice of a folder or stack with the U-Nets of a run."""

import argparse
from pathlib import Path

from natural2nanoscale.cli import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    slices = "folder of slices, a stack, or a volume: file.mrc, file.h5:/raw, vol.zarr/0"
    add("run", type=Path, help="folder of a U-Net run; the probabilities of its networks are averaged")
    add("--images", type=Path, required=True, metavar="PATH", help=slices)
    add("--out", type=Path, required=True, metavar="DIR", help="folder for masks/; a stopped call goes on in it")
    add(
        "--max-pixels",
        type=at_least(1),
        default=100_000_000,
        metavar="N",
        help="refuse larger slices, which take long and may be bombs (default: %(default)s)",
    )
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.device import select_device
    from natural2nanoscale.segmentation.segment import segment_slices

    segment_slices(args.run, args.images, args.out, select_device(args.device), args.max_pixels)
