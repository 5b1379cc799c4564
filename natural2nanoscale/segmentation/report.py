"""What a U-Net run scored: report.json, which every table reads, report.md for people, and the model card."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from natural2nanoscale.cli import command
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.data.roots import TRANSDUCTIVE
from natural2nanoscale.files import write_json, write_text
from natural2nanoscale.runs import environment
from natural2nanoscale.segmentation.metrics import percent
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.text import markdown_table, markdown_text, printable

LEAKS = {
    "random": "Slices were split at random: neighbours in a stack are in training and test, which flatters scores.",
    "block": "Test slices are a block of the same stack: the score says nothing about other samples.",
    "group": "Whole groups (animals, samples) were held out for the test.",
}


def write_report(out: Path, report: dict) -> None:
    """Write report.json and report.md into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    write_text(out / "report.md", markdown(report))


def verdict(report: dict) -> str:
    """One line: what the run scored on what."""
    return (
        f"mIoU {percent(report['miou_mean'], report['miou_std'])} % over {len(report['seeds'])} seed(s) "
        f"on the {report['slices']} slices of {printable(report['data'])}"
    )


def class_table(report: dict) -> list[str]:
    """IoU and Dice of every class over the seeds, as lines of Markdown."""
    rows = []
    for entry in report["per_class"]:
        scores = (percent(entry[f"{kind}_mean"], entry[f"{kind}_std"]) for kind in ("iou", "dice"))
        rows.append([entry["name"], *scores])
    return markdown_table(["class", "IoU", "Dice"], rows)


def markdown(report: dict) -> str:
    """report.md: the verdict first, then classes, seeds, confusions and the hardest slices."""
    seeds, names = report["seeds"], [entry["name"] for entry in report["per_class"]]
    precision = " and ".join(sorted({seed["precision"] for seed in seeds}))
    lines = [f"**{markdown_text(verdict(report))}**", ""]
    lines += [f"All in per cent, of U-Nets in {precision}; ± is the sample standard deviation over seeds.", ""]
    lines += [TRANSDUCTIVE, ""] if report.get("transductive") else []
    lines += [*class_table(report), ""]
    rows = []
    for seed in seeds:
        best = seed["trained"]["best"]
        rows.append([str(seed["seed"]), percent(seed["miou"]), str(best["step"]), percent(best["val_miou"])])
    lines += [*markdown_table(["seed", "mIoU", "best step", "validation mIoU"], rows), ""]
    lines += ["Share of each true class (rows) that was predicted as (columns), all seeds together:", ""]
    pooled = torch.tensor([seed["confusion"] for seed in seeds]).sum(0).double()
    shares = (pooled / pooled.sum(1, keepdim=True)).tolist()
    rows = [[name, *(percent(x) if x == x else "–" for x in row)] for name, row in zip(names, shares, strict=True)]
    lines += [*markdown_table(["", *names], rows), ""]
    images = [(row["miou"], row["image"], seed["seed"]) for seed in seeds for row in seed["images"]]
    hardest = sorted(row for row in images if row[0] is not None)[:5]
    rows = [[image, str(seed), percent(miou)] for miou, image, seed in hardest]
    return "\n".join([*lines, *markdown_table(["hardest slices", "seed", "mIoU"], rows), ""])


def model_card(run: Path, report: dict, folders: dict[str, PairFolder], training: Slices, settings: Settings) -> str:
    """The model card in Markdown: what the networks do, what they learned from, how well, and where to be careful.

    `report` is evaluate_run's; `folders` are train, test and, where used, synthetic."""
    train, info = folders["train"], folders["train"].info
    names = markdown_text(", ".join(info.classes.names))
    (height, width), window = max(training.shapes, key=math.prod), info.intensity_window
    converted = "grey values {:g} to {:g}, which became 0 to 255"
    greys = converted.format(*window) if window else "8-bit grey values as they are"
    scale = f"{info.pixel_size_nm:g} nm per pixel" if info.pixel_size_nm else "pixel size not stated"
    synthetic = len(training) - training.real
    sources = [f"{training.real} annotated slices of {info.name} ({train.path})"] if training.real else []
    if synthetic:
        made = folders["synthetic"].info.split
        sources.append(
            f"{synthetic} synthetic slices ({folders['synthetic'].path}), drawn from the masks of "
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
        *(f"- {markdown_text(source)}" for source in sources),
        f"- slices of up to {width}x{height} pixels, {scale}; {greys}",
        f"- augmentation: {settings.augment}; steps taken: {steps}; the weights are those of step {best}, the best by "
        f"validation {settings.select_by}; batches of {settings.batch_size}, learning rate {settings.learning_rate:g}",
        "",
        "## How well",
        "",
        f"{markdown_text(verdict(report))}. Single networks; `segment` averages their probabilities.",
        "",
        *class_table(report),
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
    if report.get("transductive"):
        lines.append(f"- {TRANSDUCTIVE}")
    return "\n".join([*lines, "", f"Made with {versions}.", ""])
