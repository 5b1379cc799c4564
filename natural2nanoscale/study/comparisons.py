"""What the lines of a log say of training sets: repetitions, paired differences, the head-room and shares of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from natural2nanoscale.segmentation.metrics import mean_std
from natural2nanoscale.study.conditions import CONTROLS, ROTATION, Condition, Contrast
from natural2nanoscale.study.experiments import conditions, contrasts
from natural2nanoscale.study.presets import Preset
from natural2nanoscale.study.statistics import (
    Difference,
    block_bootstrap,
    enough_blocks,
    paired_difference,
    ratio_interval,
)

Rows = Sequence[dict]  # lines of the log
Value = Callable[[dict], float | None]  # a score of a line; None for a class that is absent
SMALLEST_ROOM = 0.005  # of mIoU: of one draw, a smaller head-room is none


def miou(row: dict) -> float:
    return row["miou"]


def scores(classes: int) -> list[Value]:
    """mIoU and the IoU of every class."""
    return [miou, *(lambda row, k=k: row["iou"][k] for k in range(classes))]


def grouped(rows: Rows, *keys: str) -> dict[tuple, list[dict]]:
    """The rows by their values of `keys`, in the order in which they come."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def pick(rows: Rows, name: str, **fields: object) -> list[dict]:
    """The rows of one training set."""
    return [row for row in rows if row["condition"] == name and all(row[key] == fields[key] for key in fields)]


def lines_of(rows: Rows, condition: Condition) -> list[dict]:
    """Those of its experiment's rows that are of a training set."""
    return [row for row in rows if condition.facts.items() <= row.items()]


def recipes(preset: Preset, experiment: str) -> set[str]:
    """The training sets of an experiment that synthetic slices are in."""
    return {condition.name for condition in conditions(preset, (experiment,)) if condition.drawn}


def unit_of(*sides: Rows) -> str:
    """What repetitions are: "redraw" where there are several of them, else "seed", of the U-Nets."""
    return "redraw" if len({row["redraw"] for rows in sides for row in rows}) > 1 else "seed"


def repetitions(value: Value, *sides: Rows) -> list[list[float]]:
    """The values of every side in the repetitions that all sides have, in order: of redraws (their seeds averaged) or,
    where there is one redraw, of seeds. Rows whose value is None are left out."""
    unit, found = unit_of(*sides), []
    for rows in sides:
        groups: dict[int, list[float]] = {}
        for row in rows:
            if value(row) is not None:
                groups.setdefault(row[unit], []).append(value(row))
        found.append(groups)
    shared = sorted(set.intersection(*map(set, found)))
    return [[fmean(groups[key]) for key in shared] for groups in found]


def spread(rows: Rows, value: Value = miou) -> tuple[float | None, float | None]:
    """Mean over repetitions and, of several, sample standard deviation; (None, None) where all are absent."""
    return mean_std(repetitions(value, rows)[0])


# ------------------------------------------------------------------------------------------- differences


def compare(with_it: Rows, without: Rows, value: Value = miou) -> Difference | None:
    """Paired difference of two training sets, over the repetitions that both have; None where they share none."""
    ours, theirs = repetitions(value, with_it, without)
    if not ours:
        return None
    unit = unit_of(with_it, without)
    overlap = max(shared_slices(with_it), shared_slices(without)) if unit == "redraw" else 0.0
    return paired_difference(ours, theirs, overlap, unit)


def over_test_slices(with_it: Rows, without: Rows, block: int) -> tuple[float, float] | None:
    """Interval of the difference in mIoU over blocks of test slices, networks fixed; None where these are too few."""
    there = {(row["redraw"], row["seed"]): row for row in without}
    found = [(row, there.get((row["redraw"], row["seed"]))) for row in with_it]
    pairs = [pair for pair in found if pair[1]]
    tests = [row.get("test", row["redraw"]) for row, _ in pairs]
    slices = min((len(row["images"]) for pair in pairs for row in pair), default=0)
    if not enough_blocks(slices, block, len(set(tests))):
        return None
    matrices = [np.array([row["images"] for row in side]) for side in zip(*pairs, strict=True)]
    return block_bootstrap(*matrices, block, [tests.index(test) for test in tests])


