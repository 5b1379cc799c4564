"""What a study is planned and carried out as: controls, validation, unlabelled slices, the pilot, processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.diffusion.shapes import Shapes
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation.slices import combine, load_slices
from natural2nanoscale.study import pilot, study, training_sets, unets
from natural2nanoscale.study.conditions import ALL, ROTATION, SELF, real
from natural2nanoscale.study.experiments import FREE, conditions, control
from natural2nanoscale.study.presets import EQUAL, PRESETS, Place
from natural2nanoscale.study.synthetic import deformed_slices
from natural2nanoscale.study.training_sets import draw_validation, made_once, open_trial
from natural2nanoscale.study.trial import Cell, Drawing, plan_trials
from natural2nanoscale.study.workers import carried_out

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CPU = torch.device("cpu")


def test_the_control_is_all_of_the_pool_or_from_half_to_all():
    for count, pool, expected in ((2, 32, [(ALL, 32)]), (8, 8, [(ROTATION, 4)]), (1, 1, []), (2, None, [])):
        assert [(c.name, c.slices) for c in control(replace(PRESETS["demo"], pool=pool), count)] == expected
    worth = conditions(replace(PRESETS["worth"], pool=32, scarce=(2, 4)), ("worth",))
    assert [c.name for c in worth].count(ALL) == 1 and {c.slices for c in worth} == {2, 4, 32}
    assert {c.slices: c.pseudo for c in worth if c.name == SELF} == {2: 30, 4: 28}


def test_the_same_unet_is_asked_the_same_by_whatever_name(tmp_path):
    """All slices + rotation are the real ones of an experiment that takes all: whoever comes first has both lines."""
    preset = replace(PRESETS["embedded"], pool=32, experiments=("scarcity", "table1"))
    cells = [cell for trial in plan_trials(preset, Place(tmp_path)) for cell in trial.cells() if trial.count == 32]
    asked = [cell for cell in cells if cell.condition.is_asked]
    assert {cell.condition.name for cell in asked} == {ALL, ROTATION} and len(cells) > len(asked)
    assert len({cell.training for cell in asked if cell.trial.redraw == 0}) == 1
    worth = plan_trials(replace(PRESETS["worth"], pool=32), Place(tmp_path))[0]
    (rotation,) = (cell for cell in worth.cells() if cell.condition.is_asked)
    assert rotation.drawing.name == "plain"  # of the drawn ones: deformed real slices come before them in the plan
    assert {cell.drawing.name for cell in asked} == {"plain"}


def test_who_labels_is_trained_first_and_under_the_same_augmentation(tmp_path, monkeypatch):
    monkeypatch.setattr(study.RunFolder, "read_log", lambda self: [])
    preset = replace(PRESETS["worth"], pool=32, experiments=("recipes",), redraws=1)
    agenda = study.Agenda(RunFolder(tmp_path), plan_trials(preset, Place(tmp_path)))

    def startable():
        """Names of all that can be started, one drawing after the other."""
        names = set()
        for _ in range(20):
            names |= {task.condition.name if isinstance(task, Cell) else task.folder.name for task in agenda.ready()}
            agenda.drawn = dict.fromkeys(agenda.drawn, True)
        return names

    asking = {SELF, f"{SELF} + nnunet", "synthetic-predicted-masks", "synthetic-doubt-redrawn-nnunet"}
    order = [task.condition.name for task in study.Agenda(agenda.run, agenda.trials).ready() if isinstance(task, Cell)]
    assert order[0] == "real + nnunet"  # for which slices wait; "real + rotation" waits to be asked what it sees
    assert not startable() & asking
    agenda.done |= {cell.key: {} for cell in agenda.cells() if cell.condition.name == "real + nnunet"}
    assert startable() & asking == {f"{SELF} + nnunet", "synthetic-doubt-redrawn-nnunet"}
    folders = {cell.drawing.folder.name for cell in agenda.cells() if cell.drawing}
    assert {"synthetic-doubt-redrawn", "synthetic-deformed-masks"} <= folders  # the latter by anyone


def test_validation_takes_no_more_slices_than_training(data_folder):
    val = open_pairs(data_folder / "val")  # of two
    drawn = {draw_validation(val, 1, 0, redraw).stems for redraw in range(8)}
    assert drawn == {(stem,) for stem in val.stems}  # by name: each redraw its own
    assert draw_validation(val, 1, 0, 3) == draw_validation(val, 1, 0, 3)
    assert draw_validation(val, 9, 0, 0).stems == val.stems and draw_validation(val, 1, 0, 0).shapes == ((32, 64),)


class Threshold(torch.nn.Module):
    """Class 1 where a slice is bright."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        x = x + self.bias
        return torch.cat([-x, x, torch.full_like(x, -9.0)], dim=1)


def test_unlabelled_slices_are_the_undrawn_ones_and_their_masks_stay_hidden(data_folder, tmp_path, monkeypatch):
    trial = plan_trials(replace(PRESETS["worth"], pool=4), Place(tmp_path, data_folder, "", "cpu"))[0]
    drawn = open_trial(trial)["train"].stems
    pool = open_pairs(data_folder / "train")
    monkeypatch.setattr(unets.PairFolder, "mask", None)  # nobody looks: write_pairs' own check comes after
    monkeypatch.setattr(unets, "open_trial", lambda _: {"pool": pool, "train": SimpleNamespace(stems=drawn)})

    def write_pairs(out, info, items):
        out.mkdir(parents=True)
        labelled.extend(items)
        monkeypatch.undo()

    monkeypatch.setattr(training_sets, "write_pairs", write_pairs)
    monkeypatch.setattr(unets, "teacher_of", lambda *_: Threshold())
    labelled = []
    with pytest.raises(Exception, match="dataset.json"):  # nothing was written
        unets.label_pool(trial, real("rotation"), 0, CPU)
    assert sorted(stem for stem, _, _ in labelled) == sorted(set(pool.stems) - set(drawn))
    assert all((mask == (image > 127)).all() for _, image, mask in labelled)


