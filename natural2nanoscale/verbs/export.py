"""The verb `export`: slices and masks as other programs read them, U-Nets as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from natural2nanoscale.cli import DATA, UNET_RUN, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, text in (
        ("nnunet", "an nnU-Net v2 dataset: real and synthetic slices, the data root's own split"),
        ("folders", "images/ and masks/ of equal names, for torch-em, segmentation_models.pytorch and others"),
        ("onnx", "the U-Nets of a run as one ONNX file"),
    ):
        sub = kinds.add_parser(kind, help=text, description=text)
        add = sub.add_argument
        if kind == "onnx":
            add("--run", type=Path, default=UNET_RUN, help="folder of a U-Net run; its probabilities are averaged")
            add("--out", type=Path, required=True, metavar="FILE", help="file to write, such as unet.onnx")
            continue
        add("--data", type=Path, default=DATA, metavar="DIR", help="data root with train/, val/ and test/")
        more = "synthetic slices that join the training part (default: DATA/synthetic where it is there)"
        add("--synthetic", type=Path, metavar="DIR", help=more)
        add("--real-only", action="store_true", help="leave synthetic slices out")
        add("--out", type=Path, required=True, metavar="DIR", help="folder to make")
        if kind == "nnunet":
            add("--dataset-id", type=at_least(1), default=501, metavar="N", help="nnU-Net's number of the dataset")


def run(args: argparse.Namespace) -> None:
    if args.kind == "onnx":
        from natural2nanoscale.segmentation.onnx import export_onnx

        export_onnx(args.run, args.out)
        return
    from natural2nanoscale.data.export import export_folders, export_nnunet
    from natural2nanoscale.errors import InputError

    if args.real_only and args.synthetic:
        raise InputError("--real-only leaves synthetic slices out, --synthetic names some: pass one of them")
    standing = args.data / "synthetic"
    synthetic = None if args.real_only else args.synthetic or (standing if standing.is_dir() else None)
    if args.kind == "nnunet":
        export_nnunet(args.data, synthetic, args.out, args.dataset_id)
    else:
        export_folders(args.data, synthetic, args.out)
