"""What `prepare` cannot convert without guessing is one helpful error, and nothing is written."""

import numpy as np
import pytest
import tifffile
from em_source import THIRDS, Source, fill, stack
from PIL import Image

from natural2nanoscale.data.prepare import convert


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def test_places(source):
    fill(source)
    source.refuses("does not exist", images="nowhere")
    (source.folder / "empty").mkdir()
    source.refuses("found no file", images="empty")
    (source.folder / "empty" / "a.jpg").write_bytes(b"")
    source.refuses("take the original, or save it as PNG", images="empty")


def test_damaged_files(source):
    fill(source)
    file = source.folder / "images" / "cell_2.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    source.refuses("cell_2.png cannot be read")
    file.write_bytes(b"not a picture")
    source.refuses("cell_2.png cannot be read")
    file.unlink()
    file.symlink_to(source.folder / "nowhere.png")
    source.refuses("cell_2.png cannot be read")
    file.unlink()
    (source.folder / "elsewhere.png").write_bytes(whole)
    file.symlink_to(source.folder / "elsewhere.png")
    assert "cell_2" in source.prepare(*THIRDS)["train"].stems


def test_bombs_and_montages(source):
    images, masks = fill(source)
    source.refuses("is 16x12 = 192 pixels, more than the limit of 191", "--max-pixels", 191)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 90  # Pillow's own limit is not asked
    try:
        source.refuses("too large for one slice: pass --size")
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def test_depths_must_agree(source):
    images, masks = fill(source)
    Image.fromarray(images[1].astype(np.uint16) * 200).save(source.folder / "images" / "cell_1.png")
    source.refuses("cell_0.png is of type uint8 but .*cell_1.png of uint16: convert all slices to one type")


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_16_bits_do_not_mix_with_other_numbers(source, kind):
    images, masks = fill(source, suffix="tif")
    for i, image in enumerate(images):
        tifffile.imwrite(source.folder / "images" / f"cell_{i}.tif", image.astype(kind if i == 3 else np.uint16))
    source.refuses(f"cell_0.tif is of type uint16 but .*cell_3.tif of {kind}")


def test_pixels_must_be_numbers(source):
    images, masks = fill(source, suffix="tif")
    Image.fromarray(np.full((12, 16), np.nan, np.float32)).save(source.folder / "images" / "cell_1.tif")
    source.refuses(r"cell_1.tif has 192 pixels that are no number")


def test_16_bit_colour_is_not_cut_to_8(source):
    images, masks = fill(source, suffix="tif")
    tifffile.imwrite(source.folder / "images" / "cell_1.tif", np.zeros((12, 16, 3), np.uint16), photometric="rgb")
    source.refuses("16 bits per channel")


def test_flat_images_have_no_percentiles(source):
    _, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"cell_{i}.png", np.full((8, 8), 3000, np.uint16), masks[i])
    source.refuses("both 3000")


def test_imagej_stacks_beyond_4_gb(source):
    images, masks = stack(5, 8, 8)
    description = "ImageJ=1.53t\nimages=5\nslices=5\n"
    tifffile.imwrite(source.folder / "em.tif", images[0], photometric="minisblack", description=description)
    tifffile.imwrite(source.folder / "labels.tif", masks, photometric="minisblack")
    source.refuses("announces 5 slices but has 1", images="em.tif", masks="labels.tif")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--split", "group"), "belong together"),
        (("--split", "block", "--group", "(a)"), "belong together"),
        (("--group", "cell"), "no group in parentheses"),
        (("--group", "("), "no regular expression"),
        (("--group", r"(rat\d)"), "does not match the file name 'cell_0.png'"),
        (("--group", "(cell)"), "finds 1 group"),
        (("--group", r"(\d)", "--test-groups", "7"), "names '7', expected groups among 0, 1, 2"),
        (("--group", r"(\d)", "--test-groups", "1", "--val-groups", "1"), "in one part only"),
        (("--group", r"(\d)", "--test-groups", "0,1,2", "--val-groups", "3,4"), "left for training"),
        (("--val-groups", "1"), "need --group"),
        (("--split", "random", "--gap", "3"), "--gap 3"),
        (("--gap", "3"), "too few"),
        (("--val", "0.9", "--test", "0.9"), "--val 0.9"),
        (("--tiles", "3"), "need --size"),
        (("--percentiles", "5"), "two ascending numbers"),
        (("--percentiles", "5,200"), "0..100"),
        (("--window", "9,3"), "two ascending numbers"),
        (("--window", "0,9", "--percentiles", "0,9"), "pass one"),
        (("--classes", "a"), "2 to 64"),
        (("--classes", "a,a"), "2 to 64 different"),
        (("--colors", "a:red"), "name=#rrggbb"),
        (("--colors", "a=#ff0000,b=#ff0000"), "one colour to two"),
        (("--map", "1=x"), "value=id"),
        (("--map", "1=64"), "value=id"),
        (("--map", "#ff0000=1"), "no mask is coloured"),
    ],
)  # fmt: skip
def test_options(source, arguments, said):
    fill(source)
    source.refuses(said, *arguments)


def test_a_crash_leaves_nothing_half_made(source, monkeypatch):
    fill(source)

    def full_disk(*_arguments):
        raise OSError("no space left")

    monkeypatch.setattr(convert, "contact_sheet", full_disk)
    before = sorted(source.folder.rglob("*"))
    with pytest.raises(OSError, match="no space"):
        source.prepare(*THIRDS)
    assert sorted(source.folder.rglob("*")) == before
