"""What train_controlnet.py and generate.py do with their arguments: validate, print the plan, call the loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers import ControlNetModel

from natural2nanoscale import distributed
from natural2nanoscale.cli import CONTROLNET_RUN, DATA, command, resumable, this_call
from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs, pair_digests
from natural2nanoscale.data.roots import (
    Learned,
    data_root,
    held_out_parts,
    learned_by_run,
    learned_from_folder,
    learned_json,
    refuse_unfit,
)
from natural2nanoscale.device import select_device, select_dtype
from natural2nanoscale.diffusion.backbone import Backbone, backbone_name, load_backbone, weights_hash
from natural2nanoscale.diffusion.initial import load_initial
from natural2nanoscale.diffusion.manifest import begun_with
from natural2nanoscale.diffusion.memory import out_of_memory_advice
from natural2nanoscale.diffusion.saving import load_trained
from natural2nanoscale.diffusion.settings import MAY_CHANGE, FineTuning, SamplingSettings
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.training import fine_tune
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import refuse_non_empty
from natural2nanoscale.records import LARGEST, open_regular, read_config
from natural2nanoscale.runs import RunFolder, open_run, refuse_no_run

PROMPTS = Path(__file__).with_name("prompts.txt")


def read_prompts(file: Path | None) -> list[str]:
    """One prompt per line; empty lines do not count. Default: the 37 prompts of the package."""
    file = file or PROMPTS
    try:
        with open_regular(file) as opened:
            text = opened.read(LARGEST).decode("utf-8")
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {file} cannot be read ({error}): expected a text file") from error
    if not prompts:
        raise InputError(f"--prompts {file} holds no prompt, expected one per line")
    return prompts


def fitting_crop(crop: tuple[int, int], backbone: Backbone) -> tuple[int, int]:
    """Raise InputError unless the window fits the backbone's grid."""
    if crop[0] % backbone.grid or crop[1] % backbone.grid:
        up = tuple(-(-length // backbone.grid) * backbone.grid for length in crop)
        raise InputError(
            f"--crop {crop[0]}x{crop[1]} does not fit the backbone, expected multiples of {backbone.grid} "
            f"pixels such as {up[0]}x{up[1]}"
        )
    return crop


def controlnet_config(
    settings: FineTuning,
    backbone: Backbone,
    prompts: list[str],
    train: PairFolder,
    val: PairFolder,
    tokenizer: Path | None = None,
    initial: ControlNetModel | None = None,
    before: Sequence[Learned] = (),
) -> dict:
    """What a ControlNet's run folder says of it, and what a resumed run must agree with.

    before: what `initial` had learned from.
    """
    return {
        "kind": "controlnet",
        "settings": asdict(settings),
        "backbone": {
            "name": backbone.name,
            "weights": backbone.fingerprint,
            "tokenizer": str(tokenizer) if tokenizer else None,
            "precision": backbone.precision,
        },
        "hub_revision": backbone.revision,
        "controlnet_init": weights_hash(initial) if initial else None,
        "prompts": prompts,
        "classes": train.info.classes.to_json(),
        "data": {"train": fingerprint(train), "val": fingerprint(val)},
        "slices": {"train": pair_digests(train), "val": pair_digests(val)},
        "learned": learned_json([learned_from_folder(train), *before], train.info),
    }


@distributed.process_group()
def train_controlnet(
    args: argparse.Namespace, make_judge: Callable | None = None, make_default: Callable[[Path], None] | None = None
) -> None:
    """Fine-tune on train/ with val/ to look at; test/ is opened only to see whether --controlnet-init learned it.

    `make_judge`, called with both folders, the device and a folder of its own, returns the mask agreement that
    `fine_tune` asks for. `make_default` fills data/ where there is none.
    """
    run, backbone, train, val, prompts, settings, initial = prepare_training(args, make_default)
    device = backbone.device
    try:
        judging = make_judge and distributed.is_main()
        agreement = make_judge(train, val, device, args.out / "judge") if judging else None
        fine_tune(run, backbone, train, val, prompts, settings, args.resume, initial, agreement)
    except torch.OutOfMemoryError:
        again = "start again, in another --out, with"
        if run.load_checkpoint() and not settings.gradient_checkpointing:  # which alone may change on the way
            again = f"go on with --resume --gradient-checkpointing, or {again}"
        raise InputError(f"{device} ran out of memory: {again} {out_of_memory_advice(settings)}") from None
    after = command("python generate.py", data=args.data, controlnet=args.out, prompts=args.prompts)
    print(f"done: samples in {args.out}/samples; next: {after}")


@distributed.main_first()
def prepare_training(
    args: argparse.Namespace, make_default: Callable[[Path], None] | None = None
) -> tuple[RunFolder, Backbone, PairFolder, PairFolder, list[str], FineTuning, ControlNetModel | None]:
    """What `fine_tune` is to be called with, once everything is checked and the run folder is open."""
    main = distributed.is_main()
    if main:
        refuse_no_run(args.out) if args.resume else refuse_non_empty(args.out)
    begun = args.resume and bool(RunFolder(args.out).checkpoints())  # its first weights count no more
    if args.prompt_dropout > 1:
        raise InputError(f"--prompt-dropout {args.prompt_dropout:g} is no share, expected 0 to 1")
    prompts = read_prompts(args.prompts)
    device = select_device(args.device)
    if begun:
        refuse_other_start(args.out, args.controlnet_init)
    elif args.controlnet_init and not (args.controlnet_init / "config.json").is_file():
        raise InputError(
            f"--controlnet-init {args.controlnet_init} is neither a run folder nor a diffusers ControlNet, "
            "expected a folder with config.json: `python -m natural2nanoscale convert` makes one from a file"
        )
    # makes the phantom where nothing is: after what can be checked without it
    root = data_root(args.data, ("train", "val"), make_default)
    train, val = open_pairs(root / "train"), open_pairs(root / "val")
    refuse_unfit([learned_from_folder(train)], [val])
    before = [learned_by_run(args.out)] if begun else []
    if args.controlnet_init and not begun:
        before = [learned_by_run(args.controlnet_init)]
    if before:
        refuse_unfit(before, held_out_parts(root))
    backbone = load_backbone(
        backbone_name(args.backbone, train.info.origin), device, select_dtype(args.precision, device), args.tokenizer
    )
    initial = load_initial(args.controlnet_init, backbone) if args.controlnet_init and not begun else None
    settings = FineTuning(
        crop=fitting_crop(args.crop or backbone.recommended.crop, backbone),
        learning_rate=args.lr if args.lr is not None else backbone.recommended.learning_rate,
        epochs=args.epochs,
        max_steps=args.max_steps,
        batch_size=args.batch_size,
        accumulate=args.accumulate,
        processes=processes_of(args.out) if args.resume else distributed.world_size(),
        rotation=args.rotation,
        noise=args.noise,
        max_weight=args.max_weight if args.max_weight is not None else backbone.recommended.max_weight,
        latent_variants=args.latent_variants,
        condition=args.condition,
        prompt_dropout=args.prompt_dropout,
        clip=args.clip,
        unlock_decoder=args.unlock_decoder,
        gradient_checkpointing=args.gradient_checkpointing,
        compile=args.compile,
        seed=args.seed,
        checkpoint_every=args.checkpoint_every,
        checkpoint_minutes=args.checkpoint_minutes,
        keep=args.keep,
        sample_every=args.sample_every,
    )
    config = controlnet_config(settings, backbone, prompts, train, val, args.tokenizer, initial, before)
    config["arguments"] = resumable(args)
    if begun:
        config["controlnet_init"] = read_config(args.out).get("controlnet_init")
    if args.judge:
        config["judge"] = True
    serves = f"learn from all of them in a run of its own, with --controlnet-init {args.out} and another --out"
    run = open_run(args.out, config, args.resume, MAY_CHANGE, serves, at_once=False) if main else RunFolder(args.out)
    if args.resume:
        run.tell_beginning()
    print(
        f"ControlNet over {backbone.name} on {device} ({backbone.precision}): "
        f"{len(train.stems)} slices, windows of {settings.crop[0]}x{settings.crop[1]}, "
        f"{settings.total_steps(len(train.stems))} steps of {settings.slices_per_step} slices, "
        f"learning rate {settings.learning_rate:g}"
    )
    return run, backbone, train, val, prompts, settings, initial


def processes_of(out: Path) -> int:
    """How many processes the run in `out` began with: whoever resumes it, its steps keep their size."""
    return read_config(out).get("settings", {}).get("processes", 1)


def refuse_other_start(out: Path, initial: Path | None) -> None:
    """Raise InputError when a run that has a checkpoint is to go on with another --controlnet-init.

    By name: the weights behind it may have gone on since, or away, and are not needed any more.
    """
    arguments = read_config(out).get("arguments", {})
    before = arguments.get("controlnet_init")
    if arguments and (before and Path(before).resolve()) != (initial and initial.resolve()):
        raise InputError(
            f"{out} goes on as it began, but --controlnet-init was {before} and is now {initial}: give the old value, "
            "or name another folder with --out"
        )


def generate(args: argparse.Namespace, make_default: Callable[[Path], None] | None = None) -> None:
    """Draw slices from the masks of train/; `make_default` fills data/ where there is none."""
    out = args.out or (args.data or DATA) / "synthetic"
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
    condition = config["settings"].get("condition", "mask")
    if condition == "mask" and args.edges == "real":
        raise InputError(
            f"{args.controlnet} was trained on masks alone and cannot follow --edges real, expected one trained with "
            "`train_controlnet.py --condition mask+edges`"
        )
    if condition == "mask+edges" and args.edges == "none":
        condition = "mask+boundaries"
    begun_with(out)  # what is no pair folder is refused before anything is loaded
    if args.eta > 1 or args.steps > 500:
        raise InputError(f"--eta {args.eta:g} --steps {args.steps}: expected eta from 0 to 1 and at most 500 steps")
    prompts = read_prompts(args.prompts)
    root = data_root(args.data, ("train",), make_default)
    source = open_pairs(root / "train")
    window = config.get("learned", {}).get("intensity_window", source.info.intensity_window)
    trained = replace(
        source.info, classes=Classes.from_json(config["classes"]), intensity_window=tuple(window) if window else None
    )
    learned = learned_by_run(args.controlnet, trained)
    refuse_unfit([learned, learned_from_folder(source)], held_out_parts(root))
    device = select_device(args.device)
    dtype = select_dtype(args.precision, device)
    tokenizer = args.tokenizer or (None if args.backbone else config["backbone"].get("tokenizer"))
    backbone = load_backbone(args.backbone or config["backbone"]["name"], device, dtype, tokenizer)
    if backbone.fingerprint != config["backbone"]["weights"]:
        raise InputError(
            f"backbone {backbone.name} has other weights than the one that {args.controlnet} was trained over "
            f"({config['backbone']['name']}): name that one with --backbone"
        )
    controlnet, backbone = load_trained(args.controlnet, backbone, args.checkpoint)
    advised = backbone.recommended
    strength = args.strength if args.strength is not None else advised.strength
    start = args.start if args.start is not None else advised.start
    settings = SamplingSettings(args.steps, args.guidance, strength, args.eta, start, condition)
    if start > 1 or settings.steps_taken < 1:
        raise InputError(f"--start {start:g} of {args.steps} steps leaves none, expected more than 0, at most 1")
    print(
        f"{args.per_mask} slice(s) from each of {len(source.stems)} masks, {settings.steps} DDIM steps, guidance "
        f"{settings.guidance:g}, strength {settings.strength:g}, eta {settings.eta:g}, start {settings.start:g}, "
        f"from {condition}, on {device}"
    )
    try:
        made = synthesize(
            out,
            backbone,
            controlnet,
            source,
            prompts,
            settings,
            args.per_mask,
            args.batch_size,
            args.seed,
            learned_json([learned], trained),
            this_call(),
        )
    except torch.OutOfMemoryError:
        fewer = "" if args.batch_size == 1 else "--batch-size 1, then with "
        raise InputError(
            f"{device} ran out of memory: call it again with {fewer}slices that `python -m natural2nanoscale prepare "
            "--size` has cut into smaller ones"
        ) from None
    after = command("python train_unet.py", data=args.data, synthetic=args.out, synthetic_ratio=f"{args.per_mask}.0")
    print(f"{made} new slices in {out}; next: {after}")
