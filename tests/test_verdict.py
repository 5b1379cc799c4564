"""What a study says of recorded scores: benefit, harm, no head-room, one draw, no larger pool, free company."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from natural2nanoscale.runs import RunFolder
from natural2nanoscale.study import comparisons
from natural2nanoscale.study.comparisons import compare, find_control, share_of
from natural2nanoscale.study.conditions import (
    ALL,
    ALL_NNUNET,
    NNUNET,
    REAL,
    ROTATED_MIX,
    ROTATION,
    SELF,
    SYNTHETIC,
    Condition,
    Contrast,
    mixed,
)
from natural2nanoscale.study.experiments import EXPERIMENTS, LEARNED
from natural2nanoscale.study.presets import PRESETS
from natural2nanoscale.study.statistics import ratio_interval
from natural2nanoscale.study.summary import study_report
from natural2nanoscale.study.verdict import headroom_table, study_verdict

WORTH, ELASTIC = replace(PRESETS["worth"], pool=32), "real + elastic"
BASE = [0.86, 0.88, 0.87, 0.89, 0.85, 0.88]  # real + rotation, in six redraws
WIGGLE = [0.004, -0.003, 0.001, -0.004, 0.003, -0.001]


def rows_of(name, gain, base=BASE, slices=2, experiment="worth"):
    facts = {"experiment": experiment, "condition": name, "slices": slices, "seed": 0, "pool": None, "split": "given"}
    facts["ratio"] = 16.0 if "synthetic" in name else 0.0
    scores = [value + gain + (wiggle if gain else 0) for value, wiggle in zip(base, WIGGLE, strict=True)]
    return [facts | {"redraw": i, "miou": score, "iou": [score, None]} for i, score in enumerate(scores)]


def study(gain, room, base=BASE, elastic=None):
    rows = rows_of(ROTATION, 0, base) + rows_of(ROTATED_MIX, gain, base) + rows_of(ALL, room, base, slices=32)
    return rows + (rows_of(ELASTIC, elastic, base) if elastic is not None else [])


def test_a_benefit_has_its_share_of_the_head_room():
    told = study_verdict(study(0.04, 0.08), WORTH)
    assert told.startswith(
        "Synthetic slices helped: +4.0 mIoU on top of rotation (95\u00a0% interval +3.7 to +4.3), 50 % ("
    )
    assert "of the head-room (+8.0, 95" in told
    # whatever the head-room
    assert study_verdict(study(0.04, 0.0001), WORTH).startswith("Synthetic slices helped: +4.0")


def test_a_harm_is_one_whatever_the_head_room():
    for room in (0.08, 0.0001):
        told = study_verdict(study(-0.04, room), WORTH)
        assert (
            told.startswith("Synthetic slices did harm: -4.0 mIoU on top of rotation") and "the head-room is +" in told
        )


def test_without_head_room_a_study_cannot_tell():
    told = study_verdict(study(0.0001, 0.0001), WORTH)
    assert told.startswith(
        "This study cannot tell what synthetic slices are worth: all annotated slices would not have"
    )
    assert "They gain at most +0.3" in told and "fewer annotated slices, or more steps" in told
    with_room = study_verdict(study(0.0001, 0.08), WORTH)
    assert (
        with_room.startswith("No benefit of synthetic slices was found: +0.0") and "would have gained +8.0" in with_room
    )


def test_one_draw_has_no_interval_over_slices():
    one = [row | {"redraw": 0, "seed": row["redraw"]} for row in study(0.04, 0.08)]  # six U-Nets on one draw
    told = study_verdict(one, WORTH)
    assert told.startswith(
        "On one draw of slices synthetic ones gained: +4.0 mIoU on top of rotation, 50 % of the head-room (+8.0)."
    )
    assert "One draw, no interval over slices" in told and "95" not in told


def test_without_a_larger_pool_the_control_is_from_half_to_all_or_left_out():
    made = "real + synthetic + nnunet: deformed masks"  # where there are no slices without masks
    lines = ((ROTATION, 0, 8), (made, 0.0001, 8), (ROTATION, -0.0001, 4))
    rows = [row for name, gain, slices in lines for row in rows_of(name, gain, slices=slices, experiment="demo")]
    control = find_control(rows, 8)
    assert control.name == "half of the slices to all 8" and {row["slices"] for row in control.base} == {4}
    assert study_verdict(rows, replace(PRESETS["demo"], pool=8, scarce=(8,))).startswith("This study cannot tell")
    table1 = rows_of(REAL, 0, experiment="table1")
    table1 += [row | {"ratio": 1.0} for row in rows_of(SYNTHETIC, -0.1, experiment="table1")]
    assert study_verdict(table1, PRESETS["paper"]).endswith("This experiment has no positive control.")


def test_a_recipe_that_loses_to_a_free_augmentation_is_told_so():
    told = study_verdict(study(-0.02, 0.08, elastic=0.03), WORTH)
    assert "real + synthetic + rotation, loses to real + elastic" in told and "(-5.0, 95" in told
    told = study_verdict(study(0.04, 0.08, elastic=0.03), WORTH)  # which was told against rotation alone
    assert "loses" not in told and f"Their training set, {ROTATED_MIX}, beats {ELASTIC}" in told


@pytest.mark.parametrize("gain, said", [(0.04, "helped: +4.0"), (-0.04, "did harm: -4.0")])
def test_what_is_not_over_rotation_has_no_share_of_the_head_room_over_it(gain, said):
    learned = mixed(15.0, "nnunet", LEARNED, slices=2)
    made = [row | {"ratio": 15.0} for row in rows_of(learned.name, 0.04 + gain)]
    told = study_verdict(study(0.02, 0.08) + rows_of("real + nnunet", 0.04) + made, WORTH)
    assert f"{said} mIoU on top of nnU-Net's augmentation" in told and "+8.0" in told and f"over {ROTATION}" in told
    assert "% " not in told.replace("95 %", "") and " of the head-room" not in told


def test_under_nnunets_augmentation_the_head_room_is_what_all_slices_gain_with_it():
    learned, taught = mixed(15.0, "nnunet", LEARNED, slices=2), "self-training + nnunet"
    rows = rows_of(NNUNET, 0, experiment="unlabelled") + rows_of(taught, 0.01, experiment="unlabelled")
    rows += [row | {"ratio": 15.0} for row in rows_of(learned.name, 0.02, experiment="unlabelled")]
    rows += rows_of(ALL_NNUNET, 0.04, slices=32, experiment="unlabelled")
    told = study_verdict(rows, WORTH)
    assert "helped: +2.0 mIoU on top of nnU-Net's augmentation" in told and "50 % (" in told and "(+4.0, 95" in told
    table = headroom_table(rows, ["cell", "absent"], find_control(rows, 2))
    assert table.header[0] == f"against {NNUNET}"
    assert table.title == "What slices without masks are worth, head-room of 2 annotated slices"
    assert [row[:2] for row in table.rows] == [
        [f"{ALL_NNUNET} (head-room)", "+4.0"], [taught, "+1.0"], [learned.name, "+2.0"]
    ]  # fmt: skip


def test_shares_are_ratios_of_means_with_an_interval_over_redraws():
    rows = study(0.02, 0.08)
    sides = [row for row in rows if row["condition"] == ROTATED_MIX], rows[:6]
    share, (low, high) = share_of(find_control(rows, 2), *sides)
    assert (compare(*sides).mean, share) == pytest.approx((0.02, 0.25)) and low < 0.25 < high
    assert ratio_interval([1, 2, 3, 4], [4, 4, 4, 4]) is None  # too few to draw anew
    low, high = ratio_interval([1, 2, 3, 4, 5], [4] * 5)
    assert low < 0.5 and high > 1.0
    table = headroom_table(rows, ["cell", "absent"], find_control(rows, 2))
    assert table.rows[0][:2] == [f"{ALL} (head-room)", "+8.0"]
    assert table.rows[1][0] == ROTATED_MIX and table.rows[1][3].startswith("25 % (") and table.rows[1][-1] == "–"


KEPT = Path(comparisons.__file__).parent / "logs/worth-phantom"


def report_of(rows, *names):
    data = SimpleNamespace(stems=(), info=SimpleNamespace(name="x", classes=SimpleNamespace(names=names)))
    backbone = SimpleNamespace(name="embedded", recommended=SimpleNamespace(strength=1.0, start=1.0))
    return study_report(RunFolder(KEPT), rows, WORTH, data, {}, backbone)


def test_the_kept_log_is_reported_as_scipy_tells_it():
    rows = [json.loads(line) for line in (KEPT / "log.jsonl").read_text().splitlines()]
    rows = sorted((row for row in rows if row["experiment"] == "worth"), key=lambda row: row["redraw"])
    learned = mixed(15.0, "nnunet", LEARNED).name
    report = report_of(rows, "resin", "cytoplasm", "nucleus")

    def range_in_points(name, base=ROTATION):
        ours, theirs = ([row["miou"] for row in rows if row["condition"] == one] for one in (name, base))
        low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        return f"{100 * low:+.1f} to {100 * high:+.1f}"

    beside = range_in_points(learned, "real + nnunet")
    assert f"mIoU on top of nnU-Net's augmentation (95\u00a0% interval {beside})" in report.verdict
    scores, room, curves, _, differences, pictures = report.parts
    first = np.array([row["iou"] for row in rows if row["condition"] == ROTATION])
    cells = [
        f"{100 * mean:.1f} ± {100 * std:.1f}" for mean, std in zip(first.mean(0), first.std(0, ddof=1), strict=True)
    ]
    assert scores.rows[0][:3] == [ROTATION, "2 + 2", "2"] and scores.rows[0][4:7] == cells
    assert [row[2] for row in room.rows] == [
        range_in_points(name) for name in (ALL, *(row[0] for row in room.rows[1:]))
    ]
    assert differences.rows[0][2] == beside and len(differences.rows) == 15
    assert all(name in curves.svg for name in (ALL, SELF, ROTATED_MIX))  # all training sets in one figure
    drawn = {learned, f"{ROTATED_MIX}: deformed masks", "real + deformed slices + rotation"}
    assert {row[0] for row in pictures.rows} == drawn  # what was measured when the others were drawn: nothing


def test_an_experiment_is_reported_by_what_it_says_of_itself(monkeypatch):
    """One that the report has never heard of: its training sets, contrasts and control are enough."""
    free, made = {ROTATION: 0.0, SELF: 0.02}, {f"synthetic by recipe {n} + rotation": 0.01 * n for n in range(1, 9)}
    members = {name: Condition(name, synthetic=16 if name in made else 0) for name in (*free, *made)}
    pairs = [(SELF, ROTATION), *((name, other) for name in made for other in free)]
    plan = [Contrast(members[one], members[other]) for one, other in pairs]
    monkeypatch.setitem(EXPERIMENTS, "recipes", lambda preset: plan)
    EXPERIMENTS["recipes"].__doc__ = "Recipes. Slices made in some way."
    more = {"budget": "equal", "val_slices": 2, "steps": 1500, "size": 34, "images": []}
    more |= {"unconverged": False, "precision": "float32", "curve": [[1500, 0.9]]}
    rows = [
        row | more
        for name, gain in (*free.items(), *made.items(), (ALL, 0.09))
        for row in rows_of(name, gain, slices=32 if name == ALL else 2, experiment="recipes")
    ]
    report = report_of(rows, "cell", "absent")
    first = "Synthetic slices helped: +1.0 mIoU of synthetic by recipe 1 + rotation over real + rotation (95"
    assert report.verdict.startswith(first) and "11 % (" in report.verdict and "loses" not in report.verdict
    assert (
        "The best of 8 synthetic recipes by these same scores, synthetic by recipe 8 + rotation, beats self-training"
        in (report.verdict)
    )
    scores, room, curves, _, differences = report.parts
    assert scores.title == "Recipes" and len(scores.rows) == 11 and len(differences.rows) == 17
    assert [row[0] for row in room.rows] == [f"{ALL} (head-room)", SELF, *made] and "again" in curves.svg
    assert "recipe 1 + rotation, loses to self-training" in report_of(rows[:18] + rows[-6:], "cell", "absent").verdict