def contrasted(preset: Preset, experiment: str, rows: Rows) -> Iterator[tuple[Contrast, Rows, Rows, Difference]]:
    """The contrasts of an experiment that its `rows` can tell, with both sides and their difference."""
    for one in contrasts(preset, experiment):
        sides = lines_of(rows, one.ours), lines_of(rows, one.theirs)
        if change := compare(*sides):
            yield one, *sides, change


def shared_slices(rows: Rows) -> float:
    """The share of its annotated slices that a redraw has in common with another one, on average: drawn / pool.

    0 where every redraw has a pool of its own, and where the pool has enough for disjoint sets; and where all of a pool
    are taken every time: then nothing is drawn, and an interval over redraws is for these very slices.
    """
    row = rows[0]
    drawn, pool = row.get("slices"), row.get("pool")
    if pool is None or drawn >= pool:
        return 0.0
    redraws = len({row["redraw"] for row in rows})
    disjoint = row["split"] == "given" and redraws * drawn <= pool  # a random split is dealt anew each time
    return 0.0 if disjoint else drawn / pool


def scope(rows: Rows) -> str:
    """What the t intervals of these rows hold for, and what they allow for."""
    rows = [row for row in rows if row.get("condition") not in CONTROLS]  # which take all of the pool by intent
    several = unit_of(rows) == "redraw"
    if several and all(row["pool"] is None for row in rows):
        return ""  # every redraw has a volume of its own: the intervals are for volumes like these
    notes = ["The t intervals are for this test set only."]
    share = max(map(shared_slices, grouped(rows, "split", "slices").values()))
    if several and share:
        notes.append(
            f"Redraws have up to {100 * share:.0f} % of their annotated slices in common, and the intervals are "
            "widened for that."
        )
    if several and any(row["slices"] == row["pool"] for row in rows):
        notes.append("Where all annotated slices are taken, the intervals are for these slices only.")
    return " ".join(notes)


# --------------------------------------------------------------------------------------------- head-room


@dataclass(frozen=True)
class Control:
    """The positive control of `slices` annotated slices in one experiment."""

    slices: int
    name: str
    beside: str  # the training set that the head-room is measured from: real slices, augmented as the control's are
    full: Rows  # lines of all slices; of `slices` where `base` has half of them
    base: Rows  # lines of `beside`
    room: Difference  # the head-room: `full` - `base`


def find_control(rows: Rows, slices: int) -> Control | None:
    """The control in an experiment's `rows`: from `slices` to all or, without a larger pool, from half of them."""
    there = [name for name in CONTROLS if pick(rows, name)]
    name, beside = (there[0], CONTROLS[there[0]]) if there else (f"half of the slices to all {slices}", ROTATION)
    full = pick(rows, name) if there else pick(rows, beside, slices=slices)
    base = pick(rows, beside, slices=slices if there else slices // 2)
    room = compare(full, base)
    return Control(slices, name, beside, full, base, room) if room else None


def controls_of(preset: Preset, experiment: str, rows: Rows) -> list[Control]:
    """The controls of an experiment, of the fewest slices first: for every number that synthetic ones were made of."""
    made = recipes(preset, experiment)
    counts = sorted({row["slices"] for row in rows if row["condition"] in made})
    return [control for control in (find_control(rows, count) for count in counts) if control]


def has_room(room: Difference) -> bool:
    """Whether a head-room is above zero: by its interval over redraws or, where there is none, by half a point."""
    return room.over_redraws[0] > 0 if room.over_redraws else room.mean >= SMALLEST_ROOM


def share_of(
    control: Control, with_it: Rows, without: Rows, value: Value = miou
) -> tuple[float, tuple[float, float] | None] | None:
    """The gain as a share of the head-room, and its interval over redraws: a ratio of means of what all sides have.

    None where they share no repetition and where there is no head-room.
    """
    sides = with_it, without, control.full, control.base
    ours, theirs, full, base = repetitions(value, *sides)
    if not ours:
        return None
    room = paired_difference(full, base, shared_slices(control.base), unit_of(*sides))
    if not has_room(room):
        return None
    gains, rooms, overlap = np.subtract(ours, theirs), np.subtract(full, base), max(map(shared_slices, sides))
    return gains.mean() / room.mean, ratio_interval(gains, rooms, overlap) if room.unit == "redraw" else None
