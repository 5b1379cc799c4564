"""What `segment` does beside masks: blended tiles, flips, scale, shards, and the files it assembles."""

import csv
import shutil

import mrcfile
import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
import zarr
from PIL import Image
from test_segment import CLASSES, make_run, slices

from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.data.readers.base import ReadOptions
from natural2nanoscale.data.readers.opening import open_source
from natural2nanoscale.segmentation.inference import predict_bands, predict_mask, tile_weights
from natural2nanoscale.segmentation.unet import UNet, UNetInfo, save_unet

TILE, MARGIN = 96, 12


@pytest.fixture
def call(tmp_path, verb):
    """`segment` of a folder of three slices of 40x56 pixels by one U-Net; gives the printed text."""
    make_run(tmp_path / "run", seeds=1)
    (tmp_path / "images").mkdir()
    for index, page in enumerate(slices(3)):
        Image.fromarray(page).save(tmp_path / "images" / f"s{index}.png")

    def run(*flags, images="images", out="out", expect=0):
        start = ("segment", tmp_path / "run", "--images", tmp_path / images, "--out", tmp_path / out)
        result = verb(*start, *flags, expect=expect)
        return result.stderr if expect else result.stdout

    return run


def read(path):
    return np.asarray(Image.open(path))


def remember_scale(run, nanometres):
    """Networks that know the pixel size of their training set."""
    torch.manual_seed(0)
    save_unet(run / "seed-0" / "best", UNet(3, 4, 2), UNetInfo(4, 2, CLASSES, pixel_size_nm=nanometres))


@pytest.mark.parametrize("length", [60, 97, 150, 320, 333])
def test_weights_of_tiles_add_up(length):
    total = torch.zeros(length)
    for start, stop, weight in tile_weights(length, TILE, MARGIN):
        assert (weight >= 0).all() and stop - start == min(length, TILE)
        total[start:stop] += weight
    assert torch.allclose(total, torch.ones(length))


