"""The whole loop at embedded scale: slices, ControlNet, synthesis, U-Nets under equal budgets, and a table."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs
from natural2nanoscale.data.roots import data_root
from natural2nanoscale.device import select_device
from natural2nanoscale.diffusion.backbone import backbone_name, load_backbone
from natural2nanoscale.diffusion.command import fitting_crop
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import write_json
from natural2nanoscale.phantom.volume import PhantomSettings, write_phantom
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.settings import SHORT, Settings
from natural2nanoscale.segmentation.slices import combine, load_slices
from natural2nanoscale.signals import Interrupted
from natural2nanoscale.study.cells import (
    check_study,
    draw_train,
    make_synthetic,
    picture_row,
    sampling_settings,
    score_unet,
)
from natural2nanoscale.study.report import run_facts, write_report
from natural2nanoscale.study.settings import DemoSettings
from natural2nanoscale.study.table import demo_report

CONDITIONS = (  # name, with real slices, with synthetic slices, U-Net augmentation
    ("real", True, False, "none"),
    ("synthetic", False, True, "none"),
    ("real + rotation", True, False, "rotation"),
    ("real + synthetic", True, True, "none"),
    ("real + synthetic + rotation", True, True, "rotation"),
)
JUDGE = "real + rotation"  # its U-Nets also label the synthetic slices


def run_demo(args: argparse.Namespace) -> None:
    """Run or continue the demo in args.out; print and write the report."""
    started = time.monotonic()
    settings = DemoSettings(**{setting.name: getattr(args, setting.name) for setting in fields(DemoSettings)})
    if settings.validations > settings.unet_steps:
        raise InputError(f"--validations {settings.validations} are more than --unet-steps {settings.unet_steps}")
    device = select_device(args.device)
    root = data_root(args.data) if args.data else None
    pools = {part: open_pairs(root / part) for part in ("train", "val", "test")} if root else {}
    if pools:
        check_study(pools, settings.slices, [unet_settings(settings)])
    name = backbone_name(args.backbone, pools["train"].info.origin if pools else "phantom")
    backbone = load_backbone(name, device)
    fitting_crop(args.crop or backbone.recommended.crop, backbone)
    config = {
        "kind": "demo",
        "settings": asdict(settings) | {"crop": args.crop},
        "backbone": backbone.fingerprint,
        "data": {part: fingerprint(folder) for part, folder in pools.items()},
    }
    run = open_run(args.out, config, (args.out / "config.json").is_file(), ("redraws", "seeds"))
    run.drop_log_after(0)  # rows have no step: this only drops a line that a kill cut short
    try:
        for redraw in range(settings.redraws):
            folder = run.path / f"redraw-{redraw}"
            folders = draw_folders(folder, root, settings, redraw)
            budget = settings.controlnet_steps, settings.per_mask
            synthetic = make_synthetic(folder, backbone, folders, *budget, settings.seed + redraw, args.crop)
            compare(run, folders | {"synthetic": synthetic}, settings, redraw, device)
            picture_row(folder.with_suffix(".png"), folders["train"], synthetic)
    except Interrupted as stop:
        raise Interrupted(f"in {run.path}: the same command goes on there", stop.number) from None
    rows = run.read_log()
    pictures = [run.path / f"redraw-{redraw}.png" for redraw in range(min(settings.redraws, 2))]
    redrawn = root is None or settings.slices < len(pools["train"].stems)
    used = asdict(settings), asdict(sampling_settings(backbone)), name, folders, redrawn
    report = write_report(run.path, demo_report(rows, *used, pictures, run_facts(run.path)))
    write_json(run.path / "results.json", rows)
    print(f"\n{report}\n{run.path}/report.html, report.md and tables/; {time.monotonic() - started:.0f} s")


def unet_settings(settings: DemoSettings) -> Settings:
    """What all U-Nets of the demo have in common."""
    return replace(
        SHORT,
        width=settings.unet_width,
        max_steps=settings.unet_steps,
        batch_size=settings.unet_batch,
        crop=settings.unet_crop,
        learning_rate=settings.unet_learning_rate,
        class_balance=settings.class_balance,
        validate_every=settings.unet_steps // settings.validations,
    )


def draw_folders(out: Path, root: Path | None, settings: DemoSettings, redraw: int) -> dict[str, PairFolder]:
    """train (the few slices that were drawn), val and test of one redraw.

    Without a data root each redraw has a phantom of its own; with one it draws other training slices.
    """
    if root is None:
        root = out / "phantom"
        if not root.exists():
            write_phantom(root, PhantomSettings(seed=settings.seed + redraw))
    drawn = draw_train(out / "train", open_pairs(root / "train"), settings.slices, settings.seed, redraw)
    return {"train": drawn} | {part: open_pairs(root / part) for part in ("val", "test")}


def compare(
    run: RunFolder,
    folders: dict[str, PairFolder],
    settings: DemoSettings,
    redraw: int,
    device: torch.device,
) -> None:
    """Train and score a U-Net for every condition and seed; each result is a line of the demo's log."""
    slices = {part: load_slices(folder) for part, folder in folders.items()}
    done = {(row["redraw"], row["condition"], row["seed"]) for row in run.read_log()}
    for condition, with_real, with_synthetic, augment in CONDITIONS:
        training = combine(
            slices["train"] if with_real else None,
            slices["synthetic"] if with_synthetic else None,
            settings.per_mask,
            len(slices["train"]),
        )
        for seed in range(settings.seeds):
            if (redraw, condition, seed) in done:
                continue
            unet = replace(
                unet_settings(settings),
                balance=0.5 if with_real and with_synthetic else None,
                augment=augment,
                seed=seed_for(settings.seed, redraw, "unet", seed),
            )
            judged = slices["synthetic"] if condition == JUDGE else None
            row = {"redraw": redraw, "condition": condition, "seed": seed, "test": fingerprint(folders["test"])[:12]}
            label = f"U-Net {seed}, {condition}"
            run.log(row | score_unet(training, slices["val"], slices["test"], unet, device, judged, label))
