"""The whole loop at embedded scale: slices, ControlNet, synthesis, U-Nets under equal budgets, and a table."""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from natural2nanoscale.cli import data_root
from natural2nanoscale.data.contact import colored, sheet
from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs, write_json, write_pairs
from natural2nanoscale.data.phantom import PhantomSettings, write_phantom
from natural2nanoscale.diffusion.backbone import Backbone, backbone_name, load_backbone
from natural2nanoscale.diffusion.command import controlnet_config, fitting_crop, read_prompts
from natural2nanoscale.diffusion.sampling import SamplingSettings
from natural2nanoscale.diffusion.saving import load_trained
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.training import MAY_CHANGE, FineTuning, fine_tune
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import Interrupted, RunFolder, open_run, permutation_for, seed_for, select_device
from natural2nanoscale.segmentation.evaluation import image_matrices, score
from natural2nanoscale.segmentation.mixing import combine, load_slices
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.training import train
from natural2nanoscale.study.table import markdown

CONDITIONS = (  # name, with real slices, with synthetic slices, U-Net augmentation
    ("real", True, False, "none"),
    ("synthetic", False, True, "none"),
    ("real + rotation", True, False, "rotation"),
    ("real + synthetic", True, True, "none"),
    ("real + synthetic + rotation", True, True, "rotation"),
)
JUDGE = "real + rotation"  # its U-Nets also label the synthetic slices


@dataclass(frozen=True)
class DemoSettings:
    """Budgets of the demo: every U-Net takes equally many steps of equally many slices."""

    slices: int = 8  # annotated slices: all that ControlNet and the U-Nets learn from
    redraws: int = 1  # repetitions with other slices, another ControlNet and other synthetic slices
    seeds: int = 3  # U-Nets per condition and redraw
    seed: int = 0
    controlnet_steps: int = 900
    per_mask: int = 8  # synthetic slices per annotated one
    unet_width: int = 8
    unet_steps: int = 200
    unet_batch: int = 4  # windows per step; half of them real where real and synthetic are mixed
    unet_crop: tuple[int, int] = (112, 112)  # width, height in pixels: as many steps of whole slices cost more
    unet_learning_rate: float = 3e-3
    class_balance: float = 0.5  # without it, so short a training may never find the nuclei, with any training set
    validations: int = 8  # the best of them, by validation mIoU, is what the test slices see


def run_demo(args: argparse.Namespace) -> None:
    """Run or continue the demo in args.out; print the table and write report.md and the pictures."""
    started = time.monotonic()
    settings = DemoSettings(
        args.slices, args.redraws, args.seeds, args.seed, args.controlnet_steps, args.per_mask,
        args.unet_width, args.unet_steps, args.unet_batch, args.unet_crop, args.unet_lr, args.class_balance,
        args.validations,
    )  # fmt: skip
    if settings.validations > settings.unet_steps:
        raise InputError(f"--validations {settings.validations} are more than --unet-steps {settings.unet_steps}")
    device = select_device(args.device)
    root = data_root(args.data) if args.data else None
    origin = "phantom" if root is None else open_pairs(root / "train").info.origin
    name = backbone_name(args.backbone, origin)
    backbone = load_backbone(name, device)
    config = {
        "kind": "demo",
        "settings": asdict(settings) | {"crop": args.crop},
        "backbone": backbone.fingerprint,
        "data": {part: fingerprint(open_pairs(root / part)) for part in ("train", "val", "test")} if root else {},
    }
    run = open_run(args.out, config, (args.out / "config.json").is_file(), ("redraws", "seeds"))
    run.drop_log_after(0)  # rows have no step: this only drops a line that a kill cut short
    try:
        for redraw in range(settings.redraws):
            folder = run.path / f"redraw-{redraw}"
            folders = draw_folders(folder, root, settings, redraw)
            synthetic = make_synthetic(folder, backbone, folders, settings, redraw, args.crop)
            compare(run, folders | {"synthetic": synthetic}, settings, redraw, device)
            picture_row(folder.with_suffix(".png"), folders["train"], synthetic)
    except Interrupted:
        raise Interrupted(f"in {run.path}: the same command goes on there") from None
    rows = run.read_log()
    report = markdown(rows, asdict(settings), asdict(sampling_settings(backbone)), name, folders)
    (run.path / "report.md").write_text(report, encoding="utf-8")
    write_json(run.path / "results.json", rows)
    print(f"\n{report}\n{run.path}/report.md, {run.path}/redraw-0.png; {time.monotonic() - started:.0f} s")


