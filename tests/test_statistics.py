"""t intervals against scipy, the block bootstrap against cases whose distribution is known."""

import numpy as np
import pytest
import torch
from scipy import stats

from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.segmentation.metrics import miou
from natural2nanoscale.study.comparisons import compare, over_test_slices, scope, shared_slices
from natural2nanoscale.study.conditions import ALL
from natural2nanoscale.study.statistics import block_bootstrap, paired_difference, ratio_interval, t_quantile
from natural2nanoscale.study.training_sets import draw_train


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 60])
def test_student_t_equals_scipy(freedom):
    for probability in (0.6, 0.9, 0.975, 0.999):
        assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-7)


def test_paired_interval_equals_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.02, 5), rng.normal(0.75, 0.02, 5)
    ours = paired_difference(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert ours.interval == pytest.approx((low, high)) and ours.over_redraws == ours.interval
    assert paired_difference(a, b, unit="seed").over_redraws is None  # U-Nets on one draw say nothing of slices


def test_one_pair_has_no_interval():
    ours = paired_difference([0.8], [0.7])
    assert ours.half_width is None and ours.interval is None


def hits_of(found: list[int], size: int = 10) -> np.ndarray:
    """(1,N,2,2): every slice is `size` pixels of class 0, of which found[i] were recognised. mIoU is linear in them:
    IoU of class 0 is their share and that of class 1, never right, is 0."""
    return np.array([[[[n, size - n], [0, 0]] for n in found]], dtype=np.int64)


def test_bootstrap_of_two_blocks_reaches_from_one_to_the_other():
    # both blocks are drawn twice, or one of each: differences 1/2 * (0.2, 0.5, 0.8), with chances 1/4, 1/2, 1/4
    low, high = block_bootstrap(hits_of([2, 2, 8, 8]), hits_of([0, 0, 0, 0]), block=2, volumes=[0])
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.4))


def test_bootstrap_equals_the_binomial_quantiles():
    right = hits_of([10, 10, 0, 0] * 10)  # 20 blocks of two neighbours, every other one wholly right
    low, high = block_bootstrap(right, hits_of([0, 1] * 20), block=2, volumes=[0], draws=20000)
    tail = stats.norm.cdf(-np.sqrt(20 / 19) * stats.t.ppf(0.975, 19))  # 1.6 %: what so few blocks take for 2.5 %
    quantiles = stats.binom.ppf([tail, 1 - tail], 20, 0.5) / 20
    assert (low, high) == (pytest.approx(quantiles[0] / 2 - 0.025), pytest.approx(quantiles[1] / 2 - 0.025))
    # taken one by one, the slices would look twice as many and the interval too short by sqrt(2)
    alone = block_bootstrap(right, hits_of([0, 1] * 20), block=1, volumes=[0], draws=20000)
    assert 1.2 < (high - low) / (alone[1] - alone[0]) < 1.6


def test_bootstrap_of_equal_blocks_is_a_point_and_pools_before_it_divides():
    rng = np.random.default_rng(0)
    one, other = (np.tile(rng.integers(0, 50, (1, 1, 3, 3)), (1, 6, 1, 1)) for _ in range(2))
    low, high = block_bootstrap(one, other, block=3, volumes=[0])
    pooled = [miou(torch.from_numpy(m[0].sum(0))).item() for m in (one, other)]
    assert low == pytest.approx(pooled[0] - pooled[1]) == pytest.approx(high)


def test_repetitions_on_the_same_slices_share_their_draws():
    two, none = np.tile(hits_of([2, 8]), (2, 1, 1, 1)), np.tile(hits_of([0, 0]), (2, 1, 1, 1))
    assert block_bootstrap(two, none, 1, [5, 5]) == (pytest.approx(0.1), pytest.approx(0.4))
    # independent volumes average out: both at an extreme in 1 of 16 draws, still within the outer 2.5 %
    low, high = block_bootstrap(two, none, 1, [0, 1], draws=20000)
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.4))
    many = np.tile(hits_of([2, 8]), (12, 1, 1, 1))
    low, high = block_bootstrap(many, np.zeros_like(many) + np.tile(hits_of([0, 0]), (12, 1, 1, 1)), 1, range(12))
    assert 0.15 < low < 0.25 < high < 0.35


@pytest.mark.parametrize(("volumes", "blocks"), [(1, 10), (1, 20), (3, 4)])
def test_the_interval_over_test_slices_covers_what_it_says(volumes, blocks):
    """Test slices in blocks that share how much is gained; the truth is the mean over endlessly many blocks."""
    rng, runs, covered = np.random.default_rng(0), 400, 0
    for run in range(runs):
        gain = rng.normal(0, 0.06, (volumes, blocks)).repeat(4, axis=1) + rng.normal(0.02, 0.03, (volumes, 4 * blocks))
        base = rng.uniform(0.55, 0.75, (volumes, blocks)).repeat(4, axis=1)
        with_it, without = (
            np.concatenate([hits_of(np.round(1000 * found).astype(int), 1000) for found in shares])
            for shares in (base + gain, base)
        )
        low, high = block_bootstrap(with_it, without, 4, range(volumes), draws=400, seed=run)
        covered += low <= 0.01 <= high  # mIoU is half of the share that is found
    assert 0.92 <= covered / runs <= 0.98


