"""Mixing that does not hurt: candidates are tried on validation slices, real slices alone among them."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

from natural2nanoscale.cli import command
from natural2nanoscale.data.calibrated import FILE
from natural2nanoscale.data.folders import PairFolder, fingerprint, open_pairs
from natural2nanoscale.data.roots import data_root, learned_by_run, learned_from_folder, learned_json, refuse_unfit
from natural2nanoscale.device import select_device
from natural2nanoscale.diffusion.backbone import weights_hash
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
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.signals import Interrupted
from natural2nanoscale.study.conditions import ROTATION, Condition, mixed, real
from natural2nanoscale.study.pilot import with_steps
from natural2nanoscale.study.presets import EQUAL, Grid
from natural2nanoscale.study.training_sets import draw_validation
from natural2nanoscale.study.unets import train_on

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

    @property
    def condition(self) -> Condition:
        if self == NONE:
            return real("rotation")
        return mixed(self.ratio, "rotation", finetune=self.mode == "pretrain-finetune")


NONE = Candidate()


def candidates(grid: Grid) -> list[Candidate]:
    """NONE, then every cell of the grid."""
    ways = [(ratio, "joint") for ratio in grid.ratios] + [(max(grid.ratios), "pretrain-finetune")]
    cells = [Candidate(*drawn, *way) for drawn in product(grid.strengths, grid.starts) for way in ways]
    return list(dict.fromkeys([NONE, *cells]))


def best_of(scores: dict[Candidate, float]) -> Candidate:
    """The highest score; of equal ones the first, and so NONE before any other."""
    return max(scores, key=scores.__getitem__)


def budget_of(grid: Grid, folders: dict[str, PairFolder]) -> Settings:
    """The same for all candidates: slices as often as in the set, windows that any slice gives."""
    height, width = (min(lengths) for lengths in zip(*folders["train"].shapes, strict=True))
    crop = (min(width, grid.unet_crop[0]), min(height, grid.unet_crop[1]))
    return with_steps(replace(EQUAL, width=grid.unet_width, crop=crop, balance=None), grid.unet_steps, folders["val"])


def calibrate(
    data: Path, controlnet_run: Path, checkpoint: str, backbone_name: str | None, out: Path, grid: Grid, device: str
) -> Candidate:
    """Try all candidates, or go on with it in the run folder `out`; write the choice to calibration.json in `data`.

    They are judged on as many validation slices as there are training slices, at most. Test slices are not opened.
    """
    root = data_root(data, ("train", "val"))
    train, val = open_pairs(root / "train"), open_pairs(root / "val")
    folders = {"train": train, "val": draw_validation(val, len(train.stems), grid.seed, 0)}
    slices, budget = {part: load_slices(folder) for part, folder in folders.items()}, budget_of(grid, folders)
    trained = trained_config(controlnet_run, data)
    info = trained_info(trained, train.info)
    learned = [learned_by_run(controlnet_run, info), learned_from_folder(train)]
    refuse_unfit(learned, [val])
    check(*slices.values(), budget)
    condition = "mask+boundaries" if trained["settings"].get("condition") == "mask+edges" else "mask"
    drawn = {  # refuses what cannot be drawn
        pair: SamplingSettings(strength=pair[0], start=pair[1], condition=condition)
        for pair in product(grid.strengths, grid.starts)
    }
    backbone = backbone_of_run(controlnet_run, trained, select_device(device), name=backbone_name)
    controlnet, backbone = load_trained(controlnet_run, backbone, checkpoint)
    of = {
        "controlnet": weights_hash(controlnet),
        "backbone": backbone.fingerprint,
        "data": {"train": fingerprint(train), "val": fingerprint(val)},
    }
    config = {"kind": "calibration", "settings": asdict(grid), **of}
    run = open_run(out, config, (out / "config.json").is_file(), MAY_CHANGE)

    def synthetic(strength: float, start: float) -> PairFolder:
        """The slices drawn with this strength and start; what is missing is made."""
        folder, per_mask = out / f"synthetic-{strength:g}-{start:g}", math.ceil(max(grid.ratios))
        request = Request(read_prompts(), drawn[strength, start], per_mask, grid.seed, learned_json(learned, info))
        synthesize(folder, backbone, controlnet, train, request)
        return open_pairs(folder)

    def measure(candidate: Candidate, seed: int) -> float:
        """Train one U-Net: the best mIoU of its looks at the validation slices."""
        made = {"synthetic": load_slices(synthetic(candidate.strength, candidate.start))} if candidate.ratio else {}
        seed = seed_for(grid.seed, "calibration", seed)
        unet = train_on(candidate.condition, slices | made, budget, seed, backbone.device, str(candidate))
        return unet.best["val_miou"]

    print(
        f"{len(candidates(grid))} candidates of {grid.unet_steps} steps, judged on {len(slices['val'])} validation "
        f"slices: {ROTATION}; and strength {', '.join(f'{one:g}' for one in grid.strengths)} x start "
        f"{', '.join(f'{one:g}' for one in grid.starts)} x ratio {', '.join(f'{one:g}' for one in grid.ratios)}"
    )
    try:
        rows, scores = compare(run, grid, measure)
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
        known = {"checkpoint": None if checkpoint == "newest" else checkpoint, "backbone": backbone_name}
        after = command(
            "python generate.py", data=data, controlnet=controlnet_run, per_mask=math.ceil(choice.ratio), **known
        )
        if (root / "synthetic").exists():
            print(f"{root / 'synthetic'} stands already: unless it was drawn with this strength and start, remove it")
    print(f"next: {after}")
    return choice


def compare(
    run: RunFolder, grid: Grid, measure: Callable[[Candidate, int], float]
) -> tuple[list[dict], dict[Candidate, float]]:
    """The lines of all U-Nets, and the scores that decide, that of NONE first; `measure` scores (candidate, seed).

    The best of many looks better than it is: where it is a mix, the means of new U-Nets of it and of NONE decide.
    """
    # rows have no step: this only drops a line that a kill cut short
    run.drop_log_after(0, CANDIDATE_ROW, "remove this line, and its U-Net is trained again")
    names, rows = [field.name for field in fields(Candidate)], []
    known = {
        (Candidate(**{name: row[name] for name in names}), row["seed"]): row
        for row in read_lines(run.path / "log.jsonl", CANDIDATE_ROW)
    }

    def score(candidate: Candidate, seed: int) -> float:
        key = (candidate, seed)
        if key not in known:
            known[key] = asdict(candidate) | {"seed": seed, "validation": measure(*key)}
            run.log(known[key])
        rows.append(known[key])
        print(f"  {100 * rows[-1]['validation']:.1f}  {candidate}{f', again ({seed})' if seed else ''}", flush=True)
        return rows[-1]["validation"]

    best = best_of({candidate: score(candidate, 0) for candidate in candidates(grid)})
    if best == NONE:
        return rows, {NONE: rows[0]["validation"]}
    return rows, {one: sum(score(one, seed) for seed in range(1, grid.seeds + 1)) / grid.seeds for one in (NONE, best)}
