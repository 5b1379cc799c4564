"""Folders of synthetic slices: samplers, shards, and pictures that are written beside the drawing."""

import json
import subprocess
import sys
from dataclasses import replace
from subprocess import PIPE

import numpy as np
import pytest
import torch
from backbones import disturbed

from natural2nanoscale.data.folders import open_pairs, read_generation
from natural2nanoscale.diffusion import sampling, synthesis, synthetic_folder
from natural2nanoscale.diffusion.backbone import load_backbone
from natural2nanoscale.diffusion.request import Request
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.diffusion.synthetic_folder import SyntheticFolder
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import save_png


@pytest.fixture
def draw(data_folder, tiny_backbone):
    """Draw from the training masks into a folder, by a request's fields."""
    backbone = load_backbone(str(tiny_backbone), torch.device("cpu"))
    controlnet, source = disturbed(backbone), open_pairs(data_folder / "train")

    def run(out, batch_size: int = 4, **fields) -> int:
        settings = SamplingSettings(fields.pop("sampler", "ddim"), steps=fields.pop("steps", 2))
        return synthesize(out, backbone, controlnet, source, Request(["a", "b"], settings, **fields), batch_size)

    return run


def rows_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_shards_in_any_order_make_the_folder_that_one_call_makes(draw, tmp_path):
    out = tmp_path / "shards"
    assert draw(tmp_path / "one", per_mask=2) == 8
    assert draw(out, 1, per_mask=2, shard=(3, 3)) == 2
    assert not (out / "dataset.json").exists() and not (out / "manifest.jsonl").exists()
    files = {row["file"] for row in rows_of(out / "manifest-3-of-3.jsonl")}
    assert files == {"slice_0002_s000.png", "slice_0001_s001.png"}
    assert draw(out, 3, per_mask=2, shard=(1, 3)) == 3
    assert draw(out, 3, per_mask=2, shard=(1, 3)) == 0  # it makes its share and no more
    assert draw(out, 3, per_mask=2, shard=(2, 3)) == 3
    assert not list(out.glob("manifest-*")) and not (out / "generation.json").exists()
    rows = [rows_of(folder / "manifest.jsonl") for folder in (out, tmp_path / "one")]
    assert [row | {"sha256": ""} for row in rows[0]] == [row | {"sha256": ""} for row in rows[1]]  # batches differ
    assert json.loads((out / "dataset.json").read_text()) == json.loads((tmp_path / "one/dataset.json").read_text())
    one, many = open_pairs(tmp_path / "one"), open_pairs(out)
    assert one.stems == many.stems and len(one.stems) == 8
    difference = np.stack([np.abs(one.image(stem).astype(int) - many.image(stem)) for stem in one.stems])
    assert difference.max() <= 1
    assert all(np.array_equal(one.mask(stem), many.mask(stem)) for stem in one.stems)


def test_shards_of_other_machines_are_merged_by_a_call_that_makes_nothing(draw, tmp_path):
    for index in (1, 2):
        draw(tmp_path / f"machine {index}", shard=(index, 2))
    for file in (tmp_path / "machine 2").rglob("*"):
        if file.is_file():
            file.replace(tmp_path / "machine 1" / file.relative_to(tmp_path / "machine 2"))
    assert draw(tmp_path / "machine 1", shard=(2, 2)) == 0
    assert len(open_pairs(tmp_path / "machine 1").stems) == len(rows_of(tmp_path / "machine 1/manifest.jsonl")) == 4


def test_a_call_for_fewer_forgets_none_that_is_no_longer_as_its_line_says(draw, tmp_path):
    out = tmp_path / "out"
    draw(out, per_mask=2)
    before = (out / "manifest.jsonl").read_bytes()
    mask = out / "masks/slice_0001_s001.png"
    save_png(mask, 1 - open_pairs(out).mask("slice_0001_s001").clip(0, 1))
    for fewer in ({"per_mask": 1}, {"per_mask": 2, "shard": (1, 3)}):
        with pytest.raises(InputError, match="slice_0001_s001 in .* --per-mask 2 and without --shard"):
            draw(out, **fewer)
    assert (out / "manifest.jsonl").read_bytes() == before
    assert draw(out, per_mask=2) == 1 and draw(out, per_mask=1) == 0


