"""What the phantom is painted with: grey levels, Gaussian random fields, organelles, and the detector.

Lengths are in units of 1/128 of the image height: a larger image shows the same cell at finer sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Greys:
    """Grey levels (0 black to 255 white) and texture strengths, before drift and noise."""

    resin: float = 226.0
    cytoplasm: float = 104.0
    nucleus: float = 120.0  # nucleoplasm between the clumps, which bring its mean below the cytoplasm's
    cell_spread: float = 6.0  # standard deviation between cells, shared by cytoplasm and nucleus of one cell
    nucleus_spread: float = 5.0  # further standard deviation between nuclei
    granules: float = 16.0  # cytoplasm, scale 1.2
    mottling: float = 7.0  # cytoplasm, scale 4
    chromatin: float = 54.0  # how much darker than nucleoplasm a clump is
    nucleolus: float = 60.0
    cistern: float = 24.0  # how much darker than cytoplasm the endoplasmic reticulum is
    membrane: float = 46.0  # how much darker than its surroundings a membrane is
    envelope: float = 42.0
    curtain: float = 2.5  # vertical milling stripes
    drift_gain: float = 0.03  # slice to slice, relative
    drift_offset: float = 3.0
    noise: float = 4.5  # white, per pixel


def gaussian_field(rng: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, ...]) -> np.ndarray:
    """White noise filtered by a Gaussian of width sigma, in grid steps: float32, mean 0, variance 1.

    The filter is periodic; the first axis is drawn longer and cut: first and last slice stay strangers.
    """
    padded = (shape[0] + int(np.ceil(4 * sigma[0])), *shape[1:])
    spectrum = np.fft.rfftn(rng.standard_normal(padded, dtype=np.float32))
    power = 1.0
    for axis, (size, width) in enumerate(zip(padded, sigma, strict=True)):
        last = axis == len(shape) - 1
        frequency = np.fft.rfftfreq(size) if last else np.fft.fftfreq(size)
        response = np.exp(-2 * (np.pi * width * frequency) ** 2).astype(np.float32)
        spectrum *= response.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        power *= np.mean(np.exp(-4 * (np.pi * width * np.fft.fftfreq(size)) ** 2))
    field = np.fft.irfftn(spectrum, s=padded, axes=range(len(shape)))[: shape[0]]
    return (field / np.sqrt(power)).astype(np.float32)


def resample(field: np.ndarray, height: int, width: int) -> np.ndarray:
    """A periodic smooth field (h,w) sampled at (height,width), by padding or cropping its spectrum."""
    h, w = field.shape
    if (h, w) == (height, width):
        return field
    spectrum, rows = np.fft.rfft2(field), min(h, height) // 2
    columns = min(w, width) // 2
    wide = np.zeros((height, width // 2 + 1), np.complex64)
    wide[:rows, :columns] = spectrum[:rows, :columns]
    wide[height - rows + 1 :, :columns] = spectrum[h - rows + 1 :, :columns]
    return np.fft.irfft2(wide, s=(height, width)).astype(np.float32) * (height * width / (h * w))


def blur(image: np.ndarray, sigma: float, border: str = "edge") -> np.ndarray:
    """Gaussian blur of (H,W) or (H,W,C) by sigma pixels; `border` is numpy.pad's mode."""
    radius = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    for axis in (0, 1):
        size = image.shape[axis]
        padded = np.pad(image, [(radius, radius) if a == axis else (0, 0) for a in range(image.ndim)], mode=border)
        image = sum(k * np.take(padded, range(i, i + size), axis) for i, k in enumerate(kernel))
    return image


def soft_step(value: np.ndarray, width: float) -> np.ndarray:
    """0 below zero, 1 above, with a transition of the given width."""
    return 1 / (1 + np.exp(np.clip(-4 * value / width, -30, 30)))


def ridge(distance: np.ndarray, width: float) -> np.ndarray:
    """1 at distance zero, falling off over width: a line."""
    return np.exp(-((distance / width) ** 2))


