"""Masks as ids, 0 and 255, colours or palette pictures all become the same class ids."""

import re

import numpy as np
import pytest
from em_source import THIRDS, Source, fill, stack, write_png
from PIL import Image

from natural2nanoscale.data.classes import color_table, palette


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def test_0_and_255_are_two_classes(source):
    images, masks = stack(5, 8, 8, classes=2)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], masks[i] * 255)
    parts = source.prepare(*THIRDS)
    assert parts["train"].info.classes.names == ("background", "foreground")
    assert np.array_equal(parts["train"].mask("cell_1"), masks[1])


def test_255_beside_other_values_is_ignored(source, capsys):
    images, masks = stack(5, 8, 8)
    masks[2, 0, 0] = 255
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], masks[i])
    assert source.prepare(*THIRDS)["train"].mask("cell_2")[0, 0] == 255
    assert "255 is ignored (1 px)" in capsys.readouterr().out


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_standard_palette_is_recognised(source, count):
    images, masks = stack(5, 8, 8, classes=count)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], color_table(palette(count))[masks[i]])
    parts = source.prepare(*THIRDS)
    assert parts["train"].info.classes.count == count
    assert np.array_equal(parts["test"].mask("cell_4"), masks[4])


def test_black_is_background_or_ignored_only_if_told(source):
    images, masks = stack(5, 8, 8)
    colors = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], colors[masks[i]])
    said = source.refuses(r"cell_0.png has mask values #000000 \(22 px\)")
    listed = re.search(r"--colors \"(.*?)\"", said)[1]
    assert {entry.split("=")[1] for entry in listed.split(",")} == {"#000000", "#ff0000", "#00ff00"}
    named = "background=#000000,cytoplasm=#ff0000,nucleus=#00FF00"
    parts = source.prepare(*THIRDS, "--colors", named)
    assert parts["train"].info.classes.names == ("background", "cytoplasm", "nucleus")
    assert np.array_equal(parts["train"].mask("cell_2"), masks[2])
    source.out = source.folder / "ignoring"
    ignoring = source.prepare(*THIRDS, "--map", "#000000=ignore")["train"].mask("cell_2")
    assert np.array_equal(ignoring, np.array([255, 0, 1], np.uint8)[masks[2]])


def test_palettes_in_another_order_are_read_by_their_colors(source):
    images, masks = fill(source)
    colors = color_table(palette(3))[:3]
    for i in range(5):
        order = np.array([[0, 1, 2], [2, 0, 1]][i % 2])  # of the colours in this file
        picture = Image.fromarray(np.argsort(order).astype(np.uint8)[masks[i]], mode="P")
        picture.putpalette(colors[order].ravel().tolist())
        picture.save(source.folder / "masks" / f"cell_{i}.png")
    for folder in source.prepare(*THIRDS).values():
        for stem in folder.stems:
            assert np.array_equal(folder.mask(stem), masks[int(stem[-1])])


def test_palette_pictures_give_their_index(source):
    images, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], masks[i])
        picture = Image.fromarray(masks[i], mode="P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        picture.save(source.folder / "masks" / f"cell_{i}.png")
    assert np.array_equal(source.prepare(*THIRDS)["train"].mask("cell_0"), masks[0])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_keep_their_ids(source, bits):
    """Pillow stretches grey PNGs of 2 and 4 bits to 0..255."""
    images, masks = stack(5, 8, 8, classes=2**bits)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], masks[i])
        file = source.folder / "masks" / f"cell_{i}.tif"
        (file.with_suffix(".png")).unlink()
        values = np.zeros((8, 8 * bits), np.uint8)
        for bit in range(bits):
            values[:, bit::bits] = masks[i] >> (bits - 1 - bit) & 1
        write_png(file.with_suffix(".png"), np.packbits(values, axis=1), bits, 8)
    names = ",".join(f"c{i}" for i in range(2**bits))
    parts = source.prepare(*THIRDS, "--classes", names)
    assert parts["train"].info.classes.count == 2**bits
    assert np.array_equal(parts["train"].mask("cell_2"), masks[2])


def test_stray_values_are_named_with_file_and_counts_and_can_be_mapped(source):
    images, masks = stack(5, 8, 8)
    masks[1, 0, :3], masks[3, 0, :2] = 128, 7
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], masks[i])
    classes = ("--classes", "a,b,c")
    said = source.refuses(r"cell_1.png has mask values 128 \(3 px\).*in 2 of 5 masks.*0\.\.2", *classes)
    assert re.search(r"`--map (\S+)`", said)[1] == "7=ignore,128=ignore"
    source.refuses("has mask values 128")  # nor without names: ids have no gaps
    source.refuses("--map sends pixels to class 5", *classes, "--map", "128=1,7=5")
    parts = source.prepare(*THIRDS, *classes, "--map", "128=1,7=ignore")
    assert parts["train"].mask("cell_1")[0, :3].tolist() == [1, 1, 1]
    assert parts["val"].mask("cell_3")[0, :2].tolist() == [255, 255]
    assert np.array_equal(parts["train"].mask("cell_1")[1:], masks[1, 1:])


