"""Mixing that does not hurt: candidates are tried on validation slices, real slices alone among them."""

from __future__ import annotations

import math
import signal
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from diffusers import ControlNetModel

from natural2nanoscale.cli import command
from natural2nanoscale.data.calibrated import FILE
from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs
from natural2nanoscale.data.roots import data_root, learned_by_run, learned_from_folder, learned_json, refuse_unfit
from natural2nanoscale.device import select_device
from natural2nanoscale.diffusion.backbone import Backbone, weights_hash
from natural2nanoscale.diffusion.request import Request
from natural2nanoscale.diffusion.saving import backbone_of_run, load_trained, trained_config, trained_info
from natural2nanoscale.diffusion.settings import SamplingSettings, read_prompts
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.files import write_json
from natural2nanoscale.records import read_lines
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.schemas import CANDIDATE_ROW
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.schedule import check
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import combine, load_slices
from natural2nanoscale.segmentation.training import train
from natural2nanoscale.signals import Interrupted
from natural2nanoscale.study.conditions import ROTATION
from natural2nanoscale.study.pilot import with_steps
from natural2nanoscale.study.presets import EQUAL, Grid
from natural2nanoscale.study.training_sets import draw_validation

MAY_CHANGE = ("strengths", "starts", "ratios", "seeds")  # a candidate's score does not depend on what else is tried


@dataclass(frozen=True)
class Candidate:
    """A training set: real slices with rotation, and synthetic ones that are drawn and mixed in one way."""

    strength: float | None = None  # SamplingSettings.strength and .start
    start: float | None = None
    ratio: float = 0.0  # synthetic slices per real one
    mode: str = "joint"  # of train_unet.py

    def __str__(self) -> str:
        if self == NONE:
            return ROTATION
        return f"strength {self.strength:g}, start {self.start:g}, ratio {self.ratio:g}, {self.mode}"


NONE = Candidate()


def candidates(grid: Grid) -> list[Candidate]:
    """NONE, then every cell of the grid."""
    ways = [(ratio, "joint") for ratio in grid.ratios] + [(max(grid.ratios), "pretrain-finetune")]
    cells = [Candidate(*drawn, *way) for drawn in drawings(grid) for way in ways]
    return list(dict.fromkeys([NONE, *cells]))


def drawings(grid: Grid) -> list[tuple[float, float]]:
    """All pairs of strength and start."""
    return [(strength, start) for strength in grid.strengths for start in grid.starts]


def best_of(scores: dict[Candidate, float]) -> Candidate:
    """The highest score; of equal ones the first, and so NONE before any other."""
    return max(scores, key=scores.__getitem__)


