"""Masks of unannotated slices: tiles that cover every pixel once, the verb, its refusals and its going on."""

import json
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.data.folders import DatasetInfo, write_pairs
from natural2nanoscale.data.prepare.intensity import to_bytes
from natural2nanoscale.segmentation import segment
from natural2nanoscale.segmentation.inference import predict_mask, tile_weights
from natural2nanoscale.segmentation.unet import UNet, UNetInfo, move_to, save_unet

CLASSES = Classes.named("background", "cytoplasm", "nucleus")


def make_run(path, window=None, seeds=2):
    """A finished U-Net run with random networks."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"kind": "unet", "settings": {"seed": 0, "seeds": seeds}}))
    models = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        models.append(move_to(UNet(3, width=4, depth=2), torch.device("cpu")).eval())
        info = UNetInfo(4, 2, CLASSES, window, {"seed": seed})
        save_unet(path / f"seed-{seed}" / "best", models[-1], info)
    return models


def slices(count, dtype=np.uint8, top=256):
    return np.random.default_rng(0).integers(0, top, (count, 40, 56)).astype(dtype)


@pytest.mark.parametrize("length", [1, 100, 101, 160, 161, 333, 1000])
def test_tiles_overlap_and_nothing_near_their_edges_counts(length):
    tiles = tile_weights(length, tile=100, margin=20)
    for start, stop, weight in tiles:
        assert 0 <= start and stop <= length and stop - start == len(weight) == min(length, 100)
        assert start == 0 or not weight[:10].any()
        assert stop == length or not weight[-10:].any()
    assert all(left[1] - right[0] >= 40 for left, right in zip(tiles, tiles[1:], strict=False))
    assert tiles[0][0] == 0 and tiles[-1][1] == length


def test_tiles_give_what_the_whole_gives_where_pixels_are_judged_by_their_surroundings():
    """A network whose answer depends on 5x5 pixels cannot tell a tile with a margin from the whole slice."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(1, 3, 5, padding=2, padding_mode="replicate").requires_grad_(False)
    grey = torch.from_numpy(slices(2))
    expected = convolution(encode_gray(grey, 1)).argmax(1)
    assert torch.equal(predict_mask([convolution], grey, tile=17, margin=3).long(), expected)


def test_several_networks_are_averaged_as_probabilities(tmp_path):
    models, grey = make_run(tmp_path / "run"), torch.from_numpy(slices(2))
    with torch.no_grad():
        expected = torch.stack([model(encode_gray(grey, 1)).softmax(1) for model in models]).mean(0).argmax(1)
    found = predict_mask(models, grey)
    assert found.dtype == torch.uint8 and torch.equal(found.long(), expected)
    assert not torch.equal(found, predict_mask(models[:1], grey))


def test_a_16_bit_stack_passes_through_the_window_of_the_training_set(tmp_path, verb):
    window = (1000.0, 30000.0)
    models, stack = make_run(tmp_path / "run", window), slices(3, np.uint16, 2**16)
    pages = [Image.fromarray(page) for page in stack]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    said = verb("segment", tmp_path / "run", "--images", tmp_path / "stack.tif", "--out", tmp_path / "out").stdout
    assert "3 slices, 3 to segment, by 2 U-Net(s)" in said and (tmp_path / "out" / "contact.png").is_file()
    for index, page in enumerate(stack):
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"slice_{index:04d}.png"))
        expected = predict_mask(models, torch.from_numpy(to_bytes(page, window))[None])[0]
        assert np.array_equal(mask, expected)
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [sum(row["pixels"]) for row in rows] == [40 * 56] * 3


def test_a_volume_in_a_container_is_segmented(tmp_path, verb):
    import h5py

    models, stack = make_run(tmp_path / "run"), slices(2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volumes/raw"], file["other"] = stack, stack
    call = ("segment", tmp_path / "run", "--out", tmp_path / "out", "--images")
    assert "a.h5:/volumes/raw" in verb(*call, tmp_path / "a.h5", expect=2).stderr
    verb(*call, f"{tmp_path / 'a.h5'}:/volumes/raw")
    assert "2 slices, 0 to segment" in verb(*call, f"{tmp_path / 'a.h5'}:/volumes/raw").stdout
    for index, page in enumerate(stack):
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"slice_{index:04d}.png"))
        assert np.array_equal(mask, predict_mask(models, torch.from_numpy(page)[None])[0])


