#!/usr/bin/env python3
"""Generate synthetic slices, with known labels, from the masks of the training part."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from natural2nanoscale.cli import (
    CONTROLNET_RUN,
    DATA,
    UNET_RUN,
    Parser,
    add_settings,
    at_least,
    command,
    refuse_torchrun,
    settings_from,
    shard,
    this_call,
)
from natural2nanoscale.diffusion.settings import FAST, SamplingSettings
from natural2nanoscale.errors import InputError
from natural2nanoscale.guard import main_guard

if TYPE_CHECKING:
    import torch

    from natural2nanoscale.data.folders import DatasetInfo, PairFolder
    from natural2nanoscale.data.roots import Learned
    from natural2nanoscale.diffusion.synthesis import Check

KINDS = ("same", "deformed", "between")  # of masks that are made of annotated ones


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
    add("--masks", default="same", metavar="|".join((*KINDS, "predicted", "DIR")),
        help="the training masks; these deformed; between two neighbours; as --unet predicts them on DATA/unlabelled, "
        "into DATA/predicted; or of a pair folder or a folder of PNGs of class ids")  # fmt: skip
    add("--unet", type=Path, metavar="RUN", help=f"of train_unet.py, for --masks predicted (default: {UNET_RUN})")
    add("--filter", type=Path, metavar="RUN",
        help="U-Net run on the annotated slices: what it doubts in a drawn slice carries no label")  # fmt: skip
    add("--filter-agreement", type=at_least(0.0, float), default=0.5, metavar="MIOU",
        help="of its answer with the mask, below which a slice is drawn again, at most three times")  # fmt: skip
    add("--per-mask", type=at_least(1), default=1, metavar="N", help="images per mask")
    add_settings(parser, SamplingSettings)
    parser.set_defaults(strength=None, start=None)  # the backbone's, where they are not given
    add("--fast", action="store_true",
        help="--sampler {sampler} --steps {steps} --precision bf16, unless given otherwise".format(**FAST))  # fmt: skip
    add("--edges", choices=("none", "real"), default="none",
        help="of the mask's real slice, for a ControlNet trained with --condition mask+edges")  # fmt: skip
    add("--batch-size", type=at_least(1), default=4, metavar="N", help="images drawn at once; does not change them")
    add("--shard", type=shard, default="1/1", metavar="I/N",
        help="draw one of N shares of the images; the N calls need not know of one another")  # fmt: skip
    add("--seed", type=at_least(0), default=0, metavar="N", help="seed of noise and prompts")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the U-Net and ControlNet")
    args = parser.parse_args()
    if args.fast:
        parser.set_defaults(**FAST, precision="bf16")
        args = parser.parse_args()
    return args


def main(args: argparse.Namespace) -> None:
    refuse_torchrun()
    import torch

    from natural2nanoscale.data.classes import Classes
    from natural2nanoscale.data.folders import open_pairs, read_generation
    from natural2nanoscale.data.roots import data_root, held_out_parts, learned_by_run, learned_json, refuse_unfit
    from natural2nanoscale.device import select_device, select_dtype
    from natural2nanoscale.diffusion.backbone import load_backbone
    from natural2nanoscale.diffusion.prompts import read_prompts
    from natural2nanoscale.diffusion.saving import load_trained
    from natural2nanoscale.diffusion.shapes import has_slices, refuse_sliceless
    from natural2nanoscale.diffusion.synthesis import synthesize
    from natural2nanoscale.diffusion.synthetic_folder import Request, begun_with
    from natural2nanoscale.phantom.volume import write_default

    # what needs neither data nor weights
    out = args.out or (args.data or DATA) / "synthetic"
    config = controlnet_run(args)
    given = {name: value for name in ("strength", "start") if (value := getattr(args, name)) is not None}
    condition = what_is_seen(args, config)
    settings = settings_from(args, SamplingSettings, **({"strength": 1.0, "start": 1.0} | given), condition=condition)
    begun_with(out)  # what is no pair folder is refused before anything is loaded
    prompts = read_prompts(args.prompts)

    # the masks, none of which may be held out, for a ControlNet that learned nothing held out
    root = data_root(args.data, ("train",), write_default)
    train, device = open_pairs(root / "train"), select_device(args.device)
    window = config.get("learned", {}).get("intensity_window", train.info.intensity_window)
    classes = Classes.from_json(config["classes"])
    trained = replace(train.info, classes=classes, intensity_window=tuple(window) if window else None)
    learned, held_out = learned_by_run(args.controlnet, trained), held_out_parts(root)
    refuse_unfit([learned], held_out)
    source, sources = open_source(args, train, trained, held_out, device)
    refuse_unfit([learned, *sources], held_out)
    kind = args.masks if args.masks in KINDS else "same"
    refuse_sliceless(source, kind, settings)
    if not has_slices(source, kind):
        given["start"] = 1.0
    filtered, check = open_filter(args, held_out, device)

    # the weights
    tokenizer = args.tokenizer or (None if args.backbone else config["backbone"].get("tokenizer"))
    name, dtype = args.backbone or config["backbone"]["name"], select_dtype(args.precision, device)
    backbone = load_backbone(name, device, dtype, tokenizer)
    if backbone.fingerprint != config["backbone"]["weights"]:
        raise InputError(
            f"backbone {backbone.name} has other weights than the one that {args.controlnet} was trained over "
            f"({config['backbone']['name']}): name that one with --backbone"
        )
    advised = {"strength": backbone.recommended.strength, "start": backbone.recommended.start}
    settings = replace(settings, **(advised | given))
    controlnet, backbone = load_trained(args.controlnet, backbone, args.checkpoint)
    share = "" if args.shard == (1, 1) else ", share {} of {}".format(*args.shard)
    print(
        f"{args.per_mask} slice(s) from each of {len(source.stems)} masks{share}, {settings.steps} {settings.sampler} "
        f"steps, guidance {settings.guidance:g}, strength {settings.strength:g}, eta {settings.eta:g}, start "
        f"{settings.start:g}, from {settings.condition}, on {device}"
    )
    doubt = f"; drawn again where they agree less than {args.filter_agreement:g} with {args.filter}" if check else ""
    print(f"masks: {args.masks}{doubt}")
    learned, call = learned_json([learned, *sources], trained), this_call("--shard")
    request = Request(prompts, settings, args.per_mask, args.seed, learned, call, args.shard, kind, filtered)
    try:
        made = synthesize(out, backbone, controlnet, source, request, args.batch_size, check)
    except torch.OutOfMemoryError:
        fewer = "" if args.batch_size == 1 else "--batch-size 1, then with "
        raise InputError(
            f"{device} ran out of memory: call it again with {fewer}slices that `python -m natural2nanoscale prepare "
            "--size` has cut into smaller ones"
        ) from None
    if not (out / "dataset.json").is_file():
        print(f"{made} new slices in {out}, others are missing; next: {read_generation(out)[2]}")
        return
    folder = open_pairs(out)
    rejected = folder.info.split.get("rejected", 0)
    ratio = 100 * len(folder.stems) // len(train.stems) / 100
    after = command("python train_unet.py", data=args.data, synthetic=args.out, synthetic_ratio=ratio)
    print(f"{made} new slices in {out}{f', {rejected} rejected' if rejected else ''}; next: {after}")


def open_source(
    args: argparse.Namespace,
    train: PairFolder,
    trained: DatasetInfo,
    held_out: list[PairFolder],
    device: torch.device,
) -> tuple[PairFolder, list[Learned]]:
    """The pair folder whose masks slices are drawn from, and what is learned by doing so."""
    from natural2nanoscale.data.folders import open_pairs
    from natural2nanoscale.data.roots import learned_by_synthetic, learned_from_folder

    if args.unet and args.masks != "predicted":
        raise InputError(f"--unet is for --masks predicted, found --masks {args.masks}: leave one of them out")
    if args.masks in KINDS:
        return train, [learned_from_folder(train)]
    if args.masks == "predicted":
        from natural2nanoscale.segmentation.labelling import predicted_pairs

        source = predicted_pairs(train.path.parent, args.unet or UNET_RUN, held_out, device)
    elif (Path(args.masks) / "dataset.json").is_file():
        source = open_pairs(Path(args.masks))
    else:
        from natural2nanoscale.diffusion.shapes import open_masks

        source = open_masks(Path(args.masks), trained)
    return source, [learned_from_folder(source), learned_by_synthetic(source, train)]


def open_filter(
    args: argparse.Namespace, held_out: list[PairFolder], device: torch.device
) -> tuple[dict | None, Check | None]:
    """What a request says of --filter, and the check itself."""
    if not args.filter:
        return None, None
    from natural2nanoscale.segmentation.labelling import slice_filter

    return slice_filter(args.filter, args.filter_agreement, held_out, device)


def controlnet_run(args: argparse.Namespace) -> dict:
    """The config of the run in --controlnet."""
    from natural2nanoscale.records import read_config
    from natural2nanoscale.schemas import CONTROLNET_CONFIG

    if not (args.controlnet / "config.json").is_file():
        run = None if args.controlnet == CONTROLNET_RUN else args.controlnet
        before = command("python train_controlnet.py", data=args.data, out=run)
        raise InputError(
            f"there is no trained ControlNet in {args.controlnet}: first run `{before}`, or name its run folder with "
            "--controlnet"
        )
    config = read_config(args.controlnet)
    if config.get("kind") != "controlnet":
        raise InputError(
            f"{args.controlnet} is a run of kind {config.get('kind')}, expected one of train_controlnet.py: name that "
            "with --controlnet"
        )
    return read_config(args.controlnet, CONTROLNET_CONFIG)


def what_is_seen(args: argparse.Namespace, config: dict) -> str:
    """SamplingSettings.condition, by what the ControlNet was trained on and what --edges asks for."""
    condition = config["settings"].get("condition", "mask")
    if condition == "mask" and args.edges == "real":
        raise InputError(
            f"{args.controlnet} was trained on masks alone and cannot follow --edges real, expected one trained with "
            "`train_controlnet.py --condition mask+edges`"
        )
    return "mask+boundaries" if condition == "mask+edges" and args.edges == "none" else condition


if __name__ == "__main__":
    main_guard(parse_arguments, main)
