"""t intervals against scipy."""

import numpy as np
import pytest
from scipy import stats

from natural2nanoscale.study.statistics import paired_difference, t_distribution, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 60])
def test_student_t_equals_scipy(freedom):
    assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-7)
    for t in (0.0, 0.3, 2.0, 11.0):
        assert t_distribution(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)


def test_paired_interval_equals_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.02, 5), rng.normal(0.75, 0.02, 5)
    ours = paired_difference(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert ours.mean - ours.half_width == pytest.approx(low)
    assert ours.mean + ours.half_width == pytest.approx(high)
    assert ours.reaches_zero == (low <= 0)


def test_one_pair_has_no_interval():
    ours = paired_difference([0.8], [0.7])
    assert ours.half_width is None and ours.reaches_zero