def test_spread_grey_values_get_the_mapping_suggested(source):
    images, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], np.array([0, 127, 254], np.uint8)[masks[i]])
    said = source.refuses("has mask values 127")
    (mapping,) = re.findall(r"`--map (\S+)`", said)  # to ignore both would leave one class
    assert np.array_equal(source.prepare(*THIRDS, "--map", mapping)["train"].mask("cell_0"), masks[0])


def test_what_leaves_one_class_is_not_proposed(source):
    images, masks = stack(5, 8, 8, classes=2)
    for i in range(5):
        source.add(f"cell_{i}.tif", images[i], np.array([0, 65535], np.uint16)[masks[i]])
    (mapping,) = re.findall(r"`--map (\S+)`", source.refuses("expected 0: map them"))
    assert np.array_equal(source.prepare(*THIRDS, "--map", mapping)["train"].mask("cell_0"), masks[0])


def test_masks_that_cannot_be_labels(source):
    images, masks = fill(source)
    Image.fromarray(masks[0] + np.float32(0.5)).save(source.folder / "masks" / "cell_0.tif")
    (source.folder / "masks" / "cell_0.png").unlink()
    source.refuses("fractions")
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    (source.folder / "masks" / "cell_0.tif").unlink()
    Image.fromarray(noise).save(source.folder / "masks" / "cell_0.png")
    source.refuses("smoothing")


def test_object_numbers_are_no_classes(source):
    images, masks = stack(5, 80, 80, classes=6400)
    numbers = np.arange(6400, dtype=np.uint16).reshape(80, 80)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], numbers)
    source.refuses("cell_0.png has mask values .*object numbers", "--classes", "a,b")


def test_ranges_of_values_and_what_goes_before_them(source):
    images, _ = stack(5, 8, 8)
    numbers = np.resize(np.arange(30, dtype=np.int32) - 2, (5, 8, 8))
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], numbers[i].clip(0).astype(np.uint8))
        Image.fromarray(numbers[i]).save(source.folder / "masks" / f"cell_{i}.tif")
        (source.folder / "masks" / f"cell_{i}.png").unlink()
    parts = source.prepare(*THIRDS, "--map=-2--1=ignore,5-9=2,1-=1,20=0,7=ignore")
    expected = np.select(
        [numbers < 0, numbers == 7, numbers == 20, (numbers >= 5) & (numbers <= 9), numbers >= 1], [255, 255, 0, 2, 1]
    )
    assert np.array_equal(parts["train"].mask("cell_1"), expected[1])
    assert parts["train"].info.classes.count == 3
    source.refuses("from low to high", "--map", "9-5=1")


def test_one_class_is_none(source):
    images, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], masks[i] * 0)
    source.refuses("1 class")
    assert source.prepare(*THIRDS, "--classes", "a,b")["train"].info.classes.count == 2


COLORED = ("--colors", "background=#000000,foreground=#ffffff")


@pytest.mark.parametrize("kind", ["L", "RGB", "P"])
def test_mapped_values_go_before_colors(source, kind):
    images, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], masks[i])
        picture = Image.fromarray(np.array([0, 128, 255], np.uint8)[masks[i]])
        if kind == "P":  # an index of no grey: the colours alone would call it foreground
            picture.putpalette([0, 0, 0] * 128 + [1, 1, 1] + [255, 255, 255] * 127)
        picture.convert("RGB" if kind == "RGB" else picture.mode).save(source.folder / "masks" / f"cell_{i}.png")
    parts = source.prepare(*THIRDS, *COLORED, "--map", "128=1,255=ignore")
    assert parts["train"].info.classes.names == ("background", "foreground")
    for folder in parts.values():
        for stem in folder.stems:
            assert np.array_equal(folder.mask(stem), np.array([0, 1, 255], np.uint8)[masks[int(stem[-1])]])


def test_mapped_values_and_colors_may_not_disagree_nor_be_lost(source):
    images, masks = stack(5, 8, 8, classes=2)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i], masks[i] * 255)
    said = source.refuses("the value 255 and its colour #ffffff", *COLORED, "--map", "255=ignore,#FFFFFF=1")
    assert "different classes" in said
    source.refuses("sends pixels to class 2", *COLORED, "--map", "255=2")
    assert np.array_equal(
        source.prepare(*THIRDS, *COLORED, "--map", "255=ignore,#ffffff=ignore")["train"].mask("cell_1"), masks[1] * 255
    )
    for i in range(5):
        colors = color_table(palette(2))[:2]
        Image.fromarray(colors[masks[i]]).save(source.folder / "masks" / f"cell_{i}.png")
    source.out = source.folder / "colored"
    source.refuses("--map names the value 128 but the masks are coloured", "--map", "128=ignore")
