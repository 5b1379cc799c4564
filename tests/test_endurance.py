"""Short forms of tests/endurance.py and tests/fuzz.py, which are commands of their own, and what these have found."""

import json
import os
import shutil

import endurance
import fuzz
import numpy as np
import pytest
import torch
from test_segment import make_run, slices

from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.diffusion.backbone import load_backbone
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import save_png
from natural2nanoscale.segmentation import segment

JOBS = min(4, os.cpu_count() or 1)


@pytest.mark.slow
def test_disturbed_commands_end_as_if_nothing_had_been():
    size = endurance.Size(kills=3, repeats=1, moments=2, damages=8, images=200, slices=100, steps=100)
    lines, wrong = endurance.endure(size=size, jobs=JOBS)
    assert len(lines) > 40 and not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_damaged_inputs_are_refused_in_a_sentence():
    table, broken = fuzz.fuzz(60, seed=0, jobs=JOBS)
    assert sum(table.values()) == 60 and not broken, "\n".join(broken)


def test_a_slice_that_is_replaced_while_it_is_in_use_is_noticed(data_folder):
    folder = open_pairs(data_folder / "train")
    stem = folder.stems[1]
    for kind, read in (("images", folder.image), ("masks", folder.mask)):
        file = data_folder / "train" / kind / f"{stem}.png"
        before = read(stem)
        save_png(file, np.zeros_like(before))
        with pytest.raises(InputError, match=f"{stem}.png was replaced while it is in use"):
            read(stem)
    assert not open_pairs(data_folder / "train").mask(stem).any()


def test_a_slice_that_is_replaced_while_it_is_segmented_is_segmented_anew(tmp_path, verb, monkeypatch):
    make_run(tmp_path / "run", seeds=1)
    (tmp_path / "images").mkdir()
    for i, page in enumerate(slices(3)):
        save_png(tmp_path / "images" / f"s{i}.png", page)
    call = ("segment", tmp_path / "run", "--images", tmp_path / "images", "--out", tmp_path / "out")
    plain = segment.segment_slice

    def replacing(models, grey, settings, page):
        if page.stem == "s1":
            save_png(tmp_path / "images/s1.png", slices(4)[3])
        return plain(models, grey, settings, page)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "segment_slice", replacing)
        verb(*call)
    old = (tmp_path / "out/masks/s1.png").read_bytes()
    assert "3 slices, 1 to segment" in verb(*call).stdout
    assert (tmp_path / "out/masks/s1.png").read_bytes() != old
    assert "3 slices, 0 to segment" in verb(*call).stdout


@pytest.mark.parametrize(
    "file, value, said",
    [
        ("text_encoder/config.json", {"initializer_factor": ["x"]}, "cannot be loaded as CLIPTextModel"),
        ("tokenizer/tokenizer.json", {"pre_tokenizer": {"type": "Sequence"}}, "no tokenizer can be loaded from"),
        ("scheduler/scheduler_config.json", {"beta_schedule": []}, "scheduler/ of backbone .* cannot be loaded"),
    ],
)
def test_damage_that_other_libraries_name_in_their_own_ways_is_one_sentence(
    tiny_backbone, tmp_path, file, value, said
):
    folder = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | value))
    with pytest.raises(InputError, match=said):
        load_backbone(str(folder), torch.device("cpu"))
