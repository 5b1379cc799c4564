"""How synthetic slices look beside real ones: grey values and texture of every class, and whether they are copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from natural2nanoscale.data.folders import PairFolder, evenly_spaced

WINDOW = 16  # pixels, square, in which texture is looked at; small enough for most nuclei
MOST = 32  # slices of a folder that are looked at, evenly spaced


@dataclass(frozen=True)
class Quality:
    """Distances of synthetic slices to real ones, each beside that between two halves of the real ones.

    grey, grey_real: per class, Wasserstein-1 distance of the grey values' histograms, in grey levels; None for a class
    that one side lacks. texture, texture_real: per class, mean absolute difference of the log10 radial power spectra
    within the class. nearest, nearest_real: mean over slices of the smallest root mean square difference to a real
    slice of that size, in grey levels: copies of real slices are at 0.
    """

    classes: tuple[str, ...]
    grey: list[float | None]
    grey_real: list[float | None]
    texture: list[float | None]
    texture_real: list[float | None]
    nearest: float | None
    nearest_real: float | None

    def lines(self) -> list[str]:
        """What a person reads; in brackets what two sets of real slices have."""
        rows = zip(self.classes, self.grey, self.grey_real, self.texture, self.texture_real, strict=True)
        told = [
            f"{name}: grey values off by {_told(grey, 1)} levels ({_told(grey_real, 1)}), texture by {_told(tex, 2)} "
            f"({_told(tex_real, 2)})"
            for name, grey, grey_real, tex, tex_real in rows
        ]
        return [*told, f"nearest real slice at {_told(self.nearest, 1)} levels ({_told(self.nearest_real, 1)})"]


def _told(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def quality(real: PairFolder, synthetic: PairFolder) -> Quality:
    """Compare two pair folders of the same classes."""
    count = real.info.classes.count
    ours, theirs = (_load(folder) for folder in (synthetic, real))
    halves = theirs[::2], theirs[1::2] or theirs[::2]
    return Quality(
        tuple(real.info.classes.names),
        [_grey_distance(ours, theirs, id_) for id_ in range(count)],
        [_grey_distance(*halves, id_) for id_ in range(count)],
        [_texture_distance(ours, theirs, id_) for id_ in range(count)],
        [_texture_distance(*halves, id_) for id_ in range(count)],
        _nearest([image for image, _ in ours], [image for image, _ in theirs]),
        _nearest(*([image for image, _ in half] for half in halves)),
    )


def _load(folder: PairFolder) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(folder.image(stem), folder.mask(stem)) for stem in evenly_spaced(folder.stems, MOST)]


def wasserstein(first: np.ndarray, second: np.ndarray) -> float | None:
    """Wasserstein-1 distance in grey levels between two histograms (256,) of any sum; None where one is empty."""
    if not first.sum() or not second.sum():
        return None
    return float(np.abs(np.cumsum(first / first.sum()) - np.cumsum(second / second.sum())).sum())


def radial_spectrum(windows: np.ndarray) -> np.ndarray:
    """Windows (N,S,S) of grey values -> (S/2,) mean power by whole frequencies 1..S/2, after mean removal and a Hann
    window."""
    side = windows.shape[-1]
    hann = np.hanning(side + 2)[1:-1]
    centred = windows - windows.mean(axis=(1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(centred * np.outer(hann, hann))) ** 2).mean(axis=0)
    frequency = np.abs(np.fft.fftfreq(side, 1 / side))
    radius = np.hypot(frequency[:, None], frequency[None]).round().astype(int)
    return np.array([power[radius == r].mean() for r in range(1, side // 2 + 1)])


def _grey_distance(first: Sequence[tuple], second: Sequence[tuple], id_: int) -> float | None:
    return wasserstein(*(sum(np.bincount(i[m == id_], minlength=256) for i, m in side) for side in (first, second)))


def _texture_distance(first: Sequence[tuple], second: Sequence[tuple], id_: int) -> float | None:
    windows = [_windows(side, id_) for side in (first, second)]
    if not all(len(side) for side in windows):
        return None
    one, two = (np.log10(radial_spectrum(side) + 1e-3) for side in windows)
    return float(np.abs(one - two).mean())


def _windows(pairs: Sequence[tuple], id_: int) -> np.ndarray:
    """(N,S,S) float64: the windows on a grid of half their size that lie within a class."""
    found = []
    for image, mask in pairs:
        if min(image.shape) < WINDOW:
            continue
        step = WINDOW // 2
        view = np.lib.stride_tricks.sliding_window_view
        inside = view(mask == id_, (WINDOW, WINDOW))[::step, ::step].all(axis=(2, 3))
        found.append(view(image, (WINDOW, WINDOW))[::step, ::step][inside].astype(np.float64))
    return np.concatenate(found) if found else np.empty((0, WINDOW, WINDOW))


def _nearest(images: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> float | None:
    """Mean over images of the smallest root mean square difference to a real one of equal size; None without such."""
    smallest = []
    for image in images:
        differences = [np.sqrt(np.mean((image.astype(np.float32) - r) ** 2)) for r in real if r.shape == image.shape]
        if differences:
            smallest.append(min(differences))
    return float(np.mean(smallest)) if smallest else None
