"""Scores of U-Nets on slices: of one network, and of every seed of a run on a pair folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import PairFolder, fingerprint
from natural2nanoscale.data.roots import learned_by_run, refuse_unfit
from natural2nanoscale.errors import InputError
from natural2nanoscale.records import read_config
from natural2nanoscale.segmentation.batches import DeviceSlices
from natural2nanoscale.segmentation.inference import predict_mask, slices_at_once
from natural2nanoscale.segmentation.metrics import confusion, dice, iou, jsonable, mean_std, miou
from natural2nanoscale.segmentation.slices import Slices, load_slices, refuse_unlabelled
from natural2nanoscale.segmentation.unet import WEIGHTS_NAME, UNet, load_unet, move_to


@torch.inference_mode()
def image_matrices(model: UNet, slices: Slices, device: torch.device) -> torch.Tensor:
    """Confusion matrix of every slice on its own: (N,K,K) int64 on the CPU. Their sum is that of the set."""
    model = move_to(model, device).eval()
    matrices = torch.zeros(len(slices), model.classes, model.classes, dtype=torch.int64)
    at_once = slices_at_once(slices.shapes, model.width, device)
    for indices, grey, masks in DeviceSlices(slices, device).batches(at_once):
        for index, mask, prediction in zip(indices, masks, predict_mask([model], grey), strict=True):
            matrices[index] = confusion(mask, prediction, model.classes).cpu()
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
            entry[f"{kind}_mean"], entry[f"{kind}_std"] = mean_std(values)
        per_class.append(entry)
    return {"miou_mean": miou_mean, "miou_std": miou_std, "per_class": per_class}


def trained_seeds(run: Path) -> list[Path]:
    """The best/ folders of the seeds that a run's config names; InputError unless all of them are trained."""
    config = read_config(Path(run))
    kind, settings = config.get("kind"), config.get("settings", {})
    if kind != "unet" or not {"seed", "seeds"} <= settings.keys():
        said = f"its config.json says {kind}" if config else "it has no config.json"
        said += " and no seeds" * (kind == "unet")
        raise InputError(f"{run} is no U-Net run ({said}): train one with `python train_unet.py`")
    folders = [Path(run) / f"seed-{settings['seed'] + i}" / "best" for i in range(settings["seeds"])]
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
    knows, classes = networks[0][2], folder.info.classes
    classes = classes if knows.classes.names == classes.names else knows.classes  # a U-Net never sees the colours
    info = replace(folder.info, classes=classes, intensity_window=knows.intensity_window)
    learned = learned_by_run(run, info)
    refuse_unfit([learned], [folder])
    slices = load_slices(folder)
    refuse_unlabelled(slices, str(folder.path))
    seeds = []
    for best, model, info in networks:
        scores = score(image_matrices(model, slices, device), folder.stems)
        facts = {"seed": info.trained["seed"], "weights": str(best), "precision": model.precision}
        seeds.append(facts | {"trained": info.trained} | scores)
    facts = {"run": str(run), "data": str(folder.path), "dataset": folder.info.name}
    facts |= {"data_fingerprint": fingerprint(folder), "slices": len(slices), "transductive": learned.transductive}
    summary = summarize(seeds, slices.classes)
    return facts | summary | {"seeds": seeds, "seconds": round(time.monotonic() - started, 1)}
