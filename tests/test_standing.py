"""What generate.py and segment find: only what stands as it was written counts as made."""

import json
import os
import shutil

import numpy as np
import pytest

from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.files import save_png


@pytest.fixture
def made(script, data_folder, tiny_backbone, tmp_path):
    """A complete synthetic folder of 4 slices, and the call that makes it."""
    train = ["--data", data_folder, "--backbone", tiny_backbone, "--out", tmp_path / "run", "--latent-variants", 0]
    script("train_controlnet.py", *train, "--max-steps", 1)
    call = ["generate.py", "--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 2, "--batch-size", 1]
    script(*call)
    return data_folder / "synthetic", lambda **options: script(*call, **options)


def state(out):
    pictures = {file.relative_to(out): file.read_bytes() for file in sorted(out.rglob("*.png"))}
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return pictures, sorted(rows, key=lambda row: row["file"])


def test_whatever_is_not_as_its_line_says_is_made_again(made):
    out, call = made
    pictures, rows = state(out)
    assert len(rows) == 4 and "0 new slices" in call().stdout
    file, picture = out / "manifest.jsonl", out / "images" / "slice_0001_s000.png"

    def alter(**change):
        file.write_text("".join(json.dumps(row | (change if i == 1 else {})) + "\n" for i, row in enumerate(rows)))

    def at_line(content: bytes):
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(lines[0] + content + b"".join(lines[2:]))

    damages = {
        "truncated": lambda: picture.write_bytes(picture.read_bytes()[:-20]),
        "foreign": lambda: save_png(picture, np.zeros((32, 64), np.uint8)),
        "no file": lambda: picture.unlink(),
        "mask": lambda: save_png(out / "masks" / picture.name, np.zeros((32, 64), np.uint8)),
        "seed": lambda: alter(seed=5),
        "prompt": lambda: alter(prompt="a cat"),
        "precision": lambda: alter(precision="float16"),
        "hash": lambda: alter(sha256="0" * 64),
        "out of the folder": lambda: alter(file="../../x.png"),
        "absolute": lambda: alter(file="/etc/passwd"),
        "no row": lambda: at_line(b'"row"\n'),
        "no text": lambda: at_line(b'{"file": "\xff"}\n'),
        "many digits": lambda: at_line(b'{"seed": ' + b"1" * 4300 + b"}\n"),
        "deep": lambda: at_line(b"[" * 2000 + b"\n"),
        "twice": lambda: file.write_text(file.read_text() * 2),
    }
    for name, damage in damages.items():
        damage()
        assert f"{0 if name == 'twice' else 1} new slices" in call().stdout, name
        assert state(out) == (pictures, rows), name
    open_pairs(out)


def test_strangers_and_links_in_the_folder_are_refused(made, tmp_path):
    out, call = made
    stranger = out / "images" / "mine.png"
    save_png(stranger, np.zeros((32, 64), np.uint8))
    assert "mine.png is none of the slices" in call(expect=2).stderr
    stranger.unlink()
    (out / "masks" / "slice_0000_s000.png").unlink()
    shutil.move(out / "images", tmp_path / "elsewhere")
    (out / "images").symlink_to(tmp_path / "elsewhere")
    before = sorted(os.listdir(tmp_path / "elsewhere"))
    assert "images is a link" in call(expect=2).stderr
    assert sorted(os.listdir(tmp_path / "elsewhere")) == before


def test_a_planted_temporary_is_not_written_through(made, tmp_path):
    out, call = made
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (out / "images" / "slice_0000_s000.png").unlink()
    for name in (".dataset.json.tmp", ".manifest.jsonl.tmp", ".generation.json.tmp", "images/.slice_0000_s000.png.tmp"):
        (out / name).symlink_to(victim)
    assert "1 new slices" in call().stdout
    assert victim.read_text() == "precious" and not [path for path in out.rglob("*.tmp")]


def test_a_damaged_manifest_is_refused_by_who_looks_for_leaks(made, script, data_folder, tmp_path):
    out, _ = made
    with (out / "manifest.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    small = ["--width", 4, "--depth", 2, "--max-steps", 1, "--seeds", 1, "--batch-size", 2]
    command = ["train_unet.py", "--data", data_folder, "--synthetic-ratio", 1, "--out", tmp_path / "unet", *small]
    error = script(*command, expect=2).stderr
    assert "manifest.jsonl is damaged (line 5" in error and not (tmp_path / "unet").exists()


def test_segment_makes_damaged_masks_again(verb, tmp_path):
    from test_segment import make_run, slices

    make_run(tmp_path / "run", seeds=1)
    (tmp_path / "in").mkdir()
    for i, image in enumerate(slices(3)):
        save_png(tmp_path / "in" / f"s{i}.png", image)
    call = ["segment", tmp_path / "run", "--images", tmp_path / "in", "--out", tmp_path / "out"]
    verb(*call)
    mask = tmp_path / "out" / "masks" / "s1.png"
    good = mask.read_bytes()
    for content in (good[:-9], b"", (tmp_path / "in" / "s1.png").read_bytes()):
        mask.write_bytes(content)
        assert "3 slices, 1 to segment" in verb(*call).stdout
        assert mask.read_bytes() == good
