"""The verb `demo`: the whole loop at embedded scale, from a few slices to a table; a small study."""

from __future__ import annotations

import argparse
from pathlib import Path

from natural2nanoscale.cli import flags_of
from natural2nanoscale.study.presets import PRESETS, Preset
from natural2nanoscale.verbs import experiments

run = experiments.run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    demo = PRESETS["demo"]
    experiments.add_study_arguments(parser)
    parser.set_defaults(preset="demo", out=Path("runs/demo"))
    parser.set_defaults(**{name: getattr(demo, name) for name in flags_of(Preset)})
    parser.set_defaults(
        **{name: getattr(demo.budgets[demo.budget], field) for name, field in experiments.OF_UNETS.items()}
    )
