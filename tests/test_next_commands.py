"""Every command line that a command prints is run as it stands, from a folder whose name has to be quoted."""

import re
import shlex

import numpy as np
import pytest
from conftest import blobs

from natural2nanoscale import cli
from natural2nanoscale.files import save_png
from natural2nanoscale.segmentation import training
from natural2nanoscale.signals import Interrupted


def printed(text: str) -> list[list[str]]:
    """The words of every command line in a text: in backticks, or from "next: " to the end of the line."""
    lines = re.findall(r"`(python [^`]+)`", text) + re.findall(r"next: (python .+)", text)
    assert lines, text
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def run(script, verb):
    """A printed command's words, with a few more that make it cheap."""

    def run(words: list[str], *more: object, **options):
        if words[:2] == ["-m", "natural2nanoscale"]:
            return verb(*words[2:], *more, **options)
        return script(*words, *more, **options)

    return run


def test_the_whole_way_by_what_is_printed(run, verb, tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = verb("phantom", "my data", "--size", "64x32", "--train", 2, "--val", 1, "--test", 1, "--gap", 0).stdout
    (train,) = printed(first)
    assert train == ["train_controlnet.py", "--data", "my data"]
    prompts = tmp_path / "my prompts.txt"
    prompts.write_text("a cell\n")
    cheap = ("--backbone", tiny_backbone, "--max-steps", 1, "--latent-variants", 1)
    (generate,) = printed(run(train, *cheap, "--prompts", prompts, "--out", "my run").stdout)
    given = ["--data", "my data", "--controlnet", "my run", "--prompts", str(prompts)]
    assert generate == ["generate.py", *given]
    (learn,) = printed(run(generate, "--steps", 1, "--per-mask", 2, "--out", "my slices").stdout)
    assert learn == ["train_unet.py", "--data", "my data", "--synthetic", "my slices", "--synthetic-ratio", "2.0"]
    cheap = ("--max-steps", 1, "--seeds", 1, "--width", 2, "--depth", 1, "--crop", "32x32", "--out", "my nets")
    segment, evaluate = printed(run(learn, *cheap).stdout)
    places = {"SLICES": "my data/test/images", "MASKS": "my masks", "DIR": "my data"}
    for words in (segment, evaluate):
        assert words[3] == "my nets"
        run([places.get(word, word) for word in words])
    card = (tmp_path / "my nets/README.md").read_text()
    assert "natural2nanoscale segment 'my nets' --images slices/ --out masks\n" in card


def test_what_comes_first_is_named_with_its_folders(run, tmp_path, monkeypatch):
    """A command that was called too early names the one before it, which in turn names the one before that."""
    monkeypatch.chdir(tmp_path)
    (generate,) = printed(
        run(["train_unet.py"], *("--data", "my data", "--synthetic", "s", "--synthetic-ratio", 1.5), expect=2).stderr
    )
    assert generate == ["generate.py", "--data", "my data", "--out", "s", "--per-mask", "2"]
    (train,) = printed(run(generate, "--controlnet", "my run", expect=2).stderr)
    assert train == ["train_controlnet.py", "--data", "my data", "--out", "my run"]
    assert "my data has no pair folder train/" in run(train, expect=2).stderr
    assert printed(run(["train_unet.py"], "--synthetic-ratio", 1, expect=2).stderr) == [["generate.py"]]
    assert printed(run(["generate.py"], expect=2).stderr) == [["train_controlnet.py"]]


def test_prepare_names_the_training(verb, tmp_path):
    for stem, image, mask in blobs(6, 32, 32):
        for kind, pixels in (("images", image), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            save_png(tmp_path / kind / f"{stem}.png", np.asarray(pixels))
    out = tmp_path / "data"
    text = verb("prepare", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--out", out).stdout
    assert printed(text) == [["train_controlnet.py", "--data", str(out)]]


def test_a_stopped_training_names_its_folder(script, data_folder, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted("at step 1 of 9: go on with --resume")

    monkeypatch.setattr(training, "train", stopped)
    error = script("train_unet.py", "--data", data_folder, "--out", tmp_path / "my run", expect=130).stderr
    assert error.strip().endswith(f"--resume --out '{tmp_path}/my run'")


def test_folders_that_are_the_default_are_left_out():
    train = cli.command("python train_controlnet.py", data=cli.DATA, controlnet=cli.CONTROLNET_RUN, out=None)
    assert train == "python train_controlnet.py"
    assert cli.command("python -m natural2nanoscale segment", "a b", per_mask=2) == (
        "python -m natural2nanoscale segment 'a b' --per-mask 2"
    )
