"""`prepare`: EM pictures of many kinds become pair folders whose pixels are known."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from em_source import THIRDS, Source, fill, run_verb, stack
from PIL import Image

from natural2nanoscale.data.check import open_root
from natural2nanoscale.verbs import prepare

AXON = Path(__file__).resolve().parents[2] / "shared" / "data" / "axon_sem"


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def test_8_bit_slices_stay_as_they_are_and_parts_follow_the_order(source, capsys):
    images, masks = fill(source)
    parts = source.prepare(*THIRDS, "--classes", "resin,cytoplasm,nucleus")
    assert [part.stems for part in parts.values()] == [
        ("cell_0", "cell_1", "cell_2"),
        ("cell_3",),
        ("cell_4",),
    ]
    for folder in parts.values():
        assert folder.info.classes.names == ("resin", "cytoplasm", "nucleus")
        assert folder.info.intensity_window is None
        assert folder.info.split["rule"] == "block" and folder.info.split["gap"] == 0
        for stem in folder.stems:
            assert np.array_equal(folder.image(stem), images[int(stem[-1])])
            assert np.array_equal(folder.mask(stem), masks[int(stem[-1])])
    assert (source.out / "contact.png").is_file()
    assert "train: 3 slices, 16x12 (3)" in capsys.readouterr().out
    source.refuses("already exists and is not an empty folder")


def test_a_16_bit_ramp_keeps_256_levels_and_is_never_clipped(source):
    """Pillow's own conversion turns everything above 255 white; the window is that of the training part."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    mask = np.zeros((256, 256), np.uint8)
    mask[:, 128:] = 1
    for i, image in enumerate((ramp, ramp, ramp, ramp // 2, np.minimum(ramp, 60000))):
        source.add(f"cell_{i}.tif", image, mask)
    parts = source.prepare(*THIRDS)
    low, high = parts["train"].info.intensity_window
    assert (low, high) == tuple(np.percentile(ramp, (0.1, 99.9), method="inverted_cdf"))
    converted = parts["train"].image("cell_0")
    assert len(np.unique(converted)) == 256
    expected = np.clip((ramp.astype(float) - low) / (high - low) * 255, 0, 255)
    assert np.abs(converted - expected).max() <= 0.5 + 1e-9
    assert parts["val"].info.intensity_window == (low, high)
    assert abs(int(parts["val"].image("cell_3").max()) - 127) <= 1


@pytest.mark.parametrize("kind", ["uint16", ">u2", "int16", "int32", "float32"])
def test_percentiles_of_every_depth_equal_numpy(source, kind):
    rng = np.random.default_rng(1)
    images = rng.gamma(2.0, 3000.0, (5, 40, 50)).clip(0, 32000).astype(kind)
    _, masks = stack(5, 40, 50)
    tifffile.imwrite(source.folder / "images.tif", images, photometric="minisblack")
    tifffile.imwrite(source.folder / "masks.tiff", masks, photometric="minisblack", compression="zlib")
    parts = source.prepare(*THIRDS, "--percentiles", "1,95", images="images.tif", masks="masks.tiff")
    low, high = parts["train"].info.intensity_window
    assert (low, high) == pytest.approx(np.percentile(images[:3], (1, 95), method="inverted_cdf"), rel=1e-6)
    for i in range(3):
        expected = np.clip(np.round((images[i].astype(float) - low) / (high - low) * 255), 0, 255)
        assert np.array_equal(parts["train"].image(f"slice_{i:04d}"), expected)
        assert np.array_equal(parts["train"].mask(f"slice_{i:04d}"), masks[i])


def test_a_fixed_window_replaces_percentiles(source):
    images, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i].astype(np.uint16) * 100, masks[i])
    parts = source.prepare(*THIRDS, "--window", "0,25500")
    assert np.array_equal(parts["test"].image("cell_4"), images[4])
    assert parts["test"].info.intensity_window == (0.0, 25500.0)


