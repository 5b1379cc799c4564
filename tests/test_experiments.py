"""The experiments from slices to report, at toy scale."""

import csv
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from natural2nanoscale.data.folders import PARTS, open_pairs
from natural2nanoscale.diffusion import validation
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.signals import Interrupted
from natural2nanoscale.study import synthetic, unets
from natural2nanoscale.study.conditions import BOTH, COPIES, MIXED, Condition
from natural2nanoscale.study.experiments import EXPERIMENTS, conditions, described
from natural2nanoscale.study.presets import PRESETS, Preset
from natural2nanoscale.study.synthetic import rotated_copies
from natural2nanoscale.study.training_sets import split_at_random
from natural2nanoscale.study.trial import KEY, affordable

EQUAL = Settings(
    width=4, depth=2, max_steps=4, batch_size=2, full_batches=True, balance=0.5, crop=(32, 32), validate_every=2,
    patience=0, select_by="miou",
)  # fmt: skip
TOY = Preset(
    "toy", tuple(EXPERIMENTS), {"equal": EQUAL, "paper": Settings(width=4, depth=2, epochs=3, batch_size=4)},
    ratios=(1.0, 2.0), scarce=(2,), scarce_ratio=1.0, seeds=1, controlnet_steps=1, most_copies=6, block=1,
)  # fmt: skip
QUICK = ("--jobs", 1, "--unet-steps", 4)


