"""The demo's loop from slices to table, at toy scale."""

import json
import shutil
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from natural2nanoscale.data.folders import fingerprint, open_pairs
from natural2nanoscale.errors import InputError
from natural2nanoscale.phantom.volume import PhantomSettings
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.study.comparisons import compare
from natural2nanoscale.study.presets import PRESETS, Place
from natural2nanoscale.study.training_sets import redraw_root

MADE = "synthetic-doubt-redrawn-nnunet"  # folder of the best recipe's slices
TOY = [
    *("--jobs", 1, "--slices", 2, "--redraws", 2, "--seeds", 1, "--controlnet-steps", 2, "--per-mask", 2),
    *("--crop", "32x32"),
    *("--unet-width", 4, "--unet-crop", "32x32", "--unet-steps", 4, "--unet-batch", 2),
]


def without_seconds(lines):
    return [json.loads(line) | {"seconds": None} for line in lines]


def test_demo_runs_reports_and_goes_on(verb, data_folder, tiny_backbone, tmp_path):
    command = ["demo", "--data", data_folder, "--backbone", tiny_backbone, "--out", tmp_path / "demo", *TOY]
    printed = verb(*command).stdout
    out = tmp_path / "demo"
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == 2 * 4 and len({row["condition"] for row in rows}) == 4
    report = (out / "report.md").read_text()
    assert report in printed and f"redraw-1/given-2/{MADE}.png" in report
    assert escape(report.splitlines()[2].strip("*")) in (out / "report.html").read_text()
    for row in rows:  # each cell of the table is the mean of what the log holds
        pair = [other["miou"] for other in rows if other["condition"] == row["condition"]]
        annotated = f"{row['slices']} + 2 | {row['size']}"  # training + validation
        assert f"| {row['condition']} | {annotated} | {100 * sum(pair) / 2:.1f} ± " in report.replace(" †", "")
    # redraws differ in slices, ControlNet and synthetic slices; no synthetic slice comes from another mask
    drawn = [sorted(p.name for p in (out / f"redraw-{r}/given-2/train/images").iterdir()) for r in (0, 1)]
    folders = [out / f"redraw-{r}/given-2/{MADE}/images" for r in (0, 1)]
    made = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert not set(drawn[0]) & set(drawn[1])  # two times two of four
    # synthetic ones come from the other two, whose masks are not looked at
    undrawn = [[f"{Path(name).stem}_s000.png" for name in names] for names in reversed(drawn)]
    assert all(len(names) == 2 for names in drawn) and made == undrawn
    configs = [json.loads((out / f"redraw-{r}/given-2/controlnet-adapted/config.json").read_text()) for r in (0, 1)]
    assert [config["settings"]["seed"] for config in configs] == [seed_for(0, "redraw", r) for r in (0, 1)]

    # every file of JSON says its format, but for those of diffusers
    files = [json.loads(file.read_text()) for file in out.rglob("*.json")]
    assert len(files) > 10 and all(("_class_name" in data) != (data.get("format") == 1) for data in files)

    # a stopped demo goes on: the cell that is missing comes back as it was, the others are left alone
    log = (out / "log.jsonl").read_text().splitlines()
    (out / "log.jsonl").write_text("\n".join(log[:-1]) + "\n")
    verb(*command)
    again = (out / "log.jsonl").read_text().splitlines()
    assert again[:-1] == log[:-1] and without_seconds(again) == without_seconds(log)
    # so does one that was killed before the first checkpoint, or while it wrote the slices it drew
    (out / "log.jsonl").write_text("\n".join(log[:4]) + '\n{"redraw": 1, "cond')
    shutil.rmtree(out / "redraw-1/given-2/controlnet-adapted/checkpoints")
    (out / "redraw-1/given-2/train/dataset.json").unlink()
    shutil.rmtree(out / "redraw-1/given-2" / MADE)
    verb(*command)
    again = (out / "log.jsonl").read_text().splitlines()
    assert again[:4] == log[:4] and without_seconds(again) == without_seconds(log)
    # a line that is none of this study's is refused as it is, and so are other settings
    for line in ('{"step": 3, "loss": 1.0}', log[0].replace('"miou": ', '"miou": "x", "was": '), '"x"', log[1][:-9]):
        (out / "log.jsonl").write_text("\n".join([*log[:2], line, *log[2:], ""]))
        before = [(out / name).read_bytes() for name in ("log.jsonl", "config.json")]
        error = verb(*command, expect=2).stderr
        assert "log.jsonl is damaged (line 3: " in error and "remove this line" in error and error.count("\n") == 1
        assert [(out / name).read_bytes() for name in ("log.jsonl", "config.json")] == before
    assert "was" in verb(*command, "--per-mask", 3, expect=2).stderr


@pytest.mark.parametrize("name", ["demo", "experiments"])
def test_studies_take_bfloat16_where_the_device_is_made_for_it(verb, monkeypatch, tmp_path, name):
    def show(name, device, dtype=None):
        raise InputError(f"it takes {dtype}")

    monkeypatch.setattr("natural2nanoscale.device.native_bfloat16", lambda device: True)
    monkeypatch.setattr("natural2nanoscale.study.synthetic.load_backbone", show)
    assert "it takes torch.bfloat16" in verb(name, "--out", tmp_path / "out", expect=2).stderr


def test_no_redraw_is_the_first_of_another_seed(tmp_path):
    small = PhantomSettings((64, 32), 1, 1, 1)
    demo = replace(PRESETS["demo"], phantom=small)
    places = [(replace(demo, seed=seed), Place(tmp_path / str(seed))) for seed in (0, 1)]
    roots = [redraw_root(place, preset, redraw) for preset, place in places for redraw in (0, 1)]
    assert len({fingerprint(open_pairs(root / "test")) for root in roots}) == 4


def test_too_few_slices_is_one_sentence(verb, data_folder, tiny_backbone, tmp_path):
    command = ["demo", "--data", data_folder, "--backbone", tiny_backbone, "--out", tmp_path / "demo"]
    assert (
        "demo of 9 annotated slices needs more than the 4 that there are"
        in verb(*command, "--slices", 9, expect=2).stderr
    )
    assert "multiples" in verb(*command, "--slices", 2, "--crop", "33x32", expect=2).stderr
    alone = verb("demo", "--slices", 33, "--out", tmp_path / "demo", expect=2).stderr
    assert "demo of 33 annotated slices needs more than the 32 that there are" in alone
    test = data_folder / "test" / "dataset.json"
    test.write_text(test.read_text().replace('"nucleus"', '"vesicle"'))
    assert "vesicle" in verb(*command, "--slices", 2, expect=2).stderr
    assert not (tmp_path / "demo").exists()  # each may be corrected and called again


def test_differences_are_paired_by_redraw():
    rows = [
        {"redraw": redraw, "seed": seed, "condition": condition, "miou": value, "iou": [value, None]}
        for redraw, seed, condition, value in [
            (0, 0, "real", 0.5),
            (0, 1, "real", 0.7),
            (1, 0, "real", 0.4),
            (0, 0, "real + synthetic", 0.7),
            (1, 0, "real + synthetic", 0.6),
        ]
    ]
    groups = [[row for row in rows if row["condition"] == name] for name in ("real + synthetic", "real")]
    change = compare(*groups)
    # (0.7 - 0.6, 0.6 - 0.4): mean 0.15, sample deviation 0.0707, t(0.975, 1) = 12.706
    assert change.pairs == 2 and change.mean == pytest.approx(0.15)
    assert change.half_width == pytest.approx(12.7062 * 0.0707107 / 2**0.5, rel=1e-4)
