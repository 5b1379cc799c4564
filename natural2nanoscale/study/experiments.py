"""Studies: the paper's tables and figures with their controls on any data root, resumable U-Net by U-Net.

One engine for the verbs `experiments` and `demo`: one run folder, one log with a line per U-Net, one report.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from natural2nanoscale.cli import at_least, size
from natural2nanoscale.data.roots import data_root
from natural2nanoscale.errors import InputError
from natural2nanoscale.study.conditions import Condition, conditions
from natural2nanoscale.study.presets import EXPERIMENTS, JOBS, LOOKS, PRESETS, Place, Preset

if TYPE_CHECKING:
    from natural2nanoscale.study.trial import Trial

MAY_CHANGE = ("experiments", "redraws", "seeds", "scarce")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `experiments`."""
    add, suppress = parser.add_argument, argparse.SUPPRESS
    names = "; ".join(f"{name}: {what}" for name, what in EXPERIMENTS.items())
    add("--preset", choices=tuple(PRESETS), default="embedded", help="budgets of everything")
    add("--out", type=Path, default=Path("runs/experiments"), help="run folder; stopped experiments go on in it")
    add("--data", type=Path, help="prepared data root (default: phantoms)")
    add("--backbone", default="auto", help="auto, embedded, a diffusers folder, or a hub id")
    add("--only", nargs="+", choices=tuple(EXPERIMENTS), metavar="NAME", default=suppress, help=names)
    add("--ratios", nargs="+", type=at_least(0.01, float), metavar="R", default=suppress,
        help="added slices per annotated one in figure6, instead of the preset's")  # fmt: skip
    add("--slices", nargs="+", type=at_least(1), metavar="N", default=suppress,
        help="numbers of annotated slices in worth and scarcity, instead of the preset's")  # fmt: skip
    add("--redraws", type=at_least(1), metavar="N", default=suppress, help="repetitions, instead of the preset's")
    add("--seeds", type=at_least(1), metavar="N", default=suppress, help="U-Nets each, instead of the preset's")
    add("--seed", type=at_least(0), default=0, help="seed of everything that is drawn")
    add("--unet-steps", type=steps_or_pilot, metavar="N",
        help="steps of every U-Net, or `pilot`: as many as all slices of the pool take until their validation is flat "
        "(default: a pilot with --data, else and with --preset paper the preset's number)")  # fmt: skip
    add("--unet-width", type=at_least(1), metavar="N", default=suppress, help="channels at the top of the U-Nets")
    add("--jobs", type=at_least(1), metavar="N", help=JOBS)
    add("--crop", type=size, metavar="WxH", help="ControlNet's window in pixels")
    add("--device", default="auto", help="auto, cpu or cuda")


def steps_or_pilot(text: str) -> int | str:
    return text if text == "pilot" else at_least(1)(text)


def run(args: argparse.Namespace) -> None:
    """The verb `experiments`."""
    given = {name: getattr(args, name) for name in ("redraws", "seeds") if name in args}
    preset = replace(PRESETS[args.preset], **given, seed=args.seed, crop=args.crop)
    ratios, only = getattr(args, "ratios", preset.ratios), getattr(args, "only", preset.experiments)
    scarce = getattr(args, "slices", preset.scarce)
    preset = replace(preset, ratios=tuple(ratios), experiments=tuple(only), scarce=tuple(sorted(set(scarce))))
    if "unet_width" in args:
        wide = {name: replace(budget, width=args.unet_width) for name, budget in preset.budgets.items()}
        preset = replace(preset, budgets=wide)
    steps = args.unet_steps or ("pilot" if args.data and args.preset != "paper" else None)
    if steps == "pilot":
        preset = replace(preset, pilot=True)
    elif steps:
        name, budget = next(iter(preset.budgets.items()))
        looks = max(1, math.ceil(steps / LOOKS))
        budget = replace(budget, max_steps=steps, validate_every=looks)
        preset = replace(preset, budgets=preset.budgets | {name: budget})
    run_study(preset, Place(args.out, args.data, args.backbone, args.device, args.jobs))


