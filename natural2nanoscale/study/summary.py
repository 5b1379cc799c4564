"""The report of a study: the paper's tables and figures, or the demo's short form, from the lines of the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from natural2nanoscale.charts import curves, dot_plot
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation.metrics import mean_std
from natural2nanoscale.study.comparisons import (
    compare_all,
    difference_parts,
    headline,
    label_consistency,
    mious,
    pick,
    score_cells,
    verdict,
)
from natural2nanoscale.study.conditions import (
    BOTH,
    COPIES,
    IN_MEMORY,
    MIXED,
    ON_DISK,
    REAL,
    ROTATED_MIX,
    ROTATION,
    SYNTHETIC,
    contrasts,
)
from natural2nanoscale.study.presets import EXPERIMENTS, Preset
from natural2nanoscale.study.report import Figure, Pictures, Report, Table, run_facts
from natural2nanoscale.study.trial import sampling_settings

TITLES = {
    "demo": "Training sets",
    "table1": "Table 1: pure synthetic slices",
    "figure6": "Figure 6: growing training sets",
    "table2": "Table 2: equal generation time",
    "budget": "Control: epochs or equal steps",
    "split": "Control: blocks or random slices",
    "scarcity": "Label scarcity",
    "augmentation": "Standard augmentation",
    "order": "Beside the real slices or before them",
}
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
SMALLEST_GAP = 1.0  # points of mIoU, below which its shares mean nothing
COLUMNS = {"split": "split", "budget": "budget", "slices": "annotated"}  # shown where they vary


def study_report(
    run: RunFolder, preset: Preset, test: PairFolder, timing: dict[str, float], backbone: Backbone
) -> Report:
    """Everything that the log holds so far. `timing`: seconds per slice, empty if not measured."""
    rows, names = run.read_log(), test.info.classes.names
    parts: list[Table | Figure | Pictures] = []
    for experiment, title in TITLES.items():
        own = [row for row in rows if row["experiment"] == experiment]
        if not own or (experiment == "scarcity" and not preset.scarce):
            continue
        if experiment in ("figure6", "scarcity"):
            parts.append(size_figure(experiment, own))
        if experiment == "table2":
            parts.append(time_table(own, timing, preset))
        parts.append(score_table(experiment, own, names, preset))
        if experiment == "scarcity":
            parts.append(gap_table(own, preset))
        compared = [one for _, one in compare_all(contrasts(preset, experiment), own, preset.block)]
        if compared:
            title = "Differences" if experiment == "demo" else f"{title}, differences"
            parts += difference_parts(title, compared, preset.block, own)
    if preset.name == "demo":
        parts = demo_parts(parts, rows, preset, test, backbone)
    headlines = headline(rows, preset)
    consistency = label_consistency([row for row in rows if row["experiment"] in ("demo", "table1")], names)
    return Report(
        f"What synthetic slices are worth: {test.info.name}" + f", preset {preset.name}" * (preset.name != "demo"),
        verdict(headlines) if headlines else "The experiments have no comparison yet.",
        [*parts, *picture_parts(run, consistency)],
        run_facts(run.path),
    )


def demo_parts(
    parts: Sequence[Table | Figure], rows: Sequence[dict], preset: Preset, test: PairFolder, backbone: Backbone
) -> list[Table | Figure]:
    """The demo's short form: the differences first, and in one note all that a reader has to know of their making."""
    scores, *differences = parts
    names = dict.fromkeys(row["condition"] for row in rows)
    dots = [(name, [100 * value for value in mious(pick(rows, name))]) for name in names]
    chart = dot_plot(dots, "test mIoU, per cent")
    repetitions = Figure("Every repetition", chart, "Large dots: means. Small dots: repetitions.")
    note = f"{scores.note} {how_made(rows, preset, test, backbone)}"
    return [*differences[:1], replace(scores, note=note), repetitions, *differences[1:]]


def how_made(rows: Sequence[dict], preset: Preset, test: PairFolder, backbone: Backbone) -> str:
    """What the demo's slices and U-Nets were made with, in a few sentences."""
    (budget,), sampling = preset.budgets.values(), sampling_settings(backbone)
    looks = math.ceil(budget.max_steps / budget.validate_every)
    unfinished = sum(row["unconverged"] for row in rows)
    began = ""
    if sampling.start < 1:
        began = (
            f", of which the first {100 * (1 - sampling.start):.0f} % are left out: sampling begins at the mask's own "
            "slice, noised to that level"
        )
    return (
        f"{len(test.stems)} real test slices of {test.info.name}. {preset.slices} annotated slices; "
        f"{max(preset.ratios):g} synthetic per mask, by a ControlNet fine-tuned on the same slices for "
        f"{preset.controlnet_steps} steps over the backbone {backbone.name}, in {sampling.steps} DDIM steps at "
        f"strength {sampling.strength:g}{began}. Every U-Net (width {budget.width}) takes {budget.max_steps} steps of "
        f"{budget.batch_size} windows of {budget.crop[0]}x{budget.crop[1]} pixels, half of them from real slices where "
        f"both are mixed, at a learning rate that rises to {budget.learning_rate:g} and falls to 0, and class balance "
        f"{budget.class_balance:g}, without early stopping; the best of {looks} validations is tested. "
        f"Rotation: ±{budget.angle:g} degrees. "
        f"Validation still improved at the end of {unfinished} of {len(rows)} trainings."
    )


