"""Studies: the paper's tables and figures with their controls on any data root, resumable U-Net by U-Net.

One engine for the verbs `experiments` and `demo`: one run folder, one log with a line per U-Net, one report.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from natural2nanoscale.cli import at_least, size
from natural2nanoscale.data.roots import data_root
from natural2nanoscale.errors import InputError
from natural2nanoscale.study.conditions import Condition, conditions
from natural2nanoscale.study.presets import EXPERIMENTS, PRESETS, Preset

MAY_CHANGE = ("experiments", "redraws", "seeds")


@dataclass(frozen=True)
class Place:
    """Where a study runs and what it runs on."""

    out: Path
    data: Path | None  # data root; None: every redraw has a phantom of its own
    backbone: str
    device: str


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
    add("--redraws", type=at_least(1), metavar="N", default=suppress, help="repetitions, instead of the preset's")
    add("--seeds", type=at_least(1), metavar="N", default=suppress, help="U-Nets each, instead of the preset's")
    add("--seed", type=at_least(0), default=0, help="seed of everything that is drawn")
    add("--crop", type=size, metavar="WxH", help="ControlNet's window in pixels")
    add("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> None:
    """The verb `experiments`."""
    given = {name: getattr(args, name) for name in ("redraws", "seeds") if name in args}
    preset = replace(PRESETS[args.preset], **given, seed=args.seed, crop=args.crop)
    ratios, only = getattr(args, "ratios", preset.ratios), getattr(args, "only", preset.experiments)
    preset = replace(preset, ratios=tuple(ratios), experiments=tuple(only))
    run_study(preset, Place(args.out, args.data, args.backbone, args.device))


def run_study(preset: Preset, place: Place, settings: dict | None = None) -> None:
    """Run or continue a study in place.out; write the report after every redraw and print the last one.

    settings: what config.json says of it, and a resumed study has to repeat; None: the preset's fields.
    """
    from natural2nanoscale.data.folders import fingerprint, open_pairs
    from natural2nanoscale.device import select_device, select_dtype
    from natural2nanoscale.diffusion.backbone import backbone_name, load_backbone, settle
    from natural2nanoscale.diffusion.settings import FineTuning
    from natural2nanoscale.files import write_json
    from natural2nanoscale.runs import open_run
    from natural2nanoscale.signals import Interrupted
    from natural2nanoscale.study.report import write_report
    from natural2nanoscale.study.summary import study_report
    from natural2nanoscale.study.training_sets import PARTS, check_study, redraw_root
    from natural2nanoscale.study.trial import Trial, read_timing, run_trial

    started = time.monotonic()
    device = select_device(place.device)
    data = data_root(place.data) if place.data else None
    folders = {part: open_pairs(data / part) for part in PARTS} if data else {}
    if folders:  # what would stop a training hours from now
        check_study(folders, preset.budgets.values())
    pool = len(folders["train"].stems) if folders else preset.phantom.train
    full = min(preset.slices or pool, pool)
    preset = without_scarcity(preset, full)
    name = backbone_name(place.backbone, folders["train"].info.origin if folders else "phantom")
    backbone = load_backbone(name, device, select_dtype("auto", device))
    settle(FineTuning(preset.crop, None), backbone)  # refuses a window that does not fit
    config = {
        "kind": "demo" if preset.name == "demo" else "experiments",
        "log_format": 2,  # of the lines, and of how seeds are derived: an older folder is another study
        "settings": asdict(preset) if settings is None else settings,
        "backbone": backbone.fingerprint,
        "data": {part: fingerprint(folder) for part, folder in folders.items()},
    }
    run = open_run(place.out, config, (place.out / "config.json").is_file(), MAY_CHANGE)
    run.drop_log_after(0)  # rows have no step: this only drops a line that a kill cut short

    groups: dict[tuple[str, int], list[Condition]] = {}  # those that share annotated slices and a ControlNet
    for condition in conditions(preset, preset.experiments):
        groups.setdefault((condition.split, condition.slices or full), []).append(condition)
    wanted = sum(len(members) for members in groups.values()) * preset.redraws * preset.seeds
    print(f"{preset.name}: {wanted} cells of {', '.join(preset.experiments)}; {run.path} has {len(run.read_log())}")
    try:
        for redraw in range(preset.redraws):
            for (split, count), members in groups.items():
                run_trial(run, Trial(preset, redraw, split, count, members), backbone, data)
            root = redraw_root(run.path / f"redraw-{redraw}", data, preset.phantom, preset.seed, redraw)
            found = study_report(run, preset, open_pairs(root / "test"), read_timing(run), backbone)
            report = write_report(run.path, found)
            write_json(run.path / "results.json", run.read_log())
    except Interrupted as stop:
        raise Interrupted(f"in {run.path}: the same command goes on there", stop.number) from None
    print(f"\n{report}\n{run.path}/report.html, report.md and tables/; {time.monotonic() - started:.0f} s")


def without_scarcity(preset: Preset, full: int) -> Preset:
    """The preset for `full` annotated slices: fewer of them are scarce only if they are fewer.

    Raises InputError when nothing else was asked for.
    """
    scarce = tuple(count for count in preset.scarce if count < full)
    if "scarcity" not in preset.experiments or scarce:
        return replace(preset, scarce=scarce)
    why = f"scarcity needs more than {min(preset.scarce)} annotated slices, found {full}"
    if preset.experiments == ("scarcity",):
        raise InputError(f"{why}: annotate more, or ask for another experiment with --only")
    print(f"{why}: it is left out")
    return replace(preset, scarce=(), experiments=tuple(name for name in preset.experiments if name != "scarcity"))