@dataclass(frozen=True)
class Bench:
    """What all candidates have in common."""

    run: RunFolder
    grid: Grid
    folders: dict[str, PairFolder]  # "train", and "val": those that judge
    controlnet: ControlNetModel
    backbone: Backbone
    condition: str  # SamplingSettings.condition
    learned: dict  # Request.learned

    def synthetic(self, strength: float, start: float) -> PairFolder:
        """The slices drawn with this strength and start; what is missing is made."""
        out = self.run.path / f"synthetic-{strength:g}-{start:g}"
        settings = SamplingSettings(strength=strength, start=start, condition=self.condition)
        per_mask = math.ceil(max(self.grid.ratios))
        request = Request(read_prompts(), settings, per_mask, self.grid.seed, self.learned)
        synthesize(out, self.backbone, self.controlnet, self.folders["train"], request)
        return open_pairs(out)

    def measure(self, candidate: Candidate, seed: int) -> float:
        """Train one U-Net: the best mIoU of its looks at the validation slices."""
        real = load_slices(self.folders["train"])
        made = load_slices(self.synthetic(candidate.strength, candidate.start)) if candidate.ratio else None
        training = combine(real, made, candidate.ratio)
        settings = unet_settings(self.grid, self.folders, seed)
        if candidate.mode == "pretrain-finetune":
            settings = replace(settings, finetune_after=self.grid.unet_steps // 2)
        judges, device = load_slices(self.folders["val"]), self.backbone.device
        return train(training, judges, settings, device, label=str(candidate)).best["val_miou"]


def unet_settings(grid: Grid, folders: dict[str, PairFolder], seed: int) -> Settings:
    """The same for all candidates: rotation, slices as often as in the set, windows that any slice gives."""
    height, width = (min(lengths) for lengths in zip(*folders["train"].shapes, strict=True))
    crop = (min(width, grid.unet_crop[0]), min(height, grid.unet_crop[1]))
    budget = replace(EQUAL, width=grid.unet_width, crop=crop, augment="rotation", balance=None)
    budget = replace(budget, seed=seed_for(grid.seed, "calibration", seed))
    return with_steps(budget, grid.unet_steps, folders["val"])


def calibrate(
    data: Path, controlnet_run: Path, checkpoint: str, backbone_name: str | None, out: Path, grid: Grid, device: str
) -> Candidate:
    """Try all candidates, or go on with it in the run folder `out`; write the choice to calibration.json in `data`.

    They are judged on as many validation slices as there are training slices, at most. Test slices are not opened.
    """
    root = data_root(data, ("train", "val"))
    train_folder, val = open_pairs(root / "train"), open_pairs(root / "val")
    folders = {"train": train_folder, "val": draw_validation(val, len(train_folder.stems), grid.seed, 0)}
    trained = trained_config(controlnet_run, data)
    info = trained_info(trained, train_folder.info)
    learned = [learned_by_run(controlnet_run, info), learned_from_folder(train_folder)]
    refuse_unfit(learned, [val])
    check(*(load_slices(folders[part]) for part in ("train", "val")), unet_settings(grid, folders, 0))
    edges = trained["settings"].get("condition") == "mask+edges"
    for _, start in drawings(grid):
        SamplingSettings(start=start)  # refuses what cannot be drawn

    backbone = backbone_of_run(controlnet_run, trained, select_device(device), name=backbone_name)
    controlnet, backbone = load_trained(controlnet_run, backbone, checkpoint)
    of = {
        "controlnet": weights_hash(controlnet),
        "backbone": backbone.fingerprint,
        "data": {"train": fingerprint(train_folder), "val": fingerprint(val)},
    }
    config = {"kind": "calibration", "settings": asdict(grid), **of}
    run = open_run(out, config, (out / "config.json").is_file(), MAY_CHANGE)
    condition = "mask+boundaries" if edges else "mask"
    bench = Bench(run, grid, folders, controlnet, backbone, condition, learned_json(learned, info))
    try:
        rows, scores = compare(bench)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        raise Interrupted(f"in {out}: the same command goes on there", number) from None
    choice = best_of(scores)
    found = {"choice": asdict(choice), "chosen": scores[choice], "real": scores[NONE], "candidates": rows}
    found |= {"val_slices": list(folders["val"].stems), "unet_steps": grid.unet_steps}
    write_json(root / FILE, of | found)
    print(f"{root / FILE}: {choice}, {100 * scores[choice]:.1f} ({ROTATION}: {100 * scores[NONE]:.1f})")
    after = command("python train_unet.py", data=data)
    if choice != NONE:
        after = command("python generate.py", data=data, controlnet=controlnet_run, per_mask=math.ceil(choice.ratio))
        if (root / "synthetic").exists():
            print(f"{root / 'synthetic'} stands already: unless it was drawn with this strength and start, remove it")
    print(f"next: {after}")
    return choice


def compare(bench: Bench) -> tuple[list[dict], dict[Candidate, float]]:
    """The lines of all U-Nets, and the scores that decide, that of NONE first.

    The best of many looks better than it is: where it is a mix, the means of new U-Nets of it and of NONE decide.
    """
    run, grid = bench.run, bench.grid
    # rows have no step: this only drops a line that a kill cut short
    run.drop_log_after(0, CANDIDATE_ROW, "remove this line, and its U-Net is trained again")
    names, tried = [field.name for field in fields(Candidate)], candidates(grid)
    known = {
        (Candidate(**{name: row[name] for name in names}), row["seed"]): row
        for row in read_lines(run.path / "log.jsonl", CANDIDATE_ROW)
    }
    print(
        f"{len(tried)} candidates of {grid.unet_steps} steps, judged on {len(bench.folders['val'].stems)} validation "
        f"slices: {ROTATION}; and strength {', '.join(f'{one:g}' for one in grid.strengths)} x start "
        f"{', '.join(f'{one:g}' for one in grid.starts)} x ratio {', '.join(f'{one:g}' for one in grid.ratios)}"
    )
    rows = []

    def score(candidate: Candidate, seed: int) -> float:
        key = (candidate, seed)
        if key not in known:
            known[key] = asdict(candidate) | {"seed": seed, "validation": bench.measure(*key)}
            run.log(known[key])
        rows.append(known[key])
        print(f"  {100 * rows[-1]['validation']:.1f}  {candidate}{f', again ({seed})' if seed else ''}", flush=True)
        return rows[-1]["validation"]

    best = best_of({candidate: score(candidate, 0) for candidate in tried})
    if best == NONE:
        return rows, {NONE: rows[0]["validation"]}
    return rows, {one: sum(score(one, seed) for seed in range(1, grid.seeds + 1)) / grid.seeds for one in (NONE, best)}
