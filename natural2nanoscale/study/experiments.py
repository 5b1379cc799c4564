"""The paper's tables and figures, and their controls, on any data root: one folder, resumable U-Net by U-Net."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from natural2nanoscale.data.folders import fingerprint, open_pairs, write_pairs
from natural2nanoscale.data.roots import data_root, digests_of
from natural2nanoscale.device import select_device, select_dtype
from natural2nanoscale.diffusion.backbone import Backbone, backbone_name, load_backbone
from natural2nanoscale.diffusion.command import fitting_crop
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import write_json
from natural2nanoscale.phantom.volume import write_phantom
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.seeds import permutation_for, seed_for
from natural2nanoscale.segmentation.batches import plan_steps
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices, combine, load_slices
from natural2nanoscale.signals import Interrupted
from natural2nanoscale.study.cells import check_study, draw_train, make_synthetic, picture_row, score_unet
from natural2nanoscale.study.presets import IN_MEMORY, PRESETS, ROTATION, Condition, Preset, conditions
from natural2nanoscale.study.report import write_report
from natural2nanoscale.study.results import experiments_report
from natural2nanoscale.study.standard import time_generation

KEY = ("experiment", "condition", "split", "slices", "size", "redraw", "seed", "budget")  # a cell: a line of the log
MAY_CHANGE = ("experiments", "redraws", "seeds")
PARTS = ("train", "val", "test")


def run_experiments(args: argparse.Namespace) -> None:
    """Run or continue the experiments in args.out; write the report after every redraw."""
    started = time.monotonic()
    given = {name: getattr(args, name) for name in ("redraws", "seeds", "ratios") if name in args}
    preset = replace(PRESETS[args.preset], **given, seed=args.seed)
    preset = replace(preset, experiments=tuple(getattr(args, "only", preset.experiments)), ratios=tuple(preset.ratios))
    device = select_device(args.device)
    root = data_root(args.data) if args.data else None
    folders = {part: open_pairs(root / part) for part in PARTS} if root else {}
    if folders:  # what would stop a training hours from now
        check_study(folders, 1, preset.budgets.values())
    name = backbone_name(args.backbone, folders["train"].info.origin if root else "phantom")
    backbone = load_backbone(name, device, select_dtype("auto", device))
    fitting_crop(args.crop or backbone.recommended.crop, backbone)
    pool = len(folders["train"].stems) if root else preset.phantom.train
    full = min(preset.slices or pool, pool)
    preset = replace(preset, scarce=tuple(count for count in preset.scarce if count < full))
    if "scarcity" in preset.experiments and not preset.scarce:
        why = f"scarcity needs more than {min(PRESETS[args.preset].scarce)} annotated slices, found {full}"
        if preset.experiments == ("scarcity",):
            raise InputError(f"{why}: annotate more, or ask for another experiment with --only")
        print(f"{why}: it is left out")
        preset = replace(preset, experiments=tuple(name for name in preset.experiments if name != "scarcity"))
    config = {
        "kind": "experiments",
        "settings": asdict(preset) | {"crop": args.crop},
        "backbone": backbone.fingerprint,
        "data": {part: fingerprint(folder) for part, folder in folders.items()},
    }
    run = open_run(args.out, config, (args.out / "config.json").is_file(), MAY_CHANGE)
    run.drop_log_after(0)  # rows have no step: this only drops a line that a kill cut short

    groups: dict[tuple[str, int], list[Condition]] = {}  # those that share annotated slices and a ControlNet
    for condition in conditions(preset, preset.experiments):
        groups.setdefault((condition.split, condition.slices or full), []).append(condition)
    wanted = sum(len(members) for members in groups.values()) * preset.redraws * preset.seeds
    print(f"{preset.name}: {wanted} cells of {', '.join(preset.experiments)}; {run.path} has {len(run.read_log())}")
    try:
        for redraw in range(preset.redraws):
            here = root or run.path / f"redraw-{redraw}" / "phantom"
            if not here.exists():
                write_phantom(here, replace(preset.phantom, seed=preset.seed + redraw))
            for (split, count), members in groups.items():
                run_group(run, backbone, here, split, count, members, preset, redraw, args.crop)
            test = open_pairs(here / "test")
            report = write_report(run.path, experiments_report(run, read_timing(run), preset, test))
            write_json(run.path / "results.json", run.read_log())
    except Interrupted as stop:
        raise Interrupted(f"in {run.path}: the same command goes on there", stop.number) from None
    print(f"\n{report}\n{run.path}/report.html, report.md and tables/; {time.monotonic() - started:.0f} s")


def run_group(
    run: RunFolder,
    backbone: Backbone,
    root: Path,
    split: str,
    count: int,
    members: Sequence[Condition],
    preset: Preset,
    redraw: int,
    crop: tuple[int, int] | None,
) -> None:
    """All cells of one redraw that learn from the same `count` annotated slices; those in the log are passed over.

    A cell that another experiment has trained already is copied under this one's name.
    """
    folder = run.path / f"redraw-{redraw}" / f"{split}-{count}"
    done = {tuple(row[key] for key in KEY): row for row in run.read_log()}
    cells = plan_cells(members, count, preset, redraw, read_timing(run))
    if all(cell in done for cell, _ in cells):
        return

    # the slices: annotated, synthetic
    if split == "random":
        root = split_at_random(root, folder.parent / "random", seed_for(preset.seed, "split", redraw))
    folders = {part: open_pairs(root / part) for part in ("val", "test")}
    folders["train"] = draw_train(folder / "train", open_pairs(root / "train"), count, preset.seed, redraw)
    per_mask = math.ceil(max(condition.synthetic for condition in members))
    if per_mask:
        budget = preset.controlnet_steps, per_mask, preset.seed + redraw
        folders["synthetic"] = make_synthetic(folder, backbone, folders, *budget, crop)
        if split == "given":
            picture_row(folder.with_suffix(".png"), folders["train"], folders["synthetic"])
        if any(condition.copies == math.inf for condition in members) and not read_timing(run):
            timing = time_generation(folder / "timing", backbone, folder / "controlnet", folders["train"])
            write_json(run.path / "timing.json", timing)
    cells = plan_cells(members, count, preset, redraw, read_timing(run))
    slices = {part: load_slices(opened) for part, opened in folders.items()}
    tested = fingerprint(folders["test"])[:12]

    # the U-Nets
    for cell, condition in cells:
        if cell in done:
            continue
        row = dict(zip(KEY, cell, strict=True)) | {"ratio": condition.copies + condition.synthetic, "test": tested}
        same = next((old for key, old in done.items() if key[1:] == cell[1:]), None)
        if same is None:
            began = time.monotonic()
            judged = None
            if condition.name == ROTATION and "synthetic" in slices:  # do they show what their masks say?
                judged = combine(None, slices["synthetic"], 1, count)
            real = slices["train"] if condition.real else None
            made = slices["synthetic"] if condition.synthetic else None
            training = combine(real, made, condition.synthetic, count)
            settings = unet_settings(condition, preset, training, row["budget"], redraw, row["seed"])
            row |= score_unet(
                training, slices["val"], slices["test"], settings, backbone.device, judged, condition.name
            )
            row["seconds"] = round(time.monotonic() - began, 1)
        done[cell] = (same or {}) | row
        run.log(done[cell])


def plan_cells(
    members: Sequence[Condition], count: int, preset: Preset, redraw: int, timing: dict
) -> list[tuple[tuple, Condition]]:
    """(key, condition) of every cell of a group; the copies that a time yields are counted once it is known."""
    cells = []
    for member in members:
        condition, size = member, None
        if member.copies == math.inf and timing:
            made = min(affordable(member, count, preset, timing), preset.most_copies)
            condition = replace(member, copies=made / count)
        if condition.copies < math.inf:
            size = sum(condition.counts(count)) + count * condition.real
        budget = member.budget or next(iter(preset.budgets))
        for seed in range(preset.seeds):
            cells.append(((member.experiment, member.name, member.split, count, size, redraw, seed, budget), condition))
    return cells


def affordable(condition: Condition, count: int, preset: Preset, timing: dict) -> int:
    """Rotated copies that can be made in the time of the synthetic slices of the largest ratio."""
    seconds = timing["memory" if condition.name == IN_MEMORY else "disk"]
    return int(max(preset.ratios) * count * timing["synthetic"] / seconds)


def read_timing(run: RunFolder) -> dict[str, float]:
    """Seconds per slice as `time_generation` measured them for this run; empty before."""
    file = run.path / "timing.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def unet_settings(
    condition: Condition, preset: Preset, training: Slices, budget: str, redraw: int, seed: int
) -> Settings:
    """The budget's settings, with the same seed for every condition of a repetition."""
    mixed = condition.real and condition.synthetic > 0 and not condition.finetune
    copies, _ = condition.counts(training.real)
    settings = replace(
        preset.budgets[budget],
        augment="rotation" if copies else condition.augment,
        angle=condition.angle,
        enlarge_to=training.real + copies if copies else None,
        balance=preset.budgets[budget].balance if mixed else None,
        seed=seed_for(preset.seed, redraw, "unet", seed),
    )
    if condition.finetune:
        settings = replace(settings, finetune_after=plan_steps(len(training), settings)[1] // 2)
    return settings


def split_at_random(root: Path, out: Path, seed: int) -> Path:
    """The slices of a data root dealt anew into parts of the same sizes: neighbours then are in different parts."""
    if (out / "test" / "dataset.json").is_file():
        return out
    parts = {part: open_pairs(root / part) for part in PARTS}
    digests = {part: digests_of(folder) for part, folder in parts.items()}
    slices = [(part, stem) for part, folder in parts.items() for stem in folder.stems]
    order = permutation_for(len(slices), seed)
    first = 0
    for part, folder in parts.items():
        dealt = [slices[i] for i in sorted(order[first : first + len(folder.stems)])]
        first += len(folder.stems)
        shutil.rmtree(out / part, ignore_errors=True)  # half written when a study was killed
        info = replace(folder.info, split={"rule": "random", "part": part, "seed": seed})
        pairs = (
            (f"{stem}_{old}", parts[old].image(stem), parts[old].mask(stem), digests[old].get(stem))
            for old, stem in dealt
        )
        write_pairs(out / part, info, pairs)
    return out
