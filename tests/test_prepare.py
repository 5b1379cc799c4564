"""`prepare` and `check`: any EM pictures become pair folders whose pixels are known, or an error that helps."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from natural2nanoscale.data import check, prepare
from natural2nanoscale.data.check import open_root
from natural2nanoscale.data.classes import color_table, palette
from natural2nanoscale.data.contact import sheet
from natural2nanoscale.data.conversion import tile_corners
from natural2nanoscale.data.splits import TEST, VAL, default_gap, part_counts, split_blocks, split_groups, split_random
from natural2nanoscale.errors import InputError

AXON = Path(__file__).resolve().parents[2] / "shared" / "data" / "axon_sem"
THIRDS = ("--val", "0.2", "--test", "0.2", "--gap", "0")


def run_verb(verb, *arguments) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args([str(argument) for argument in arguments]))


class Source:
    """Files of slices and masks to prepare, and the data root they become."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = folder / "data"

    def add(self, name: str, image: np.ndarray, mask: np.ndarray) -> None:
        for kind, pixels in (("images", image), ("masks", mask)):
            (self.folder / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(self.folder / kind / name)

    def prepare(self, *arguments, images="images", masks="masks"):
        places = ("--images", self.folder / images, "--masks", self.folder / masks, "--out", self.out)
        run_verb(prepare, *places, *arguments)
        return open_root(self.out)

    def refuses(self, message: str, *arguments, **places) -> str:
        """The error's text; nothing may have been written, not even a temporary folder."""
        before = sorted(self.folder.rglob("*"))
        with pytest.raises(InputError, match=message) as caught:
            self.prepare(*arguments, **places)
        assert sorted(self.folder.rglob("*")) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def stack(count: int, height: int, width: int, classes: int = 3, seed: int = 0):
    """Images (N,H,W) uint8 and masks (N,H,W) uint8 in which every class occurs on every page."""
    rng = np.random.default_rng(seed)
    masks = rng.permuted(np.resize(np.arange(classes), (count, height * width)), axis=1)
    images = rng.integers(0, 256, (count, height, width))
    return images.astype(np.uint8), masks.reshape(count, height, width).astype(np.uint8)


def fill(source: Source, count: int = 5, shape: tuple[int, int] = (12, 16), classes: int = 3, suffix: str = "png"):
    images, masks = stack(count, *shape, classes)
    for i in range(count):
        source.add(f"cell_{i}.{suffix}", images[i], masks[i])
    return images, masks


def test_8_bit_slices_stay_as_they_are_and_parts_follow_the_order(source, capsys):
    images, masks = fill(source)
    parts = source.prepare(*THIRDS, "--classes", "resin,cytoplasm,nucleus")
    assert [part.stems for part in parts.values()] == [("cell_0", "cell_1", "cell_2"), ("cell_3",), ("cell_4",)]
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
    """Pillow's own conversion turns everything above 255 white; the window comes from the training part only."""
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
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 5, (4, 512, 896), dtype=np.uint8)
    masks[:, :8, :100], masks[:, 8:16, :100] = 5, 6
    images = (masks.astype(np.uint16) * 6000 + rng.integers(0, 3000, masks.shape)).astype(np.uint16)
    tifffile.imwrite(source.folder / "em.tif", images, photometric="minisblack")
    tifffile.imwrite(source.folder / "labels.tif", masks, photometric="minisblack")
    parts = source.prepare("--val", "0.25", "--test", "0.25", images="em.tif", masks="labels.tif")
    assert parts["train"].info.classes.count == 7
    assert parts["train"].stems == ("slice_0000", "slice_0001")
    assert np.array_equal(parts["test"].mask("slice_0003"), masks[3])


def test_four_classes_at_500x500(source):
    images, masks = stack(3, 500, 500, classes=4)
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


