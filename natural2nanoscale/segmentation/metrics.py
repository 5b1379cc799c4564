"""Segmentation scores: counts are added up in one confusion matrix and divided once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from natural2nanoscale.data.classes import IGNORE_ID


def confusion(truth: torch.Tensor, prediction: torch.Tensor, classes: int) -> torch.Tensor:
    """Pixels of true class i predicted as class j: two integer tensors of one shape -> (K,K) int64 counts.

    Pixels whose truth is 255 do not count. The result lies on the tensors' device; matrices of
    batches add up to that of the whole set.
    """
    cell = truth.long() * classes + prediction.long()
    cell = torch.where(truth == IGNORE_ID, classes * classes, cell)  # one more cell, cut off again
    return torch.bincount(cell.flatten(), minlength=classes * classes + 1)[:-1].view(classes, classes)


def iou(matrix: torch.Tensor) -> torch.Tensor:
    """Intersection over union per class, (...,K,K) -> (...,K) float64; NaN for a class that occurs in neither."""
    matrix = matrix.double()
    hits = matrix.diagonal(dim1=-2, dim2=-1)
    return hits / (matrix.sum(-1) + matrix.sum(-2) - hits)  # 0 / 0 is NaN


def miou(matrix: torch.Tensor) -> torch.Tensor:
    """Mean IoU over the classes that occur, (...,K,K) -> (...) float64; NaN where no class does."""
    return iou(matrix).nanmean(-1)


def dice(matrix: torch.Tensor) -> torch.Tensor:
    """Dice coefficient per class, (K,K) -> (K,) float64; NaN for a class that occurs in neither."""
    matrix = matrix.double()
    return 2 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1))


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (ddof 1); the latter is None for a single value, both where there is none."""
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def percent(mean: float | None, std: float | None = None) -> str:
    """A share as per cent, with its standard deviation where there is one."""
    if mean is None:
        return "absent"
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def jsonable(scores: torch.Tensor) -> list[float | None]:
    """Scores as JSON holds them: an absent class is null."""
    return [None if score != score else score for score in scores.tolist()]