class Organelles(NamedTuple):
    """Ellipsoids of revolution, one row each."""

    kind: np.ndarray  # (N,) position in KINDS
    centre: np.ndarray  # (N,3) z, y, x
    axis: np.ndarray  # (N,3) unit vector
    length: np.ndarray  # (N,) half of it
    width: np.ndarray  # (N,) half of it


KINDS = {  # mean number per 1000 cubic units, range of half-width, range of length over width
    "mitochondrion": (0.28, (2.0, 3.0), (1.6, 4.0)),
    "dark vesicle": (0.38, (1.2, 2.7), (1.0, 1.3)),
    "pale vesicle": (0.12, (1.8, 3.2), (1.0, 1.4)),
    "bright vesicle": (0.12, (1.4, 2.8), (1.0, 1.2)),
}


def scatter_organelles(rng: np.random.Generator, extent: tuple[float, float, float]) -> Organelles:
    """Organelles strewn through a box (z,y,x) and ten units around it; paint_organelles is told where not."""
    density, widths, ratios = (np.array(column) for column in zip(*KINDS.values(), strict=True))
    z, y, x = extent
    kind = np.repeat(np.arange(len(KINDS)), rng.poisson(density * (z + 20) * y * (x + 20) / 1000))
    centre = rng.uniform((-10, 0, -10), (z + 10, y, x + 10), (len(kind), 3))
    axis = rng.standard_normal((len(kind), 3)) * (0.7, 0.8, 1.0)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    width = rng.uniform(*widths[kind].T)
    return Organelles(kind, centre, axis, width * rng.uniform(*ratios[kind].T), width)


def paint_organelles(image: np.ndarray, room: np.ndarray, organelles: Organelles, z: float) -> None:
    """Draw the organelles that the plane at z cuts into image (H,W), in place, where room (H,W) is true."""
    unit, names = image.shape[0] / 128, list(KINDS)
    square, length, width = organelles.axis**2, organelles.length[:, None], organelles.width[:, None]
    reach = np.sqrt(length**2 * square + width**2 * (1 - square)) + 0.5  # half the bounding box, (N,3)
    for n in np.flatnonzero(np.abs(organelles.centre[:, 0] - z) < reach[:, 0]):
        (cz, cy, cx), (az, ay, ax) = organelles.centre[n], organelles.axis[n]
        length, width = organelles.length[n], organelles.width[n]
        top, left = (max(0, int((c - r) * unit)) for c, r in ((cy, reach[n, 1]), (cx, reach[n, 2])))
        bottom, right = (max(0, int((c + r) * unit) + 1) for c, r in ((cy, reach[n, 1]), (cx, reach[n, 2])))
        patch = image[top:bottom, left:right]
        if not room[top:bottom, left:right].any():
            continue
        dz, dy = z - cz, (np.arange(top, top + patch.shape[0]) + 0.5)[:, None] / unit - cy
        dx = (np.arange(left, left + patch.shape[1]) + 0.5) / unit - cx
        along = dz * az + dy * ay + dx * ax
        across_squared = dz**2 + dy**2 + dx**2 - along**2
        inside = (1 - np.sqrt((along / length) ** 2 + across_squared / width**2)) * width  # about a distance
        match names[organelles.kind[n]]:
            case "mitochondrion":
                grey = 62 + 20 * np.sin(2 * np.pi * along / 3.0) - 22 * ridge(inside - 0.4, 0.7)
            case "dark vesicle":
                grey = 50
            case "pale vesicle":
                grey = 128 - 70 * ridge(inside - 0.3, 0.8)
            case "bright vesicle":
                grey = 205 - 120 * ridge(inside + 0.2, 0.6)
        cover = np.clip(inside * min(unit, 1.5) + 0.5, 0, 1) * room[top:bottom, left:right]
        patch += cover * (grey - patch)


def detect(
    image: np.ndarray, rng: np.random.Generator, stripes: np.ndarray, gain: float, offset: float, noise: float
) -> np.ndarray:
    """Beam and detector: slight blur, curtaining that deepens downwards, drift, noise; uint8 (H,W)."""
    depth = np.linspace(0.4, 1, len(image), dtype=np.float32)[:, None]
    image = blur(image, 0.6) + stripes * depth
    image = (image - 128) * gain + 128 + offset + noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