def test_deformed_slices_have_the_masks_of_deformed_masks_and_follow_them(data_folder, tmp_path):
    preset = replace(PRESETS["worth"], pool=4, experiments=("recipes",), scarce_ratio=1.5)
    drawing = Drawing(plan_trials(preset, Place(tmp_path, data_folder))[0], FREE)
    source = open_trial(drawing.trial)["train"]
    made = made_once(tmp_path / "made", lambda: deformed_slices(source, drawing, seed=5))
    shapes = Shapes(source, "deformed", 5, SamplingSettings())
    assert made.stems == tuple(f"{stem}_s00{i}" for stem in source.stems for i in (0, 1))
    for stem in made.stems:
        image, mask = made.image(stem), made.mask(stem)
        assert (mask == shapes.mask(stem[:-5], int(stem[-1]))).all()
        means = [image[mask == k].mean() for k in np.unique(mask)]
        assert np.allclose(means, np.array([220, 160, 100])[np.unique(mask)], atol=8)  # classes differ by 60 levels
    assert len(combine(None, load_slices(made), 1.5, 2)) == 3 and load_slices(made).real == 0


@pytest.mark.slow  # processes import torch anew
def test_a_process_that_is_killed_is_told_of_in_a_sentence():
    tasks = [1]
    with pytest.raises(InputError, match="fewer --jobs"):
        list(carried_out(os._exit, 2, lambda: tasks.pop() if tasks else None))


def test_the_pilot_stops_where_longer_trainings_gain_nothing(data_folder, tmp_path, monkeypatch):
    reached = {500: 0.80, 1000: 0.90, 1500: 0.902, 2000: 0.95}
    calls = []

    def train(training, validation, settings, device, label):
        calls.append(settings.max_steps)
        assert settings.augment == "rotation" and settings.balance is None and len(training) == 4
        return SimpleNamespace(best={"val_miou": reached[settings.max_steps]}, rows=[])

    monkeypatch.setattr(unets, "train", train)
    folders = (open_pairs(data_folder / part) for part in ("train", "val"))
    arguments = (replace(PRESETS["worth"], pilot=True), tmp_path, *folders, CPU)
    budget = pilot.fix_steps(*arguments).budgets["equal"]
    assert (budget.max_steps, budget.validate_every) == (1500, 100) and calls == [500, 1000, 1500]
    assert pilot.fix_steps(*arguments).budgets["equal"] == budget and len(calls) == 3  # found again
    note = pilot.pilot_note(json.loads((tmp_path / "pilot.json").read_text())["trainings"])
    assert "80.0 after 500, 90.0 after 1000, 90.2 after 1500 steps; it was flat by 1500" in note


def test_looks_take_a_twentieth_of_the_time():
    large = SimpleNamespace(shapes=((512, 512),) * 20)
    budget = pilot.with_steps(EQUAL, 3000, large)
    assert budget.validate_every == 836  # 20 x 512 x 512 / (0.125 x 4 x 112 x 112)
    assert pilot.with_steps(EQUAL, 1500, SimpleNamespace(shapes=((128, 224),) * 8)).validate_every == 100


STUDY = """
import sys
from dataclasses import replace
from pathlib import Path
from natural2nanoscale.phantom.volume import PhantomSettings
from natural2nanoscale.study.study import run_study
from natural2nanoscale.study.presets import PRESETS, Place
if __name__ == "__main__":
    worth = PRESETS["worth"]
    budget = replace(worth.budgets["equal"], width=4, depth=2, crop=(32, 32), max_steps=30, validate_every=10)
    small = replace(worth, budgets={"equal": budget}, redraws=2, controlnet_steps=2, scarce_ratio=1.0, crop=(32, 32),
                    phantom=PhantomSettings((64, 32), 4, 2, 2, 1))
    run_study(small, Place(Path(sys.argv[1]), None, sys.argv[2], "cpu", int(sys.argv[3])))
"""


@pytest.mark.slow  # processes import torch anew
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_results_do_not_depend_on_jobs_nor_on_kills(tiny_backbone, tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    environment = os.environ | {"PYTHONPATH": ROOT}

    def start(out, jobs):
        words = [sys.executable, tmp_path / "study.py", tmp_path / out, tiny_backbone, str(jobs)]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def results(out):
        rows = json.loads((tmp_path / out / "results.json").read_text())["rows"]
        return [row | {"seconds": None} for row in rows]

    alone = start("one", 1)
    assert alone.wait() == 0, alone.stdout.read()
    for number in (signal.SIGKILL, signal.SIGINT):
        killed = start("two", 2)
        log, before = tmp_path / "two/log.jsonl", 0 if number == signal.SIGKILL else 2
        while killed.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > before):
            time.sleep(0.1)
        killed.send_signal(number)
        assert killed.wait() != 0
    kept = log.read_text().splitlines()
    again = start("two", 2)
    assert again.wait() == 0, again.stdout.read()
    assert results("one") == results("two") and len(results("two")) == 2 * 11
    assert log.read_text().splitlines()[: len(kept)] == kept  # what was finished is not computed twice
    assert np.isfinite([row["miou"] for row in results("two")]).all()
