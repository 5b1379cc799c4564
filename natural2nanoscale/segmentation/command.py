"""What `train_unet.py` does with its arguments: check, print the plan, train every seed, score."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path

import torch

from natural2nanoscale.checkpoints import disk_need
from natural2nanoscale.cli import DATA, UNET_RUN, command, resumable
from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs, pair_digests, read_info
from natural2nanoscale.data.roots import learned_by_synthetic, learned_from_folder, learned_json, refuse_unfit
from natural2nanoscale.device import select_device
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import make_folder, refuse_non_empty, write_text
from natural2nanoscale.measure import Cost, duration, gigabytes, measure
from natural2nanoscale.records import read_config
from natural2nanoscale.runs import RunFolder, open_run, refuse_no_run
from natural2nanoscale.segmentation.batches import (
    check,
    micro_batch_size,
    plan_steps,
    set_size,
    slices_per_step,
    steps_between_validations,
)
from natural2nanoscale.segmentation.card import model_card
from natural2nanoscale.segmentation.evaluation import evaluate_run, markdown, write_report
from natural2nanoscale.segmentation.settings import MAY_CHANGE, RECOMMENDED, Settings, shown
from natural2nanoscale.segmentation.slices import Slices, combine, load_slices
from natural2nanoscale.segmentation.training import accumulate_gradient, train
from natural2nanoscale.segmentation.unet import UNet, move_to, select_precision
from natural2nanoscale.signals import Interrupted


def plan_synthetic(args: argparse.Namespace) -> tuple[Path, float]:
    """Folder and ratio of the synthetic slices; InputError when they are missing or --out is taken.

    To be called first: it needs no data and writes nothing.
    """
    refuse_no_run(args.out) if args.resume else refuse_non_empty(args.out)
    ratio = args.synthetic_ratio
    if ratio is None:
        ratio = 1.0 if args.synthetic or args.no_real else 0.0
    path = args.synthetic or (args.data or DATA) / "synthetic"
    if ratio > 0 and not path.is_dir():
        more = math.ceil(ratio) if ratio > 1 else None
        before = command("python generate.py", data=args.data, out=args.synthetic, per_mask=more)
        raise InputError(f"there are no synthetic slices in {path}: first run `{before}`")
    if ratio > 0:
        read_info(path)  # an unfinished folder is no folder yet
    return path, ratio


def train_unet(args: argparse.Namespace, root: Path) -> None:
    """Train one U-Net per seed on root/train, write the report of their scores on root/test."""
    synthetic_path, ratio = plan_synthetic(args)
    device = select_device(args.device)

    # what there is to learn from
    folders = {part: open_pairs(root / part) for part in ("train", "val", "test")}
    real, validation = load_slices(folders["train"]), load_slices(folders["val"])
    synthetic, learned = None, [learned_from_folder(folders["train"])]
    if ratio > 0:
        folders["synthetic"] = open_pairs(synthetic_path)
        learned.append(learned_by_synthetic(folders["synthetic"], folders["train"]))
        synthetic = load_slices(folders["synthetic"])
    refuse_unfit(learned, [folders["val"], folders["test"]])
    training = combine(None if args.no_real else real, synthetic, ratio, len(real))
    settings = choose_settings(args, folders["train"].info.origin)
    if args.resume:
        refuse_other_mode(args.out, args.mode)
    if args.mode == "pretrain-finetune":
        steps = kept_beginning(args.out) if args.resume else None
        if steps is None:
            steps = plan_steps(set_size(training, settings), settings)[1] // 2
        settings = replace(settings, finetune_after=steps)
    settings = replace(settings, precision=select_precision(settings.precision, device))
    check(training, validation, settings)
    hashes = {part: fingerprint(folder) for part, folder in folders.items()}
    digests = {part: pair_digests(folder) for part, folder in folders.items()}
    print_plan(training, validation, folders, settings, args.seeds, device)

    # one network per seed, then the test slices
    choices = asdict(settings) | {"seeds": args.seeds, "synthetic_ratio": ratio, "no_real": args.no_real}
    config = {"kind": "unet", "settings": choices, "data": hashes, "slices": digests, "arguments": resumable(args)}
    config["learned"] = learned_json(learned[1:] if args.no_real else learned, folders["train"].info)
    run = open_run(args.out, config, args.resume, (*MAY_CHANGE, "seeds"), at_once=False)
    for seed in range(args.seed, args.seed + args.seeds):
        folder = RunFolder(make_folder(run.path / f"seed-{seed}"), within=run)
        if args.resume:
            folder.tell_beginning()
        try:
            train(training, validation, replace(settings, seed=seed), device, folder, args.resume)
        except Interrupted as stop:  # which knows this seed's folder alone
            stop.args = (command(str(stop), out=None if args.out == UNET_RUN else args.out),)
            raise
    run.settle()
    report = evaluate_run(run.path, folders["test"], device)
    write_report(run.path, report)
    card = model_card(run.path, report, folders, training, settings)
    write_text(run.path / "README.md", card)
    print(markdown(report))
    print(f"report: {run.path}/report.md and report.json; model card: {run.path}/README.md")
    segment = command("python -m natural2nanoscale segment", run.path, images="SLICES", out="MASKS")
    evaluate = command("python -m natural2nanoscale evaluate", run.path, data="DIR")
    print(f"next: `{segment}` masks other slices,\n      `{evaluate}` scores these U-Nets on other masks")


def kept_beginning(out: Path) -> int | None:
    """Steps before fine-tuning of the run in `out`, None where it has none: half of its first length, however long it
    becomes, so that what it has learned already stays what it would learn again."""
    return read_config(out).get("settings", {}).get("finetune_after")


def refuse_other_mode(out: Path, mode: str) -> None:
    """Raise InputError when the run in `out` began with another --mode."""
    before = "joint" if kept_beginning(out) is None else "pretrain-finetune"
    if mode != before:
        raise InputError(
            f"{out} goes on as it began, but --mode was {before} and is now {mode}: give the old value, or name "
            "another folder with --out"
        )


def choose_settings(args: argparse.Namespace, origin: str) -> Settings:
    """The flags; where one is not given, what the origin recommends (printed); else the default."""
    names = ("width", "depth", "epochs", "batch_size", "patience", "crop", "decay", "class_balance")
    flags = {name: getattr(args, name) for name in names} | {"learning_rate": args.lr, "select_by": args.select}
    given = {name: value for name, value in flags.items() if value is not None}
    advised = {name: value for name, value in RECOMMENDED.get(origin, {}).items() if name not in given}
    if advised:
        values = ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in advised.items())
        print(f"{values}: recommended for the {origin}")
    return replace(
        Settings(**advised | given),
        max_steps=args.max_steps,
        augment=args.augment,
        angle=args.angle,
        enlarge_to=args.enlarge_to,
        balance=args.balance,
        validate_every=args.validate_every,
        checkpoint_every=args.checkpoint_every,
        checkpoint_minutes=args.checkpoint_minutes,
        micro_batch=args.micro_batch,
        compile=args.compile,
        precision=args.precision,
        seed=args.seed,
    )


def print_plan(
    training: Slices,
    validation: Slices,
    folders: dict[str, PairFolder],
    settings: Settings,
    seeds: int,
    device: torch.device,
) -> None:
    """Say what is going to happen, before it takes time."""
    with torch.device("meta"):
        network = UNet(training.classes.count, settings.width, settings.depth)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    count = set_size(training, settings)
    per_epoch, total = plan_steps(count, settings)
    sizes = ", ".join(f"{width}x{height}" for height, width in training.shapes[:3])
    more = " and others" if len(training.shapes) > 3 else ""
    synthetic = len(training) - training.real
    print(f"train on  {training.real} real + {synthetic} synthetic slices of {sizes}{more}")
    if settings.enlarge_to:
        print(f"enlarged  to {count} slices by the augmentation {settings.augment}")
    print(f"judge on  {len(validation)} validation and {len(folders['test'].stems)} test slices")
    print(f"classes   {', '.join(training.classes.names)}")
    print(f"network   U-Net of width {settings.width} and depth {settings.depth}: {parameters:,} parameters")
    height, width = (settings.crop[1], settings.crop[0]) if settings.crop else max(training.shapes, key=math.prod)
    size = slices_per_step(settings, count)
    at_once = min(settings.micro_batch or micro_batch_size(height * width, settings.width, device), size)
    cost = blank_cost(training, settings, (at_once, height, width), device)
    took = duration(total * math.ceil(size / at_once) * cost.seconds)
    print(f"memory    about {gigabytes(cost.peak)} with {at_once} of {width}x{height} at once")
    # the weights, the best ones and Adam's two moments; in the end the best ones of every seed once more
    print(f"disk      {disk_need(16 * parameters, keep=2)}, for each seed")
    print(f"length    at most {total} steps, {per_epoch} per epoch, about {took} and what validation takes,")
    print(f"          for each of {seeds} seed(s), on {device}")
    print(f"precision {settings.precision}, with float32 weights and scores")
    print(f"validated every {steps_between_validations(training, validation, settings)} steps")
    if settings.finetune_after is not None:
        first = "both kinds" if settings.balance else "synthetic slices"
        print(f"order     {settings.finetune_after} steps on {first}, then real slices alone")


def blank_cost(training: Slices, settings: Settings, shape: tuple[int, int, int], device: torch.device) -> Cost:
    """Memory and time of one forward and backward pass with its optimiser step, on blank windows of shape (B,H,W), and
    beside it room for the training slices, which lie on the device."""
    model = move_to(UNet(training.classes.count, settings.width, settings.depth, settings.precision), device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.zeros(shape, device=device)[:, None]
    masks, weights = torch.zeros(shape, dtype=torch.int64, device=device), torch.ones(model.classes, device=device)

    def step() -> None:
        accumulate_gradient(model, [(images, masks)], weights)
        optimizer.step()
        optimizer.zero_grad()

    cost = measure(step, device)
    pool = 2 * sum(image.size for image in training.images)  # image and mask, a byte each
    return replace(cost, peak=None if cost.peak is None else cost.peak + pool)
