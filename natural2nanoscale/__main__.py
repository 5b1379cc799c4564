"""The verbs: `python -m natural2nanoscale [VERB]`; without one, the demo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from natural2nanoscale.cli import Parser, add_settings, at_least, main_guard

VERBS = {
    "demo": "the whole loop at embedded scale, from a few slices to a table (the default)",
    "experiments": "the paper's tables and figures with their controls, on any data root",
    "phantom": "write the embedded dataset, a procedural FIB-SEM phantom",
    "prepare": "turn EM files and masks into train/, val/ and test/ pair folders",
    "check": "look over a data root before training, without a GPU",
    "evaluate": "score a U-Net run on any pair folder",
    "segment": "mask every slice of a folder or stack with the U-Nets of a run",
    "convert": "turn a ControlNet's original file into a diffusers folder",
    "backbone": "train the embedded backbone on dead-leaves images",
}


def parse_arguments() -> argparse.Namespace:
    """Only the verb that was asked for builds its arguments, so that help does not wait for imports."""
    verb = next((word for word in sys.argv[1:2] if word in VERBS), "demo")
    parser = Parser(prog="natural2nanoscale", description=__doc__.splitlines()[0])
    choices = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, text in VERBS.items():
        sub = choices.add_parser(name, help=text, description=text)
        if name == verb:
            add_arguments(name, sub)
    words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["demo", *words]
    return parser.parse_args(words)


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    if verb == "demo":
        from natural2nanoscale.study.demo import add_arguments as add

        add(parser)
    elif verb == "experiments":
        from natural2nanoscale.study.experiments import add_arguments as add

        add(parser)
    elif verb == "phantom":
        from natural2nanoscale.phantom.volume import add_arguments as add

        add(parser)
    elif verb == "prepare":
        from natural2nanoscale.data.prepare import add_arguments as add

        add(parser)
    elif verb == "check":
        from natural2nanoscale.data.check import add_arguments as add

        add(parser)
    elif verb == "evaluate":
        parser.add_argument("run", type=Path, help="folder of a U-Net run")
        parser.add_argument("--data", type=Path, required=True, help="pair folder, or root of a test/")
        parser.add_argument("--out", type=Path, help="folder for both reports (default: inside RUN)")
        parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    elif verb == "segment":
        add = parser.add_argument
        add("run", type=Path, help="folder of a U-Net run; the probabilities of its networks are averaged")
        add("--images", type=Path, required=True, metavar="PATH", help="folder of PNG or TIFF slices, or a TIFF stack")
        add("--out", type=Path, required=True, metavar="DIR", help="folder for masks/; a stopped call goes on in it")
        add("--max-pixels", type=at_least(1), default=100_000_000, metavar="N",
            help="refuse larger slices, which take long and may be bombs (default: %(default)s)")  # fmt: skip
        add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    elif verb == "convert":
        parser.add_argument("file", type=Path, help=".safetensors, .ckpt or .pth of a ControlNet")
        parser.add_argument("--out", type=Path, required=True, help="new folder, for --controlnet-init of a training")
    elif verb == "backbone":
        from natural2nanoscale.workshop.recipe import PretrainingSettings

        add = parser.add_argument
        add("--out", type=Path, required=True, help="run folder; the backbone itself is written to OUT/backbone")
        add("--vae", type=Path, metavar="FOLDER", help="backbone whose VAE to keep, instead of training one")
        add_settings(parser, PretrainingSettings)
        add("--device", default="auto", help="auto, cpu or cuda")
        add("--resume", action="store_true", help="go on from the last checkpoint in OUT")


def main() -> None:
    main_guard(parse_arguments, run_verb)


def run_verb(args: argparse.Namespace) -> None:
    if args.verb == "demo":
        from natural2nanoscale.study.demo import run
    elif args.verb == "experiments":
        from natural2nanoscale.study.experiments import run
    elif args.verb == "phantom":
        from natural2nanoscale.phantom.volume import run
    elif args.verb == "prepare":
        from natural2nanoscale.data.prepare import run
    elif args.verb == "check":
        from natural2nanoscale.data.check import run
    elif args.verb == "evaluate":
        from natural2nanoscale.segmentation.evaluation import run_evaluate as run
    elif args.verb == "segment":
        from natural2nanoscale.segmentation.segment import run_segment as run
    elif args.verb == "convert":
        from natural2nanoscale.diffusion.convert import run
    else:
        from natural2nanoscale.workshop.pretraining import run
    run(args)


if __name__ == "__main__":
    main()
