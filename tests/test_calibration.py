"""`calibrate`: what is chosen, that generation and training take it, and that flags go before it."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
from conftest import blobs

from natural2nanoscale.data.folders import open_pairs, write_pairs
from natural2nanoscale.records import read_lines
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.study import unets
from natural2nanoscale.study.calibration import NONE, Candidate, best_of, budget_of, candidates, compare
from natural2nanoscale.study.presets import Grid
from natural2nanoscale.study.unets import unet_settings

GRID = Grid(strengths=(1.0,), starts=(0.5, 1.0), ratios=(1.0, 2.0), seeds=2)
UNETS = ("--width", 4, "--depth", 2, "--seeds", 1, "--batch-size", 2, "--max-steps", 2)


def test_the_grid_has_real_slices_first_and_every_way_once():
    tried = candidates(GRID)
    assert tried[0] == NONE and len(tried) == len(set(tried)) == 1 + 2 * 3
    assert Candidate(1.0, 0.5, 2.0, "pretrain-finetune") in tried and Candidate(1.0, 0.5, 1.0) in tried
    assert candidates(replace(GRID, starts=(0.5, 1.0, 0.5))) == tried
    assert best_of({NONE: 0.5, tried[1]: 0.5}) == NONE
    assert best_of({NONE: 0.5, tried[1]: 0.6, tried[2]: 0.6}) == tried[1]


def choose(tmp_path, scores: dict) -> tuple:
    """What hand-made scores choose: (candidate, seed) -> mIoU, 0.5 where it is not said."""
    calls = []

    def measure(candidate, seed):
        calls.append((candidate, seed))
        return scores.get((candidate, seed), 0.5)

    rows, found = compare(RunFolder(tmp_path), GRID, measure)
    assert [row["validation"] for row in rows] == [
        scores.get((Candidate(*(row[name] for name in asdict(NONE))), row["seed"]), 0.5) for row in rows
    ]
    return best_of(found), found, calls


def test_real_slices_win_ties_and_new_networks_decide(tmp_path):
    mix = candidates(GRID)[2]
    choice, found, calls = choose(tmp_path, {})
    assert choice == NONE and found == {NONE: 0.5} and calls == [(one, 0) for one in candidates(GRID)]

    def after(**scores):
        again = {(mix, 0): 0.9} | {(mix, int(seed[1])): score for seed, score in scores.items()}
        (tmp_path / "log.jsonl").unlink()
        return choose(tmp_path, again)

    choice, found, calls = after(s1=0.5, s2=0.5)  # it was luck
    assert choice == NONE and calls[7:] == [(NONE, 1), (NONE, 2), (mix, 1), (mix, 2)]
    assert after(s1=0.8, s2=0.1)[0] == NONE
    choice, found, _ = after(s1=0.8, s2=0.4)
    assert choice == mix and found[mix] == pytest.approx(0.6) and found[NONE] == 0.5
    assert choose(tmp_path, {(mix, 0): 0.9, (mix, 1): 0.8, (mix, 2): 0.4})[2] == []  # all lines stand


def test_all_take_the_same_steps_and_looks_of_windows_that_any_slice_gives(data_folder):
    folders = {part: open_pairs(data_folder / part) for part in ("train", "val")}
    budget, slices = budget_of(GRID, folders), load_slices(folders["train"])
    alone, *mixes = (unet_settings(candidate.condition, budget, slices, 7) for candidate in candidates(GRID))
    assert {replace(mix, finetune_after=None) for mix in mixes} == {alone}
    assert alone.crop == (64, 32) and alone.augment == "rotation" and alone.max_steps == GRID.unet_steps
    assert alone.balance is None and alone.patience == 0 and alone.seed == 7


@pytest.fixture
def world(script, data_folder, tiny_backbone, tmp_path):
    """A data root with more validation than training slices, and a ControlNet in tmp_path / "run"."""
    shutil.rmtree(data_folder / "val")
    info = replace(open_pairs(data_folder / "train").info, digests={})
    write_pairs(data_folder / "val", info, blobs(5, 32, 64, seed=7))
    words = ("--data", data_folder, "--backbone", tiny_backbone, "--max-steps", 1, "--latent-variants", 1)
    script("train_controlnet.py", *words, "--out", tmp_path / "run")
    return data_folder


@pytest.fixture
def calibrate(verb, world, tmp_path):
    def call(*words, **options):
        cheap = ("--strengths", 1, "--starts", 0.5, 1, "--ratios", 1, "--unet-steps", 2, "--unet-width", 4)
        where = ("--data", world, "--controlnet", tmp_path / "run", "--out", tmp_path / "tried")
        return verb("calibrate", *where, *cheap, "--seeds", 1, *words, **options)

    return call


def test_from_end_to_end_also_after_a_kill(calibrate, world, tmp_path, monkeypatch):
    test, train, seen = world / "test", unets.train, []
    for mask in (test / "masks").iterdir():
        mask.write_bytes(b"not to be opened")

    def stopped(training, validation, settings, *rest, **label):
        seen.append((len(training), len(validation), settings.max_steps, settings.finetune_after))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return train(training, validation, settings, *rest, **label)

    monkeypatch.setattr(unets, "train", stopped)
    error = calibrate(expect=130).stderr
    assert "the same command goes on there" in error and not (world / "calibration.json").exists()
    rows = (tmp_path / "tried/log.jsonl").read_text()
    assert rows.count("\n") == 2
    (tmp_path / "tried/log.jsonl").write_text(rows + '{"strength": 1.0, "sta')  # a kill in the midst of a line
    printed = calibrate().stdout
    assert "5 candidates of 2 steps, judged on 4 validation slices" in printed
    assert (tmp_path / "tried/log.jsonl").read_text().startswith(rows)
    assert seen[:3] == [(4, 4, 2, None), (8, 4, 2, None), (8, 4, 2, 1)] and seen[3] == seen[2]
    found = json.loads((world / "calibration.json").read_text())
    assert found["format"] == 1 and len(found["candidates"]) in (5, 7) and len(found["val_slices"]) == 4
    assert found["candidates"] == read_lines(tmp_path / "tried/log.jsonl")
    if found["choice"]["ratio"]:
        assert found["chosen"] > found["real"] and "generate.py" in printed
    else:
        assert found["chosen"] == found["real"] and "next: python train_unet.py" in printed
    count = len(seen)
    calibrate()
    assert len(seen) == count
    calibrate("--starts", 1)  # the grid may change, its scores stay
    assert len(seen) - count <= 2
    assert "unet_steps was 2 and is now 3" in calibrate("--unet-steps", 3, expect=2).stderr


def test_wrong_input_is_one_sentence(calibrate, world, verb, tmp_path):
    said = calibrate("--controlnet", tmp_path / "none", expect=2).stderr
    assert "there is no trained ControlNet" in said and said.count("\n") == 1
    assert "--start 1.5" in calibrate("--starts", 1.5, expect=2).stderr
    assert "no pair folder train/" in calibrate("--data", tmp_path / "nowhere", expect=2).stderr
    shutil.rmtree(world / "val")
    shutil.copytree(world / "train", world / "val")
    assert "scores on them are worthless" in calibrate(expect=2).stderr
    assert not (tmp_path / "tried").exists() and not (world / "calibration.json").exists()


def test_generation_and_training_take_the_choice_where_no_flag_says_otherwise(calibrate, world, script, tmp_path):
    calibrate("--starts", 1, "--unet-steps", 1)
    file = world / "calibration.json"
    found = json.loads(file.read_text())

    def chosen(**choice):
        said = {"choice": asdict(Candidate(**choice)), "chosen": 0.9, "real": 0.8}
        file.write_text(json.dumps(found | said))

    def draw(out, *words, **options):
        where = ("--data", world, "--controlnet", tmp_path / "run", "--steps", 4)
        return script("generate.py", *where, *(("--out", tmp_path / out) if out else ()), *words, **options)

    def learn(out, *words, **options):
        printed = script("train_unet.py", "--data", world, "--out", tmp_path / out, *UNETS, *words, **options)
        if options:
            return printed.stderr, None
        return printed.stdout, json.loads((tmp_path / out / "config.json").read_text())["settings"]

    chosen(strength=0.7, start=0.5, ratio=1.0, mode="pretrain-finetune")
    assert "python generate.py" in learn("early", expect=2)[0]
    printed = draw(None).stdout
    assert f"{file} chose strength 0.7 and start 0.5" in printed
    assert f"next: python train_unet.py --data {world}\n" in printed
    split = open_pairs(world / "synthetic").info.split
    assert (split["strength"], split["start"]) == (0.7, 0.5)
    draw("told", "--strength", 1.2)
    assert [open_pairs(tmp_path / "told").info.split[name] for name in ("strength", "start")] == [1.2, 0.5]
    printed = draw("both", "--strength", 1.2, "--start", 1).stdout
    assert str(file) not in printed and "--synthetic-ratio 1.0" in printed

    printed, settings = learn("a")
    assert f"{file} chose --synthetic-ratio 1 --mode pretrain-finetune" in printed
    assert settings["synthetic_ratio"] == 1.0 and settings["finetune_after"] == 1
    printed, settings = learn("b", "--synthetic-ratio", 1.0)
    assert str(file) not in printed and settings["synthetic_ratio"] == 1.0 and settings["finetune_after"] is None
    assert learn("c", "--mode", "joint")[1]["finetune_after"] is None
    assert learn("d", "--no-real")[1]["synthetic_ratio"] == 1.0

    chosen()  # real slices alone
    assert learn("a", "--resume")[1]["synthetic_ratio"] == 1.0  # a resumed run is what it was
    printed, settings = learn("e")
    assert "chose real slices alone" in printed and settings["synthetic_ratio"] == 0.0
    assert learn("f", "--synthetic-ratio", 1.0)[1]["synthetic_ratio"] == 1.0
    assert "chose real slices alone" in draw("none").stdout

    chosen(strength=0.9, start=0.5, ratio=1.0)  # the slices that stand were drawn otherwise
    printed, settings = learn("g")
    assert "is ignored, it chose another strength" in printed and settings["synthetic_ratio"] == 0.0
    file.write_text(json.dumps(json.loads(file.read_text()) | {"controlnet": "0" * 64}))
    printed, settings = learn("h")
    assert "is ignored, it is of another ControlNet" in printed and settings["synthetic_ratio"] == 0.0
    assert "is ignored, it is of another ControlNet" in draw("other").stdout
    file.write_text(json.dumps(found | {"data": found["data"] | {"val": "0" * 64}}))
    printed, settings = learn("i")
    assert "val has other slices now" in printed and settings["synthetic_ratio"] == 0.0
    assert "val has other slices now" in draw("slices").stdout
    file.write_text(json.dumps(found | {"format": 2}))
    assert "of format 2" in learn("j", expect=2)[0]
    file.write_text("{}")
    assert "calibration.json cannot be read" in learn("j", expect=2)[0] and not (tmp_path / "j").exists()
    learn("k", "--synthetic-ratio", 1.0)