def test_a_stopped_call_goes_on_and_other_networks_are_refused(tmp_path, verb, monkeypatch):
    make_run(tmp_path / "run")
    (tmp_path / "images").mkdir()
    for index, page in enumerate(slices(4)):
        Image.fromarray(page).save(tmp_path / "images" / f"s{index}.png")
    call = ("segment", tmp_path / "run", "--images", tmp_path / "images", "--out", tmp_path / "out")

    class Stopping(segment.StopSignal):
        """Asked to stop while the third slice is read."""

        asked = 0

        @property
        def number(self):
            Stopping.asked += 1
            return signal.SIGTERM if Stopping.asked > 2 else 0

        @number.setter
        def number(self, value): ...

    with monkeypatch.context() as patch:
        patch.setattr(segment, "StopSignal", Stopping)
        assert "with 2 slices to go" in verb(*call, expect=143).stderr
    first = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "masks").iterdir()}
    assert sorted(first) == ["s0.png", "s1.png"]
    assert "4 slices, 2 to segment" in verb(*call).stdout
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "masks").iterdir()}
    assert len(after) == 4 and first.items() <= after.items()

    make_run(tmp_path / "fewer", seeds=1)
    refused = verb("segment", tmp_path / "fewer", *call[2:], expect=2).stderr
    assert "goes on as it began, but seed-" in refused
    Image.fromarray(255 - slices(4)[1]).save(tmp_path / "images" / "s1.png")  # a slice that was taken anew
    (tmp_path / "images" / "s3.png").unlink()
    printed = verb(*call).stdout
    assert "3 slices, 1 to segment" in printed
    shares = [float(share) for share in re.findall(r"([\d.]+) % of all pixels", printed)]
    found = np.concatenate([np.asarray(Image.open(tmp_path / "out" / "masks" / f"s{i}.png")).ravel() for i in range(3)])
    assert shares == pytest.approx(np.bincount(found, minlength=3) / len(found) * 100, abs=0.006)


def test_deep_slices_without_a_window_are_refused_and_nothing_is_written(tmp_path, verb):
    make_run(tmp_path / "run")
    Image.fromarray(slices(1, np.uint16, 2**16)[0]).save(tmp_path / "deep.png")
    refused = verb("segment", tmp_path / "run", "--images", tmp_path / "deep.png", "--out", tmp_path / "o", expect=2)
    assert "more than 8 bits" in refused.stderr and not (tmp_path / "o").exists()
    make_run(tmp_path / "demo")
    (tmp_path / "demo" / "config.json").write_text('{"kind": "demo", "settings": {"seed": 0, "seeds": 2}}')
    call = ("segment", tmp_path / "demo", "--images", tmp_path / "deep.png", "--out", tmp_path / "o")
    assert "is no U-Net run (its config.json says demo)" in verb(*call, expect=2).stderr


@pytest.mark.parametrize(
    ("bytes_", "window", "converted", "rule"),
    [
        (True, None, None, "as they are"),
        (True, (1000.0, 30000.0), None, "converted"),  # 8-bit slices cannot have such values
        (True, (0.01, 0.99), None, "converted"),
        (True, (20.0, 200.0), None, "window"),  # raw, as the training set was
        (True, (20.0, 200.0), (20.0, 200.0), "converted"),  # in a pair folder that has passed it
        (True, (20.0, 200.0), (10.0, 90.0), "window"),
        (False, (1000.0, 30000.0), None, "window"),
    ],
)
def test_grey_values_pass_the_window_once(bytes_, window, converted, rule):
    assert segment.grey_rule(bytes_, window, converted) == rule


def test_a_pair_folder_is_segmented_as_it_is_scored(tmp_path, verb):
    window = (20.0, 200.0)
    models = make_run(tmp_path / "run", window)
    info = DatasetInfo("cells", "prepared", CLASSES, window)
    write_pairs(tmp_path / "test", info, [("a", slices(1)[0], np.zeros((40, 56), np.uint8))])
    printed = verb("segment", tmp_path / "run", "--images", tmp_path / "test", "--out", tmp_path / "out").stdout
    assert "converted already" in printed
    expected = predict_mask(models, torch.from_numpy(slices(1)))[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png")), expected)
