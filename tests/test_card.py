"""The ControlNet's card: the lines of Python that it gives for diffusers run as they stand."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbones import disturbed
from PIL import Image

from natural2nanoscale.data.classes import color_table
from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.diffusion.backbone import EMBEDDED, load_backbone
from natural2nanoscale.diffusion.card import card
from natural2nanoscale.diffusion.saving import save_trained
from natural2nanoscale.diffusion.settings import FineTuning


@pytest.fixture
def write_card(tiny_backbone, data_folder, tmp_path):
    """Save a ControlNet over a whole pipeline of diffusers; gives its folder and its card."""
    folder = tmp_path / "a pipeline's folder"
    shutil.copytree(tiny_backbone, folder)
    shutil.copy(EMBEDDED / "model_index.json", folder)
    backbone = load_backbone(str(folder), torch.device("cpu"))

    def write(**settings):
        train = open_pairs(data_folder / "train")
        save_trained(tmp_path, disturbed(backbone), backbone, train, FineTuning((64, 32), 1e-3, **settings), 7)
        return tmp_path / "controlnet", (tmp_path / "controlnet" / "README.md").read_text()

    return write


def test_the_lines_for_diffusers_draw_a_slice_that_the_mask_steers(write_card, data_folder, monkeypatch):
    (folder, text), train = write_card(), open_pairs(data_folder / "train")
    assert (folder / "diffusion_pytorch_model.safetensors").is_file() and "diffusion_pytorch_model.safetensors" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    drawn = []
    for mask in (train.mask(train.stems[0]), np.full((32, 64), 255, np.uint8)):
        Image.fromarray(mask).save("mask.png")
        torch.manual_seed(0)
        exec(compile(code, "README.md", "exec"), {})
        colours = np.asarray(Image.open("colours.png"))
        assert np.array_equal(colours, color_table(train.info.classes.colors)[mask])
        drawn.append(np.asarray(Image.open("slice.png")))
    assert drawn[0].shape == (32, 64) and np.ptp(drawn[0]) and not np.array_equal(*drawn)


def test_the_card_names_a_folder_as_it_is_and_a_hub_id_by_its_commit(tiny_backbone, data_folder):
    backbone, train = load_backbone(str(tiny_backbone), torch.device("cpu")), open_pairs(data_folder / "train")
    for name, revision, said in (
        ("/home/me@here/weights", None, "'/home/me@here/weights', None"),
        ("org/name@main", "abc1", "'org/name', 'abc1'"),
    ):
        text = card(replace(backbone, name=name, revision=revision), train, FineTuning((64, 32), 1e-3), 1)
        assert f"backbone, revision = {said}  #" in text


def test_the_card_says_what_others_do_not_take_along(write_card):
    assert "Both lack" not in write_card()[1]
    assert "Both lack the lines at boundaries and edges: `generate.py`" in write_card(condition="mask+edges")[1]
    assert "and edges and what the U-Net has learned" in write_card(condition="mask+edges", adapt=2)[1]
