"""The report of a study: the verdict, the paper's tables and figures and their controls, from the lines of the log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from natural2nanoscale.charts import interval_plot
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation.metrics import percent
from natural2nanoscale.study.comparisons import (
    Rows,
    contrasted,
    controls_of,
    grouped,
    over_test_slices,
    pick,
    scope,
    scores,
    spread,
    unit_of,
)
from natural2nanoscale.study.conditions import COPIES, IN_MEMORY, MIXED, ON_DISK, REAL, SYNTHETIC
from natural2nanoscale.study.experiments import EXPERIMENTS, described
from natural2nanoscale.study.figures import GROWTH, growth_figure, learning_curves, repetitions_of
from natural2nanoscale.study.pilot import pilot_note, read_pilot
from natural2nanoscale.study.presets import Preset
from natural2nanoscale.study.report import Figure, Pictures, Report, Table, run_facts
from natural2nanoscale.study.synthetic import sampling_settings
from natural2nanoscale.study.verdict import headroom_table, points, range_of, study_verdict

PAPER = {  # mIoU by experiment, training set and size; Figure 6 as read off the picture
    ("table1", REAL, 233): "74.6 ± 0.4",
    ("table1", SYNTHETIC, 233): "44.3 ± 0.4",
    ("figure6", REAL, 233): "74.6 ± 0.4",
    ("figure6", COPIES, 466): "84.8",
    ("figure6", COPIES, 5390): "89.2",
    ("figure6", COPIES, 10553): "90.3",
    ("figure6", MIXED, 466): "78.7 ± 6.5",
    ("figure6", MIXED, 5390): "88.5",
    ("figure6", MIXED, 10553): "90.0",
    ("table2", ON_DISK, 34825): "90.7 ± 0.1",
    ("table2", MIXED, 10553): "90.0 ± 0.1",
}
COLUMNS = ("split", "budget")  # shown where they vary


def study_report(
    run: RunFolder, rows: Rows, preset: Preset, test: PairFolder, timing: dict[str, float], backbone: Backbone
) -> Report:
    """What the log's `rows` say so far. `timing`: seconds per slice, empty if not measured."""
    names = test.info.classes.names
    rows = [row for experiment in EXPERIMENTS for row in rows if row["experiment"] == experiment]
    parts: list[Table | Figure | Pictures] = []
    for (experiment,), own in grouped(rows, "experiment").items():
        if experiment in GROWTH:
            parts.append(growth_figure(experiment, own))
        if experiment == "table2" and timing:
            parts.append(time_table(own, timing, preset))
        parts.append(score_table(experiment, own, names, preset))
        controls = controls_of(preset, experiment, own)
        parts += [headroom_table(own, names, control) for control in controls]
        parts += [learning_curves(own, control.slices) for control in controls[:1]]
        parts += difference_parts(experiment, own, preset)
    parts += [quality_table(rows, names)] if any("quality" in row for row in rows) else []
    made = {"backbone": backbone.name} | asdict(sampling_settings(backbone))
    facts = [("Test slices", str(len(test.stems))), ("Sampling", json.dumps(made))]
    if trainings := read_pilot(run.path):
        facts.append(("Pilot", pilot_note(trainings)))
    return Report(
        f"What synthetic slices are worth: {test.info.name}, preset {preset.name}",
        study_verdict(rows, preset),
        [*parts, *picture_parts(run, label_consistency(rows, names))],
        run_facts(run.path) + facts,
    )


def difference_parts(experiment: str, rows: Rows, preset: Preset) -> list[Table | Figure]:
    """The contrasts of an experiment, as a chart and as a table."""
    over = "redraws" if unit_of(rows) == "redraw" else "U-Net seeds"
    lines, chart = [], []
    for one, *sides, change in contrasted(preset, experiment, rows):
        label = f"{one.ours.name} − {one.theirs.name}{one.suffix}"
        intervals = change.interval, over_test_slices(*sides, preset.block)
        cells = [points(change.mean), *map(range_of, intervals), str(change.pairs), position(change.interval)]
        lines.append([label, *cells])
        chart.append((label, 100 * change.mean, [bar and (100 * bar[0], 100 * bar[1]) for bar in intervals]))
    if not lines:
        return []
    title = f"{described(experiment)[0]}, differences"
    note = (
        f"Thick bar: t interval over {over}{', which the verdict goes by' * (over == 'redraws')}. Thin bar: the same "
        f"trained networks on other test slices, blocks of {preset.block} neighbours drawn anew, matrices pooled "
        "before mIoU is taken."
    )
    header = ["difference in mIoU", "mean", f"95 % t interval over {over}", "95 % over test slices", "pairs"]
    return [
        Figure(title, interval_plot(chart, "difference in mIoU, percentage points"), note),
        Table(f"{title}, in numbers", [*header, "t interval is"], lines, scope(rows)),
    ]


def position(interval: tuple[float, float] | None) -> str:
    """Where an interval lies."""
    if interval is None:
        return "–"
    return "above zero" if interval[0] > 0 else "below zero" if interval[1] < 0 else "reaches below zero"


