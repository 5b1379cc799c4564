"""Segmentation scores against scikit-learn, the ignore label, and classes that do not occur."""

import math
import statistics

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.segmentation.metrics import confusion, dice, iou, jsonable, mean_std, miou, percent


@pytest.mark.parametrize("classes", [2, 3, 7, 64])
def test_scores_equal_scikit_learns_on_random_data(classes):
    random = np.random.default_rng(classes)
    truth, prediction = random.integers(0, classes, (2, 4, 60, 50))
    truth[random.random(truth.shape) < 0.1] = IGNORE_ID
    matrix = confusion(torch.from_numpy(truth), torch.from_numpy(prediction), classes)
    kept = truth != IGNORE_ID
    a, b, labels = truth[kept], prediction[kept], range(classes)
    assert np.array_equal(matrix.numpy(), confusion_matrix(a, b, labels=labels))
    np.testing.assert_allclose(iou(matrix), jaccard_score(a, b, labels=labels, average=None), atol=1e-12)
    np.testing.assert_allclose(dice(matrix), f1_score(a, b, labels=labels, average=None), atol=1e-12)
    assert miou(matrix).item() == pytest.approx(jaccard_score(a, b, labels=labels, average="macro"))


def test_matrices_of_batches_add_up_to_that_of_the_set():
    truth = torch.randint(0, 3, (10, 8, 8), dtype=torch.uint8)
    prediction = torch.randint(0, 3, (10, 8, 8))
    parts = [confusion(t, p, 3) for t, p in zip(truth.split(3), prediction.split(3), strict=True)]
    assert torch.equal(sum(parts), confusion(truth, prediction, 3))


def test_absent_class_is_null_and_left_out_of_the_mean_but_a_false_alarm_is_zero():
    truth = torch.tensor([0, 0, 1, 1, IGNORE_ID])
    scores = iou(confusion(truth, torch.tensor([0, 0, 1, 0, 3]), 4))
    assert jsonable(scores) == [pytest.approx(2 / 3), 0.5, None, None]
    assert scores.nanmean().item() == pytest.approx(7 / 12)
    scores = iou(confusion(truth, torch.tensor([0, 0, 1, 3, 3]), 4))
    assert jsonable(scores) == [1.0, 0.5, None, 0.0]


def test_all_ignored_gives_an_empty_matrix():
    matrix = confusion(torch.full((4,), IGNORE_ID), torch.zeros(4, dtype=torch.long), 3)
    assert matrix.shape == (3, 3) and matrix.sum() == 0
    assert math.isnan(miou(matrix))


def test_mean_iou_of_many_matrices_leaves_out_the_absent_class_of_each():
    matrices = torch.tensor([[[5, 0, 0], [1, 4, 0], [0, 0, 0]], [[0] * 3] * 3])
    assert miou(matrices)[0] == pytest.approx((5 / 6 + 4 / 5) / 2) and miou(matrices)[1].isnan()
    assert torch.equal(iou(matrices)[0].nan_to_num(-1), iou(matrices[0]).nan_to_num(-1))


def test_mean_and_deviation_over_the_values_there_are():
    assert mean_std([0.5]) == (0.5, None) and mean_std([]) == (None, None)
    assert mean_std([0.1, 0.4, 0.7]) == (pytest.approx(0.4), pytest.approx(statistics.stdev([0.1, 0.4, 0.7])))
    assert [percent(*mean_std(values)) for values in ([], [0.5], [0.25, 0.75])] == ["absent", "50.0", "50.0 ± 35.4"]
