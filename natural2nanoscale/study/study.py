"""A study: what of it comes next, one piece after the other, and its report; a stopped one goes on in its folder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace

import torch

from natural2nanoscale.data.folders import PARTS, fingerprint, open_pairs
from natural2nanoscale.data.quality import quality
from natural2nanoscale.data.roots import data_root
from natural2nanoscale.device import select_device
from natural2nanoscale.diffusion.backbone import backbone_name, settle
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import write_json
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.schemas import RESULT_ROW
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.signals import Interrupted
from natural2nanoscale.study.conditions import real
from natural2nanoscale.study.experiments import conditions
from natural2nanoscale.study.pilot import fix_steps
from natural2nanoscale.study.presets import Place, Preset
from natural2nanoscale.study.report import write_report
from natural2nanoscale.study.summary import study_report
from natural2nanoscale.study.synthetic import backbone_of, make_synthetic
from natural2nanoscale.study.training_sets import check_study, open_trial, redraw_root
from natural2nanoscale.study.trial import KEY, Cell, Drawing, Trial, plan_trials, read_timing
from natural2nanoscale.study.unets import label_pool, save_teacher, teacher_folder, train_cell
from natural2nanoscale.study.workers import carried_out

MAY_CHANGE = ("experiments", "redraws", "seeds", "scarce")


def run_study(preset: Preset, place: Place) -> None:
    """Run or continue a study in place.out; write the report after every redraw and print the last one."""
    started = time.monotonic()
    data = data_root(place.data) if place.data else None
    folders = {part: open_pairs(data / part) for part in PARTS} if data else {}
    if folders:  # what would stop a training hours from now
        check_study(folders, preset.budgets.values())
    pool = len(folders["train"].stems) if folders else preset.phantom.train
    planned = within_reach(replace(preset, pool=pool))
    name = backbone_name(place.backbone, folders["train"].info.origin if folders else "phantom")
    place = replace(place, data=data, backbone=str(name))
    backbone = backbone_of(place)
    settle(FineTuning(preset.crop, None), backbone)  # refuses a window that does not fit
    config = {
        "kind": "experiments",
        "log_format": 3,  # of the lines, and of what they are of: an older folder is another study
        "settings": asdict(preset),  # as it was asked for
        "backbone": backbone.fingerprint,
        "data": {part: fingerprint(folder) for part, folder in folders.items()},
    }
    run = open_run(place.out, config, (place.out / "config.json").is_file(), MAY_CHANGE)
    # rows have no step: this only drops a line that a kill cut short
    run.drop_log_after(0, RESULT_ROW, "remove this line, and its U-Net is trained again")

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as in every process of --jobs, so that results do not depend on it
        first = redraw_root(place, preset, 0)
        parts = {part: open_pairs(first / part) for part in PARTS}
        if preset.pilot:
            planned = fix_steps(planned, run.path, parts["train"], parts["val"], backbone.device)
        agenda = Agenda(run, plan_trials(planned, place))
        cells, left = len(agenda.cells()), len(agenda.left())
        print(f"{preset.name}: {cells} cells of {', '.join(planned.experiments)}; {run.path} has {cells - left}")

        def report() -> tuple:
            found = study_report(run, agenda.rows(), planned, parts["test"], read_timing(run.path), backbone)
            text = write_report(run.path, found)
            write_json(run.path / "results.json", {"rows": agenda.rows()})
            return found, text

        jobs = place.jobs or (1 if backbone.device.type == "cuda" else os.cpu_count() or 1)
        carry_out_all(agenda, min(jobs, left), report)
        found, text = report()
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        raise Interrupted(f"in {run.path}: the same command goes on there", number) from None
    finally:
        torch.set_num_threads(threads)
    seconds = time.monotonic() - started
    print(f"\n{found.verdict}\n\n{text}\n{run.path}/report.html, report.md and tables/; {seconds:.0f} s")


def within_reach(preset: Preset) -> Preset:
    """The preset without the experiments that need more annotated slices than there are; InputError if none is left."""
    planned = conditions(preset, preset.experiments)
    for one in planned:
        if one.synthetic > 0 and not one.counts(one.slices or preset.full)[1]:
            raise InputError(f"{one.synthetic:g} of {one.slices or preset.full} slices are none: raise --per-mask")
    left = tuple(name for name in preset.experiments if any(one.experiment == name for one in planned))
    for name in preset.experiments:
        if name not in left:
            why = f"{name} of {min(preset.scarce)} annotated slices needs more than the {preset.full} that there are"
            if not left:
                raise InputError(f"{why}: annotate more, or ask for fewer with --slices")
            print(f"{why}: it is left out")
    return replace(preset, experiments=left)


class Agenda:
    """What of the trials is done, according to the log, and what has been started."""

    def __init__(self, run: RunFolder, trials: Sequence[Trial]):
        self.run, self.trials = run, trials
        self.done = {tuple(row[key] for key in KEY): row for row in run.read_log()}
        self.trained: set[tuple] = set()  # by Cell.training: what was started
        self.drawn: dict = {}  # folders of synthetic slices: whether they are there, once they were started

    def cells(self) -> list[Cell]:
        """All U-Nets, in the order of the report."""
        return [cell for trial in self.trials for cell in trial.cells()]

    def left(self) -> list[Cell]:
        """Those that are still to be trained."""
        return [cell for cell in self.cells() if cell.key not in self.done]

    def rows(self) -> list[dict]:
        """The log's lines in the order of the plan, whoever was first; lines that are not of it come last."""
        planned = [cell.key for cell in self.cells() if cell.key in self.done]
        return [self.done[key] for key in dict.fromkeys((*planned, *self.done))]

    def record(self, cell: Cell, row: dict) -> None:
        self.done[cell.key] = row
        self.run.log(row)

    def copy_equal(self) -> None:
        """Give a U-Net that another experiment has trained already to those that ask for the same one."""
        trained = {cell.training: self.done[cell.key] for cell in self.cells() if cell.key in self.done}
        for cell in self.left():
            if cell.training in trained:
                named = {"experiment": cell.condition.experiment, "condition": cell.condition.name}
                self.record(cell, trained[cell.training] | named)

    def following(self) -> Cell | Drawing | None:
        """What can be started now, with its trial's slices drawn: here, so that no two processes do."""
        task = next(self.ready(), None)
        if task:
            open_trial(task.trial)
        return task

    def ready(self) -> Iterator[Cell | Drawing]:
        """What can be started now; each is started before the next one is asked for. In order, but that in every redraw
        those U-Nets come first that slices wait for to be drawn.
        """
        left = self.left()
        real_alone = [cell for cell in left if cell.condition.trains_as(real(cell.condition.augment))]
        teachers = {teacher_folder(cell.trial, cell.condition, cell.seed) for cell in real_alone}
        drawings = [cell.drawing for cell in left]
        label = {(drawing.teacher.nameless, 0) for drawing in drawings if drawing and drawing.teacher}  # and their seed
        in_turn = sorted(left, key=lambda cell: (cell.trial.redraw, (cell.condition.nameless, cell.seed) not in label))
        for cell in in_turn:
            trial, drawing, teacher = cell.trial.folder, cell.drawing, cell.condition.teacher
            if drawing and not self.drawn.get(drawing.folder):
                waits = drawing.teacher and teacher_folder(cell.trial, drawing.teacher, 0) in teachers
                busy = any(folder.parent == trial and not there for folder, there in self.drawn.items())
                if not waits and not busy:  # recipes that share a ControlNet take turns
                    self.drawn[drawing.folder] = False
                    yield drawing
            elif cell.size is None or (teacher and teacher_folder(cell.trial, teacher, cell.seed) in teachers):
                continue  # waits for the time that slices take, or for the U-Net that labels
            elif cell.training not in self.trained:
                self.trained.add(cell.training)
                yield cell