def score_table(experiment: str, rows: Rows, names: Sequence[str], preset: Preset) -> Table:
    """mIoU and IoU of every training set of an experiment; columns that are the same everywhere are left out."""
    shown = [key for key in COLUMNS if len({row[key] for row in rows}) > 1]
    ordered = sorted(rows, key=lambda row: (row["slices"], row["ratio"]))
    paper = preset.name == "paper" and any(key[0] == experiment for key in PAPER)
    lines = []
    for key, group in grouped(ordered, "condition", *shown, "slices", "val_slices", "size").items():
        name, *varying, slices, val_slices, size = key
        mark = " †" if any(row["unconverged"] for row in group) else ""
        ious = [percent(*spread(group, value)) for value in scores(len(names))]
        steps = f"{fmean(row['steps'] for row in group):,.0f}"
        line = [name + mark, *varying, f"{slices} + {val_slices}", f"{size:,}", *ious, steps]
        lines.append(line + [PAPER.get((experiment, name, size), "–")] * paper)
    precision = " and ".join(sorted({row["precision"] for row in rows}))
    title, what = described(experiment)
    note = (
        f"{what} Test IoU in per cent, mean ± sample standard deviation over "
        f"{repetitions_of(rows)}; U-Nets in {precision}. Annotated: training + validation slices."
    )
    if any(row["unconverged"] for row in rows):
        note += " †: validation still improved at the end, so a longer training might have been better."
    if "split" in shown:
        note += " The splits have other test slices: compare differences, not rows."
    header = ["training set", *shown, "annotated", "size", "mIoU", *names, "steps"] + ["the paper"] * paper
    return Table(title, header, lines, note)


def time_table(rows: Rows, timing: dict[str, float], preset: Preset) -> Table:
    """What each way of making slices takes, and how many it makes in the time of the largest synthetic set."""
    count = rows[0]["slices"]
    budget = max(preset.ratios) * count * timing["synthetic"]
    lines = []
    for name, kind, condition in (
        ("synthetic, written as PNG pairs", "synthetic", MIXED),
        ("rotated copies, written as PNG pairs", "disk", ON_DISK),
        ("rotated copies, in memory", "memory", IN_MEMORY),
    ):
        trained = max((row["size"] for row in pick(rows, condition)), default=count) - count
        lines.append([name, f"{1000 * timing[kind]:.2f}", f"{budget / timing[kind]:,.0f}", f"{trained:,}"])
    header = ("made", "milliseconds per slice", "slices in that time", "of which trained on")
    note = (
        f"Timed on the run's machine, ControlNet's training excluded; at most {preset.most_copies:,} copies are taken."
    )
    return Table(f"Generation in {budget:,.0f} seconds", header, lines, note)


def label_consistency(rows: Rows, names: Sequence[str]) -> str:
    """How well U-Nets that never saw synthetic slices find the masks that these were made from; "" if none looked."""
    judges = [row for row in rows if "synthetic_iou" in row]
    judges = [row for row in judges if row["slices"] == max(judge["slices"] for judge in judges)]
    if not judges:
        return ""

    def agreement(row: dict, k: int) -> float | None:
        on_synthetic, on_test = row["synthetic_iou"][k], row["iou"][k]
        return on_synthetic / on_test if on_test and on_synthetic is not None else None

    shares = [f"{name} {percent(*spread(judges, lambda row, k=k: agreement(row, k)))}" for k, name in enumerate(names)]
    return (
        f"Label consistency: IoU of the U-Nets trained on {judges[0]['condition']} on the synthetic slices, against "
        f"the masks that these were made from, in per cent of their IoU on the real test slices: {', '.join(shares)}."
    )


def quality_table(rows: Rows, names: Sequence[str]) -> Table:
    """How the synthetic slices of every recipe look beside real ones, mean over redraws."""
    lines = []
    for (name,), group in grouped([row for row in rows if "quality" in row], "condition").items():
        found = [row["quality"] for row in group]

        def pair(key: str, digits: int, *at: int, found: list[dict] = found) -> str:
            values = []
            for one in (key, f"{key}_real"):
                numbers = [quality[one][at[0]] if at else quality[one] for quality in found]
                numbers = [number for number in numbers if number is not None]
                values.append(f"{fmean(numbers):.{digits}f}" if numbers else "–")
            return f"{values[0]} ({values[1]})"

        ids = range(len(names))
        cells = [*(pair("grey", 1, k) for k in ids), *(pair("texture", 2, k) for k in ids), pair("nearest", 1)]
        lines.append([name, *cells])
    header = ["drawn for", *(f"grey: {name}" for name in names), *(f"texture: {name}" for name in names), "nearest"]
    note = (
        "Grey: Wasserstein distance of the classes' grey values to those of the real slices of the pool, in levels. "
        "Texture: mean difference of the log10 power spectra within the class. Nearest: root mean square difference "
        "to the nearest real slice, in levels; a copy is at 0. In brackets: between two halves of the real ones."
    )
    return Table("The pictures", header, lines, note)


def picture_parts(run: RunFolder, note: str) -> list[Pictures]:
    """What the paper shows in its Figures 5 and 4, from the ControlNet that knows most slices."""
    known = run.path.glob("redraw-0/given-*/controlnet*")
    known = sorted(known, key=lambda path: (int(path.parts[-2].split("-")[1]), path.name))
    if not known:
        return []
    group, samples = known[-1].parts[-2], sorted((known[-1] / "samples").glob("step-*.png"))
    strips = [(f"step {int(file.stem.split('-')[1]):,}", file) for file in samples]
    sheets = sorted(run.path.glob(f"redraw-[01]/{group}/synthetic*.png"))
    sheets = [(f"{path.parts[-3]}, {path.stem}", path) for path in sheets]
    return [
        Pictures("Real, mask, synthetic", sheets, note),
        Pictures("Progress of ControlNet", strips, "Validation slices, the same noise at every step."),
    ]