def score_table(experiment: str, rows: Sequence[dict], names: Sequence[str], preset: Preset) -> Table:
    """mIoU and IoU of every training set of an experiment; columns that are the same everywhere are left out."""
    if experiment == "demo":
        sets = {row["condition"]: pick(rows, row["condition"]) for row in rows}
        lines = [[name, *score_cells(group, len(names))] for name, group in sets.items()]
        return Table(TITLES[experiment], ("training set", "mIoU", *names), lines, score_note(rows))
    shown = [key for key in COLUMNS if len({row[key] for row in rows}) > 1]
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["slices"], row["ratio"])):
        groups.setdefault((row["condition"], *(row[key] for key in shown), row["size"]), []).append(row)
    paper = preset.name == "paper" and experiment in ("table1", "figure6", "table2")
    header = ["training set", *(COLUMNS[key] for key in shown), "size", "mIoU", *names, "steps"]
    lines = []
    for (name, *fields, size), group in groups.items():
        mark = " †" if any(row["unconverged"] for row in group) else ""
        steps = sum(row["steps"] for row in group) / len(group)
        cells = [name + mark, *map(str, fields), f"{size:,}", *score_cells(group, len(names)), f"{steps:,.0f}"]
        lines.append(cells + ([PAPER.get((experiment, name, size), "–")] if paper else []))
    what = EXPERIMENTS[experiment]
    note = f"{what[0].upper()}{what[1:]}. {score_note(rows)}"
    if any("copies" in row["condition"] for row in rows):
        note += " Copies are rotated by up to 16 degrees."
    if any(row["unconverged"] for row in rows):
        note += " †: validation still improved at the end, so a longer training might have been better."
    if experiment == "split":
        note += " The two splits have other test slices: compare differences, not rows."
    return Table(TITLES[experiment], header + ["the paper"] * paper, lines, note)


def score_note(rows: Sequence[dict]) -> str:
    return f"Test IoU in per cent, mean ± sample standard deviation over {repetitions_of(rows)}."


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


def time_table(rows: Sequence[dict], timing: dict[str, float], preset: Preset) -> Table:
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


def gap_table(rows: Sequence[dict], preset: Preset) -> Table:
    """How much of the gap between few slices and all of them synthetic slices close."""
    lines = []
    for count in preset.scarce:
        for plain, added in ((REAL, MIXED), (ROTATION, ROTATED_MIX)):
            few, more = mious(pick(rows, plain, slices=count)), mious(pick(rows, added, slices=count))
            full = mious([row for row in pick(rows, plain) if row["slices"] not in preset.scarce])
            if few and more and full:
                low, with_it, high = (100 * mean_std(values)[0] for values in (few, more, full))
                share = f"{100 * (with_it - low) / (high - low):.0f} %" if with_it > low else "none"
                share = share if high - low >= SMALLEST_GAP else "no gap"
                lines.append([added, str(count), f"{low:.1f}", f"{with_it:.1f}", f"{high:.1f}", share])
    header = ("training set", "annotated", "without synthetic", "with", "all slices", "share of the gap closed")
    return Table("Label scarcity: the gap to the full set", header, lines, "Mean mIoU in per cent.")


def picture_parts(run: RunFolder, note: str) -> list[Pictures]:
    """What the paper shows in its Figures 5 and 4, from the ControlNet that knows most slices."""
    known = sorted(
        run.path.glob("redraw-0/given-*/controlnet/samples"), key=lambda path: int(path.parts[-3].split("-")[1])
    )
    if not known:
        return []
    group = known[-1].parts[-3]
    strips = [(f"step {int(file.stem.split('-')[1]):,}", file) for file in sorted(known[-1].glob("step-*.png"))]
    sheets = [(path.parent.name, path) for path in sorted(run.path.glob(f"redraw-*/{group}.png"))][:2]
    return [
        Pictures("Real, mask, synthetic", sheets, note),
        Pictures("Progress of ControlNet", strips, "Validation slices, the same noise at every step."),
    ]
