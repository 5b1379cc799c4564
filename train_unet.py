#!/usr/bin/env python3
"""Train U-Nets, one per seed, on real slices, synthetic ones or both, and score them on the test slices."""

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path

from natural2nanoscale.cli import (
    DATA,
    UNET_RUN,
    Parser,
    add_settings,
    at_least,
    command,
    parse_resumable,
    refuse_torchrun,
    resumable,
    settings_from,
)
from natural2nanoscale.errors import InputError
from natural2nanoscale.guard import main_guard
from natural2nanoscale.segmentation.settings import MAY_CHANGE, Settings, complete


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with train/, val/ and test/ (default: data, filled with the phantom)",
    )
    add("--synthetic", type=Path, metavar="DIR", help="folder of synthetic slices (default: DATA/synthetic)")
    add(
        "--synthetic-ratio",
        type=at_least(0.0, float),
        metavar="R",
        help="synthetic slices per real one, added to the real ones (default: what `calibrate` chose, where it has; "
        "else 0, or 1 with --synthetic or --no-real)",
    )
    add("--no-real", action="store_true", help="train on the synthetic slices alone")
    add(
        "--mode",
        choices=("joint", "pretrain-finetune"),
        help="pretrain-finetune: half of the steps on synthetic slices (with --balance on both), then on real ones "
        "(default: joint, or what `calibrate` chose with the ratio)",
    )
    add_settings(parser, Settings)
    add("--seeds", type=at_least(1), default=3, metavar="N", help="networks to train")
    add("--out", type=Path, default=UNET_RUN, metavar="RUN", help="run folder")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--resume", action="store_true", help="go on with the run in --out, from step 0 where it has no checkpoint yet")
    return parse_resumable(parser)


def main(args: argparse.Namespace) -> None:
    refuse_torchrun()
    from natural2nanoscale.data.folders import fingerprint, open_pairs, pair_digests
    from natural2nanoscale.data.roots import (
        data_root,
        learned_by_synthetic,
        learned_from_folder,
        learned_json,
        refuse_unfit,
    )
    from natural2nanoscale.device import select_device
    from natural2nanoscale.files import make_folder, refuse_non_empty, write_text
    from natural2nanoscale.phantom.volume import write_default
    from natural2nanoscale.runs import RunFolder, open_run, refuse_no_run
    from natural2nanoscale.segmentation.evaluation import evaluate_run
    from natural2nanoscale.segmentation.plan import print_plan
    from natural2nanoscale.segmentation.report import markdown, model_card, write_report
    from natural2nanoscale.segmentation.schedule import check, plan_steps, set_size
    from natural2nanoscale.segmentation.slices import combine, load_slices
    from natural2nanoscale.segmentation.training import train
    from natural2nanoscale.segmentation.unet import select_precision
    from natural2nanoscale.signals import Interrupted

    # what is out of order is refused before any data is made
    refuse_no_run(args.out) if args.resume else refuse_non_empty(args.out)
    calibrated(args)
    ratio, made = find_synthetic(args.synthetic_ratio, args.synthetic, args.data, args.no_real)
    root = data_root(args.data, make_default=write_default)
    device = select_device(args.device)

    # what there is to learn from, and that none of it is among what scores
    folders = {part: open_pairs(root / part) for part in ("train", "val", "test")}
    real, validation, synthetic = load_slices(folders["train"]), load_slices(folders["val"]), None
    learned = [learned_from_folder(folders["train"])]
    if ratio > 0:
        folders["synthetic"] = open_pairs(made)
        learned.append(learned_by_synthetic(folders["synthetic"], folders["train"]))
        synthetic = load_slices(folders["synthetic"])
    refuse_unfit(learned, [folders["val"], folders["test"]])
    training = combine(None if args.no_real else real, synthetic, ratio, len(real))
    settings = complete(settings_from(args, Settings), folders["train"].info.origin)
    settings = replace(settings, precision=select_precision(settings.precision, device))
    before = steps_before_finetuning(args.out, args.mode) if args.resume else None
    if args.mode == "pretrain-finetune":
        half = plan_steps(set_size(training, settings), settings)[1] // 2
        settings = replace(settings, finetune_after=half if before is None else before)
    check(training, validation, settings)
    print_plan(training, validation, len(folders["test"].stems), settings, args.seeds, device)

    # one network per seed, then the test slices
    choices = asdict(settings) | {"seeds": args.seeds, "synthetic_ratio": ratio, "no_real": args.no_real}
    config = {"kind": "unet", "settings": choices, "arguments": resumable(args)}
    config["data"] = {part: fingerprint(folder) for part, folder in folders.items()}
    config["slices"] = {part: pair_digests(folder) for part, folder in folders.items()}
    config["learned"] = learned_json(learned[1:] if args.no_real else learned, folders["train"].info)
    run = open_run(args.out, config, args.resume, (*MAY_CHANGE, "seeds"))
    for seed in range(args.seed, args.seed + args.seeds):
        folder = RunFolder(make_folder(run.path / f"seed-{seed}"), within=run)
        if args.resume:
            folder.tell_beginning()
        try:
            train(training, validation, replace(settings, seed=seed), device, folder)
        except Interrupted as stop:  # which knows this seed's folder alone
            stop.args = (command(str(stop), out=None if args.out == UNET_RUN else args.out),)
            raise
    run.settle()
    report = evaluate_run(run.path, folders["test"], device)
    write_report(run.path, report)
    write_text(run.path / "README.md", model_card(run.path, report, folders, training, settings))
    print(markdown(report))
    print(f"report: {run.path}/report.md and report.json; model card: {run.path}/README.md")
    segment = command("python -m natural2nanoscale segment", run.path, images="SLICES", out="MASKS")
    evaluate = command("python -m natural2nanoscale evaluate", run.path, data="DIR")
    print(f"next: `{segment}` masks other slices,\n      `{evaluate}` scores these U-Nets on other masks")