def carry_out_all(agenda: Agenda, jobs: int, report: Callable[[], object]) -> None:
    """Train and score every U-Net that is not in the log; a `report` after every redraw but the last to end.

    Processes write into the folders of their trials, and only this one into the log: a line as soon as it is known.
    """
    agenda.copy_equal()
    with closing(carried_out(carry_out, jobs, agenda.following)) as ended:
        for task, row in ended:
            if isinstance(task, Drawing):
                agenda.drawn[task.folder] = True
                continue
            agenda.record(task, row)
            agenda.copy_equal()
            wanted, left, trial = len(agenda.cells()), agenda.left(), task.trial
            what = f"redraw {trial.redraw}, {trial.count} slices, {task.condition.name}, U-Net {task.seed}"
            print(
                f"{wanted - len(left)} of {wanted}: {what}: mIoU {100 * row['miou']:.1f} % ({row['seconds']:.0f} s)",
                flush=True,
            )
            if left and all(cell.trial.redraw != trial.redraw for cell in left):
                report()


def carry_out(task: Cell | Drawing) -> dict | None:
    """One piece of a study's work: the line of a U-Net, or the synthetic slices of a recipe.

    A function of its argument and of what earlier pieces left in the trial's folder.
    """
    if isinstance(task, Drawing):
        return make_synthetic(task)
    trial, condition, folders = task.trial, task.condition, open_trial(task.trial)
    device = select_device(trial.place.device)
    parts = {part: folders[part] for part in PARTS}
    if task.drawing:
        parts["synthetic"] = open_pairs(task.drawing.folder)
    if condition.pseudo:
        parts["pseudo"] = label_pool(trial, condition.teacher, task.seed, device)
    slices = {part: load_slices(folder) for part, folder in parts.items()}
    row, model = train_cell(task, slices, device)
    taught = [one for one in trial.conditions if one.teacher and condition.trains_as(one.teacher)]
    if taught:
        save_teacher(teacher_folder(trial, condition, task.seed), model, slices["train"])
    if any(one.pseudo or task.seed == 0 for one in taught):  # slices are drawn by what seed 0 sees
        label_pool(trial, condition, task.seed, device)  # here, as of those who wait for it several may start at once
    if condition.synthetic:
        row["quality"] = asdict(quality(folders["pool"], parts["synthetic"]))
    # what a comparison of lines must know: which test slices, and how many annotated ones redraws draw from
    dealt = [folders["pool"].path.parent / part for part in (PARTS if trial.split == "random" else ["train"])]
    pool = sum(len(open_pairs(part).stems) for part in dealt)
    return row | {"test": fingerprint(folders["test"])[:12], "pool": pool if trial.place.data else None}