def test_seven_classes_in_16_bit_stacks_of_896x512(source):
    """As real stacks come: multi-page TIFF, two classes below half a percent."""
    y, x = np.mgrid[:512, :896]
    masks = np.stack([(x // 50 + y // 60 + i) % 5 for i in range(4)]).astype(np.uint8)
    masks[:, :8, :100], masks[:, 8:16, :100] = 5, 6
    images = (masks.astype(np.uint16) * 6000 + x).astype(np.uint16)
    tifffile.imwrite(source.folder / "em.tif", images, photometric="minisblack")
    tifffile.imwrite(source.folder / "labels.tif", masks, photometric="minisblack")
    parts = source.prepare("--val", "0.25", "--test", "0.25", images="em.tif", masks="labels.tif")
    assert parts["train"].info.classes.count == 7
    assert parts["train"].stems == ("slice_0000", "slice_0001")
    assert np.array_equal(parts["test"].mask("slice_0003"), masks[3])


def test_four_classes_at_500x500(source):
    y, x = np.mgrid[:500, :500]
    masks = np.stack([(x // 50 + y // 60 + i) % 4 for i in range(3)]).astype(np.uint8)
    images = masks * 60
    tifffile.imwrite(source.folder / "em.tif", images, photometric="minisblack")
    tifffile.imwrite(source.folder / "labels.tif", masks, photometric="minisblack")
    parts = source.prepare("--classes", "a,b,c,d", images="em.tif", masks="labels.tif")
    assert all(folder.image(folder.stems[0]).shape == (500, 500) for folder in parts.values())


def test_color_images_become_grey_by_their_mean(source, capsys):
    images, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"cell_{i}.png", np.stack([images[i]] * 3, -1), masks[i])
    source.add("cell_5.png", np.stack([images[0], images[1], images[2], images[3]], -1), masks[0])  # with alpha
    parts = source.prepare("--val", "0.2", "--test", "0.2", "--gap", "0")
    assert np.array_equal(parts["train"].image("cell_0"), images[0])
    mean = np.round(np.stack([images[0], images[1], images[2]]).mean(axis=0))
    assert np.array_equal(parts["test"].image("cell_5"), mean)
    assert "1 colour images such as" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_channel_of_color_images(source, suffix):
    images, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"c{i}.{suffix}", np.stack([images[i], images[i] // 2, 255 - images[i]], axis=-1), masks[i])
    source.refuses(f"c0.{suffix} has 3 channels, found --channel 3", "--channel", "3", *THIRDS)
    train = source.prepare("--channel", "2", *THIRDS)["train"]
    assert np.array_equal(train.image("c0"), 255 - images[0])


def test_a_channel_of_grey_images(source):
    fill(source)
    source.refuses("cell_0.png has one channel, found --channel 1", "--channel", "1")


def test_unmatched_files_are_listed(source):
    fill(source)
    (source.folder / "masks" / "cell_3.png").rename(source.folder / "masks" / "nucleus_3.png")
    source.refuses(r"4 pairs.*1 images without a mask \(cell_3\) and 1 masks without an image \(nucleus_3\)")
    stems = [s for folder in source.prepare("--only-pairs", *THIRDS).values() for s in folder.stems]
    assert stems == ["cell_0", "cell_1", "cell_2", "cell_4"]


def test_no_pair_at_all(source):
    fill(source)
    for file in (source.folder / "masks").iterdir():
        file.rename(file.with_name(file.name.replace("cell_", "mouse_a")))
    source.refuses(r"0 pairs .*cell_0, cell_1, cell_2, \.\.\.", "--only-pairs")


def test_sizes_must_agree(source):
    fill(source)
    Image.fromarray(np.zeros((16, 12), np.uint8)).save(source.folder / "masks" / "cell_2.png")
    source.refuses("cell_2.png is 16x12 but its mask .*cell_2.png is 12x16")


def test_stacks_must_be_equally_long(source):
    images, masks = stack(5, 8, 8)
    tifffile.imwrite(source.folder / "em.tif", images, photometric="minisblack")
    tifffile.imwrite(source.folder / "labels.tif", masks[:4], photometric="minisblack")
    source.refuses(r"5 page\(s\) but .* has 4", images="em.tif", masks="labels.tif")


def test_stacks_in_folders_are_grouped_by_file(source):
    for name in ("mouse1_a", "mouse1_b", "mouse2", "mouse3"):
        images, masks = stack(2, 8, 8, seed=len(name))
        for kind, pixels in (("images", images), ("masks", masks)):
            (source.folder / kind).mkdir(exist_ok=True)
            tifffile.imwrite(source.folder / kind / f"{name}.tif", pixels, photometric="minisblack")
    groups = ("--group", r"(mouse\d)", "--test-groups", "mouse1", "--val-groups", "mouse3")
    parts = source.prepare(*groups)
    assert parts["train"].stems == ("mouse2_0000", "mouse2_0001")
    assert parts["test"].stems == ("mouse1_a_0000", "mouse1_a_0001", "mouse1_b_0000", "mouse1_b_0001")
    assert parts["test"].info.split["groups"]["val"] == ["mouse3"]


def test_names_cannot_leave_their_folder(source):
    images, masks = stack(5, 8, 8)
    for i, name in enumerate(("a b", "c\nd", ".e", "f;g", "x\\y")):
        source.add(f"{name}.png", images[i], masks[i])
    stems = {stem for folder in source.prepare(*THIRDS).values() for stem in folder.stems}
    assert stems == {"a_b", "c_d", "f_g", "x_y"}  # a name that begins with a dot is hidden


def test_names_that_become_one_are_refused(source):
    fill(source)
    images, masks = stack(2, 8, 8)
    source.add("a b.png", images[0], masks[0])
    source.add("a_b.png", images[1], masks[1])
    source.refuses("would both be named 'a_b'")


@pytest.mark.skipif(not AXON.is_dir(), reason="axon_sem lies beside the repository only where it was put")
def test_real_em_in_tiles_with_whole_animals_held_out(tmp_path, capsys):
    out = tmp_path / "data"
    places = ("--images", AXON / "images", "--masks", AXON / "masks", "--out", out)
    groups = ("--group", r"sub-(rat\d+)", "--test-groups", "rat7,rat8")
    tiles = ("--size", "896x512", "--skip-small", "--tiles", 1)
    run_verb(prepare, *places, *groups, *tiles, "--classes", "background,myelin,axon")
    said = capsys.readouterr().out
    assert "left out, smaller than 896x512" in said and "rat4" in said
    animals = {part: {re.search(r"rat\d", stem)[0] for stem in f.stems} for part, f in open_root(out).items()}
    assert animals["test"] == {"rat7", "rat8"}
    assert not animals["train"] & animals["val"] and len(animals["train"]) == 3
    assert len(open_root(out)["test"].stems) == 2
    assert json.loads((out / "test" / "dataset.json").read_text())["split"]["groups"]["test"] == [
        "rat7",
        "rat8",
    ]