def without_seconds(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture
def quick_sampling(monkeypatch):
    """Two denoising steps in place of twenty."""
    quick = partial(SamplingSettings, steps=2)
    monkeypatch.setattr(validation, "SamplingSettings", quick)
    monkeypatch.setattr(synthetic, "sampling_settings", lambda backbone: quick())
    monkeypatch.setattr(synthetic, "AGREEMENT", 0.0)  # such networks agree with nothing


def test_experiments_go_on_after_a_kill_and_report(
    verb, data_folder, tiny_backbone, tmp_path, monkeypatch, quick_sampling
):
    monkeypatch.setitem(PRESETS, "embedded", TOY)
    out = tmp_path / "out"
    command = ["experiments", "--data", data_folder, "--backbone", tiny_backbone, "--out", out, *QUICK]
    train, calls = unets.train, []

    def killed_at_the_third(*arguments, **label):
        calls.append(arguments)
        if len(calls) == 3:
            raise Interrupted("at step 2")
        return train(*arguments, **label)

    monkeypatch.setattr(unets, "train", killed_at_the_third)
    assert "the same command goes on there" in verb(*command, expect=130).stderr
    assert len({json.dumps(row["images"]) for row in without_seconds(out)}) == 2  # and whoever asks for the same
    printed = verb(*command).stdout
    rows = without_seconds(out)
    assert (
        len(rows)
        == len(conditions(replace(TOY, pool=4), TOY.experiments))
        == len({tuple(row[key] for key in KEY) for row in rows})
    )
    # what several experiments ask for was trained once: real slices alone, which five of them do not have
    real = [row for row in rows if row["condition"] == "real" and row["budget"] == "equal" and row["slices"] == 4]
    given = [row for row in real if row["split"] == "given"]
    assert (
        len(given) == len(EXPERIMENTS) - 5 and len({row["miou"] for row in given}) == 1 and len(calls) - 1 < len(rows)
    )

    # marks and pooled matrices are those of what was trained
    assert all(isinstance(row["unconverged"], bool) for row in rows)
    assert all(row["confusion"] == np.sum(row["images"], axis=0).tolist() for row in rows)

    # sizes are those of the sets; the time of the synthetic slices makes more copies than are kept
    sizes = {(row["condition"], row["ratio"]): row["size"] for row in rows if row["experiment"] == "figure6"}
    assert sizes[COPIES, 2.0] == sizes[MIXED, 2.0] == sizes[BOTH, 2.0] == 12
    assert {row["size"] for row in rows if "as PNG" in row["condition"]} == {4 + TOY.most_copies}

    # the report: every experiment has its table, as Markdown, CSV and in one page
    report = (out / "report.md").read_text()
    assert report in printed
    assert report.splitlines()[2].startswith("**On one draw of slices synthetic ones ")
    for experiment in EXPERIMENTS:
        assert f"## {described(experiment)[0]}" in report
    with (out / "tables/figure-6-growing-training-sets.csv").open() as file:
        table = list(csv.DictReader(file))
    row = next(row for row in rows if row["experiment"] == "figure6" and row["condition"] == BOTH)
    line = next(line for line in table if line["training set"].startswith(BOTH) and int(line["size"]) == row["size"])
    assert float(line["mIoU"]) == pytest.approx(100 * row["miou"], abs=0.051)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "Progress of ControlNet" in page  # two strips and a sheet

    # cells that are missing come back as they were
    lines = (out / "log.jsonl").read_text().splitlines()
    (out / "log.jsonl").write_text("\n".join(lines[:-2]) + '\n{"experiment": "sc')
    verb(*command)
    assert without_seconds(out) == rows
    # another budget is another run
    assert "ratios was" in verb(*command, "--ratios", 3, expect=2).stderr


def test_random_split_deals_the_same_slices_anew(data_folder, tmp_path):
    root = split_at_random(data_folder, tmp_path / "random", seed=1)
    dealt = {part: open_pairs(root / part) for part in PARTS}
    assert [len(dealt[part].stems) for part in PARTS] == [4, 2, 2]
    before = [open_pairs(data_folder / part).image(s).tobytes() for part in PARTS
              for s in open_pairs(data_folder / part).stems]  # fmt: skip
    after = [folder.image(stem).tobytes() for folder in dealt.values() for stem in folder.stems]
    assert sorted(before) == sorted(after) and before != after


def test_rotated_copies_turn_slice_and_mask_alike(data_folder):
    slices = load_slices(open_pairs(data_folder / "train"))
    copies = rotated_copies(slices, 6, seed=3)
    fewer = rotated_copies(slices, 5, seed=3)
    assert all((a == b).all() for a, b in zip(copies.images, fewer.images, strict=False))  # a prefix of more
    assert (copies.images[0] != slices.images[0]).any() and (copies.images[0] != copies.images[4]).any()
    for image, mask in zip(copies.images, copies.masks, strict=True):  # classes differ by 60 grey levels
        means = [image[mask == k].mean() for k in range(3)]
        assert np.allclose(means, [220, 160, 100], atol=8)


def test_conditions_of_the_paper_have_its_sizes():
    paper = PRESETS["paper"]
    sizes = {}
    for condition in conditions(paper, ("figure6",)):
        sizes.setdefault(condition.name, []).append(233 + sum(condition.counts(233)))
    assert sizes[COPIES] == sizes[MIXED] == [10553, 5390, 466] and sizes["real"] == [233]
    assert Condition(COPIES, copies=(34825 - 233) / 233).counts(233) == (34592, 0)
    assert paper.budgets["paper"] == Settings() and (paper.phantom.val, paper.phantom.test) == (25, 65)


@pytest.mark.parametrize(
    "mious, losses, by_miou, by_loss",
    [
        ((0.5, 0.6, 0.7), (0.9, 0.8, 0.7), True, True),
        ((0.5, 0.7, 0.6), (0.9, 0.7, 0.8), False, False),  # past its best
        ((0.5, 0.7, 0.704), (0.9, 0.7, 0.698), False, False),  # as good as flat
        ((0.5, 0.7, 0.706), (0.9, 0.7, 0.696), True, True),
        ((0.5,), (0.9,), True, True),  # a single look says nothing
    ],
)
def test_training_that_still_improves_is_unconverged(mious, losses, by_miou, by_loss):
    rows = [{"val_miou": miou, "val_loss": loss} for miou, loss in zip(mious, losses, strict=True)]
    assert (unets.still_improves(rows, "miou"), unets.still_improves(rows, "loss")) == (by_miou, by_loss)


def test_affordable_copies_follow_the_measured_times():
    seconds = {"synthetic": 0.5, "disk": 0.01, "memory": 0.001}
    on_disk, in_memory = (c for c in conditions(TOY, ("table2",)) if c.copies == math.inf)
    assert affordable(on_disk, 4, TOY, seconds) == 400  # 8 synthetic slices take 4 s
    assert affordable(in_memory, 4, TOY, seconds) == 4000


def test_either_kind_of_slice_is_timed_without_what_a_first_call_takes(data_folder, tmp_path, monkeypatch):
    clock, cold, copy = [0.0], {"synthetic": 60.0, "rotated": 7.0}, synthetic.rotated_copies
    makes = iter((4, 0, 8))  # slices that a call still has to make

    def synthesize(*_):
        made = next(makes)
        clock[0] += cold.pop("synthetic", 0.0) + 2.0 + 0.5 * made
        return made

    def rotated(slices, count, seed):
        clock[0] += cold.pop("rotated", 0.0) + 0.001 * count
        return copy(slices, count, seed)

    def save(path, pixels):
        path.parent.mkdir(exist_ok=True)
        clock[0] += 0.002

    monkeypatch.setattr(synthetic, "load_trained", lambda run, backbone: (None, backbone))
    monkeypatch.setattr(synthetic, "sampling_settings", lambda backbone: SamplingSettings())
    monkeypatch.setattr(synthetic.time, "perf_counter", lambda: clock[0])
    for name, function in (("synthesize", synthesize), ("rotated_copies", rotated), ("save_png", save)):
        monkeypatch.setattr(synthetic, name, function)
    seconds = synthetic.time_generation(tmp_path / "scratch", None, tmp_path, open_pairs(data_folder / "train"))
    assert seconds == pytest.approx({"synthetic": 0.5, "memory": 0.001, "disk": 0.005})


def test_as_many_slices_as_the_scarcest_leave_scarcity_out(
    verb, data_folder, tiny_backbone, tmp_path, monkeypatch, quick_sampling
):
    """Four slices where the preset wants to know what four of more are worth: the rest runs, and has a report."""
    toy = replace(TOY, experiments=("table1", "scarcity"), scarce=(4, 8))
    monkeypatch.setitem(PRESETS, "embedded", toy)
    out = tmp_path / "out"
    printed = verb("experiments", "--data", data_folder, "--backbone", tiny_backbone, "--out", out, *QUICK).stdout
    assert (
        "scarcity of 4 annotated slices needs more than the 4 that there are: it is left out" in printed
        and "3 cells of table1;" in printed
    )
    report = (out / "report.md").read_text()
    assert described("table1")[0] in report and described("scarcity")[0] not in report
    only = ("--only", "scarcity", "--out", tmp_path / "none")
    command = ("experiments", "--data", data_folder, "--backbone", tiny_backbone, *only)
    assert "ask for fewer with --slices" in verb(*command, expect=2).stderr and not (tmp_path / "none").exists()
