"""The charts of a study's report, from the lines of the log."""

from __future__ import annotations

from statistics import fmean

from natural2nanoscale.charts import curves
from natural2nanoscale.study.comparisons import Rows, grouped, pick, spread
from natural2nanoscale.study.conditions import BOTH, CONTROLS, COPIES, MIXED, REAL, ROTATED_MIX, ROTATION
from natural2nanoscale.study.report import Figure

GROWTH = {  # of training sets or of their annotated slices: title, what grows, its key in a line, the curves
    "figure6": ("Figure 6", "training slices", "size", (COPIES, MIXED, BOTH)),
    "scarcity": ("Fewer annotated slices", "annotated slices", "slices", (REAL, ROTATION, MIXED, ROTATED_MIX)),
}


def repetitions_of(rows: Rows) -> str:
    redraws, seeds = len({row["redraw"] for row in rows}), len({row["seed"] for row in rows})
    if redraws > 1:
        what = "ControlNets, U-Nets and, where not all are taken, annotated slices"
        return f"{redraws} redraws of {what}" + (f", {seeds} U-Nets each" if seeds > 1 else "")
    return f"{seeds} U-Net seed{'s' * (seeds > 1)} on one draw of slices and one ControlNet"


def growth_figure(experiment: str, rows: Rows) -> Figure:
    """mIoU against the size of the training set, or against the number of annotated slices."""
    title, what, key, names = GROWTH[experiment]
    series = []
    for name in names:
        points = []
        for (x,), own in sorted(grouped(pick(rows, name), key).items()):
            mean, std = spread(own)
            points.append((x, 100 * mean, std and 100 * std))
        if points:
            series.append((name, points))
    beside = [] if REAL in names else pick(rows, REAL)
    level = (REAL, 100 * spread(beside)[0]) if beside else None
    chart = curves(series, what, "mIoU in per cent", level, logarithmic=REAL in names)
    return Figure(title, chart, f"Bars: one standard deviation over {repetitions_of(rows)}.")


def learning_curves(rows: Rows, slices: int) -> Figure:
    """Validation mIoU against steps, a curve for every training set of `slices` annotated slices and the control."""
    series = []
    for (name, count), own in grouped(rows, "condition", "slices").items():
        if count == slices or name in CONTROLS:
            looks: dict[int, list[float]] = {}
            for step, value in (look for row in own for look in row["curve"]):
                looks.setdefault(step, []).append(100 * value)
            series.append((name, [(step, fmean(values), None) for step, values in sorted(looks.items())]))
    note = (
        f"Means of the U-Nets of {slices} annotated slices, each on the validation slices that it was given: as many "
        f"as training slices. Compare whether curves are flat, not how high they are: those of all slices are looked "
        "at on more of them."
    )
    return Figure("Learning curves", curves(series, "optimiser steps", "validation mIoU in per cent"), note)
