"""Slices in two parts that are more alike than neighbours of a stack are: saved twice, or shifted by a pixel."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np

from natural2nanoscale.data.folders import PairFolder

SHIFT = 2  # pixels each way
SAMPLES = 96  # pixels each way at which two slices are compared, spread over the slice
THUMBNAIL = 32  # pixels each way of the pictures that say which slices are worth comparing
CANDIDATES = 4  # per slice
ALIKE = 4.0  # times more alike than neighbours are, at least
TOO_FEW = 5  # slices of one size that do not show how alike neighbours are


def near_duplicates(folders: dict[str, PairFolder]) -> list[tuple[str, str]]:
    """Pairs such as ("train/a", "test/b") from two different parts, the most alike first.

    The distance of two slices is 1 - their normalised correlation, the least over shifts of up to SHIFT pixels. Every
    slice's distance to its nearest other one, mostly a neighbour, tells what is usual in this stack: a pair stands out
    when it is ALIKE times nearer than the median, and by more than those distances scatter (on a logarithmic scale).
    """
    sizes = defaultdict(list)
    for part, folder in folders.items():
        for stem, shape in zip(folder.stems, folder.shapes, strict=True):
            sizes[shape].append((part, stem))
    found = []
    for shape, slices in sizes.items():
        if len(slices) >= TOO_FEW and min(shape) > 4 * SHIFT:
            found += _stand_out(slices, folders)
    return [pair for _, *pair in sorted(found)]


def _stand_out(slices: list[tuple[str, str]], folders: dict[str, PairFolder]) -> list[tuple[float, str, str]]:
    """(distance, name, name) of the pairs that stand out among slices of one size; equal ones are none."""
    views, small = zip(*(_views(folders[part].image(stem)) for part, stem in slices), strict=True)
    small = np.stack(small)  # (N,P)
    alike = small @ small.T
    np.fill_diagonal(alike, -np.inf)
    nearest = np.argsort(-alike, axis=1)[:, :CANDIDATES]
    pairs = {tuple(sorted((i, int(j)))) for i, row in enumerate(nearest) for j in row}
    distance = {(i, j): _distance(views[i], views[j]) for i, j in pairs}
    least = np.ones(len(slices))
    for pair, value in distance.items():
        for i in pair:
            least[i] = min(least[i], value)
    logs = np.log(np.maximum(least, 1e-6))
    scatter = 1.4826 * np.median(np.abs(logs - np.median(logs)))  # that of a normal distribution
    limit = np.median(logs) - max(np.log(ALIKE), 5 * scatter)
    return [
        (value, "/".join(slices[i]), "/".join(slices[j]))
        for (i, j), value in distance.items()
        if slices[i][0] != slices[j][0] and np.log(max(value, 1e-6)) < limit
        if not np.array_equal(*(folders[part].image(stem) for part, stem in (slices[i], slices[j])))
    ]


def _views(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a slice (H,W): pixels on a grid under every shift (S,P) uint8, and a thumbnail (T,) of mean 0 and length 1."""
    height, width = image.shape
    down, right = (max(1, (length - 2 * SHIFT) // SAMPLES) for length in image.shape)
    shifts = sorted(product(range(-SHIFT, SHIFT + 1), repeat=2), key=lambda shift: shift != (0, 0))  # unshifted first
    margins = [(SHIFT + y, SHIFT + x) for y, x in shifts]
    views = [image[y : height - 2 * SHIFT + y : down, x : width - 2 * SHIFT + x : right].ravel() for y, x in margins]
    rows, columns = (np.linspace(0, length, min(length, THUMBNAIL) + 1).astype(int)[:-1] for length in image.shape)
    small = np.add.reduceat(np.add.reduceat(image.astype(np.float32), rows, axis=0), columns, axis=1)
    return np.stack(views), _standard(small.reshape(1, -1))[0]


def _standard(rows: np.ndarray) -> np.ndarray:
    """Rows (N,P) of mean 0 and length 1, float32; flat ones are 0."""
    rows = rows.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """1 - the largest correlation of the unshifted first slice with the second one under every shift, in 0..2."""
    return float(1 - (_standard(second) @ _standard(first[:1])[0]).max())
