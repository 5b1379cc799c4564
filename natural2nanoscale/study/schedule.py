"""Which piece of a study comes next: synthetic slices before the U-Nets that need them, equal U-Nets once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from natural2nanoscale.runs import RunFolder
from natural2nanoscale.study.conditions import RECIPES, ROTATION
from natural2nanoscale.study.synthetic import read_timing
from natural2nanoscale.study.trial import Trial, open_trial
from natural2nanoscale.study.unets import KEY, Cell
from natural2nanoscale.study.workers import Here, Processes

Task = tuple[Trial, Cell | str]  # a U-Net, or the recipe of synthetic slices


class Agenda:
    """What of the trials is done, according to the log, and what has been started."""

    def __init__(self, run: RunFolder, trials: Sequence[Trial]):
        self.run, self.trials = run, trials
        self.done = {tuple(row[key] for key in KEY): row for row in run.read_log()}
        self.started: set[tuple] = set()
        self.made: set[tuple] = set()  # trials and recipes whose synthetic slices are there

    def cells(self) -> list[tuple[Trial, Cell]]:
        """All U-Nets, in the order of the report."""
        timing = read_timing(self.run.path)
        return [(trial, cell) for trial in self.trials for cell in trial.cells(timing)]

    def rows(self) -> list[dict]:
        """The log's lines in the order of the plan, whoever was first; lines that are not of it come last."""
        planned = [cell.key for _, cell in self.cells() if cell.key in self.done]
        return [self.done[key] for key in [*planned, *(key for key in self.done if key not in set(planned))]]

    def record(self, key: tuple, row: dict) -> None:
        self.done[key] = row
        self.run.log(row)

    def copy_equal(self) -> None:
        """Give a U-Net that another experiment has trained already to those that ask for the same one."""
        cells = [cell for _, cell in self.cells()]
        trained = {cell.training: self.done[cell.key] for cell in cells if cell.key in self.done}
        for cell in cells:
            if cell.key not in self.done and cell.training in trained:
                named = {"experiment": cell.condition.experiment, "condition": cell.condition.name}
                self.record(cell.key, trained[cell.training] | named)

    def ready(self) -> Iterator[Task]:
        """What can be started now, in order; each is started before the next one is asked for."""
        left = [(trial, cell) for trial, cell in self.cells() if cell.key not in self.done]
        teachers = {(id(trial), cell.seed) for trial, cell in left if cell.condition.name == ROTATION}
        for trial, cell in left:
            recipe = trial.recipe_of(cell)
            if recipe and trial.names(recipe) not in self.made:
                waits = RECIPES[recipe].asks and (id(trial), 0) in teachers
                if trial.names(recipe) not in self.started and not waits and not self.drawing(trial):
                    self.started.add(trial.names(recipe))
                    yield trial, recipe
            elif cell.size is None or (cell.condition.pseudo and (id(trial), cell.seed) in teachers):
                continue  # waits for the time that slices take, or for the U-Net that labels
            elif cell.training not in self.started:
                self.started.add(cell.training)
                yield trial, cell

    def drawing(self, trial: Trial) -> bool:
        """Whether synthetic slices of a trial are being made: recipes that share a ControlNet take turns."""
        return any(trial.names(recipe) in self.started - self.made for recipe in RECIPES)

    def is_complete(self, redraw: int) -> bool:
        return all(cell.key in self.done for _, cell in self.cells() if cell.redraw == redraw)


def carry_out_all(agenda: Agenda, workers: Here | Processes, report: Callable[[], object]) -> None:
    """Train and score every U-Net that is not in the log; a `report` after every redraw but the last to end.

    Workers write into the folders of their trials, and only this process into the log: a line as soon as it is known.
    """
    wanted, running, stop = len(agenda.cells()), 0, True
    try:
        while True:
            agenda.copy_equal()
            tasks = agenda.ready()
            while workers.free and (task := next(tasks, None)):
                open_trial(task[0])  # drawn here, so that no two workers do
                workers.start(task)
                running += 1
            if not running:
                break
            (trial, cell), row = workers.wait()
            running -= 1
            if isinstance(cell, str):
                agenda.made.add(trial.names(cell))
                continue
            agenda.record(cell.key, row)
            agenda.copy_equal()
            done = sum(cell.key in agenda.done for _, cell in agenda.cells())
            what = f"redraw {trial.redraw}, {trial.count} slices, {cell.condition.name}, U-Net {cell.seed}"
            print(f"{done} of {wanted}: {what}: mIoU {100 * row['miou']:.1f} % ({row['seconds']:.0f} s)", flush=True)
            if agenda.is_complete(trial.redraw) and done < wanted:
                report()
        stop = False
    finally:
        workers.close(stop)