class TestMasks:
    """All forms of masks come to the same ids."""

    def test_0_and_255_are_two_classes(self, source):
        images, masks = stack(5, 8, 8, classes=2)
        for i in range(5):
            source.add(f"cell_{i}.png", images[i], masks[i] * 255)
        parts = source.prepare(*THIRDS)
        assert parts["train"].info.classes.names == ("background", "foreground")
        assert np.array_equal(parts["train"].mask("cell_1"), masks[1])

    def test_255_beside_other_values_is_ignored(self, source, capsys):
        images, masks = stack(5, 8, 8)
        masks[2, 0, 0] = 255
        for i in range(5):
            source.add(f"cell_{i}.png", images[i], masks[i])
        assert source.prepare(*THIRDS)["train"].mask("cell_2")[0, 0] == 255
        assert "255 is ignored (1 px)" in capsys.readouterr().out

    @pytest.mark.parametrize("count", [2, 3, 7])
    def test_the_standard_palette_is_recognised(self, source, count):
        images, masks = stack(5, 8, 8, classes=count)
        for i in range(5):
            source.add(f"cell_{i}.png", images[i], color_table(palette(count))[masks[i]])
        parts = source.prepare(*THIRDS)
        assert parts["train"].info.classes.count == count
        assert np.array_equal(parts["test"].mask("cell_4"), masks[4])

    def test_black_is_background_or_ignored_only_if_told(self, source):
        images, masks = stack(5, 8, 8)
        colors = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)
        for i in range(5):
            source.add(f"cell_{i}.png", images[i], colors[masks[i]])
        said = source.refuses(r"cell_0.png has mask values #000000 \(22 px\)")
        listed = re.search(r"--colors \"(.*?)\"", said)[1]
        assert sorted(listed.split(",")) == ["class_0=#000000", "class_1=#ff0000", "class_2=#00ff00"] or len(listed) > 0
        named = "background=#000000,cytoplasm=#ff0000,nucleus=#00FF00"
        parts = source.prepare(*THIRDS, "--colors", named)
        assert parts["train"].info.classes.names == ("background", "cytoplasm", "nucleus")
        assert np.array_equal(parts["train"].mask("cell_2"), masks[2])
        source.out = source.folder / "ignoring"
        ignoring = source.prepare(*THIRDS, "--map", "#000000=ignore")["train"].mask("cell_2")
        assert np.array_equal(ignoring, np.array([255, 0, 1], np.uint8)[masks[2]])

    def test_palette_pictures_give_their_index(self, source):
        images, masks = stack(5, 8, 8)
        for i in range(5):
            source.add(f"cell_{i}.png", images[i], masks[i])
            picture = Image.fromarray(masks[i], mode="P")
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            picture.save(source.folder / "masks" / f"cell_{i}.png")
        assert np.array_equal(source.prepare(*THIRDS)["train"].mask("cell_0"), masks[0])

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_masks_of_few_bits_keep_their_ids(self, source, bits):
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
        parts = source.prepare(*THIRDS)
        assert parts["train"].info.classes.count == 2**bits
        assert np.array_equal(parts["train"].mask("cell_2"), masks[2])

    def test_stray_values_are_named_with_file_and_counts_and_can_be_mapped(self, source):
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

    def test_spread_grey_values_get_the_mapping_suggested(self, source):
        images, masks = stack(5, 8, 8)
        for i in range(5):
            source.add(f"cell_{i}.png", images[i], np.array([0, 127, 254], np.uint8)[masks[i]])
        said = source.refuses("has mask values 127")
        mapping = re.search(r"or `--map (\S+)`", said)[1]
        assert np.array_equal(source.prepare(*THIRDS, "--map", mapping)["train"].mask("cell_0"), masks[0])

    def test_masks_that_cannot_be_labels(self, source):
        images, masks = fill(source)
        Image.fromarray(masks[0] + np.float32(0.5)).save(source.folder / "masks" / "cell_0.tif")
        (source.folder / "masks" / "cell_0.png").unlink()
        source.refuses("fractions")
        noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        (source.folder / "masks" / "cell_0.tif").unlink()
        Image.fromarray(noise).save(source.folder / "masks" / "cell_0.png")
        source.refuses("smoothing")

    def test_one_class_is_none(self, source):
        images, masks = stack(5, 8, 8)
        for i in range(5):
            source.add(f"cell_{i}.png", images[i], masks[i] * 0)
        source.refuses("1 class")
        assert source.prepare(*THIRDS, "--classes", "a,b")["train"].info.classes.count == 2


