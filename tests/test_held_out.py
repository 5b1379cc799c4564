"""Every command, by its own front door: no held-out slice was learned from, one grey window, only the parts in use."""

import json
import shutil

import numpy as np
import pytest
from conftest import blobs

from natural2nanoscale.data.folders import open_pairs, read_info, write_pairs
from natural2nanoscale.data.roots import digests_of

UNET = ("--width", 4, "--depth", 2, "--max-steps", 1, "--seeds", 1, "--device", "cpu")


@pytest.fixture
def commands(script, verb, data_folder, tiny_backbone, tmp_path):
    """Short calls of the three scripts and `evaluate`: commands(name, *flags, root=..., expect=...) -> stderr."""

    def call(name, *flags, root=data_folder, expect=0):
        if name == "evaluate":
            return verb("evaluate", tmp_path / "unet", "--data", root, *flags, expect=expect).stderr
        places = {
            "train_controlnet": ("--out", tmp_path / "run", "--backbone", tiny_backbone, "--max-steps", 1),
            "generate": ("--controlnet", tmp_path / "run", "--out", tmp_path / "synthetic", "--steps", 1),
            "train_unet": ("--out", tmp_path / "unet", *UNET),
        }[name]
        return script(f"{name}.py", "--data", root, *places, *flags, expect=expect).stderr

    return call


def dealt_anew(old, root):
    """A root whose test part holds, under another name, one of the four slices that were for training."""
    parts = {part: open_pairs(old / part) for part in ("train", "val", "test")}
    for part, folder in parts.items():
        kept = folder.stems[1:] if part == "train" else folder.stems
        items = [(stem, folder.image(stem), folder.mask(stem)) for stem in kept]
        if part == "test":
            stem = parts["train"].stems[0]
            items.append(("moved_here", parts["train"].image(stem), parts["train"].mask(stem)))
        write_pairs(root / part, folder.info, items)
    return root


def test_a_slice_that_a_new_split_holds_out_is_refused_by_every_command(commands, data_folder, tmp_path):
    digests = digests_of(open_pairs(data_folder / "train"))
    commands("train_controlnet")
    commands("generate")
    commands("train_unet", "--synthetic", tmp_path / "synthetic")
    rows = [json.loads(line) for line in (tmp_path / "synthetic/manifest.jsonl").read_text().splitlines()]
    assert {row["source"]: row["source_digest"] for row in rows} == digests
    for run in ("run", "unet"):
        learned = json.loads((tmp_path / run / "config.json").read_text())["learned"]
        assert set(learned["slices"].values()) == set(digests.values())
    assert set(read_info(tmp_path / "synthetic").learned["slices"].values()) == set(digests.values())

    root = dealt_anew(data_folder, tmp_path / "anew")
    again = ("--out", tmp_path / "again")
    said = {
        "train_controlnet": commands(
            "train_controlnet", *again, "--controlnet-init", tmp_path / "run", root=root, expect=2
        ),
        "generate": commands("generate", *again, root=root, expect=2),
        "train_unet": commands("train_unet", *again, "--synthetic", tmp_path / "synthetic", root=root, expect=2),
        "evaluate": commands("evaluate", root=root, expect=2),
    }
    for name, error in said.items():
        assert "such as 'moved_here'" in error and "(1 of 3)" in error, name
    assert not (tmp_path / "again").exists()


def test_a_test_slice_among_those_of_train_is_refused_before_the_training(commands, data_folder, tmp_path):
    shutil.rmtree(data_folder / "test")
    shutil.copytree(data_folder / "train", data_folder / "test")
    assert "holds the slices of" in commands("train_controlnet", expect=2)
    assert not (tmp_path / "run").exists()


def test_runs_know_what_came_to_them_by_another_run_or_by_synthetic_slices(commands, data_folder, tmp_path):
    digests = set(digests_of(open_pairs(data_folder / "train")).values())
    commands("train_controlnet")
    fresh = tmp_path / "fresh"
    for seed, part in enumerate(("train", "val", "test"), start=11):
        write_pairs(fresh / part, read_info(data_folder / part), blobs(2, 32, 64, seed=seed))
    commands("train_controlnet", "--out", tmp_path / "second", "--controlnet-init", tmp_path / "run", root=fresh)
    own = set(digests_of(open_pairs(fresh / "train")).values())
    commands("generate", "--controlnet", tmp_path / "second", root=fresh)
    commands("train_unet", "--synthetic", tmp_path / "synthetic", "--no-real", root=fresh)
    for run in ("second", "unet"):
        learned = json.loads((tmp_path / run / "config.json").read_text())["learned"]
        assert set(learned["slices"].values()) == digests | own, run
    assert "was trained on the slices of" in commands("evaluate", root=data_folder / "train", expect=2)


def test_evaluate_and_train_unet_refuse_another_grey_window(commands, data_folder, tmp_path):
    commands("train_unet")
    info = read_info(data_folder / "test")
    file = data_folder / "test/dataset.json"
    commands("evaluate")
    file.write_text(json.dumps(info.to_json() | {"intensity_window": [0, 25500]}))
    for name in ("evaluate", "train_unet"):
        error = commands(name, "--out", tmp_path / "other", expect=2)
        assert "grey window 0 to 25500" in error and "8-bit grey values as they came" in error
    assert not (tmp_path / "other").exists()


def test_a_controlnet_draws_in_its_own_grey_window_only(commands, data_folder):
    commands("train_controlnet")
    for part in ("train", "val", "test"):
        file = data_folder / part / "dataset.json"
        file.write_text(file.read_text().replace('"intensity_window": null', '"intensity_window": [5, 99]'))
    assert "grey window" in commands("generate", expect=2)


def test_every_command_asks_only_for_the_parts_it_uses(commands, data_folder):
    shutil.rmtree(data_folder / "test")
    commands("train_controlnet")
    shutil.rmtree(data_folder / "val")
    commands("generate")
    assert "has no pair folder val/" in commands("train_unet", expect=2)


def test_a_score_on_the_slices_of_training_is_refused(commands, data_folder):
    commands("train_unet")
    assert "was trained on the slices of" in commands("evaluate", root=data_folder / "train", expect=2)
    new = [(stem, np.flipud(image), mask) for stem, image, mask in blobs(2, 32, 64, seed=9)]
    write_pairs(data_folder / "new", read_info(data_folder / "test"), new)
    commands("evaluate", root=data_folder / "new")
