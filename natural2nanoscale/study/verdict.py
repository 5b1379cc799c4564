"""What a study may say: differences against the head-room, which more annotated slices would have filled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from natural2nanoscale.study.comparisons import (
    Control,
    Rows,
    compare,
    contrasted,
    find_control,
    grouped,
    has_room,
    pick,
    recipes,
    scores,
    share_of,
    spread,
)
from natural2nanoscale.study.conditions import CONTROLS, SYNTHETIC
from natural2nanoscale.study.experiments import described
from natural2nanoscale.study.presets import Preset
from natural2nanoscale.study.report import Table
from natural2nanoscale.study.statistics import Difference


def points(share: float) -> str:
    """A difference of shares as percentage points with a sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def range_of(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def percent_of(share: tuple[float, tuple[float, float] | None] | None) -> str:
    """What `share_of` found, such as: 30 % (12 to 45 %)."""
    if share is None:
        return "–"
    mean, interval = share
    return f"{100 * mean:.0f} %" + (f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f} %)" if interval else "")


def headroom_table(rows: Rows, names: Sequence[str], control: Control) -> Table:
    """Every training set of an experiment against what the head-room is measured from: gain, share, per class too."""
    own = [row for row in rows if row["slices"] == control.slices]
    base = pick(own, control.beside)
    sides = [(f"{control.name} (head-room)", control.full, control.base)]
    named = (control.beside, *CONTROLS)
    sides += [(name, ours, base) for (name,), ours in grouped(own, "condition").items() if name not in named]
    lines = []
    for name, ours, theirs in sides:
        cells, whole = [], compare(ours, theirs)
        for value in scores(len(names)):
            gain = compare(ours, theirs, value)
            share = share_of(control, ours, theirs, value) if ours is not control.full else None
            cells += [points(gain.mean) if gain else "–", percent_of(share)]
        lines.append([name, cells[0], range_of(whole and whole.over_redraws), *cells[1:]])
    header = [f"against {control.beside}", "mIoU", "95 % t interval", "share"]
    for name in names:
        header += [name, f"{name}: share"]
    note = (
        "Differences in points. Share: of the head-room, which all annotated slices of the pool would have filled with "
        "the same steps (ratio of means; in brackets its 95 % bootstrap interval over redraws, of five or more); none "
        "where that reaches zero."
    )
    title = f"{described(rows[0]['experiment'])[0]}, head-room of {control.slices} annotated slices"
    return Table(title, header, lines, note)


def study_verdict(rows: Rows, preset: Preset) -> str:
    """The sentences that the log allows: of the first experiment with a control, else of the one that says most."""
    found = [experiment_verdict(preset, experiment, own) for (experiment,), own in grouped(rows, "experiment").items()]
    ranked = sorted(found, key=lambda one: one[0])
    return next((told for _, told in ranked if told), "The experiments have no comparison yet.")


def experiment_verdict(preset: Preset, experiment: str, rows: Rows) -> tuple[int, str]:
    """The rank of what an experiment says, 0 the highest, and its sentences: for every number of annotated slices on
    the first of its contrasts between a training set with synthetic slices and one without."""
    rank, told, made = 3, {}, recipes(preset, experiment)
    for one, ours, theirs, change in contrasted(preset, experiment, rows):
        slices = ours[0]["slices"]
        if one.ours.name not in made or one.theirs.name in made or slices in told:
            continue
        control = find_control(rows, slices)
        rank = min(rank, 0 if control else 1 if one.ours.name != SYNTHETIC else 2)  # pure synthetic slices say least
        over = f" over {control.beside}" if control and one.theirs.name != control.beside else ""
        share = share_of(control, ours, theirs) if control and not over else None
        where = one.where or f"of {one.ours.name} over {one.theirs.name}"
        told[slices] = sentence(change, where + one.suffix, control, share and percent_of(share), over)
        if control:
            told[slices] += company([row for row in rows if row["slices"] == slices], made, one.theirs.name)
    return rank, " ".join(told.values())


def sentence(one: Difference, where: str, control: Control | None, share: str | None, over: str = "") -> str:
    """Benefit and harm whatever the head-room; without head-room "no benefit" is "cannot tell". over: what the
    head-room is measured from, where the difference is to something else."""
    room = points(control.room.mean) + over if control else ""
    if control and control.room.over_redraws:
        room += f", 95\u00a0% interval {range_of(control.room.over_redraws)}"
    beside = f"; the head-room is {room}." if control else ". This experiment has no positive control."
    of_room = f", {share} of the head-room ({room})." if share else beside
    if one.over_redraws is None:
        word = "gained" if one.mean > 0 else "lost"
        return (
            f"On one draw of slices synthetic ones {word}: {points(one.mean)} mIoU {where}{of_room} One draw, no "
            "interval over slices: take --redraws 5 or more to tell."
        )
    low, high = one.over_redraws
    interval = f"{points(one.mean)} mIoU {where} (95\u00a0% interval {range_of(one.over_redraws)})"
    if low > 0:
        return f"Synthetic slices helped: {interval}{of_room}"
    if high < 0:
        return f"Synthetic slices did harm: {interval}{beside}"
    if control and not has_room(control.room):
        return (
            f"This study cannot tell what synthetic slices are worth: all annotated slices would not have helped "
            f"either (head-room {room}). They gain at most {points(high)}: {interval}. Take fewer annotated slices, or "
            "more steps (--unet-steps)."
        )
    if control:
        beside = f"; all annotated slices would have gained {room}."
    return f"No benefit of synthetic slices was found: {interval}, at most {points(high)}{beside}"


def company(rows: Rows, made: set[str], told: str) -> str:
    """How the best of the training sets `made` with synthetic slices stands to the best free one; "" where a single one
    does not lose to the one that it was `told` against: then the sentence before this says all."""
    means = {name: spread(found)[0] for (name,), found in grouped(rows, "condition").items()}
    ours, free = [name for name in means if name in made], [name for name in means if name not in made]
    best, rival = (max(names, key=means.get, default="") for names in (ours, free))
    one = compare(pick(rows, best), pick(rows, rival))
    if one is None or (one.mean >= 0 and len(ours) == 1 and rival == told):
        return ""
    low, high = one.over_redraws or (-math.inf, math.inf)
    alike = "the same mean as" if abs(one.mean) < 0.0005 else f"a {'lower' if one.mean < 0 else 'higher'} mean than"
    stands = "loses to" if high < 0 else "beats" if low > 0 else f"has {alike}"
    several = f"The best of {len(ours)} synthetic recipes by these same scores"
    who = "Their training set" if len(ours) == 1 else "The best synthetic recipe" if one.mean < 0 else several
    by = points(one.mean) + (f", 95\u00a0% interval {range_of(one.over_redraws)}" if one.over_redraws else "")
    return f" {who}, {best}, {stands} {rival}, which needs no generator ({by})."
