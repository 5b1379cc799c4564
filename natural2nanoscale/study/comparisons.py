"""What the lines of a log say of two training sets: means, spreads, paired differences, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from natural2nanoscale.charts import interval_plot
from natural2nanoscale.segmentation.metrics import mean_std, percent
from natural2nanoscale.study.conditions import ALL, Contrast
from natural2nanoscale.study.report import Figure, Table
from natural2nanoscale.study.statistics import Difference, block_bootstrap, enough_blocks, paired_difference

POSITIONS = {"better": "above zero", "worse": "below zero", "open": "reaches below zero"}  # of an interval


@dataclass(frozen=True)
class Comparison:
    """A paired difference in mIoU: its t interval over repetitions, and its interval over blocks of test slices."""

    label: str
    change: Difference
    over_blocks: tuple[float, float] | None
    unit: str = "redraw"  # what the t interval is over; "seed", of the U-Nets, where there is one redraw

    @property
    def interval(self) -> tuple[float, float] | None:
        half = self.change.half_width
        return None if half is None else (self.change.mean - half, self.change.mean + half)

    @property
    def verdict(self) -> str:
        """What the t interval excludes."""
        if not self.change.reaches_zero:
            return "better"
        return "worse" if self.interval and self.interval[1] < 0 else "open"


def repeated(*sides: Sequence[dict]) -> str:
    """What spread and pairs are over: "redraw" where there are several of them, else "seed", of the U-Nets."""
    return "redraw" if len({row["redraw"] for rows in sides for row in rows}) > 1 else "seed"


def by_repetition(
    rows: Sequence[dict], value: Callable[[dict], float | None], unit: str | None = None
) -> dict[int, float]:
    """The values by redraw (their seeds averaged) or by seed. Rows whose value is None (an absent class) are left
    out."""
    unit = unit or repeated(rows)
    groups: dict[int, list[float]] = {}
    for row in rows:
        if value(row) is not None:
            groups.setdefault(row[unit], []).append(value(row))
    return {key: mean_std(groups[key])[0] for key in sorted(groups)}


def compare(label: str, with_it: Sequence[dict], without: Sequence[dict], block: int) -> Comparison | None:
    """Paired difference in mIoU of two training sets, over what both have; None where they share nothing."""
    unit = repeated(with_it, without)
    ours, theirs = (by_repetition(rows, lambda row: row["miou"], unit) for rows in (with_it, without))
    both = [key for key in ours if key in theirs]
    if not both:
        return None
    overlap = max(map(shared_slices, (with_it, without))) if unit == "redraw" else 0.0
    change = paired_difference([ours[key] for key in both], [theirs[key] for key in both], overlap)
    there = {(row["redraw"], row["seed"]): row for row in without}
    pairs = [(row, there[row["redraw"], row["seed"]]) for row in with_it if (row["redraw"], row["seed"]) in there]
    slices = [len(row.get("images", ())) for pair in pairs for row in pair]
    tests = [row.get("test", row["redraw"]) for row, _ in pairs]
    volumes = [tests.index(test) for test in tests]
    if not enough_blocks(min(slices), block, len(set(volumes))):
        return Comparison(label, change, None, unit)
    matrices = [np.array([pair[side]["images"] for pair in pairs]) for side in (0, 1)]
    return Comparison(label, change, block_bootstrap(*matrices, block, volumes), unit)


def pick(rows: Sequence[dict], name: str, **fields: object) -> list[dict]:
    """The rows of one training set."""
    return [row for row in rows if row["condition"] == name and all(row[key] == fields[key] for key in fields)]


def compare_all(wanted: Sequence[Contrast], rows: Sequence[dict], block: int) -> list[tuple[str, Comparison]]:
    """(circumstance, comparison) of every contrast of which both sides are in the log."""
    found = []
    for one in wanted:
        sides = pick(rows, one.with_it, **one.ours), pick(rows, one.without, **one.theirs)
        found.append((one.where, compare(f"{one.with_it} − {one.without}{one.suffix}", *sides, block)))
    return [(where, comparison) for where, comparison in found if comparison]


def shared_slices(rows: Sequence[dict]) -> float:
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


def spread(values: Sequence[float]) -> str:
    """Shares as per cent: mean and, of several, sample standard deviation."""
    return percent(*mean_std(values)) if values else percent(None)


def points(share: float) -> str:
    """A difference of shares as percentage points with a sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def range_of(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def mious(rows: Sequence[dict]) -> list[float]:
    return list(by_repetition(rows, lambda row: row["miou"]).values())


def score_cells(rows: Sequence[dict], classes: int) -> list[str]:
    """mIoU and the IoU of every class."""
    per_class = [list(by_repetition(rows, lambda row, k=k: row["iou"][k]).values()) for k in range(classes)]
    return [spread(values) for values in (mious(rows), *per_class)]


def difference_parts(
    title: str, comparisons: Sequence[Comparison], block: int, rows: Sequence[dict]
) -> list[Table | Figure]:
    """The same differences, of the log's `rows`, as a chart and as a table."""
    over = "redraws" if any(one.unit == "redraw" for one in comparisons) else "U-Net seeds"
    header = (
        "difference in mIoU",
        "mean",
        f"95 % t interval over {over}",
        "95 % over test slices",
        "pairs",
        "t interval is",
    )
    lines, chart = [], []
    for one in comparisons:
        position = POSITIONS[one.verdict] if one.interval else "–"
        cells = [range_of(one.interval), range_of(one.over_blocks), str(one.change.pairs), position]
        lines.append([one.label, points(one.change.mean), *cells])
        bars = [bar and (100 * bar[0], 100 * bar[1]) for bar in (one.interval, one.over_blocks)]
        chart.append((one.label, 100 * one.change.mean, bars))
    note = (
        f"Thick bar: t interval over {over}{', which the verdict goes by' * (over == 'redraws')}. Thin bar: the same "
        f"trained networks on other test slices, blocks of {block} neighbours drawn anew, matrices pooled before mIoU "
        "is taken."
    )
    figure = Figure(title, interval_plot(chart, "difference in mIoU, percentage points"), note)
    return [figure, Table(f"{title}, in numbers", header, lines, scope(rows))]


def scope(rows: Sequence[dict]) -> str:
    """What the t intervals of these rows hold for, and what they allow for."""
    rows = [row for row in rows if row.get("condition") != ALL]  # takes all of the pool by intent
    several = len({row["redraw"] for row in rows}) > 1
    if several and all(row["pool"] is None for row in rows):
        return ""  # every redraw has a volume of its own: the intervals are for volumes like these
    notes = ["The t intervals are for this test set only."]
    draws: dict[tuple, list[dict]] = {}
    for row in rows:
        draws.setdefault((row["split"], row["slices"]), []).append(row)
    share = max(map(shared_slices, draws.values()))
    if several and share:
        notes.append(
            f"Redraws have up to {100 * share:.0f} % of their annotated slices in common, and the intervals are "
            "widened for that."
        )
    if several and any(row["slices"] == row["pool"] for row in rows):
        notes.append("Where all annotated slices are taken, the intervals are for these slices only.")
    return " ".join(notes)


def label_consistency(rows: Sequence[dict], names: Sequence[str]) -> str:
    """How well U-Nets that never saw synthetic slices find the masks that these were made from; "" if none looked."""
    judges = [row for row in rows if "synthetic_iou" in row]
    if not judges:
        return ""

    def agreement(row: dict, k: int) -> float | None:
        on_synthetic, on_test = row["synthetic_iou"][k], row["iou"][k]
        return on_synthetic / on_test if on_test and on_synthetic is not None else None

    shares = [
        spread(list(by_repetition(judges, lambda row, k=k: agreement(row, k)).values())) for k in range(len(names))
    ]
    return (
        f"Label consistency: IoU of the U-Nets trained on {judges[0]['condition']} on the synthetic slices, against "
        "the masks that these were made from, in per cent of their IoU on the real test slices: "
        + ", ".join(f"{name} {share}" for name, share in zip(names, shares, strict=True))
        + "."
    )