def calibrated(args: argparse.Namespace) -> None:
    """Set ratio and mode as `calibrate` chose them for these slices where no flag names synthetic ones, and print that;
    the default mode where nothing says another."""
    from natural2nanoscale.data.calibrated import FILE, read_calibration
    from natural2nanoscale.data.folders import open_pairs, read_info

    mode, args.mode = args.mode, args.mode or "joint"
    root = args.data or DATA
    named = args.no_real or args.synthetic or args.synthetic_ratio is not None
    if args.resume or named or not (root / FILE).exists():
        return
    made = root / "synthetic"
    drawn = read_info(made).split if (made / "dataset.json").is_file() else {}
    folders = [open_pairs(root / part) for part in ("train", "val")]
    found = read_calibration(root, folders, drawn.get("controlnet"))
    if found is None:
        return
    choice, real, chosen = (found[name] for name in ("choice", "real", "chosen"))
    if choice["ratio"] == 0:
        args.synthetic_ratio = 0.0
        print(f"{root / FILE} chose real slices alone ({100 * real:.1f} in validation): no mix was seen to be better")
    elif any(drawn.get(name, choice[name]) != choice[name] for name in ("strength", "start")):
        print(f"{root / FILE} is ignored, it chose another strength or start than {made} was drawn with")
    else:
        args.synthetic_ratio, args.mode = choice["ratio"], mode or choice["mode"]
        print(
            f"{root / FILE} chose --synthetic-ratio {choice['ratio']:g} --mode {choice['mode']}: with rotation "
            f"{100 * chosen:.1f} mIoU in validation, real slices alone {100 * real:.1f}"
        )


def find_synthetic(ratio: float | None, made: Path | None, data: Path | None, no_real: bool) -> tuple[float, Path]:
    """Ratio and folder of the synthetic slices, where None is the default; InputError where they are missing."""
    from natural2nanoscale.data.folders import read_info

    ratio = float(bool(made or no_real)) if ratio is None else ratio
    path = made or (data or DATA) / "synthetic"
    if ratio > 0 and not path.is_dir():
        more = math.ceil(ratio) if ratio > 1 else None
        before = command("python generate.py", data=data, out=made, per_mask=more)
        raise InputError(f"there are no synthetic slices in {path}: first run `{before}`")
    if ratio > 0:
        read_info(path)  # an unfinished folder is no folder yet
    return ratio, path


def steps_before_finetuning(out: Path, mode: str) -> int | None:
    """Of the run in `out` half of its first length, however long it becomes, so that what it has learned already stays
    what it would learn again; None where it has no fine-tuning. InputError when it began with another --mode."""
    from natural2nanoscale.records import read_config

    steps = read_config(out).get("settings", {}).get("finetune_after")
    before = "joint" if steps is None else "pretrain-finetune"
    if mode != before:
        raise InputError(
            f"{out} goes on as it began, but --mode was {before} and is now {mode}: give the old value, or name "
            "another folder with --out"
        )
    return steps


if __name__ == "__main__":
    main_guard(parse_arguments, main)