def test_tiles_disagree_with_the_whole_slice_no_more_where_they_meet():
    """Near the tiles' edges and in the middle of their overlap, where answers are cut from one another or blended: at
    most 1.5 times as many pixels as elsewhere, and the error has no step."""
    spans, near = [(start, stop) for start, stop, _ in tile_weights(320, TILE, MARGIN)], torch.zeros(320, dtype=bool)
    seams = {(stop + start) // 2 for (_, stop), (start, _) in zip(spans, spans[1:], strict=False)}
    for place in ({place for span in spans for place in span} | seams) - {0, 320}:
        near[place - 6 : place + 6] = True
    border, wrong, steps = near[:, None] | near, [], []
    for seed in range(3):
        torch.manual_seed(seed)
        model = UNet(3, width=8, depth=3).eval()
        smooth = F.interpolate(torch.rand(1, 1, 20, 20), (320, 320), mode="bicubic")[0] * 255
        grey = (smooth + 10 * torch.randn_like(smooth)).clamp(0, 255).to(torch.uint8)
        with torch.no_grad():
            whole = model(encode_gray(grey, 1)).softmax(1)
        tiled = torch.cat([band for _, band in predict_bands([model], grey, tile=TILE, margin=MARGIN)], 2)
        assert torch.equal(tiled.argmax(1), predict_mask([model], grey, TILE, MARGIN))
        differ = (whole.argmax(1) != tiled.argmax(1))[0].float()
        wrong.append([differ[border].mean(), differ[~border].mean()])
        jumps = (tiled - whole).diff(dim=-1).abs().mean((0, 1, 2))  # (319,)
        steps.append([jumps[[seam - 1 for seam in seams]].mean(), jumps.mean()])
    for at_borders, elsewhere in (np.sum(wrong, 0), np.sum(steps, 0)):
        assert 0 < at_borders < 1.5 * elsewhere


def test_flips_are_averaged(tmp_path):
    (model,), grey = make_run(tmp_path / "run", seeds=1), torch.from_numpy(slices(1))
    with torch.no_grad():
        views = [model(encode_gray(grey.flip(dims), 1)).softmax(1).flip(dims) for dims in ([], [-1], [-2], [-2, -1])]
    (_, band), *rest = predict_bands([model], grey, flips=True)
    assert not rest and torch.allclose(torch.stack(views).mean(0), band, atol=1e-5)
    assert not torch.allclose(next(predict_bands([model], grey))[1], band, atol=1e-3)


def test_probabilities_overlays_and_areas(call, tmp_path):
    call()
    said = call("--probabilities", "--overlay", "--pixel-size", 5)  # asked for later: made anew
    assert "3 slices, 3 to segment" in said and "0 to segment" in call("--probabilities", "--pixel-size", 5)
    rows = list(csv.DictReader((tmp_path / "out" / "areas.csv").open()))
    assert len(rows) == 9
    for i in range(3):
        mask = read(tmp_path / "out" / "masks" / f"s{i}.png")
        shares = np.load(tmp_path / "out" / "probabilities" / f"s{i}.npy")
        assert shares.shape == (3, 40, 56) and np.abs(shares.sum(0, dtype=float) - 1).max() < 2e-3
        assert (shares.max(0) - np.take_along_axis(shares, mask[None].astype(int), 0)[0]).max() < 1e-3
        assert read(tmp_path / "out" / "overlays" / f"s{i}.png").shape == (40, 56, 3)
        for row in rows[3 * i : 3 * i + 3]:
            count = (mask == CLASSES.names.index(row["class"])).sum()
            assert row["image"] == f"s{i}" and int(row["pixels"]) == count
            assert float(row["area_um2"]) == pytest.approx(count * 25e-6)


@pytest.mark.parametrize(("kind", "name"), [("tiff", "masks.ome.tif"), ("zarr", "masks.ome.zarr")])
def test_one_file_of_all_masks(call, tmp_path, kind, name):
    call("--format", kind, "--pixel-size", 8)
    source = open_source(tmp_path / "out" / name, ReadOptions())  # by our own reader
    masks = [read(tmp_path / "out" / "masks" / f"s{i}.png") for i in range(3)]
    assert source.count == 3 and source.pixel_size_nm == 8
    assert all(np.array_equal(source.read(i), mask) for i, mask in enumerate(masks))
    source.close()
    if kind == "tiff":
        with tifffile.TiffFile(tmp_path / "out" / name) as file:
            assert file.is_ome and file.series[0].axes == "ZYX" and file.series[0].shape == (3, 40, 56)
    else:
        assert np.array_equal(zarr.open(str(tmp_path / "out" / name), mode="r")["0"][:], masks)
    Image.fromarray(slices(1)[0][:20]).save(tmp_path / "images" / "t.png")
    assert "needs slices of one size" in call("--format", kind, out="other", expect=2)
    assert not (tmp_path / "other").exists()


def test_another_pixel_size_is_refused_with_the_factor_that_helps(call, tmp_path):
    remember_scale(tmp_path / "run", 4.0)
    refused = call("--pixel-size", 8, expect=2)
    assert "8 nm per pixel, but the U-Nets learned from 4 nm: pass `--rescale 2`" in refused
    assert not (tmp_path / "out").exists()
    call("--pixel-size", 8, "--rescale", 2)
    larger = Image.open(tmp_path / "images" / "s0.png").resize((112, 80), Image.Resampling.BILINEAR)
    (tmp_path / "large").mkdir()
    larger.save(tmp_path / "large" / "s0.png")
    call("--pixel-size", 4.2, images="large", out="whole")  # within a tenth
    found, expected = (read(tmp_path / out / "masks" / "s0.png") for out in ("out", "whole"))
    assert found.shape == (40, 56) and np.array_equal(found, expected[1::2, 1::2])
    assert "rescale was" in call("--pixel-size", 4, expect=2)


def test_shards_make_all_slices_once(call, tmp_path):
    assert "2 slices, 2 to segment" in call("--shard", "1/2")
    assert not (tmp_path / "out" / "areas.csv").exists()
    assert "1 slices, 1 to segment" in call("--shard", "2/2")
    assert "1 slices, 0 to segment" in call("--shard", "2/2")
    assert "3 slices, 0 to segment" in call()
    assert (tmp_path / "out" / "areas.csv").is_file() and (tmp_path / "out" / "contact.png").is_file()
    call(out="whole")
    for i in range(3):
        assert np.array_equal(*(read(tmp_path / out / "masks" / f"s{i}.png") for out in ("out", "whole")))
    make_run(tmp_path / "other", seeds=2)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "other").rename(tmp_path / "run")
    assert "goes on as it began" in call("--shard", "1/2", expect=2)
    assert "goes on as it began" in call("--shard", "1/3", expect=2)  # whoever made the masks that lie there
    assert "is no share" in call("--shard", "3/2", expect=2)


def test_the_information_bar_and_a_channel(call, tmp_path):
    stack = np.stack([slices(2), 255 - slices(2)], axis=1)  # ZCYX
    tifffile.imwrite(tmp_path / "two.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    assert "--channel" in call(images="two.tif", expect=2)
    call("--channel", 1, "--crop-bottom", 8, images="two.tif")
    tifffile.imwrite(tmp_path / "one.tif", stack[:, 1, :32], photometric="minisblack", metadata={"axes": "ZYX"})
    call(images="one.tif", out="cut")
    for i in range(2):
        found, expected = (read(tmp_path / out / "masks" / f"slice_{i:04d}.png") for out in ("out", "cut"))
        assert found.shape == (32, 56) and np.array_equal(found, expected)


def test_masks_of_an_mrc_file_whose_rows_begin_below_lie_on_the_upright_slices(call, tmp_path):
    shutil.rmtree(tmp_path / "run")
    make_run(tmp_path / "run", (0.0, 255.0), seeds=1)  # takes 16 bits
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.ascontiguousarray(slices(3)[:, ::-1]).astype("u2"))
    assert "images/s0.png is no MRC file and is taken as stored" in call("--flip-y", out="upright")
    assert "turned over by --flip-y" in call("--flip-y", images="a.mrc")
    assert "taken as stored, the first on top" in call(images="a.mrc", out="stored")
    for i in range(3):
        upright = read(tmp_path / "upright" / "masks" / f"s{i}.png")
        assert np.array_equal(read(tmp_path / "out" / "masks" / f"slice_{i:04d}.png"), upright)
        assert not np.array_equal(read(tmp_path / "stored" / "masks" / f"slice_{i:04d}.png"), upright)
    assert "goes on as it began" in call(images="a.mrc", expect=2)