def draw_folders(out: Path, root: Path | None, settings: DemoSettings, redraw: int) -> dict[str, PairFolder]:
    """train (the few slices that were drawn), val and test of one redraw.

    Without a data root each redraw has a phantom of its own; with one it draws other training slices.
    """
    if root is None:
        root = out / "phantom"
        if not root.exists():
            write_phantom(root, PhantomSettings(seed=settings.seed + redraw))
    pool = open_pairs(root / "train")
    if len(pool.stems) < settings.slices:
        raise InputError(f"{root}/train has {len(pool.stems)} slices, expected at least --slices {settings.slices}")
    if not (out / "train" / "dataset.json").is_file():
        shutil.rmtree(out / "train", ignore_errors=True)  # half written when a demo was killed
        order = permutation_for(len(pool.stems), settings.seed, "slices", redraw)
        chosen = [pool.stems[i] for i in sorted(order[: settings.slices])]
        write_pairs(out / "train", pool.info, ((stem, pool.image(stem), pool.mask(stem)) for stem in chosen))
    return {"train": open_pairs(out / "train")} | {part: open_pairs(root / part) for part in ("val", "test")}


def sampling_settings(backbone: Backbone) -> SamplingSettings:
    """The defaults, with what the backbone recommends."""
    return SamplingSettings(strength=backbone.recommended.strength, start=backbone.recommended.start)


def make_synthetic(
    out: Path,
    backbone: Backbone,
    folders: dict[str, PairFolder],
    settings: DemoSettings,
    redraw: int,
    crop: tuple[int, int] | None,
) -> PairFolder:
    """Fine-tune a ControlNet on the drawn slices and draw new ones from their masks, or go on with both."""
    prompts = read_prompts(None)
    tuning = FineTuning(
        crop=fitting_crop(crop or backbone.recommended.crop, backbone),
        learning_rate=backbone.recommended.learning_rate,
        max_weight=backbone.recommended.max_weight,
        max_steps=settings.controlnet_steps,
        seed=settings.seed + redraw,
        checkpoint_every=300,
        sample_every=300,
    )
    begun = RunFolder(out / "controlnet").load_checkpoint() is not None
    if not begun:  # new, or stopped before its first checkpoint
        shutil.rmtree(out / "controlnet", ignore_errors=True)
    config = controlnet_config(tuning, backbone, prompts, folders["train"], folders["val"])
    run = open_run(out / "controlnet", config, begun, MAY_CHANGE)
    fine_tune(run, backbone, folders["train"], folders["val"], prompts, tuning, begun)
    controlnet, backbone = load_trained(out / "controlnet", backbone)
    synthesize(
        out / "synthetic",
        backbone,
        controlnet,
        folders["train"],
        prompts,
        sampling_settings(backbone),
        settings.per_mask,
        seed=settings.seed + redraw,
    )
    return open_pairs(out / "synthetic")


def compare(
    run: RunFolder,
    folders: dict[str, PairFolder],
    settings: DemoSettings,
    redraw: int,
    device: torch.device,
) -> None:
    """Train and score a U-Net for every condition and seed; each result is a line of the demo's log."""
    slices = {part: load_slices(folder) for part, folder in folders.items()}
    done = {(row["redraw"], row["condition"], row["seed"]) for row in run.read_log()}
    for condition, with_real, with_synthetic, augment in CONDITIONS:
        training = combine(
            slices["train"] if with_real else None,
            slices["synthetic"] if with_synthetic else None,
            settings.per_mask,
            len(slices["train"]),
        )
        for seed in range(settings.seeds):
            if (redraw, condition, seed) in done:
                continue
            trained = train(
                training,
                slices["val"],
                Settings(
                    width=settings.unet_width,
                    max_steps=settings.unet_steps,
                    batch_size=settings.unet_batch,
                    full_batches=True,
                    balance=0.5 if with_real and with_synthetic else None,
                    augment=augment,
                    crop=settings.unet_crop,
                    learning_rate=settings.unet_learning_rate,
                    class_balance=settings.class_balance,
                    validate_every=settings.unet_steps // settings.validations,
                    patience=0,
                    select_by="miou",
                    seed=seed_for(settings.seed, redraw, "unet", seed),
                ),
                device,
            )
            matrices = image_matrices(trained.model, slices["test"], device)
            scores = score(matrices, folders["test"].stems)
            row = {"redraw": redraw, "condition": condition, "seed": seed, "validation": trained.best["val_miou"]}
            row |= {key: scores[key] for key in ("miou", "iou", "confusion")}
            if condition == JUDGE:  # do the synthetic slices show what their masks say?
                agreement = score(
                    image_matrices(trained.model, slices["synthetic"], device), folders["synthetic"].stems
                )
                row["synthetic_iou"] = agreement["iou"]
            run.log(row | {"images": matrices.tolist()})


def picture_row(path: Path, train_folder: PairFolder, synthetic: PairFolder, count: int = 3) -> None:
    """real | mask | synthetic for a few of the masks."""
    rows = []
    for stem in train_folder.stems[:: max(1, len(train_folder.stems) // count)][:count]:
        mask = colored(train_folder.mask(stem), train_folder.info.classes)
        rows.append([train_folder.image(stem), mask, synthetic.image(f"{stem}_s000")])
    sheet(rows, path, ["real", "mask", "synthetic"])
