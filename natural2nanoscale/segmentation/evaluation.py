"""Scores of a U-Net run on a pair folder: report.json, which every table reads, and report.md for people."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs
from natural2nanoscale.data.roots import learned_by_run, refuse_unfit
from natural2nanoscale.device import select_device
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import write_json, write_text
from natural2nanoscale.records import read_config
from natural2nanoscale.runs import mean_std
from natural2nanoscale.segmentation.batches import DeviceSlices
from natural2nanoscale.segmentation.inference import predict_mask, slices_at_once
from natural2nanoscale.segmentation.metrics import confusion, dice, iou, jsonable, miou, percent
from natural2nanoscale.segmentation.slices import Slices, load_slices
from natural2nanoscale.segmentation.unet import WEIGHTS_NAME, UNet, load_unet, move_to
from natural2nanoscale.text import markdown_text, printable


@torch.inference_mode()
def image_matrices(model: UNet, slices: Slices, device: torch.device) -> torch.Tensor:
    """Confusion matrix of every slice on its own: (N,K,K) int64 on the CPU. Their sum is that of the set."""
    model = move_to(model, device).eval()
    pool = DeviceSlices(slices, device)
    micro_batch = slices_at_once(slices.shapes, model.width, device)
    matrices = torch.zeros(len(slices), model.classes, model.classes, dtype=torch.int64)
    for start in range(0, len(slices), micro_batch):
        for positions, _, grey, masks in pool.groups(torch.arange(start, min(start + micro_batch, len(slices)))):
            for position, mask, prediction in zip(positions, masks, predict_mask([model], grey), strict=True):
                matrices[start + position] = confusion(mask, prediction, model.classes).cpu()
    return matrices


def score(matrices: torch.Tensor, names: Sequence[str]) -> dict:
    """One network's scores: pooled matrix, IoU and Dice per class, mIoU, and a row per slice."""
    pooled = matrices.sum(0)
    return {
        "miou": miou(pooled).item(),
        "iou": jsonable(iou(pooled)),
        "dice": jsonable(dice(pooled)),
        "confusion": pooled.tolist(),
        "images": [
            {"image": name, "miou": jsonable(iou(matrix).nanmean()[None])[0], "iou": jsonable(iou(matrix))}
            for name, matrix in zip(names, matrices, strict=True)
        ],
    }


def summarize(seeds: Sequence[dict], classes: Classes) -> dict:
    """Mean and sample standard deviation (null for one seed) over the `score`s of several seeds."""
    miou_mean, miou_std = mean_std([seed["miou"] for seed in seeds])
    per_class = []
    for class_id, name in enumerate(classes.names):
        entry: dict = {"id": class_id, "name": name}
        for kind in ("iou", "dice"):
            values = [seed[kind][class_id] for seed in seeds if seed[kind][class_id] is not None]
            entry[f"{kind}_mean"], entry[f"{kind}_std"] = mean_std(values) if values else (None, None)
        per_class.append(entry)
    return {"miou_mean": miou_mean, "miou_std": miou_std, "per_class": per_class}


def trained_seeds(run: Path) -> list[Path]:
    """The best/ folders of the seeds that a run's config names; InputError unless all of them are trained."""
    config = read_config(Path(run))
    try:
        if config.get("kind") != "unet":
            raise ValueError(f"its config.json says {config.get('kind')}" if config else "it has no config.json")
        settings = config["settings"]
        seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run} is no U-Net run ({error}): train one with `python train_unet.py`") from error
    folders = [Path(run) / f"seed-{seed}" / "best" for seed in seeds]
    missing = [str(folder) for folder in folders if not (folder / WEIGHTS_NAME).is_file()]
    if missing:
        raise InputError(f"{run} is not trained to its end, {missing[0]} is missing: go on with --resume")
    return folders


