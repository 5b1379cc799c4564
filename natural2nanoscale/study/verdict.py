"""What a study may say: differences against the head-room, which more annotated slices would have filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from natural2nanoscale.segmentation.metrics import mean_std
from natural2nanoscale.study.comparisons import (
    Comparison,
    by_repetition,
    compare,
    compare_all,
    pick,
    points,
    range_of,
    repeated,
    shared_slices,
)
from natural2nanoscale.study.conditions import (
    ALL,
    ELASTIC,
    ELASTIC_MIX,
    FREE,
    MIXED,
    ROTATED_MIX,
    ROTATION,
    SELF,
    contrasts,
)
from natural2nanoscale.study.presets import Preset
from natural2nanoscale.study.report import Table
from natural2nanoscale.study.statistics import paired_difference, ratio_interval

CONTROLLED = ("worth", "demo", "scarcity")  # experiments with a positive control, the first one's verdict goes first
SMALLEST_ROOM = 0.005  # of mIoU: of one draw, a smaller head-room has no shares
RECIPES = (ROTATED_MIX, ELASTIC_MIX)  # synthetic slices with an augmentation


@dataclass(frozen=True)
class Control:
    """The positive control of `slices` annotated slices in one experiment."""

    slices: int
    base: Sequence[dict]  # lines of real + rotation
    full: Sequence[dict]  # lines of all slices + rotation; of `slices` where `base` has half of them
    halved: bool  # no larger pool: from half of the slices to all
    room: Comparison  # the head-room: `full` - `base`


def find_control(rows: Sequence[dict], slices: int, block: int) -> Control | None:
    """The control of an experiment's `rows`; None where there is none."""
    own, every = pick(rows, ROTATION, slices=slices), pick(rows, ALL)
    half = pick(rows, ROTATION, slices=slices // 2)
    halved = not every
    base, full = (half, own) if halved else (own, every)
    label = f"half of the slices to all {slices}, rotation" if halved else f"{ALL} − {ROTATION} of {slices}"
    room = compare(label, full, base, block) if base and full else None
    return Control(slices, base, full, halved, room) if room else None


def share_of(
    control: Control, with_it: Sequence[dict], without: Sequence[dict], value: Callable[[dict], float | None]
) -> tuple[float, float | None, tuple[float, float] | None] | None:
    """(gain, gain / head-room, interval of the ratio over redraws): means of what all four sides have.

    None where they share no repetition. No ratio where the head-room is not above zero by its interval over redraws
    or, of one draw, is less than half a point.
    """
    sides = with_it, without, control.full, control.base
    unit = repeated(*sides)
    found = [by_repetition(rows, value, unit) for rows in sides]
    keys = [key for key in found[0] if all(key in side for side in found)]
    if not keys:
        return None
    gains = [found[0][key] - found[1][key] for key in keys]
    rooms = [found[2][key] - found[3][key] for key in keys]
    gain, room = mean_std(gains)[0], mean_std(rooms)[0]
    if unit == "seed":
        return gain, gain / room if room >= SMALLEST_ROOM else None, None
    overlap = shared_slices(control.base)
    if paired_difference([found[2][key] for key in keys], [found[3][key] for key in keys], overlap).reaches_zero:
        return gain, None, None
    return gain, gain / room, ratio_interval(gains, rooms)


def percent_of(share: float, interval: tuple[float, float] | None) -> str:
    """Such as: 30 % (12 to 45 %)."""
    inside = f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f} %)" if interval else ""
    return f"{100 * share:.0f} %{inside}"


def has_room(control: Control | None) -> bool:
    """Whether the head-room is above zero, by its interval over redraws or, of one draw, by its mean."""
    if control is None:
        return False
    room = control.room
    return room.change.mean > 0 if room.unit == "seed" or not room.interval else not room.change.reaches_zero


def headroom_table(rows: Sequence[dict], names: Sequence[str], slices: int, block: int) -> Table | None:
    """Every training set of an experiment against real + rotation: gain, and share of the head-room, per class too."""
    control = find_control(rows, slices, block)
    if control is None:
        return None
    base = pick(rows, ROTATION, slices=slices)
    values: list[Callable[[dict], float | None]] = [lambda row: row["miou"]]
    values += [lambda row, k=k: row["iou"][k] for k in range(len(names))]
    told = dict.fromkeys(row["condition"] for row in rows if row["slices"] == slices and row["condition"] != ROTATION)
    head = ALL if not control.halved else f"half of the slices to all {slices}"
    lines = []
    for name in (head, *(name for name in told if name != ALL)):
        sides = (control.full, control.base) if name == head else (pick(rows, name, slices=slices), base)
        one, cells = compare(name, *sides, block), []
        for value in values:
            found = share_of(control, *sides, value)
            if found is None:
                cells += ["–", "–"]
                continue
            gain, share, interval = found
            cells += [points(gain), "–" if share is None or name == head else percent_of(share, interval)]
        told_interval = range_of(one.interval if one and one.unit == "redraw" else None)
        lines.append([f"{name} (head-room)" if name == head else name, cells[0], told_interval, *cells[1:]])
    header = ["against real + rotation", "mIoU", "95 % t interval", "share"]
    for name in names:
        header += [name, f"{name}: share"]
    note = (
        "Differences in points. Share: of the head-room, which all annotated slices of the pool would have filled with "
        "the same steps (ratio of means; in brackets its 95 % bootstrap interval over redraws, of five or more); none "
        "where that reaches zero."
    )
    return Table(f"Head-room of {slices} annotated slices", header, lines, note)


