"""How synthetic slices look beside real ones, by hand and against scipy."""

import numpy as np
import pytest

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import DatasetInfo, write_pairs
from natural2nanoscale.data.quality import quality, radial_spectrum, wasserstein

INFO = DatasetInfo("two", "prepared", Classes.named("left", "right"))


def slices(seed, sharpness=1, shift=0, count=4):
    """Noise in both halves, in blocks of `sharpness` pixels, the right one brighter and shifted."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 128), np.uint8)
    mask[:, 64:] = 1
    for i in range(count):
        noise = rng.normal(0, 20, (64 // sharpness, 128 // sharpness))
        image = 100 + 60 * mask + np.kron(noise, np.ones((sharpness, sharpness))) + shift * mask
        yield f"s{i}", image.clip(0, 255).astype(np.uint8), mask


def test_wasserstein_is_scipys():
    stats = pytest.importorskip("scipy.stats", reason="the reference comes with the test extra's peers")
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, 500), rng.integers(50, 200, 300)
    ours = wasserstein(np.bincount(one, minlength=256), np.bincount(two, minlength=256))
    assert ours == pytest.approx(stats.wasserstein_distance(one, two), rel=1e-9)
    assert wasserstein(np.eye(256)[10], np.eye(256)[13]) == 3 and wasserstein(np.zeros(256), np.ones(256)) is None


def test_spectrum_of_a_wave_peaks_at_its_frequency():
    wave = np.sin(2 * np.pi * 4 * np.arange(16) / 16)[None, None] * np.ones((1, 16, 1))
    assert radial_spectrum(wave).argmax() == 4 - 1
    white = radial_spectrum(np.random.default_rng(0).normal(size=(4000, 16, 16)))
    assert white.max() / white[1:].min() < 1.3


def test_shift_blur_and_copies_show_where_they_are(tmp_path):
    real = write_pairs(tmp_path / "real", INFO, slices(0, count=8))
    like, brighter, smooth = (
        quality(real, write_pairs(tmp_path / name, INFO, slices(1, **options)))
        for name, options in (("like", {}), ("brighter", {"shift": 15}), ("smooth", {"sharpness": 4}))
    )
    assert max(like.grey) < 1.0 and max(like.texture) < 0.1
    assert brighter.grey == pytest.approx([like.grey[0], 15], abs=1) and max(brighter.texture) < 0.1
    assert min(smooth.texture) > 5 * max(like.texture + like.texture_real)
    assert like.nearest == pytest.approx(20 * 2**0.5, rel=0.1) and quality(real, real).nearest == 0
    assert "right: grey values off by 14.7" in "\n".join(brighter.lines())
