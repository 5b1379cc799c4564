#!/usr/bin/env python3
"""Fine-tune ControlNet over a frozen natural-image backbone on annotated EM slices."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from natural2nanoscale.cli import (
    CONTROLNET_RUN,
    Parser,
    add_settings,
    command,
    parse_resumable,
    resumable,
    settings_from,
)
from natural2nanoscale.diffusion.settings import MAY_CHANGE, FineTuning, read_prompts
from natural2nanoscale.errors import InputError
from natural2nanoscale.guard import main_guard


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="folder with train/ and val/ (default: data, filled with the phantom)")
    add("--out", type=Path, default=CONTROLNET_RUN, help="run folder")
    add("--backbone", default="auto", help="auto, embedded, a diffusers folder, a .safetensors file, or a hub id")
    add("--tokenizer", type=Path, help="its folder, for a backbone in one file (default: cached or beside it)")
    add("--controlnet-init", type=Path, help="run folder or ControlNet in diffusers' layout to start from")
    add("--prompts", type=Path, help="text file, one prompt per line (default: 37 prompts for EM)")
    add_settings(parser, FineTuning)
    parser.set_defaults(max_weight=None)  # like --crop and --lr the backbone's, where it is not given
    judge = "train a small U-Net first; the ControlNet in whose drawings it finds the validation masks best is kept"
    add("--judge", action="store_true", help=judge)
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the frozen U-Net")
    add("--resume", action="store_true", help="go on with the run in --out")
    return parse_resumable(parser)


def main(args: argparse.Namespace) -> None:
    from natural2nanoscale import distributed

    with distributed.process_group():
        with distributed.main_first():
            training = prepare(args)
        train(args, *training)


def prepare(args: argparse.Namespace) -> tuple:
    """What `train` is to be called with, once everything is checked and the run folder is open."""
    from natural2nanoscale import distributed
    from natural2nanoscale.data.digests import slice_digest
    from natural2nanoscale.data.folders import UNLABELLED, open_images, open_pairs
    from natural2nanoscale.data.roots import (
        data_root,
        held_out_parts,
        learned_by_run,
        learned_from_folder,
        refuse_unfit,
    )
    from natural2nanoscale.device import select_device, select_dtype
    from natural2nanoscale.diffusion.backbone import backbone_name, load_backbone, settle
    from natural2nanoscale.diffusion.batches import TrainingData
    from natural2nanoscale.diffusion.saving import load_initial, run_config
    from natural2nanoscale.files import refuse_non_empty
    from natural2nanoscale.phantom.volume import write_default
    from natural2nanoscale.records import read_config
    from natural2nanoscale.runs import RunFolder, open_run, refuse_no_run

    # what needs neither data nor weights
    main = distributed.is_main()
    if main:
        refuse_no_run(args.out) if args.resume else refuse_non_empty(args.out)
    settings = settings_from(args, FineTuning)
    begun = args.resume and bool(RunFolder(args.out).checkpoints())  # its first weights count no more
    before = read_config(args.out) if args.resume else {}
    prompts, device = read_prompts(args.prompts), select_device(args.device)
    refuse_start(args, before if begun else None)

    # the slices, none of which may be held out
    root = data_root(args.data, ("train", "val"), write_default)
    data = TrainingData(open_pairs(root / "train"), open_pairs(root / "val"), prompts)
    start = args.out if begun else args.controlnet_init
    learned = [learned_by_run(start)] if start else []
    unlabelled = None
    if settings.adapt:
        if not (root / UNLABELLED).is_dir():
            raise InputError(
                f"--adapt learns slices without masks, but there is no {root / UNLABELLED}: make it with "
                "`python -m natural2nanoscale prepare --unlabelled PATH` and what the other parts were prepared with"
            )
        unlabelled = open_images(root / UNLABELLED)
        learned.append(learned_from_folder(unlabelled))
    refuse_unfit([*learned, learned_from_folder(data.train)], held_out_parts(root))

    # the backbone, and what it recommends where nothing was said
    name, dtype = backbone_name(args.backbone, data.train.info.origin), select_dtype(args.precision, device)
    backbone = load_backbone(name, device, dtype, args.tokenizer)
    initial = load_initial(args.controlnet_init, backbone) if args.controlnet_init and not begun else None
    processes = before.get("settings", {}).get("processes", 1) if args.resume else distributed.world_size()
    settings = settle(replace(settings, processes=processes), backbone)

    # the run folder
    config = run_config(settings, backbone, data, args.tokenizer, initial, learned) | {"arguments": resumable(args)}
    if unlabelled:
        config["slices"][UNLABELLED] = {stem: slice_digest(unlabelled.image(stem)) for stem in unlabelled.stems}
    if begun:
        config["controlnet_init"] = before.get("controlnet_init")
    if args.judge:
        config["judge"] = True
    serves = f"learn from all of them in a run of its own, with --controlnet-init {args.out} and another --out"
    run = open_run(args.out, config, args.resume, MAY_CHANGE, serves) if main else RunFolder(args.out)
    if args.resume:
        run.tell_beginning()
    slices = len(data.train.stems)
    print(
        f"ControlNet over {backbone.name} on {device} ({backbone.precision}): {slices} slices, windows of "
        f"{settings.crop[0]}x{settings.crop[1]}, {settings.total_steps(slices)} steps of {settings.slices_per_step} "
        f"slices, learning rate {settings.learning_rate:g}"
    )
    return run, backbone, data, settings, initial, unlabelled


def refuse_start(args: argparse.Namespace, before: dict | None) -> None:
    """Raise InputError for a --controlnet-init that is none, or not the one of the run that goes on (`before`).

    The latter by name: the weights behind it may have gone on since, or away, and are not needed any more.
    """
    initial = args.controlnet_init
    if before is None:
        if initial and not (initial / "config.json").is_file():
            raise InputError(
                f"--controlnet-init {initial} is neither a run folder nor a diffusers ControlNet, expected a folder "
                "with config.json: `python -m natural2nanoscale convert` makes one from a file"
            )
        return
    arguments = before.get("arguments", {})
    began = arguments.get("controlnet_init")
    if arguments and (began and Path(began).resolve()) != (initial and initial.resolve()):
        raise InputError(
            f"{args.out} goes on as it began, but --controlnet-init was {began} and is now {initial}: give the old "
            "value, or name another folder with --out"
        )


def train(args: argparse.Namespace, run, backbone, data, settings: FineTuning, initial, unlabelled) -> None:
    """Fine-tune on train/ with val/ to look at."""
    import torch

    from natural2nanoscale import distributed
    from natural2nanoscale.diffusion.batches import WithoutMasks
    from natural2nanoscale.diffusion.memory import out_of_memory_advice
    from natural2nanoscale.diffusion.training import adapt, fine_tune
    from natural2nanoscale.segmentation.judge import train_judge

    device, agreement = backbone.device, None
    try:
        if args.judge and distributed.is_main():
            agreement = train_judge(data.train, data.val, device, args.out / "judge")
        if unlabelled:
            backbone = adapt(run, backbone, WithoutMasks.of(data.train, unlabelled), data, settings)
        fine_tune(run, backbone, data, settings, args.resume, initial, agreement)
    except torch.OutOfMemoryError:
        again = "start again, in another --out, with"
        if run.load_checkpoint() and not settings.gradient_checkpointing:  # which alone may change on the way
            again = f"go on with --resume --gradient-checkpointing, or {again}"
        raise InputError(f"{device} ran out of memory: {again} {out_of_memory_advice(settings)}") from None
    after = command("python generate.py", data=args.data, controlnet=args.out, prompts=args.prompts)
    print(f"done: samples in {args.out}/samples; next: {after}")


if __name__ == "__main__":
    main_guard(parse_arguments, main)
