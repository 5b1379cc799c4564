"""From 16-bit and float grey values to 8 bits, by stated percentiles of the training part."""

from __future__ import annotations

import numpy as np

from natural2nanoscale.errors import InputError


class Histogram:
    """Grey values of many slices in little memory: whole numbers exactly, fractions by an even sample."""

    OFFSET = 2**17
    SAMPLE = 2**18  # pixels per slice

    def __init__(self):
        self.counts = np.zeros(2 * self.OFFSET, np.int64)
        self.samples: list[np.ndarray] = []

    def add(self, pixels: np.ndarray) -> None:
        whole = np.issubdtype(pixels.dtype, np.integer)
        if whole and -self.OFFSET <= int(pixels.min()) and int(pixels.max()) < self.OFFSET:
            for start in range(0, len(pixels), 256):  # rows: the 64-bit copy of a montage would not fit
                values = pixels[start : start + 256].ravel().astype(np.int64)
                self.counts += np.bincount(values + self.OFFSET, minlength=len(self.counts))
        else:
            self.samples.append(pixels.ravel()[:: max(1, pixels.size // self.SAMPLE)].astype(np.float64))

    def percentiles(self, percent: tuple[float, float]) -> tuple[float, float]:
        """The grey values below or at which these percentages of the pixels lie."""
        values = np.flatnonzero(self.counts)
        weights = [self.counts[values], *(np.ones(len(sample), np.int64) for sample in self.samples)]
        values, weights = np.concatenate([values - self.OFFSET, *self.samples]), np.concatenate(weights)
        if not len(values):
            raise InputError("the training part is empty, so it has no percentiles: pass --window LOW,HIGH")
        order = np.argsort(values, kind="stable")
        share = np.cumsum(weights[order]) / weights.sum()
        low, high = (float(values[order][min(np.searchsorted(share, p / 100), len(share) - 1)]) for p in percent)
        if low >= high:
            raise InputError(
                f"percentiles {percent[0]:g} and {percent[1]:g} of the training part are both {low:g}, "
                "expected slices with contrast: pass wider --percentiles, or --window LOW,HIGH"
            )
        return low, high


def to_bytes(pixels: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Grey values (H,W) -> uint8: linear from the window to 0..255, what lies beyond becomes 0 or 255."""
    if window is None:
        return pixels
    result = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), 256):  # rows: the 64-bit copy of a montage would not fit
        scaled = (pixels[start : start + 256].astype(np.float64) - window[0]) * (255.0 / (window[1] - window[0]))
        result[start : start + 256] = np.clip(np.round(scaled), 0, 255)
    return result


def information_bar(pixels: np.ndarray) -> int:
    """Rows at the bottom of a slice (H,W) that look like an information bar, flat but for its letters; or 0."""
    height = pixels.shape[0]
    flat = np.zeros(height, bool)
    for row in range(height // 2, height):
        values, counts = np.unique(pixels[row], return_counts=True)
        flat[row] = counts.max() > 0.4 * pixels.shape[1] or (counts.max() > 0.2 * pixels.shape[1] and len(values) < 64)
    rows = height - 1 - (np.flatnonzero(~flat)[-1] if not flat.all() else -1)
    return int(rows) if 8 <= rows <= height // 4 else 0