@pytest.mark.parametrize(
    ("slices", "redraws", "told"), [(36, 1, False), (37, 1, True), (13, 2, False), (13, 3, True), (12, 9, False)]
)
def test_fewer_than_ten_blocks_of_test_slices_give_no_interval(slices, redraws, told):
    """Of blocks of four; where every redraw has a test set of its own, their blocks count together."""
    images = np.tile(np.eye(2), (slices, 1, 1)).tolist()
    rows = [{"redraw": redraw, "seed": 0, "miou": 0.5, "images": images} for redraw in range(redraws)]
    assert (over_test_slices(rows, rows, block=4) is not None) == told


def test_the_interval_over_redraws_covers_what_it_says():
    """Ten of a pool's twenty slices, drawn anew five times; the truth is the mean over all slices there could be."""
    rng, runs = np.random.default_rng(0), 1000
    covered = {0.0: 0, 0.5: 0}
    for _ in range(runs):
        pool = rng.normal(0, 1, 20)
        gains = [pool[rng.permutation(20)[:10]].mean() + rng.normal(0, 0.05) for _ in range(5)]
        for overlap in covered:
            ours = paired_difference(gains, [0] * 5, overlap)
            covered[overlap] += abs(ours.mean) <= ours.half_width
    assert covered[0.0] / runs < 0.75  # as if the redraws had nothing in common
    assert 0.93 <= covered[0.5] / runs <= 0.98


def test_the_interval_of_a_share_covers_what_it_says_where_redraws_have_slices_in_common():
    """The same with six redraws, as a share of a head-room that hardly varies: 2 of 4."""
    rng, runs, covered = np.random.default_rng(0), 300, {0.0: 0, 0.5: 0}
    for _ in range(runs):
        pool = rng.normal(2, 1, 20)
        gains = [pool[rng.permutation(20)[:10]].mean() + rng.normal(0, 0.05) for _ in range(6)]
        rooms = 4 + rng.normal(0, 0.05, 6)
        for overlap in covered:
            low, high = ratio_interval(gains, rooms, overlap, draws=1000)
            covered[overlap] += low <= 0.5 <= high
    assert covered[0.0] / runs < 0.75
    assert 0.93 <= covered[0.5] / runs <= 0.99


def redraws_of(count: int, slices: int, pool: int | None, split: str = "given") -> list[dict]:
    facts = {"slices": slices, "pool": pool, "split": split, "seed": 0, "test": "same", "miou": 0.5}
    return [facts | {"redraw": redraw} for redraw in range(count)]


def test_redraws_that_share_slices_are_told_and_widened():
    with_it = [row | {"miou": 0.5 + 0.01 * row["redraw"]} for row in redraws_of(3, 4, 8)]
    widths = [
        compare([row | {"pool": pool} for row in with_it], redraws_of(3, 4, pool)).half_width for pool in (None, 12, 8)
    ]
    assert widths[0] == widths[1] and widths[2] / widths[0] == pytest.approx(2)  # 1/3 becomes 1/3 + 0.5 / 0.5
    one_sided = compare(redraws_of(3, 8, 8), [row | {"slices": 4} for row in with_it]).half_width
    assert one_sided / widths[0] == pytest.approx(2)  # the control takes all, what it is compared with is drawn
    assert shared_slices(redraws_of(3, 4, 11)) == 4 / 11 and shared_slices(redraws_of(3, 4, 4)) == 0
    assert shared_slices(redraws_of(3, 4, 40, "random")) == 0.1  # dealt anew each time: never disjoint
    assert scope(redraws_of(3, 4, None)) == "" and scope(redraws_of(1, 4, None)).endswith("this test set only.")
    assert scope(redraws_of(3, 4, 12)) == "The t intervals are for this test set only."
    assert "50 % of their annotated slices" in scope(redraws_of(3, 4, 8))
    assert "for these slices only" in scope(redraws_of(3, 4, 4))
    control = [row | {"condition": ALL} for row in redraws_of(3, 12, 12)]
    assert scope(redraws_of(3, 4, 12) + control) == "The t intervals are for this test set only."


def test_redraws_have_no_slice_in_common_while_the_pool_has_enough(data_folder, tmp_path):
    pool = open_pairs(data_folder / "train")  # of four
    drawn = [set(draw_train(tmp_path / str(redraw), pool, 2, 0, redraw).stems) for redraw in range(4)]
    assert drawn[0] | drawn[1] == drawn[2] | drawn[3] == set(pool.stems)
    assert set(draw_train(tmp_path / "all", pool, 4, 0, 3).stems) == set(pool.stems)
    three = [tuple(draw_train(tmp_path / f"three-{redraw}", pool, 3, 0, redraw).stems) for redraw in range(4)]
    assert all(len(stems) == 3 for stems in three) and len(set(three)) > 1