def write_png(path: Path, rows: np.ndarray, bits: int, width: int) -> None:
    """Grey PNG of 1, 2 or 4 bits from packed rows; Pillow itself writes none of 2 and 4."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


class TestSplits:
    def test_the_paper_s_proportions(self):
        assert part_counts(323, VAL, TEST) == (233, 25, 65)

    @pytest.mark.parametrize("count", [3, 5, 10, 40, 323])
    def test_blocks_are_contiguous_and_apart(self, count):
        gap = default_gap(count)
        parts = split_blocks(count, VAL, TEST, gap)
        assert len(parts) == count
        runs = [part for i, part in enumerate(parts) if i == 0 or parts[i - 1] != part]
        assert runs == (["train", None, "val", None, "test"] if gap else ["train", "val", "test"])
        assert parts.count(None) == 2 * gap
        assert parts.count("train") > 0

    def test_no_gap_costs_more_than_it_should(self):
        assert [default_gap(count) for count in (5, 10, 40, 80, 323)] == [0, 1, 2, 4, 4]

    def test_random_depends_on_seed_and_stem_alone(self):
        stems = [f"slice_{i}" for i in range(323)]
        parts = split_random(stems, VAL, TEST, seed=0)
        assert [parts.count(part) for part in ("train", "val", "test")] == [233, 25, 65]
        again = dict(zip(reversed(stems), split_random(stems[::-1], VAL, TEST, seed=0), strict=True))
        assert [again[stem] for stem in stems] == parts
        assert split_random(stems, VAL, TEST, seed=1) != parts

    def test_groups_are_never_torn(self):
        groups = [f"rat{i % 8}" for i in range(30)]
        for seed in range(20):
            parts = split_groups(groups, VAL, TEST, seed, (), ())
            homes = {group: {part for g, part in zip(groups, parts, strict=True) if g == group} for group in groups}
            assert all(len(home) == 1 for home in homes.values())
            assert {part for home in homes.values() for part in home} == {"train", "val", "test"}

    def test_named_groups_go_where_they_are_sent(self):
        parts = split_groups(["a", "b", "c", "d", "a"], VAL, TEST, 0, ("b",), ("c", "d"))
        assert parts == ["train", "val", "test", "test", "train"]

    @pytest.mark.parametrize("fractions", [(0.6, 0.6), (-0.1, 0.2), (float("nan"), 0.2)])
    def test_impossible_fractions(self, fractions):
        with pytest.raises(InputError, match="--val"):
            part_counts(10, *fractions)

    def test_a_part_may_be_left_out_and_all_may_be_test(self):
        assert part_counts(10, 0, 0.3) == (7, 0, 3)
        assert part_counts(10, 0, 1) == (0, 0, 10)
        assert split_blocks(4, 0, 1, 2) == ["test"] * 4
        with pytest.raises(InputError, match="2 slices or groups"):
            part_counts(2, VAL, TEST)


class TestTiles:
    @pytest.mark.parametrize(("shape", "size"), [((2001, 2001), (896, 512)), ((512, 896), (896, 512)), ((50, 70), (20, 24))])
    def test_as_many_as_fit_centred_and_apart(self, shape, size):
        corners = tile_corners(shape, size, None)
        covered = np.zeros(shape, int)
        for x, y in corners:
            assert 0 <= x <= shape[1] - size[0] and 0 <= y <= shape[0] - size[1]
            covered[y : y + size[1], x : x + size[0]] += 1
        assert covered.max() == 1
        assert len(corners) == (shape[0] // size[1]) * (shape[1] // size[0])
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        assert abs(rows[0] - (shape[0] - 1 - rows[-1])) <= 1
        assert abs(columns[0] - (shape[1] - 1 - columns[-1])) <= 1

    def test_a_limit_takes_the_middle(self):
        assert tile_corners((30, 30), (10, 10), 1) == [(10, 10)]
        assert set(tile_corners((30, 30), (10, 10), 5)) > {(10, 10)}

    def test_tiles_of_one_slice_stay_together(self, source):
        images, masks = fill(source, shape=(25, 40))
        parts = source.prepare(*THIRDS, "--size", "16x12")
        assert parts["train"].stems[:2] == ("cell_0_x0004_y0000", "cell_0_x0020_y0000")
        homes = {part: {stem[:6] for stem in folder.stems} for part, folder in parts.items()}
        assert homes == {"train": {"cell_0", "cell_1", "cell_2"}, "val": {"cell_3"}, "test": {"cell_4"}}
        for folder in parts.values():
            for stem in folder.stems:
                i, x, y = (int(n) for n in re.match(r"cell_(\d)_x(\d+)_y(\d+)$", stem).groups())
                assert np.array_equal(folder.image(stem), images[i, y : y + 12, x : x + 16])
                assert np.array_equal(folder.mask(stem), masks[i, y : y + 12, x : x + 16])

    def test_small_slices_are_named_or_left_out(self, source):
        fill(source, shape=(12, 16))
        image, mask = stack(1, 8, 40)
        source.add("small.png", image[0], mask[0])
        source.refuses(r"small.png is 40x8, smaller than the tile of 16x12 \(1 of 6", "--size", "16x12")
        source.refuses("all 6 slices are smaller", "--size", "90x90", "--skip-small")
        parts = source.prepare(*THIRDS, "--size", "16x12", "--skip-small")
        assert not any("small" in stem for folder in parts.values() for stem in folder.stems)


class TestPairs:
    def test_unmatched_files_are_listed(self, source):
        fill(source)
        (source.folder / "masks" / "cell_3.png").rename(source.folder / "masks" / "nucleus_3.png")
        source.refuses(r"4 pairs.*1 images without a mask \(cell_3\) and 1 masks without an image \(nucleus_3\)")
        stems = [s for folder in source.prepare("--only-pairs", *THIRDS).values() for s in folder.stems]
        assert stems == ["cell_0", "cell_1", "cell_2", "cell_4"]

    def test_no_pair_at_all(self, source):
        fill(source)
        for file in (source.folder / "masks").iterdir():
            file.rename(file.with_name("mask_" + file.name))
        source.refuses(r"0 pairs .*cell_0, cell_1, cell_2, \.\.\.", "--only-pairs")

    def test_sizes_must_agree(self, source):
        fill(source)
        Image.fromarray(np.zeros((16, 12), np.uint8)).save(source.folder / "masks" / "cell_2.png")
        source.refuses("cell_2.png is 16x12 but its mask .*cell_2.png is 12x16")

    def test_stacks_must_be_equally_long(self, source):
        images, masks = stack(5, 8, 8)
        tifffile.imwrite(source.folder / "em.tif", images, photometric="minisblack")
        tifffile.imwrite(source.folder / "labels.tif", masks[:4], photometric="minisblack")
        source.refuses(r"5 page\(s\) but .* has 4", images="em.tif", masks="labels.tif")

    def test_stacks_in_folders_are_grouped_by_file(self, source):
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

    def test_names_cannot_leave_their_folder(self, source):
        images, masks = stack(5, 8, 8)
        for i, name in enumerate(("a b", "c\nd", "..e", "f;g", "x\\y")):
            source.add(f"{name}.png", images[i], masks[i])
        stems = {stem for folder in source.prepare(*THIRDS).values() for stem in folder.stems}
        assert stems == {"a_b", "c_d", "e", "f_g", "x_y"}

    def test_names_that_become_one_are_refused(self, source):
        fill(source)
        images, masks = stack(2, 8, 8)
        source.add("a b.png", images[0], masks[0])
        source.add("a_b.png", images[1], masks[1])
        source.refuses("would both be named 'a_b'")


class TestBadInput:
    def test_places(self, source):
        fill(source)
        source.refuses("does not exist", images="nowhere")
        (source.folder / "empty").mkdir()
        source.refuses("found no file", images="empty")
        (source.folder / "empty" / "a.jpg").write_bytes(b"")
        source.refuses(r"found 1 \.jpg", images="empty")

    def test_damaged_files(self, source):
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

    def test_bombs_and_montages(self, source):
        images, masks = fill(source)
        source.refuses("is 16x12 = 192 pixels, more than the limit of 191", "--max-pixels", 191)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 90  # Pillow's own limit is not asked
        try:
            source.refuses("too large for one slice: pass --size")
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def test_depths_must_agree(self, source):
        images, masks = fill(source)
        Image.fromarray(images[1].astype(np.uint16) * 200).save(source.folder / "images" / "cell_1.png")
        source.refuses("convert all slices to one depth")

    def test_pixels_must_be_numbers(self, source):
        images, masks = fill(source, suffix="tif")
        Image.fromarray(np.full((12, 16), np.nan, np.float32)).save(source.folder / "images" / "cell_1.tif")
        source.refuses(r"cell_1.tif has 192 pixels that are no number")

    def test_16_bit_colour_is_not_cut_to_8(self, source):
        images, masks = fill(source, suffix="tif")
        tifffile.imwrite(source.folder / "images" / "cell_1.tif", np.zeros((12, 16, 3), np.uint16), photometric="rgb")
        source.refuses("16 bits per channel")

    def test_flat_images_have_no_percentiles(self, source):
        _, masks = stack(5, 8, 8)
        for i in range(5):
            source.add(f"cell_{i}.png", np.full((8, 8), 3000, np.uint16), masks[i])
        source.refuses("both 3000")

    def test_imagej_stacks_beyond_4_gb(self, source):
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
    def test_options(self, source, arguments, said):
        fill(source)
        source.refuses(said, *arguments)

    def test_a_crash_leaves_nothing_half_made(self, source, monkeypatch):
        fill(source)
        from natural2nanoscale.data import conversion

        def full_disk(*_arguments):
            raise OSError("no space left")

        monkeypatch.setattr(conversion, "contact_sheet", full_disk)
        before = sorted(source.folder.rglob("*"))
        with pytest.raises(OSError, match="no space"):
            source.prepare(*THIRDS)
        assert sorted(source.folder.rglob("*")) == before


class TestCheck:
    def test_leaks_are_told(self, source, data_folder, capsys):
        copy = (data_folder / "train" / "images" / "slice_0001.png").read_bytes()
        (data_folder / "test" / "images" / "slice_0000.png").write_bytes(copy)
        (data_folder / "test" / "images" / "slice_0001.png").rename(data_folder / "test" / "images" / "own.png")
        (data_folder / "test" / "masks" / "slice_0001.png").rename(data_folder / "test" / "masks" / "own.png")
        run_verb(check, data_folder)
        said = capsys.readouterr().out
        assert "train and test share 1 stems such as 'slice_0000'" in said
        assert "1 identical images in train and test, such as 'slice_0001' and 'slice_0000'" in said
        assert (data_folder / "contact.png").is_file()

    def test_numbers_are_those_of_the_pixels(self, data_folder, capsys):
        folder = open_root(data_folder)["train"]
        images, masks = folder.load()
        run_verb(check, data_folder / "train", "--contact", data_folder / "sheet.png")
        said = capsys.readouterr().out
        share = 100 * (np.stack(masks) == 2).mean()
        assert f"nucleus {share:.2f} %" in said
        assert f"grey values: {np.stack(images).min()} to {np.stack(images).max()}" in said
        assert "train: 4 slices, 64x32 (4)" in said
        assert not (data_folder / "train" / "contact.png").exists()

    def test_synthetic_slices_may_share_masks_but_not_images_with_training(self, data_folder):
        from natural2nanoscale.data.folders import write_pairs

        train = open_root(data_folder)["train"]
        items = [(stem, 255 - train.image(stem), train.mask(stem)) for stem in train.stems]
        write_pairs(data_folder / "synthetic", train.info, items)
        told = check.report(data_folder)
        assert not [line for line in told if "train and synthetic" in line]

    def test_absent_classes_and_flat_images_are_told(self, source):
        images, masks = stack(5, 8, 8)
        for i in range(5):
            source.add(f"cell_{i}.png", images[i] * 0 + 200, masks[i] % 2)
        source.prepare(*THIRDS, "--classes", "a,b,rare")
        told = check.report(source.out)
        assert "train has no pixel of rare" in told
        assert any("only 1 grey values" in line for line in told)

    def test_what_is_no_data_root(self, tmp_path, data_folder):
        with pytest.raises(InputError, match="no folder"):
            check.report(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="neither train"):
            check.report(tmp_path / "empty")
        file = data_folder / "val" / "dataset.json"
        file.write_text(file.read_text().replace("nucleus", "vessel"))
        with pytest.raises(InputError, match="differ"):
            check.report(data_folder)


def test_contact_sheet_shows_pictures_where_they_belong(tmp_path):
    gray = np.full((10, 20), 77, np.uint8)
    color = np.zeros((10, 20, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    sheet([[gray, color], [color, gray]], tmp_path / "sheet.png", titles=["real", "mask"], labels=["one", "two"], width=10)
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (picture == (255, 0, 0)).all(-1).sum() == 2 * 5 * 10
    assert (picture == 77).all(-1).sum() >= 2 * 5 * 10
    left = (picture[:, : picture.shape[1] // 2] == (255, 0, 0)).all(-1)
    assert left.any() and not left[: picture.shape[0] // 2].any()  # lower left


@pytest.mark.skipif(not AXON.is_dir(), reason="axon_sem lies beside the repository only where it was put")
def test_real_em_in_tiles_with_whole_animals_held_out(tmp_path, capsys):
    out = tmp_path / "data"
    run_verb(prepare, "--images", AXON / "images", "--masks", AXON / "masks", "--out", out, "--size", "896x512",
             "--skip-small", "--tiles", 2, "--split", "group", "--group", r"sub-(rat\d+)",
             "--test-groups", "rat7,rat8", "--classes", "background,myelin,axon")  # fmt: skip
    said = capsys.readouterr().out
    assert "left out, smaller than 896x512" in said and "rat4" in said
    animals = {part: {re.search(r"rat\d", stem)[0] for stem in f.stems} for part, f in open_root(out).items()}
    assert animals["test"] == {"rat7", "rat8"}
    assert not animals["train"] & animals["val"] and len(animals["train"]) == 3
    assert len(open_root(out)["test"].stems) == 4
    assert json.loads((out / "test" / "dataset.json").read_text())["split"]["groups"]["test"] == ["rat7", "rat8"]
