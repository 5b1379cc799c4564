"""How long the U-Nets of a study train: until those on all of its slices gain nothing by training longer."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.files import write_json
from natural2nanoscale.records import describe
from natural2nanoscale.schemas import PILOT
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.schedule import slices_per_step
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.study.conditions import real
from natural2nanoscale.study.presets import LOOKS, Preset
from natural2nanoscale.study.unets import train_on

CANDIDATES = (500, 1000, 1500, 2000, 3000, 4500)  # steps; a learning rate that decays has to know its end
FLAT = 0.003  # of validation mIoU: a longer training that gains less gains nothing


def with_steps(budget: Settings, steps: int, validation: PairFolder) -> Settings:
    """The budget with another number of steps, and looks at the validation slices that take a twentieth of the time.

    Per pixel a step takes 2.5 times as long as a look, or longer.
    """
    seen = slices_per_step(budget, 1) * math.prod(budget.crop or validation.shapes[0])
    looked_at = sum(height * width for height, width in validation.shapes)
    often = max(math.ceil(steps / LOOKS), math.ceil(looked_at / (0.05 * 2.5 * seen)))
    return replace(budget, max_steps=steps, validate_every=min(steps, often))


def fix_steps(preset: Preset, out: Path, pool: PairFolder, validation: PairFolder, device: torch.device) -> Preset:
    """The preset whose first budget has as many steps as the pilot found, or finds now and writes to out/pilot.json.

    U-Nets on all slices of `pool` with rotation train for longer and longer; the first that gains less than FLAT
    over every shorter one has the number. No test slice is opened.
    """
    budget, trainings = preset.budgets[preset.budget], read_pilot(out)
    slices, seed = {"train": load_slices(pool), "val": load_slices(validation)}, seed_for(preset.seed, "pilot")
    for steps in CANDIDATES[len(trainings) :]:
        if is_flat(trainings):
            break
        settings = with_steps(budget, steps, validation)
        trained = train_on(real("rotation"), slices, settings, seed, device, f"pilot, {steps} steps")
        curve = [[row["step"], row["val_miou"]] for row in trained.rows]
        trainings.append({"steps": steps, "validation": trained.best["val_miou"], "curve": curve})
        write_json(out / "pilot.json", {"trainings": trainings})
    print(f"Pilot: {pilot_note(trainings)}", flush=True)
    return preset.with_budget(with_steps(budget, trainings[-1]["steps"], validation))


def read_pilot(out: Path) -> list[dict]:
    """The pilot's trainings in the study's folder `out`, the shortest first; none before it ran."""
    file = out / "pilot.json"
    return describe(file, PILOT, "remove it, and the pilot runs again")["trainings"] if file.is_file() else []


def is_flat(trainings: list[dict]) -> bool:
    """Whether the last one gained less than FLAT over every shorter one."""
    scores = [line["validation"] for line in trainings]
    return len(scores) > 1 and scores[-1] - max(scores[:-1]) < FLAT


def pilot_note(trainings: list[dict]) -> str:
    """What the pilot found, in a sentence."""
    scores = ", ".join(f"{100 * line['validation']:.1f} after {line['steps']}" for line in trainings)
    flat = "was flat" if is_flat(trainings) else "had not become flat"
    return (
        f"U-Nets on all slices with rotation reach a validation mIoU of {scores} steps; it {flat} by "
        f"{trainings[-1]['steps']}, which all U-Nets take."
    )