def evaluate_run(run: Path, folder: PairFolder, device: torch.device) -> dict:
    """Score every seed of a run on a pair folder; the returned report is what report.json holds.

    Raises InputError when the run is incomplete, its classes or grey window are not those of the folder, or one of the
    folder's slices was learned from.
    """
    started = time.monotonic()
    networks = [(best, *load_unet(best, device)) for best in trained_seeds(run)]
    knows = networks[0][2]
    names_agree = knows.classes.names == folder.info.classes.names  # a U-Net never sees the colours
    info = replace(
        folder.info,
        classes=folder.info.classes if names_agree else knows.classes,
        intensity_window=knows.intensity_window,
    )
    refuse_unfit([learned_by_run(run, info)], [folder])
    slices = load_slices(folder)
    if all((mask >= slices.classes.count).all() for mask in slices.masks):
        raise InputError(f"no pixel of {folder.path}/masks carries a label, expected some to score on")
    seeds = []
    for best, model, info in networks:
        scores = score(image_matrices(model, slices, device), folder.stems)
        facts = {"seed": info.trained["seed"], "weights": str(best), "precision": model.precision}
        seeds.append(facts | {"trained": info.trained} | scores)
    facts = {"run": str(run), "data": str(folder.path), "dataset": folder.info.name}
    facts |= {"data_fingerprint": fingerprint(folder), "slices": len(slices)}
    summary = summarize(seeds, slices.classes)
    return facts | summary | {"seeds": seeds, "seconds": round(time.monotonic() - started, 1)}


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


def markdown(report: dict) -> str:
    """report.md: the verdict first, then classes, seeds, confusions and the hardest slices."""
    names = [markdown_text(entry["name"]) for entry in report["per_class"]]
    lines = [f"**{markdown_text(verdict(report))}**", ""]
    precision = " and ".join(sorted({seed["precision"] for seed in report["seeds"]}))
    lines += [f"All numbers in per cent, of U-Nets in {precision}; ± is the sample standard deviation over seeds."]
    lines += ["", "| class | IoU | Dice |", "|---|--:|--:|"]
    for name, entry in zip(names, report["per_class"], strict=True):
        scores = [percent(entry[f"{kind}_mean"], entry[f"{kind}_std"]) for kind in ("iou", "dice")]
        lines.append(f"| {name} | {scores[0]} | {scores[1]} |")
    lines += ["", "| seed | mIoU | best step | validation mIoU |", "|--:|--:|--:|--:|"]
    for seed in report["seeds"]:
        best = seed["trained"]["best"]
        scores = [percent(seed["miou"]), str(best["step"]), percent(best["val_miou"])]
        lines.append(f"| {seed['seed']} | {' | '.join(scores)} |")
    lines += ["", "Share of each true class (rows) that was predicted as (columns), all seeds together:", ""]
    lines += [f"| | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    pooled = torch.tensor([seed["confusion"] for seed in report["seeds"]]).sum(0).double()
    for name, row in zip(names, pooled, strict=True):
        shares = [percent(share) for share in (row / row.sum()).tolist()] if row.sum() else ["–"] * len(names)
        lines.append(f"| {name} | {' | '.join(shares)} |")
    hardest = sorted(
        (row["miou"], row["image"], seed["seed"])
        for seed in report["seeds"]
        for row in seed["images"]
        if row["miou"] is not None
    )[:5]
    lines += ["", "| hardest slices | seed | mIoU |", "|---|--:|--:|"]
    lines += [f"| {markdown_text(image)} | {seed} | {percent(miou)} |" for miou, image, seed in hardest]
    return "\n".join(lines) + "\n"


def run_evaluate(args: argparse.Namespace) -> None:
    """The verb `evaluate`: score a run on --data, write both reports, print the readable one."""
    folder = open_pairs(args.data / "test" if (args.data / "test").is_dir() else args.data)
    report = evaluate_run(args.run, folder, select_device(args.device))
    hash_ = report["data_fingerprint"]
    out = args.out or args.run / f"evaluate-{'-'.join(folder.path.resolve().parts[-2:])}-{hash_[:8]}"
    write_report(out, report)
    print(markdown(report))
    used = read_config(args.run)["data"]
    for part in ("val", "synthetic"):
        if used.get(part) == hash_:
            print(f"note: these are the {part} slices of the run: the scores say nothing about new ones")
    print(f"written to {out}/report.json and report.md")
