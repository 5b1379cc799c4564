"""The report of a study: the paper's tables and figures, or the demo's short form, from the lines of the log."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from natural2nanoscale.charts import dot_plot
from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.study.comparisons import (
    compare_all,
    difference_parts,
    label_consistency,
    mious,
    pick,
    score_cells,
)
from natural2nanoscale.study.conditions import (
    COPIES,
    IN_MEMORY,
    MIXED,
    ON_DISK,
    REAL,
    ROTATED_MIX,
    SYNTHETIC,
    contrasts,
)
from natural2nanoscale.study.figures import learning_curves, repetitions_of, size_figure
from natural2nanoscale.study.pilot import pilot_note
from natural2nanoscale.study.presets import EXPERIMENTS, Preset
from natural2nanoscale.study.report import Figure, Pictures, Report, Table, run_facts
from natural2nanoscale.study.synthetic import sampling_settings
from natural2nanoscale.study.verdict import CONTROLLED, headroom_table, study_verdict

TITLES = {
    "worth": "What synthetic slices are worth",
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
COLUMNS = {"split": "split", "budget": "budget"}  # shown where they vary


def study_report(
    run: RunFolder, rows: Sequence[dict], preset: Preset, test: PairFolder, timing: dict[str, float], backbone: Backbone
) -> Report:
    """What the log's `rows` say so far. `timing`: seconds per slice, empty if not measured."""
    names = test.info.classes.names
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
        if experiment in CONTROLLED:
            counts = sorted({row["slices"] for row in own if row["condition"] == ROTATED_MIX})
            tables = [headroom_table(own, names, count, preset.block) for count in counts]
            parts += [table for table in tables if table]
            parts += learning_curves(experiment, own, counts[:1])
        compared = [one for _, one in compare_all(contrasts(preset, experiment), own, preset.block)]
        if compared:
            title = "Differences" if experiment == "demo" else f"{title}, differences"
            parts += difference_parts(title, compared, preset.block, own)
    if preset.name == "demo":
        parts = demo_parts(parts, rows, preset, test, backbone)
    consistency = label_consistency([row for row in rows if row["experiment"] in ("worth", "demo", "table1")], names)
    return Report(
        f"What synthetic slices are worth: {test.info.name}" + f", preset {preset.name}" * (preset.name != "demo"),
        study_verdict(rows, preset),
        [*parts, *pilot_parts(run), *picture_parts(run, consistency)],
        run_facts(run.path),
    )


def demo_parts(
    parts: Sequence[Table | Figure], rows: Sequence[dict], preset: Preset, test: PairFolder, backbone: Backbone
) -> list[Table | Figure]:
    """The demo's short form: the differences first, and in one note all that a reader has to know of their making."""
    found = [part for part in parts if part.title == TITLES["demo"]]
    scores, differences = found[0], [part for part in parts if part is not found[0]]
    sets: dict[tuple, list[dict]] = {}
    for row in rows:
        sets.setdefault((row["condition"], row["slices"]), []).append(row)
    dots = [(f"{name}, {count} slices", [100 * value for value in mious(own)]) for (name, count), own in sets.items()]
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
    shown = [key for key in COLUMNS if len({row[key] for row in rows}) > 1]
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["slices"], row["ratio"])):
        annotated = f"{row['slices']} + {row['val_slices']}"
        groups.setdefault((row["condition"], *(row[key] for key in shown), annotated, row["size"]), []).append(row)
    paper = preset.name == "paper" and experiment in ("table1", "figure6", "table2")
    header = ["training set", *(COLUMNS[key] for key in shown), "annotated", "size", "mIoU", *names, "steps"]
    lines = []
    for (name, *fields, size), group in groups.items():
        mark = " †" if any(row["unconverged"] for row in group) else ""
        steps = sum(row["steps"] for row in group) / len(group)
        cells = [name + mark, *map(str, fields), f"{size:,}", *score_cells(group, len(names)), f"{steps:,.0f}"]
        lines.append(cells + ([PAPER.get((experiment, name, size), "–")] if paper else []))
    what = EXPERIMENTS.get(experiment, "")
    note = f"{what[0].upper()}{what[1:]}. {score_note(rows)}" if what else score_note(rows)
    if any("copies" in row["condition"] for row in rows):
        note += " Copies are rotated by up to 16 degrees."
    if any(row["unconverged"] for row in rows):
        note += " †: validation still improved at the end, so a longer training might have been better."
    if experiment == "split":
        note += " The two splits have other test slices: compare differences, not rows."
    return Table(TITLES[experiment], header + ["the paper"] * paper, lines, note)


def score_note(rows: Sequence[dict]) -> str:
    precision = " and ".join(sorted({row["precision"] for row in rows}))
    return (
        f"Test IoU in per cent, mean ± sample standard deviation over {repetitions_of(rows)}; U-Nets in {precision}. "
        "Annotated: training + validation slices."
    )


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


def pilot_parts(run: RunFolder) -> list[Table]:
    """How the number of steps was found, where a pilot did."""
    file = run.path / "pilot.json"
    if not file.is_file():
        return []
    trainings = json.loads(file.read_text(encoding="utf-8"))["trainings"]
    lines = [[f"{line['steps']:,} steps", f"{100 * line['validation']:.1f}"] for line in trainings]
    return [Table("Pilot", ("trained for", "best validation mIoU"), lines, pilot_note(trainings))]


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
