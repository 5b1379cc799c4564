"""The verbs: `python -m natural2nanoscale [VERB]`; without one, the demo."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from types import ModuleType

from natural2nanoscale.cli import Parser
from natural2nanoscale.guard import main_guard

VERBS = {  # verb -> module with add_arguments(parser) and run(args), and what it is for
    "demo": ("verbs.demo", "the whole loop at embedded scale, from a few slices to a table (the default)"),
    "experiments": ("verbs.experiments", "the paper's tables and figures with their controls, on any data root"),
    "calibrate": ("verbs.calibrate", "how much to mix synthetic slices in, if at all: a choice on validation slices"),
    "phantom": ("verbs.phantom", "write the embedded dataset, a procedural FIB-SEM phantom"),
    "prepare": ("verbs.prepare", "turn EM files and masks into train/, val/ and test/ pair folders"),
    "check": ("verbs.check", "look over a data root before training, without a GPU"),
    "evaluate": ("verbs.evaluate", "score a U-Net run on any pair folder"),
    "segment": ("verbs.segment", "mask every slice of a folder or stack with the U-Nets of a run"),
    "export": ("verbs.export", "write slices as nnU-Net or plain folders, U-Nets as ONNX"),
    "convert": ("verbs.convert", "turn a ControlNet's original file into a diffusers folder"),
    "backbone": ("verbs.backbone", "train the embedded backbone on dead-leaves images"),
}


def module_of(verb: str) -> ModuleType:
    return import_module(f"natural2nanoscale.{VERBS[verb][0]}")


def parse_arguments() -> argparse.Namespace:
    """Only the verb that was asked for builds its arguments, so that help does not wait for imports."""
    words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["demo", *words]
    parser = Parser(prog="natural2nanoscale", description=__doc__.splitlines()[0])
    choices = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (_, text) in VERBS.items():
        sub = choices.add_parser(verb, help=text, description=text)
        if verb == words[0]:
            module_of(verb).add_arguments(sub)
    return parser.parse_args(words)


def main() -> None:
    main_guard(parse_arguments, lambda args: module_of(args.verb).run(args))


if __name__ == "__main__":
    main()
