"""The model card of a U-Net run: what the networks do, what they learned from, how well, and where to be careful."""

from __future__ import annotations

import math
from pathlib import Path

from natural2nanoscale.cli import command
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.runs import environment
from natural2nanoscale.segmentation.evaluation import verdict
from natural2nanoscale.segmentation.metrics import percent
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.text import markdown_text

LEAKS = {
    "random": "Slices were split at random: neighbours in a stack are in training and test, which flatters scores.",
    "block": "Test slices are a block of the same stack: the score says nothing about other samples.",
    "group": "Whole groups (animals, samples) were held out for the test.",
}


def model_card(run: Path, report: dict, folders: dict[str, PairFolder], training: Slices, settings: Settings) -> str:
    """The card in Markdown. `report` is evaluate_run's; `folders` are train, test and, where used, synthetic."""
    train, info = folders["train"], folders["train"].info
    names = markdown_text(", ".join(info.classes.names))
    (height, width), window = max(training.shapes, key=math.prod), info.intensity_window
    greys = "8-bit grey values as they are"
    if window:
        greys = f"grey values {window[0]:g} to {window[1]:g}, which became 0 to 255"
    scale = f", {info.pixel_size_nm:g} nm per pixel" if info.pixel_size_nm else ", pixel size not stated"
    synthetic = len(training) - training.real
    origin = markdown_text(f"{info.name} ({train.path})")
    sources = [f"{training.real} annotated slices of {origin}"] if training.real else []
    if synthetic:
        made = folders["synthetic"].info.split
        sources.append(
            f"{synthetic} synthetic slices ({markdown_text(str(folders['synthetic'].path))}), drawn from the masks of "
            f"{(made.get('source') or {}).get('part', 'another folder')}/ by the ControlNet "
            f"{str(made.get('controlnet'))[:12]} over the backbone {str(made.get('backbone'))[:12]}"
        )
    steps = ", ".join(f"{seed['trained']['steps']}" for seed in report["seeds"])
    best = ", ".join(f"{seed['trained']['best']['step']}" for seed in report["seeds"])
    versions = ", ".join(f"{name} {version}" for name, version in environment()["versions"].items() if version)
    neighbours = " Nothing lies between training and test: neighbours leak." if info.split.get("gap") == 0 else ""
    rule = info.split.get("rule")
    lines = [
        f"# U-Nets for {names}",
        "",
        f"{len(report['seeds'])} U-Net(s) of width {settings.width} and depth {settings.depth} that give every pixel "
        f"of a grey EM slice one of {info.classes.count} classes: {names} (ids 0 to {info.classes.count - 1}).",
        "",
        "```bash",
        command("python -m natural2nanoscale segment", run, images="slices/", out="masks"),
        command("python -m natural2nanoscale evaluate", run, data="DIR"),
        "```",
        "",
        "## What they learned from",
        "",
        *(f"- {source}" for source in sources),
        f"- slices of up to {width}x{height} pixels{scale}; {greys}",
        f"- augmentation: {settings.augment}; steps taken: {steps}; the weights are those of step {best}, the best by "
        f"validation {settings.select_by}; batches of {settings.batch_size}, learning rate {settings.learning_rate:g}",
        "",
        "## How well",
        "",
        f"{markdown_text(verdict(report))}. Single networks; `segment` averages their probabilities.",
        "",
        "| class | IoU | Dice |",
        "|---|--:|--:|",
        *(
            f"| {markdown_text(entry['name'])} | {percent(entry['iou_mean'], entry['iou_std'])} "
            f"| {percent(entry['dice_mean'], entry['dice_std'])} |"
            for entry in report["per_class"]
        ),
        "",
        "## Where to be careful",
        "",
        f"- {LEAKS.get(rule, 'How training and test slices were separated is not stated.')}{neighbours}",
        "- They know one data set. Another microscope, staining, pixel size or grey scale is another task: annotate a "
        "few such slices and score on them before any count is believed.",
        "- They judge slices one by one: neighbouring masks of a volume may disagree.",
    ]
    if synthetic:
        lines.append(
            "- Synthetic slices took part. What their generator draws wrongly is learned as well: compare with a run "
            "on the real slices alone, at equal steps."
        )
    return "\n".join([*lines, "", f"Made with {versions}.", ""])
