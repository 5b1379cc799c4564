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
from natural2nanoscale.diffusion.settings import FAST, SamplingSettings, read_prompts
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

    from natural2nanoscale.data.folders import open_pairs, read_generation
    from natural2nanoscale.data.roots import data_root, held_out_parts, learned_by_run, learned_json, refuse_unfit
    from natural2nanoscale.device import select_device
    from natural2nanoscale.diffusion.backbone import weights_hash
    from natural2nanoscale.diffusion.request import Request
    from natural2nanoscale.diffusion.saving import backbone_of_run, load_trained, trained_config, trained_info
    from natural2nanoscale.diffusion.shapes import has_slices, refuse_sliceless
    from natural2nanoscale.diffusion.synthesis import synthesize
    from natural2nanoscale.diffusion.synthetic_folder import begun_with
    from natural2nanoscale.phantom.volume import write_default

    # what needs neither data nor weights
    out = args.out or (args.data or DATA) / "synthetic"
    config = trained_config(args.controlnet, args.data)
    given = {name: value for name in ("strength", "start") if (value := getattr(args, name)) is not None}
    condition = what_is_seen(args, config)
    settings = settings_from(args, SamplingSettings, **({"strength": 1.0, "start": 1.0} | given), condition=condition)
    begun_with(out)  # what is no pair folder is refused before anything is loaded
    prompts = read_prompts(args.prompts)

    # the masks, none of which may be held out, for a ControlNet that learned nothing held out
    root = data_root(args.data, ("train",), write_default)
    train, device = open_pairs(root / "train"), select_device(args.device)
    trained = trained_info(config, train.info)
    learned, held_out = learned_by_run(args.controlnet, trained), held_out_parts(root)
    refuse_unfit([learned], held_out)
    source, sources = open_source(args, train, trained, held_out, device)
    refuse_unfit([learned, *sources], held_out)
    kind = args.masks if args.masks in KINDS else "same"
    refuse_sliceless(source, kind, settings)
    if not has_slices(source, kind):
        given["start"] = 1.0
    filtered, check, teachers = open_filter(args, held_out, device)

    # the weights
    backbone = backbone_of_run(args.controlnet, config, device, args.precision, args.backbone, args.tokenizer)
    advised = {"strength": backbone.recommended.strength, "start": backbone.recommended.start}
    controlnet, backbone = load_trained(args.controlnet, backbone, args.checkpoint)
    chosen = calibrated(args, [train, *held_out], weights_hash(controlnet))
    settings = replace(settings, **(advised | (chosen or {}) | given))
    keep = f" and all but the most doubtful {100 * (1 - settings.keep):.0f} % of real slices" if settings.keep else ""
    share = "" if args.shard == (1, 1) else ", share {} of {}".format(*args.shard)
    print(
        f"{args.per_mask} slice(s) from each of {len(source.stems)} masks{share}, {settings.steps} {settings.sampler} "
        f"steps, guidance {settings.guidance:g}, strength {settings.strength:g}, eta {settings.eta:g}, start "
        f"{settings.start:g}, from {settings.condition}{keep}, on {device}"
    )
    doubt = f"; drawn again where they agree less than {args.filter_agreement:g} with {args.filter}" if check else ""
    print(f"masks: {args.masks}{doubt}")
    learned, call = learned_json([learned, *sources, *teachers], trained), this_call("--shard")
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
    tell(args, out, train, made, chosen is not None)


def tell(args: argparse.Namespace, out: Path, train: PairFolder, made: int, calibrated: bool) -> None:
    """Print how the slices of a complete folder look, and what comes next; where `calibrated`, it knows their ratio."""
    from natural2nanoscale.data.folders import open_pairs
    from natural2nanoscale.data.quality import quality
    from natural2nanoscale.diffusion.synthetic_folder import MANIFEST, lines_of

    folder = open_pairs(out)
    rejected = folder.info.split.get("rejected", 0)
    ratio = 100 * len(folder.stems) // len(train.stems) / 100
    if calibrated and not args.out:
        ratio = None
    after = command("python train_unet.py", data=args.data, synthetic=args.out, synthetic_ratio=ratio)
    tints = [row["tint"] for row in lines_of(out / MANIFEST) if "tint" in row]
    coloured = [f"coloured by {sum(tints) / len(tints):.1f} levels before they became grey"] * bool(tints)
    found = quality(train, folder).lines() + coloured
    print("the pictures beside real slices (in brackets these beside one another):", *found, sep="\n  ")
    print(f"{made} new slices in {out}{f', {rejected} rejected' if rejected else ''}; next: {after}")


def calibrated(args: argparse.Namespace, folders: list[PairFolder], controlnet: str) -> dict | None:
    """Strength and start as `calibrate` chose them, empty where it chose real slices alone; None where flags say both,
    or it chose nothing for these slices and this ControlNet."""
    from natural2nanoscale.data.calibrated import FILE, read_calibration

    if None not in (args.strength, args.start):
        return None
    root = args.data or DATA
    found = read_calibration(root, [folder for folder in folders if folder.path.name != "test"], controlnet)
    if found is None:
        return None
    choice = found["choice"]
    if not choice["ratio"]:
        print(f"{root / FILE} chose real slices alone: these are drawn as the backbone recommends")
        return {}
    print(f"{root / FILE} chose strength {choice['strength']:g} and start {choice['start']:g}, which flags go before")
    return {name: choice[name] for name in ("strength", "start")}


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
) -> tuple[dict | None, Check | None, list[Learned]]:
    """What a request says of --filter, the check itself, and what is learned from by it."""
    if not args.filter:
        return None, None, []
    from natural2nanoscale.segmentation.labelling import slice_filter

    said, check, teacher = slice_filter(args.filter, args.filter_agreement, held_out, device)
    return said, check, [teacher]


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
