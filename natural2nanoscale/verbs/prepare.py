"""The `prepare` verb: any EM pictures to train/, val/ and test/ pair folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from natural2nanoscale.cli import DATA, add_settings, command, settings_from
from natural2nanoscale.data.prepare.settings import Preparation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    slices = "folder of slices, a stack or a volume: PNG, TIFF, MRC, .npy, file.h5:/volumes/raw, vol.zarr/0"
    add("--images", type=Path, required=True, metavar="PATH", help=slices)
    masks = "their masks: equal file names, or a stack of as many pages; class ids, 0 and 255, or colours"
    add("--masks", type=Path, required=True, metavar="PATH", help=masks)
    more = "slices without masks, as --images takes them: DATA/unlabelled, without those of validation and test"
    add("--unlabelled", type=Path, metavar="PATH", help=more)
    add("--transductive", action="store_true", help="keep validation and test slices among the unlabelled, and note it")
    add("--out", type=Path, default=DATA, metavar="DIR", help="data root to make")
    add_settings(parser, Preparation)


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.data.check import report
    from natural2nanoscale.data.prepare.convert import prepare

    given = {name: getattr(args, name) for name in ("images", "masks", "unlabelled", "transductive", "out")}
    settings = settings_from(args, Preparation, **given)
    prepare(settings)
    report(settings.out)
    print(f"contact sheet: {settings.out / 'contact.png'}")
    print(f"next: {command('python train_controlnet.py', data=settings.out)}")