def test_one_call_completes_what_shards_have_left(draw, tmp_path):
    out = tmp_path / "out"
    draw(out, shard=(2, 3))
    (out / "images/slice_0001_s000.png").unlink()  # its line is then worth nothing
    assert draw(out) == 4
    draw(out, per_mask=2, shard=(1, 2), call="the rest")
    assert read_generation(out)[1:] == (2, "the rest") and len(rows_of(out / "manifest.jsonl")) == 4
    assert draw(out, per_mask=2) == 2
    assert len(rows_of(out / "manifest.jsonl")) == 8


def test_two_shards_may_both_find_the_folder_complete(draw, tmp_path, monkeypatch):
    finished, finish = [], SyntheticFolder.finish

    def twice(*arguments: object) -> bool:
        finished.append((finish(*arguments), finish(*arguments)))
        return True

    monkeypatch.setattr(SyntheticFolder, "finish", twice)
    draw(tmp_path / "out", shard=(1, 2))
    draw(tmp_path / "out", shard=(2, 2))
    assert finished == [(False, False), (True, True)]
    assert len(rows_of(tmp_path / "out/manifest.jsonl")) == 4


def test_calls_that_would_draw_the_same_slices_exclude_one_another(draw, tmp_path):
    out, one, second = tmp_path / "out", Request([], None).lock, Request([], None, shard=(2, 2)).lock
    out.mkdir()
    code = "import sys; from pathlib import Path; from natural2nanoscale.locks import hold\n"
    code += "hold(Path(sys.argv[1]), Path(sys.argv[1], sys.argv[2])); print('held', flush=True); sys.stdin.read()"
    for held in (one, second):
        words = [sys.executable, "-c", code, str(out), held]
        with subprocess.Popen(words, stdin=PIPE, stdout=PIPE) as other:
            assert other.stdout.readline() == b"held\n"
            for shard in ((1, 1), (2, 2)):
                with pytest.raises(InputError, match="another command is writing"):
                    draw(out, shard=shard)
            if held == second:  # two different ones share the folder
                assert draw(out, shard=(1, 2)) == 2
            other.stdin.close()
    assert draw(out) == 2 and not list(out.glob(".*lock"))


def test_shards_by_the_script(script, data_folder, tiny_backbone, tmp_path):
    script(
        "train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone, "--out", tmp_path / "run",
        "--max-steps", 1, "--latent-variants", 1,
    )  # fmt: skip
    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 1)
    learn = ("train_unet.py", "--data", data_folder, "--synthetic", data_folder / "synthetic", "--max-steps", 1)
    for wrong in ("0/2", "3/2", "1", "a/b"):
        assert "no share" in script(*make, "--shard", wrong, expect=2).stderr
    printed = script(*make, "--sampler", "unipc", "--shard", "1/2").stdout
    assert "share 1 of 2" in printed and "1 unipc steps" in printed and "others are missing" in printed
    (rest,) = [line.split("next: ")[1] for line in printed.splitlines() if "next: " in line]
    refused = script(*learn, "--out", tmp_path / "unet", expect=2).stderr
    assert f"`{rest}` makes them" in refused and "--shard" not in rest
    assert "another sampler (unipc, now dpm++)" in script(*make, "--sampler", "dpm++", expect=2).stderr
    assert "--sampler ddim" in script(*make, "--sampler", "unipc", "--eta", 1, expect=2).stderr
    assert "train_unet.py" in script(*make, "--sampler=unipc", "--shard=2/2").stdout
    rows = rows_of(data_folder / "synthetic/manifest.jsonl")
    assert len(rows) == 4 and {row["sampler"] for row in rows} == {"unipc"}

    # a preset, of which what is given is not taken
    script(*make, "--fast", "--precision", "fp32", "--out", tmp_path / "fast")
    info = json.loads((tmp_path / "fast/dataset.json").read_text())["split"]
    assert (info["sampler"], info["steps"], info["precision"]) == ("unipc", 1, "float32")
    script(*make[:-2], "--fast", "--out", tmp_path / "faster")
    info = json.loads((tmp_path / "faster/dataset.json").read_text())["split"]
    assert (info["sampler"], info["steps"], info["precision"]) == ("unipc", 6, "bfloat16")


