"""`check` of files: what is printed of them is so, and the printed command prepares them."""

import re
import shlex

import h5py
import numpy as np
import pytest
import tifffile
from conftest import blobs
from PIL import Image

from natural2nanoscale.phantom.volume import volume


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Forty 16-bit slices of 96x64 pixels in my slices.tif, their masks in masks.tif."""
    monkeypatch.chdir(tmp_path)
    pairs = list(blobs(40, 64, 96))
    images = np.stack([image.astype(np.uint16) * 200 for _, image, _ in pairs])
    images[0], images[39] = 200, images[13]
    masks = np.stack([mask for *_, mask in pairs])
    tags = {"axes": "ZYX", "unit": "um"}
    tifffile.imwrite("my slices.tif", images, imagej=True, metadata=tags, resolution=(200, 200))
    tifffile.imwrite("masks.tif", masks, metadata={"axes": "ZYX"})
    return images, masks


def test_what_was_understood(verb, stack, tmp_path):
    images, masks = stack
    said = verb("check", "my slices.tif", "--masks", "masks.tif", "--classes", "a,b,c").stdout
    assert "40 slices, 96x64 (40), grey of 16 bits, uint16" in said and "axes ZYX of 40 x 64 x 96" in said
    assert "pixel size: 5 nm" in said and "looked at 32 of them, evenly spaced" in said
    chosen = [round(i * 39 / 31) for i in range(32)]
    share = 100 * (masks[chosen] == 1).mean()
    assert f"b {share:.2f} %" in said and f"grey values: {images[chosen].min()} to {images[chosen].max()}" in said
    assert "warning: my slices.tif has 1 slices that are blank or unlabelled, as 'slice_0000'" in said
    assert ("my slices.tif holds 1 images that are copies of others in it" in said) == (13 in chosen)
    assert "verdict: 40 slices can be read" in said and "warning(s) first" in said
    assert (tmp_path / "contact.png").is_file()
    (call,) = re.findall(r"`python -m natural2nanoscale ([^`]+)`", said)
    assert "split by block" in verb(*shlex.split(call), "--classes", "a,b,c", "--out", "made").stdout
    assert "verdict: nothing stands in the way of training" in verb("check", "made").stdout


def test_slices_alone_and_refusals(verb, stack, tmp_path):
    said = verb("check", "my slices.tif", "--crop-bottom", 8, "--contact", "sheet.png").stdout
    assert "96x56 (40)" in said and "--masks MASKS" in said
    assert Image.open(tmp_path / "sheet.png").size[0] < 200  # a column of images
    tifffile.imwrite("masks.tif", np.arange(40 * 64 * 96).reshape(40, 64, 96) // 900, metadata={"axes": "ZYX"})
    refused = verb("check", "my slices.tif", "--masks", "masks.tif", "--contact", "new.png", expect=2).stderr
    assert "--map 1-=1" in refused and not (tmp_path / "new.png").exists()
    verb("check", "my slices.tif", "--masks", "masks.tif", "--map", "1-=1")
    assert "is no folder: make a data root" in verb("check", expect=2).stderr


def test_paths_that_are_no_data_root_are_taken_for_slices(verb, stack, tmp_path):
    """A path that was mistyped, files of a vendor and N5 are told what they are, with masks and without."""
    for name, files in (("dm", ["a.dm4", "b.dm4"]), ("jp", ["a.jpg"]), ("v.n5", ["attributes.json"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"{}")
    expected = {"nofile.tif": "nofile.tif .* does not exist", "dm": "a.dm4 is no file that can be read here.*Fiji",
                "jp": "a.jpg is no file that can be read here", "v.n5": "v.n5 is no file that can be read.*Zarr",
                "masks.tif/raw": "does not exist"}  # fmt: skip
    for path, words in expected.items():
        for masks in ((), ("--masks", "masks.tif")):
            assert re.search(words, verb("check", path, *masks, expect=2).stderr), path
    with h5py.File("sev.h5", "w") as file:
        file["volumes/raw"], file["volumes/labels"] = stack
    assert "40 slices" in verb("check", "sev.h5/volumes/raw", "--masks", "sev.h5:/volumes/labels").stdout
    assert "name one of `sev.h5:/volumes/labels`" in verb("check", "sev.h5/volumes/row", expect=2).stderr


def test_the_split_is_that_of_prepare(verb, stack, tmp_path):
    """Blank masks are left out before slices are split; of many slices not all masks are looked at."""
    images, masks = stack
    few = np.where(np.isin(np.arange(40), (3, 9, 14, 20, 26))[:, None, None], masks, 0).astype(np.uint8)
    for name, count in (("24", 24), ("40", 40)):
        tifffile.imwrite(f"em{name}.tif", images[:count], metadata={"axes": "ZYX"})
        tifffile.imwrite(f"few{name}.tif", few[:count], metadata={"axes": "ZYX"})
    split = "split by block: 2 train, 1 val, 1 test slices"
    assert split in verb("check", "em24.tif", "--masks", "few24.tif").stdout
    assert split in verb("prepare", "--images", "em24.tif", "--masks", "few24.tif").stdout
    said = verb("check", "em40.tif", "--masks", "few40.tif").stdout
    assert "the split above is of all 40 slices" in said
    few[9:] = 0
    tifffile.imwrite("two.tif", few[:24], metadata={"axes": "ZYX"})
    assert "cannot be split" in verb("check", "em24.tif", "--masks", "two.tif", expect=2).stderr


def test_what_a_vae_keeps(verb, stack, data_folder, tiny_backbone):
    """The tiny backbone is random: it keeps next to nothing, of slices and of a data root."""
    for path in ("my slices.tif", data_folder):
        said = verb("check", path, "--backbone", tiny_backbone, "--device", "cpu").stdout
        (kept,) = re.findall(r"keeps ([\d.]+) dB", said)
        assert 0 < float(kept) < 20


def test_blank_slices_of_a_data_root_are_named(verb, data_folder):
    Image.fromarray(np.full((32, 64), 9, np.uint8)).save(data_folder / "val" / "images" / "slice_0001.png")
    said = verb("check", data_folder).stdout
    assert "warning: val has 1 slices that are blank or unlabelled, as 'slice_0001'" in said and "verdict" in said


def test_slices_that_would_be_in_two_parts_twice(verb, tmp_path):
    images, masks = volume(30, 64, 96, seed=1)
    images, masks = np.stack(list(images)), np.stack(list(masks))
    images[29] = np.roll(images[2], 1, axis=1)  # in the training part, and in the test part shifted by a pixel
    for name, pixels in (("em", images), ("masks", masks)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="minisblack")
    places = (tmp_path / "em.tif", "--masks", tmp_path / "masks.tif", "--contact", tmp_path / "sheet.png")
    said = verb("check", *places).stdout
    assert "1 pairs of slices in two parts are more alike than neighbours" in said
    assert "'train/slice_0002' and 'test/slice_0029'" in said
