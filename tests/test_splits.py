"""Which slices go to which part, and how slices are cut into tiles."""

import re

import numpy as np
import pytest
from em_source import THIRDS, Source, fill, stack

from natural2nanoscale.data.prepare.convert import tile_corners
from natural2nanoscale.data.prepare.settings import TEST, VAL
from natural2nanoscale.data.prepare.splits import (
    default_gap,
    part_counts,
    split_blocks,
    split_groups,
    split_random,
)  # fmt: skip
from natural2nanoscale.errors import InputError


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def test_the_paper_s_proportions():
    assert part_counts(323, VAL, TEST) == (233, 25, 65)


@pytest.mark.parametrize("count", [3, 5, 10, 40, 323])
def test_blocks_are_contiguous_and_apart(count):
    gap = default_gap(count)
    parts = split_blocks(count, VAL, TEST, gap)
    assert len(parts) == count
    runs = [part for i, part in enumerate(parts) if i == 0 or parts[i - 1] != part]
    assert runs == (["train", None, "val", None, "test"] if gap else ["train", "val", "test"])
    assert parts.count(None) == 2 * gap
    assert parts.count("train") > 0


def test_no_gap_costs_more_than_it_should():
    assert [default_gap(count) for count in (5, 10, 40, 80, 323)] == [0, 1, 2, 4, 4]


def test_random_depends_on_seed_and_stem_alone():
    stems = [f"slice_{i}" for i in range(323)]
    parts = split_random(stems, VAL, TEST, seed=0)
    assert [parts.count(part) for part in ("train", "val", "test")] == [233, 25, 65]
    again = dict(zip(reversed(stems), split_random(stems[::-1], VAL, TEST, seed=0), strict=True))
    assert [again[stem] for stem in stems] == parts
    assert split_random(stems, VAL, TEST, seed=1) != parts


def test_groups_are_never_torn():
    groups = [f"rat{i % 8}" for i in range(30)]
    for seed in range(20):
        parts = split_groups(groups, VAL, TEST, seed, (), ())
        homes = {group: {part for g, part in zip(groups, parts, strict=True) if g == group} for group in groups}
        assert all(len(home) == 1 for home in homes.values())
        assert {part for home in homes.values() for part in home} == {"train", "val", "test"}


def test_named_groups_go_where_they_are_sent():
    parts = split_groups(["a", "b", "c", "d", "a"], VAL, TEST, 0, ("b",), ("c", "d"))
    assert parts == ["train", "val", "test", "test", "train"]


@pytest.mark.parametrize("fractions", [(0.6, 0.6), (-0.1, 0.2), (float("nan"), 0.2)])
def test_impossible_fractions(fractions):
    with pytest.raises(InputError, match="--val"):
        part_counts(10, *fractions)


def test_a_part_may_be_left_out_and_all_may_be_test():
    assert part_counts(10, 0, 0.3) == (7, 0, 3)
    assert part_counts(10, 0, 1) == (0, 0, 10)
    assert split_blocks(4, 0, 1, 2) == ["test"] * 4
    with pytest.raises(InputError, match="2 slices or groups"):
        part_counts(2, VAL, TEST)


@pytest.mark.parametrize(
    ("shape", "size"), [((2001, 2001), (896, 512)), ((512, 896), (896, 512)), ((50, 70), (20, 24))]
)
def test_as_many_as_fit_centred_and_apart(shape, size):
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


def test_a_limit_takes_the_middle():
    assert tile_corners((30, 30), (10, 10), 1) == [(10, 10)]
    assert set(tile_corners((30, 30), (10, 10), 5)) > {(10, 10)}


def test_tiles_of_one_slice_stay_together(source):
    images, masks = fill(source, shape=(25, 40))
    parts = source.prepare(*THIRDS, "--size", "16x12")
    assert parts["train"].stems[:2] == ("cell_0_y0000_x0004", "cell_0_y0000_x0020")
    homes = {part: {stem[:6] for stem in folder.stems} for part, folder in parts.items()}
    assert homes == {"train": {"cell_0", "cell_1", "cell_2"}, "val": {"cell_3"}, "test": {"cell_4"}}
    for folder in parts.values():
        for stem in folder.stems:
            i, y, x = (int(n) for n in re.match(r"cell_(\d)_y(\d+)_x(\d+)$", stem).groups())
            assert np.array_equal(folder.image(stem), images[i, y : y + 12, x : x + 16])
            assert np.array_equal(folder.mask(stem), masks[i, y : y + 12, x : x + 16])


def test_small_slices_are_named_or_left_out(source):
    fill(source, shape=(12, 16))
    image, mask = stack(1, 8, 40)
    source.add("small.png", image[0], mask[0])
    source.refuses(r"small.png is 40x8, smaller than the tile of 16x12 \(1 of 6", "--size", "16x12")
    source.refuses("all 6 slices are smaller", "--size", "90x90", "--skip-small")
    parts = source.prepare(*THIRDS, "--size", "16x12", "--skip-small")
    assert not any("small" in stem for folder in parts.values() for stem in folder.stems)