@pytest.mark.parametrize("value, reason", [(0, "of one grey value, 0"), (77, "of one grey value, 77")])
def test_slices_without_a_picture_are_never_written(draw, tmp_path, monkeypatch, value, reason):
    drawn = synthesis.draw_slices

    def blank_second(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
        slices, tints = drawn(*arguments)
        slices[-1] = value
        return slices, tints

    monkeypatch.setattr(synthesis, "draw_slices", blank_second)
    with pytest.raises(InputError, match=reason):
        draw(tmp_path / "out")
    assert not list((tmp_path / "out/images").iterdir()) and not (tmp_path / "out/dataset.json").exists()


def test_slices_that_are_not_finite_are_never_written(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "sample", lambda *inputs: torch.full((4, 3, 32, 64), float("nan")))
    with pytest.raises(InputError, match="not finite"):
        draw(tmp_path / "out")
    assert not list((tmp_path / "out/images").iterdir()) and not (tmp_path / "out/dataset.json").exists()


def test_a_line_stands_only_for_slices_whose_two_files_stand(draw, tmp_path, monkeypatch):
    save, failing = synthetic_folder.save_png, "slice_0002_s000.png"

    def full_disk(path, pixels: np.ndarray) -> None:
        if path.name == failing and path.parent.name == "images":
            raise InputError("no space left")
        save(path, pixels)

    monkeypatch.setattr(synthetic_folder, "save_png", full_disk)
    with pytest.raises(InputError, match="no space left"):
        draw(tmp_path / "out", 1)
    files = {row["file"] for row in rows_of(tmp_path / "out/manifest.jsonl")}
    assert failing not in files and len(files) == 3 and not (tmp_path / "out/dataset.json").exists()
    monkeypatch.undo()
    assert draw(tmp_path / "out", 1) == 1 and len(open_pairs(tmp_path / "out").stems) == 4


def test_slices_do_not_wait_in_numbers(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis, "MOST_WAITING", 1)
    assert draw(tmp_path / "out", 1, per_mask=2) == 8
    assert len(rows_of(tmp_path / "out/manifest.jsonl")) == 8


def test_another_sampler_draws_other_pictures_of_the_same_noise(draw, tmp_path):
    folders = {}
    for sampler in ("ddim", "dpm++", "unipc"):
        draw(tmp_path / sampler, sampler=sampler, steps=5)
        folders[sampler] = open_pairs(tmp_path / sampler)
    images = {name: folder.image(folder.stems[0]).astype(int) for name, folder in folders.items()}
    assert (images["ddim"] != images["dpm++"]).any() and (images["dpm++"] != images["unipc"]).any()
    other = {"sampler": "", "sha256": "", "tint": 0}
    rows = [[row | other for row in rows_of(tmp_path / name / "manifest.jsonl")] for name in folders]
    assert rows[0] == rows[1] == rows[2]


def test_a_folder_from_before_a_setting_goes_on(draw, tmp_path):
    """Whatever it does not say was as it is by default."""
    draw(tmp_path / "out")
    for name in ("dataset.json", "manifest.jsonl"):
        file = tmp_path / "out" / name
        text = file.read_text()
        assert '"detail": false,' in text
        file.write_text(text.replace('"detail": false,', ""))
    assert draw(tmp_path / "out") == 0
    assert draw(tmp_path / "out", per_mask=2) == 4


def test_the_tint_of_slices_beyond_all_bounds_stands_in_their_lines(draw, tmp_path, monkeypatch):
    """Pixel values are about [-1,1]; a line whose tint was beyond what its readers take would be damaged to them."""
    bright = torch.zeros(4, 3, 32, 64)
    bright[:, 0], bright[:, 1, :5] = 9.0, -9.0
    monkeypatch.setattr(sampling, "sample", lambda *inputs: bright)
    assert draw(tmp_path / "out") == 4 and draw(tmp_path / "out") == 0
    assert all(0 < row["tint"] <= 255 for row in rows_of(tmp_path / "out/manifest.jsonl"))


def test_a_shard_is_dealt_evenly_and_a_longer_request_moves_no_image():
    stems = tuple(f"slice_{i}" for i in range(7))
    request = Request(["a"], SamplingSettings())
    for count in (1, 2, 3, 7, 9):
        shares = [replace(request, per_mask=3, shard=(i + 1, count)).images(stems) for i in range(count)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert len({image.stem for share in shares for image in share}) == sum(map(len, shares)) == 21
        for i, share in enumerate(shares):
            assert set(replace(request, shard=(i + 1, count)).images(stems)) <= set(share)