def run_study(preset: Preset, place: Place, settings: dict | None = None) -> None:
    """Run or continue a study in place.out; write the report after every redraw and print the last one.

    settings: what config.json says of it, and a resumed study has to repeat; None: the preset's fields.
    """
    import torch

    from natural2nanoscale.data.folders import fingerprint, open_pairs
    from natural2nanoscale.device import select_device
    from natural2nanoscale.diffusion.backbone import backbone_name, settle
    from natural2nanoscale.diffusion.settings import FineTuning
    from natural2nanoscale.files import write_json
    from natural2nanoscale.runs import open_run
    from natural2nanoscale.schemas import RESULT_ROW
    from natural2nanoscale.signals import Interrupted
    from natural2nanoscale.study.pilot import fix_steps
    from natural2nanoscale.study.report import write_report
    from natural2nanoscale.study.schedule import Agenda, carry_out_all
    from natural2nanoscale.study.summary import study_report
    from natural2nanoscale.study.synthetic import read_timing
    from natural2nanoscale.study.training_sets import PARTS, check_study, redraw_root
    from natural2nanoscale.study.trial import backbone_of, carry_out
    from natural2nanoscale.study.workers import Here, Processes

    started = time.monotonic()
    device = select_device(place.device)
    data = data_root(place.data) if place.data else None
    folders = {part: open_pairs(data / part) for part in PARTS} if data else {}
    if folders:  # what would stop a training hours from now
        check_study(folders, preset.budgets.values())
    pool = len(folders["train"].stems) if folders else preset.phantom.train
    full = min(preset.slices or pool, pool)
    preset = without_scarcity(preset, full, pool)
    name = backbone_name(place.backbone, folders["train"].info.origin if folders else "phantom")
    place = replace(place, data=data, backbone=str(name))
    backbone = backbone_of(place.backbone, place.device)
    settle(FineTuning(preset.crop, None), backbone)  # refuses a window that does not fit
    config = {
        "kind": "demo" if preset.name == "demo" else "experiments",
        "log_format": 3,  # of the lines, and of what they are of: an older folder is another study
        "settings": asdict(preset) if settings is None else settings,
        "backbone": backbone.fingerprint,
        "data": {part: fingerprint(folder) for part, folder in folders.items()},
    }
    run = open_run(place.out, config, (place.out / "config.json").is_file(), MAY_CHANGE)
    # rows have no step: this only drops a line that a kill cut short
    run.drop_log_after(0, RESULT_ROW, "remove this line, and its U-Net is trained again")

    threads = torch.get_num_threads()
    jobs = place.jobs or (1 if device.type == "cuda" else os.cpu_count() or 1)
    try:
        torch.set_num_threads(1)  # as in every process of --jobs, so that results do not depend on it
        first = redraw_root(run.path / "redraw-0", data, preset.phantom, preset.seed, 0)
        parts = {part: open_pairs(first / part) for part in PARTS}
        if preset.pilot:
            preset = fix_steps(preset, run.path, parts["train"], parts["val"], place.device)
        preset = replace(preset, pool=pool)
        agenda = Agenda(run, plan_trials(preset, place, full))
        cells = agenda.cells()
        done = sum(cell.key in agenda.done for _, cell in cells)
        print(f"{preset.name}: {len(cells)} cells of {', '.join(preset.experiments)}; {run.path} has {done}")

        def report() -> tuple:
            found = study_report(run, agenda.rows(), preset, parts["test"], read_timing(run.path), backbone)
            text = write_report(run.path, found)
            write_json(run.path / "results.json", {"rows": agenda.rows()})
            return found, text

        jobs = min(jobs, len(cells) - done)
        carry_out_all(agenda, Processes(carry_out, jobs) if jobs > 1 else Here(carry_out), report)
        found, text = report()
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        raise Interrupted(f"in {run.path}: the same command goes on there", number) from None
    finally:
        torch.set_num_threads(threads)
    seconds = time.monotonic() - started
    print(f"\n{found.verdict}\n\n{text}\n{run.path}/report.html, report.md and tables/; {seconds:.0f} s")


def plan_trials(preset: Preset, place: Place, full: int) -> list[Trial]:
    """The training sets of every redraw, in groups that share their annotated slices and so a ControlNet.

    full: annotated slices where a training set does not say how many it takes.
    """
    from natural2nanoscale.study.trial import Trial

    groups: dict[tuple[str, int], list[Condition]] = {}
    for condition in conditions(preset, preset.experiments):
        groups.setdefault((condition.split, condition.slices or full), []).append(condition)
    return [
        Trial(preset, place, redraw, split, count, members)
        for redraw in range(preset.redraws)
        for (split, count), members in groups.items()
    ]


def without_scarcity(preset: Preset, full: int, pool: int) -> Preset:
    """The preset for `full` annotated slices of a `pool`: fewer of them are scarce only if they are fewer.

    Raises InputError when nothing else was asked for.
    """
    left = preset.experiments
    scarce = tuple(count for count in preset.scarce if count < (pool if {"worth", "recipes"} & set(left) else full))
    if scarce or not {"scarcity", "worth", "recipes"} & set(left):
        return replace(preset, scarce=scarce)
    for name, most in (("scarcity", full), ("worth", pool), ("recipes", pool)):
        if name in left:
            why = f"{name} needs more than {min(preset.scarce)} annotated slices, found {most}"
            if left == (name,):
                raise InputError(f"{why}: annotate more, or ask for another experiment with --only")
            print(f"{why}: it is left out")
            left = tuple(one for one in left if one != name)
    return replace(preset, scarce=(), experiments=left)