def study_verdict(rows: Sequence[dict], preset: Preset) -> str:
    """The sentences that the log allows: of the first experiment with a control, else of the one that says most."""
    for experiment in CONTROLLED:
        own = [row for row in rows if row["experiment"] == experiment]
        counts = sorted({row["slices"] for row in own if row["condition"] in (ROTATED_MIX, MIXED)})
        if counts:
            return " ".join(filter(None, (verdict_at(own, count, preset, len(counts) > 1) for count in counts)))
    for experiment in ("figure6", "table2", "split", "budget", "table1"):
        own = [row for row in rows if row["experiment"] == experiment]
        found = compare_all(contrasts(preset, experiment), own, preset.block)
        if found:
            where, one = found[0]
            return f"{sentence(one, where, None, None)} This experiment has no positive control."
    return "The experiments have no comparison yet."


def verdict_at(rows: Sequence[dict], slices: int, preset: Preset, several: bool) -> str:
    """What synthetic slices are worth beside `slices` annotated ones."""
    control = find_control(rows, slices, preset.block)
    pairs = ((ROTATED_MIX, ROTATION, "on top of rotation"), (ELASTIC_MIX, ELASTIC, "on top of elastic deformation"))
    sides = [(pick(rows, ours, slices=slices), pick(rows, theirs, slices=slices), at) for ours, theirs, at in pairs]
    first = next(((ours, theirs, at) for ours, theirs, at in sides if ours and theirs), None)
    if first is None:
        return ""
    ours, theirs, where = first
    one = compare("", ours, theirs, preset.block)
    if one is None:
        return ""
    share = share_of(control, ours, theirs, lambda row: row["miou"]) if control else None
    told = sentence(one, f"{where} of {slices} annotated slices" if several else where, control, share)
    return " ".join(filter(None, (told, company(rows, slices, preset.block))))


def sentence(one: Comparison, where: str, control: Control | None, share: tuple | None) -> str:
    """Benefit and harm whatever the head-room; without head-room "no benefit" is "cannot tell".

    share: of `share_of`.
    """
    share = share if share and share[1] is not None else None
    change = points(one.change.mean)
    room = f"{points(control.room.change.mean)}" if control else ""
    if control and control.room.unit == "redraw" and control.room.interval:
        room += f", 95\u00a0% interval {range_of(control.room.interval)}"
    if one.unit == "seed" or one.interval is None:
        part = f", {percent_of(share[1], None)} of a head-room of {room}" if share else ""
        missing = f"; the head-room is {room}" if control and not share else ""
        word = "gained" if one.change.mean > 0 else "lost"
        return (
            f"On one draw of slices synthetic ones {word}: {change} mIoU {where}{part}{missing}. One draw, no interval "
            "over slices: take --redraws 5 or more to tell."
        )
    interval = f"{change} mIoU {where} (95\u00a0% interval {range_of(one.interval)})"
    if one.verdict == "better":
        part = f", {percent_of(*share[1:])} of the head-room ({room})" if share else ""
        return f"Synthetic slices helped: {interval}{part or (f'; the head-room is {room}' if control else '')}."
    most = points(one.interval[1])
    if one.verdict == "worse":
        return f"Synthetic slices did harm: {interval}{f'; the head-room is {room}' if control else ''}."
    if control and not has_room(control):
        return (
            f"This study cannot tell what synthetic slices are worth: all annotated slices would not have helped "
            f"either (head-room {room}). They gain at most {most}: {interval}. Take fewer annotated slices, or more "
            "steps (--unet-steps)."
        )
    part = f"; all annotated slices would have gained {room}" if control else ""
    return f"No benefit of synthetic slices was found: {interval}, at most {most}{part}."


def company(rows: Sequence[dict], slices: int, block: int) -> str:
    """Whether the best synthetic recipe loses to a free augmentation of the real slices; "" where it does not."""

    def mean(name: str) -> float | None:
        found = list(by_repetition(pick(rows, name, slices=slices), lambda row: row["miou"]).values())
        return mean_std(found)[0] if found else None

    made = {name: mean(name) for name in RECIPES if mean(name) is not None}
    free = {name: mean(name) for name in (*FREE, SELF) if mean(name) is not None}
    if not made or not free:
        return ""
    recipe, rival = max(made, key=made.get), max(free, key=free.get)
    one = compare("", pick(rows, recipe, slices=slices), pick(rows, rival, slices=slices), block)
    if one is None or one.change.mean >= 0:
        return ""
    sure = one.unit == "redraw" and one.verdict == "worse"
    interval = f", 95\u00a0% interval {range_of(one.interval)}" if one.unit == "redraw" and one.interval else ""
    lost = "loses to" if sure else "has a lower mean than"
    by = f"{points(one.change.mean)}{interval}"
    return f"The best synthetic recipe, {recipe}, {lost} {rival}, which needs no generator ({by})."
