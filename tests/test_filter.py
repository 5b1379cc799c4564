"""Slices that a U-Net judges, and masks that it predicts: redrawn, rejected, ignored pixels; the script's choices."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbones import disturbed
from conftest import blobs
from test_segment import make_run

from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.data.folders import open_pairs, write_images
from natural2nanoscale.data.readers.gray import read_gray
from natural2nanoscale.diffusion.backbone import load_backbone
from natural2nanoscale.diffusion.request import Request
from natural2nanoscale.diffusion.sampling import redrawn
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.diffusion.shapes import deform
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import save_png
from natural2nanoscale.segmentation.labelling import labelled, slice_check


def rows_of(file) -> dict[str, dict]:
    return {row["file"]: row for row in map(json.loads, file.read_text().splitlines())}


@pytest.fixture
def draw(data_folder, tiny_backbone):
    """Draw from the training masks, checked by a function of (grey values, mask) -> agreement."""
    backbone = load_backbone(str(tiny_backbone), torch.device("cpu"))
    controlnet, source = disturbed(backbone), open_pairs(data_folder / "train")

    def run(out, judge, batch_size: int = 4, agreement: float = 0.5, **fields) -> int:
        calls = []

        def check(slices, masks):
            assert slices.shape == masks.shape and slices.dtype == masks.dtype == np.uint8
            calls.append(len(slices))
            kept = masks.copy()
            kept[:, :4] = IGNORE_ID
            return kept, np.array([judge(*pair) for pair in zip(slices, masks, strict=True)])

        request = Request(["a", "b"], SamplingSettings(steps=2), **fields)
        request = replace(request, filter={"unet": "0" * 64, "agreement": agreement})
        made = synthesize(out, backbone, controlnet, source, request, batch_size, check)
        return made, sum(calls)

    return run


def test_doubtful_pixels_are_ignored_and_conditioning_keeps_them(draw, data_folder, tmp_path):
    out, source = tmp_path / "out", open_pairs(data_folder / "train")
    assert draw(out, lambda *_: 0.5, masks="deformed") == (4, 4)
    folder, rows = open_pairs(out), rows_of(out / "manifest.jsonl")
    for stem in folder.stems:
        row, mask = rows[f"{stem}.png"], folder.mask(stem)
        unfiltered = deform(source.mask(row["source"]), None, row["deformation_seed"])[0]
        assert row["tries"] == 1 and row["agreement"] == 0.5
        assert np.array_equal(read_gray(out / "conditioning" / f"{stem}.png"), unfiltered)
        assert (mask[:4] == IGNORE_ID).all() and np.array_equal(mask[4:], unfiltered[4:])
    assert folder.info.split["rejected"] == 0 and folder.info.split["filter"]["agreement"] == 0.5
    assert draw(out, lambda *_: 0.5, masks="deformed") == (0, 0)
    for damage in ("masks", "conditioning", "images"):
        save_png(out / damage / f"{stem}.png", np.zeros((32, 64), np.uint8))
        assert draw(out, lambda *_: 0.5, masks="deformed") == (1, 1)
    with pytest.raises(InputError, match="another filter"):
        draw(out, lambda *_: 0.5, masks="deformed", agreement=0.6)


def test_slices_are_redrawn_then_rejected_alike_in_any_batch_and_shard(draw, data_folder, tmp_path):
    first = open_pairs(data_folder / "train").mask("slice_0001")
    seen = {}

    def judge(pixels, mask) -> float:
        """The second mask's slices never pass; the others' first ones do not."""
        if np.array_equal(mask, first):
            return 0.1
        seen.setdefault(mask.tobytes(), set()).add(pixels.tobytes())
        return float(len(seen[mask.tobytes()]) > 1)

    out = tmp_path / "one"
    assert draw(out, judge, 3) == (3, 3 * 2 + 4)
    rows, folder = rows_of(out / "manifest.jsonl"), open_pairs(out)
    assert len(folder.stems) == 3 and folder.info.split["rejected"] == 1 and len(rows) == 4
    assert {name: row["tries"] for name, row in rows.items()} == {
        "slice_0000_s000.png": 2, "slice_0001_s000.png": 4, "slice_0002_s000.png": 2, "slice_0003_s000.png": 2
    }  # fmt: skip
    rejected = rows["slice_0001_s000.png"]
    assert rejected["rejected"] is True and rejected["agreement"] == 0.1 and "sha256" not in rejected
    assert len({row["seed"] for row in rows.values()}) == 4
    assert draw(out, judge) == (0, 0)  # neither the rejected one nor any other is tried again

    seen.clear()
    for shard in ((2, 2), (1, 2)):
        draw(tmp_path / "two", judge, 1, shard=shard)
    again = rows_of(tmp_path / "two/manifest.jsonl")
    hashes = {"sha256": "", "mask_sha256": "", "conditioning_sha256": ""}
    assert {name: row | hashes for name, row in again.items()} == {name: row | hashes for name, row in rows.items()}
    assert open_pairs(tmp_path / "two").info == folder.info


def test_no_folder_of_rejected_slices_alone(draw, tmp_path):
    with pytest.raises(InputError, match="all 4 slices in .* were rejected"):
        draw(tmp_path / "out", lambda *_: 0.0)
    assert not (tmp_path / "out/dataset.json").exists()


class Seer(torch.nn.Module):
    """Says the class whose third of the grey values a pixel lies in, with a probability of 0.9."""

    classes, width = 3, 8

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        ids = ((images[:, 0] + 1) * 1.5).long().clamp(0, 2)
        shares = torch.full((3, 3), 0.05).fill_diagonal_(0.9)
        return shares.log()[ids].permute(0, 3, 1, 2)


def test_what_the_check_doubts(data_folder):
    folder = open_pairs(data_folder / "val")
    mask = np.repeat(np.arange(3, dtype=np.uint8), 8)[None].repeat(6, 0)  # (6,24): three stripes
    image = mask * 100
    image[0, :4] = 200  # four pixels of class 0 look like 2
    check = slice_check([Seer()], replace(folder, stems=()))
    kept, agreement = check(image[None], mask[None])  # nothing is known of any class
    assert np.array_equal(kept[0], mask)
    assert agreement[0] == pytest.approx(np.mean([44 / 48, 1, 48 / 52]))

    class Real:
        stems = ("a",)

        def image(self, stem):
            return mask * 100

        def mask(self, stem):
            return np.where(mask == 1, np.uint8(IGNORE_ID), mask)

    unknown = image.copy()
    unknown[5, 8:12] = 0  # of class 1, which the real slices lack
    kept, _ = slice_check([Seer()], Real())(np.stack([image, unknown]), np.stack([mask, mask]))
    expected = mask.copy()
    expected[0, :4] = IGNORE_ID
    assert np.array_equal(kept, np.stack([expected, expected]))
    labels = np.full((1, 6, 24), IGNORE_ID, np.uint8)
    kept, agreement = check(image[None], labels)
    assert np.array_equal(kept, labels) and agreement[0] == 0


def test_the_surest_pixels_are_those_whose_class_is_likeliest_whichever_way_the_slice_lies(tmp_path):
    class Seer(torch.nn.Module):
        """Class 1 where it is bright, the surer the brighter or darker; in the left half it sees what is not there."""

        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(40.0))

        def forward(self, x):
            left = torch.arange(x.shape[3]) < x.shape[3] // 2
            value = self.gain * torch.where(left, 0.5, 1.0) * x
            return torch.cat([-value, value], dim=1)

    image = np.linspace(0, 255, 2048).round().astype(np.uint8).reshape(64, 32)
    ((stem, given, mask),) = labelled([Seer()], [("a", image)], tmp_path)
    assert (stem, given is image) == ("a", True) and np.array_equal(mask, image > 127)
    doubt = read_gray(tmp_path / "doubt/a.png")
    assert np.bincount(doubt.ravel(), minlength=256).tolist() == [8] * 256
    distance = abs(image.astype(float) - 127.5)
    assert (np.diff(doubt.ravel()[np.argsort(-distance.ravel(), kind="stable")].astype(int)) >= -8).all()
    share = redrawn(doubt, 0.75)
    assert share[doubt == 255].min() > 0.9 and share[0].max() == share[-1].max() == 0


def test_masks_and_filter_by_the_script(script, data_folder, tiny_backbone, tmp_path):
    train = ("--data", data_folder, "--backbone", tiny_backbone, "--out", tmp_path / "run")
    script("train_controlnet.py", *train, "--max-steps", 1, "--latent-variants", 1)
    small = ("--width", 4, "--depth", 2, "--max-steps", 30, "--seeds", 1, "--batch-size", 2)
    script("train_unet.py", "--data", data_folder, "--out", tmp_path / "unet", *small)
    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 1)

    # masks that a U-Net predicts
    predict = (*make, "--masks", "predicted", "--unet", tmp_path / "unet", "--out", tmp_path / "predicted")
    assert "prepare --unlabelled" in script(*predict, expect=2).stderr
    info = replace(open_pairs(data_folder / "train").info, digests={})
    unlabelled = write_images(data_folder / "unlabelled", info, [t[:2] for t in blobs(6, 32, 64, seed=9)])
    assert "1 slice(s) from each of 6 masks" in script(*predict).stdout
    source, made = open_pairs(data_folder / "predicted"), open_pairs(tmp_path / "predicted")
    assert source.info.origin == "predicted" and len(made.stems) == 6
    (unet,) = {row["unet"] for row in rows_of(tmp_path / "predicted/manifest.jsonl").values()}
    assert unet == source.info.split["unet"]
    known = json.loads((tmp_path / "unet/config.json").read_text())["learned"]["slices"]
    assert set(known.values()) <= set(source.info.learned["slices"].values())
    assert set(known.values()) <= set(made.info.learned["slices"].values())
    assert "0 new slices" in script(*predict).stdout

    # all of a slice but what the U-Net doubts most stays as it is
    keep = (*predict[:-1], tmp_path / "kept", "--keep", 0.9)
    assert "all but the most doubtful 10 % of real slices" in script(*keep).stdout
    kept = open_pairs(tmp_path / "kept")
    for stem in source.stems:
        doubt = read_gray(source.path / "doubt" / f"{stem}.png")
        assert np.bincount(doubt.ravel(), minlength=256).tolist() == [8] * 256  # of 2048 pixels
        away = redrawn(doubt, 0.9) == 0
        same = kept.image(f"{stem}_s000") == source.image(stem)
        assert same[away].all() and not same.all() and (doubt[away] < 256 * 0.9).all()
    assert "with another keep (0.9, now 0.0)" in script(*keep[:-2], expect=2).stderr
    assert "pass --masks predicted" in script(*make, "--keep", 0.5, "--out", tmp_path / "x", expect=2).stderr
    assert "below 1" in script(*keep[:-1], 1, expect=2).stderr

    make_run(tmp_path / "other")
    other = (*make, "--masks", "predicted", "--unet", tmp_path / "other", "--out", tmp_path / "more")
    assert "remove it, and the same call makes it anew" in script(*other, expect=2).stderr
    shutil.rmtree(data_folder / "unlabelled")
    held = open_pairs(data_folder / "test")
    write_images(data_folder / "unlabelled", info, [(stem, held.image(stem)) for stem in held.stems])
    shutil.rmtree(data_folder / "predicted")
    error = script(*predict[:-1], tmp_path / "leak", expect=2).stderr
    assert f"{unlabelled.path} holds the slices of {held.path}" in error and not source.path.exists()
    shutil.rmtree(data_folder / "unlabelled")
    write_images(unlabelled.path, replace(info, transductive=True), [t[:2] for t in blobs(2, 32, 64, seed=9)])
    assert "without --transductive" in script(*predict, expect=2).stderr

    # the user's own, in a folder of PNGs or a pair folder; none that is held out
    (tmp_path / "mine").mkdir()
    for stem, _, mask in blobs(2, 32, 64, seed=5):
        save_png(tmp_path / "mine" / f"{stem}.png", mask)
    mine = (*make, "--masks", tmp_path / "mine", "--out", tmp_path / "own")
    assert "pass --start 1" in script(*mine, "--start", 0.5, "--steps", 4, expect=2).stderr
    printed = script(*mine).stdout
    assert "from each of 2 masks" in printed and "--synthetic-ratio 0.5" in printed
    pairs = (*make, "--out", tmp_path / "pairs", "--masks")
    assert "holds the slices of" in script(*pairs, held.path, expect=2).stderr
    assert "used to make" in script(*pairs, held.path / "masks", expect=2).stderr
    assert "neither dataset.json nor PNG" in script(*pairs, tmp_path, expect=2).stderr
    assert "--unet is for --masks predicted" in script(*make, "--unet", tmp_path / "unet", expect=2).stderr
    assert not (tmp_path / "pairs").exists()

    # between neighbours, from pure noise whatever the backbone recommends; deformed, and checked
    script(*make, "--masks", "between", "--out", tmp_path / "between")
    assert "pass --start 1" in script(*make, "--masks", "between", "--start", 0.5, "--steps", 4, expect=2).stderr
    checked = (*make, "--masks", "deformed", "--filter", tmp_path / "unet", "--filter-agreement", 0)
    assert "0 rejected" not in script(*checked, "--out", tmp_path / "checked").stdout
    rows = rows_of(tmp_path / "checked/manifest.jsonl")
    assert all(row["tries"] == 1 and 0 <= row["agreement"] <= 1 for row in rows.values())
    assert len(list((tmp_path / "checked/conditioning").iterdir())) == 4
    strict = (*checked[:-1], 2, "--out", tmp_path / "strict")
    assert "all 4 slices" in script(*strict, expect=2).stderr
    config = json.loads((tmp_path / "unet/config.json").read_text())
    config["learned"]["slices"]["x"] = next(iter(held.info.digests.values()))
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    error = script(*checked, "--out", tmp_path / "leaks", expect=2).stderr
    assert f"{tmp_path / 'unet'} was trained on the slices of {held.path}" in error
