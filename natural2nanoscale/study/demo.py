"""The whole loop at embedded scale, from a few slices to a table: a small study with a short report."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from natural2nanoscale.cli import add_settings, at_least, setting, settings_from, size
from natural2nanoscale.data.roots import data_root
from natural2nanoscale.errors import InputError
from natural2nanoscale.study.experiments import run_study
from natural2nanoscale.study.presets import EQUAL, JOBS, LOOKS, Place, Preset


@dataclass(frozen=True)
class DemoSettings:
    """Budgets of the demo: every U-Net takes equally many steps of equally many slices."""

    slices: int = setting(2, "annotated slices to learn from", at_least(1))
    redraws: int = setting(1, "repetitions with other slices and ControlNets", at_least(1))
    seeds: int = setting(2, "U-Nets per condition and redraw", at_least(1))
    seed: int = setting(0, "seed of everything that is drawn", at_least(0))
    controlnet_steps: int = setting(900, "fine-tuning steps", at_least(1))
    per_mask: int = setting(16, "synthetic slices per mask", at_least(1))
    unet_width: int = setting(EQUAL.width, "channels at the top of the U-Net", at_least(1))
    unet_steps: int = setting(EQUAL.max_steps, "steps of every U-Net", at_least(1))
    unet_batch: int = setting(EQUAL.batch_size, "windows per step", at_least(2))
    unet_crop: tuple[int, int] = setting(EQUAL.crop, "the U-Nets' window in pixels", size, metavar="WxH")
    unet_learning_rate: float = setting(
        EQUAL.learning_rate, "the U-Nets' highest learning rate", at_least(0.0, float), "--unet-lr", metavar="LR"
    )
    class_balance: float = setting(
        EQUAL.class_balance, "weight of rare classes in the U-Nets' loss", at_least(0.0, float), metavar="SHARE"
    )
    validations: int = setting(LOOKS, "looks at the validation slices; the best is tested", at_least(1))
    crop: tuple[int, int] | None = setting(None, "ControlNet's window in pixels", size, metavar="WxH")

    def preset(self) -> Preset:
        """The study that these settings ask for."""
        budget = replace(
            EQUAL,
            width=self.unet_width,
            max_steps=self.unet_steps,
            batch_size=self.unet_batch,
            crop=self.unet_crop,
            learning_rate=self.unet_learning_rate,
            class_balance=self.class_balance,
            validate_every=self.unet_steps // self.validations,
        )
        return Preset(
            "demo",
            ("demo",),
            {"demo": budget},
            ratios=(float(self.per_mask),),
            scarce=(),
            scarce_ratio=0.0,
            slices=self.slices,
            redraws=self.redraws,
            seeds=self.seeds,
            seed=self.seed,
            controlnet_steps=self.controlnet_steps,
            crop=self.crop,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `demo`."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/demo"), help="run folder; a stopped demo goes on in it")
    add("--data", type=Path, help="prepared data root to draw slices from (default: a phantom)")
    add("--backbone", default="auto", help="auto, embedded, a diffusers folder, a .safetensors file, or a hub id")
    add_settings(parser, DemoSettings)
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--jobs", type=at_least(1), metavar="N", help=JOBS)


def run(args: argparse.Namespace) -> None:
    """The verb `demo`."""
    settings = settings_from(args, DemoSettings)
    if settings.validations > settings.unet_steps:
        raise InputError(f"--validations {settings.validations} are more than --unet-steps {settings.unet_steps}")
    preset = settings.preset()
    where, pool = "the phantom", preset.phantom.train
    if args.data:
        from natural2nanoscale.data.folders import open_pairs

        where = data_root(args.data) / "train"
        pool = len(open_pairs(where).stems)
    if pool < settings.slices:
        raise InputError(f"{where} has {pool} slices, expected at least --slices {settings.slices}: ask for fewer")
    run_study(preset, Place(args.out, args.data, args.backbone, args.device, args.jobs), asdict(settings))
