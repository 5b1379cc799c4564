"""The charts of a study's report, from the lines of the log."""

from __future__ import annotations

from collections.abc import Sequence

from natural2nanoscale.charts import curves
from natural2nanoscale.segmentation.metrics import mean_std
from natural2nanoscale.study.comparisons import mious, pick
from natural2nanoscale.study.conditions import ALL, BOTH, COPIES, MIXED, REAL, ROTATED_MIX, ROTATION
from natural2nanoscale.study.report import Figure


def repetitions_of(rows: Sequence[dict]) -> str:
    redraws, seeds = len({row["redraw"] for row in rows}), len({row["seed"] for row in rows})
    if redraws > 1:
        what = "ControlNets, U-Nets and, where not all are taken, annotated slices"
        return f"{redraws} redraws of {what}" + (f", {seeds} U-Nets each" if seeds > 1 else "")
    return f"{seeds} U-Net seed{'s' * (seeds > 1)} on one draw of slices and one ControlNet"


def size_figure(experiment: str, rows: Sequence[dict]) -> Figure:
    """mIoU against the size of the training set, or against the number of annotated slices."""
    growth = experiment == "figure6"
    series = []
    for name in (COPIES, MIXED, BOTH) if growth else (REAL, ROTATION, MIXED, ROTATED_MIX):
        points = []
        for x in sorted({row["size" if growth else "slices"] for row in pick(rows, name)}):
            mean, std = mean_std(mious(pick(rows, name, **{"size" if growth else "slices": x})))
            points.append((x, 100 * mean, None if std is None else 100 * std))
        if points:
            series.append((name, points))
    level = (REAL, 100 * mean_std(mious(pick(rows, REAL)))[0]) if growth else None
    x_title = "training slices" if growth else "annotated slices"
    chart = curves(series, x_title, "mIoU in per cent", level, logarithmic=not growth)
    title = "Figure 6" if growth else "Fewer annotated slices"
    return Figure(title, chart, f"Bars: one standard deviation over {repetitions_of(rows)}.")


def learning_curves(experiment: str, rows: Sequence[dict], counts: Sequence[int]) -> list[Figure]:
    """Validation mIoU against steps, a curve for every training set of the fewest annotated slices and the control."""
    series = []
    for name in dict.fromkeys(row["condition"] for row in rows):
        looks: dict[int, list[float]] = {}
        for row in pick(rows, name):
            if row["slices"] in counts or name == ALL:
                for step, value in row["curve"]:
                    looks.setdefault(step, []).append(value)
        points = [(step, 100 * mean_std(values)[0], None) for step, values in sorted(looks.items())]
        if points:
            series.append((name, points))
    if not series:
        return []
    chart = curves(series, "optimiser steps", "validation mIoU in per cent")
    which = f" of {counts[0]} annotated slices" if experiment == "scarcity" else ""
    note = (
        f"Means of the U-Nets{which}, each on the validation slices that it was given: as many as training slices. "
        f"Compare whether curves are flat, not how high they are: {ALL} is looked at on more slices."
    )
    return [Figure("Learning curves", chart, note)]
