"""The phantom: reproducible, slowly changing from slice to slice, and no task for a grey threshold."""

import argparse

import numpy as np
import pytest

from natural2nanoscale.cli import settings_from
from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.errors import InputError
from natural2nanoscale.phantom.textures import gaussian_field, resample
from natural2nanoscale.phantom.volume import PhantomSettings, volume, write_phantom
from natural2nanoscale.verbs import phantom as phantom_verb

SMALL = PhantomSettings((56, 32), train=3, val=1, test=2, gap=2, seed=4)


def best_iou(images: np.ndarray, nucleus: np.ndarray, orders: list[np.ndarray]) -> float:
    """Best nucleus IoU of any classifier that calls the first k grey values of one of the orders nucleus."""
    every = np.bincount(images.ravel(), minlength=256)
    hits = np.bincount(images[nucleus], minlength=256)
    union = [nucleus.sum() + np.cumsum(every[o]) - np.cumsum(hits[o]) for o in orders]
    return max(float((np.cumsum(hits[o]) / u).max()) for o, u in zip(orders, union, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grey_value_alone_does_not_find_nuclei(seed):
    images, masks = volume(16, 128, 224, seed)
    nucleus = masks == 2
    assert 0.04 < nucleus.mean() < 0.2
    greys = np.arange(256)
    every = np.bincount(images.ravel(), minlength=256)
    share = np.bincount(images[nucleus], minlength=256) / np.maximum(every, 1)
    # both are fitted to the very pixels they are scored on: no threshold and no histogram can do better
    assert best_iou(images, nucleus, [greys, greys[::-1]]) < 0.30
    assert best_iou(images, nucleus, [np.argsort(-share)]) < 0.30
    assert images[masks == 0].mean() - images[masks == 1].mean() > 80, "resin is bright"


def test_same_seed_same_bytes_and_another_seed_another_volume():
    first, again, other = (volume(4, 48, 100, seed) for seed in (7, 7, 8))
    assert first[0].dtype == first[1].dtype == np.uint8 and first[0].shape == first[1].shape == (4, 48, 100)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.05
    assert set(np.unique(first[1])) <= {0, 1, 2}


def test_neighbours_are_alike_and_distant_slices_are_not():
    images, masks = volume(50, 64, 112, 1)
    tissue = (masks > 0).all(0)

    def alike(i, j):
        return np.corrcoef(images[i].ravel(), images[j].ravel())[0, 1]

    def texture_alike(i, j):
        return np.corrcoef(images[i][tissue], images[j][tissue])[0, 1]

    def nuclei_alike(i, j):
        return ((masks[i] == 2) & (masks[j] == 2)).sum() / ((masks[i] == 2) | (masks[j] == 2)).sum()

    assert min(alike(i, i + 1) for i in range(49)) > 0.85
    assert np.mean([texture_alike(i, i + 1) for i in range(49)]) > 0.5
    assert np.mean([nuclei_alike(i, i + 1) for i in range(49)]) > 0.8
    # the fields are periodic but cut: the last slice must not run into the first, or test leaks into training
    assert abs(texture_alike(0, 49)) < 0.25 and nuclei_alike(0, 49) < 0.6


def test_a_larger_size_shows_the_same_cells_more_finely():
    images, masks = volume(3, 64, 112, 5)
    fine_images, fine_masks = volume(3, 128, 224, 5)
    corners = fine_masks.reshape(3, 64, 2, 112, 2)
    assert max((corners[:, :, i, :, j] == masks).mean() for i in (0, 1) for j in (0, 1)) > 0.95
    coarse = fine_images.reshape(3, 64, 2, 112, 2).mean((2, 4))
    assert np.corrcoef(coarse.ravel(), images.ravel())[0, 1] > 0.95


def test_a_data_root_holds_contiguous_blocks_with_a_gap(tmp_path):
    write_phantom(tmp_path / "data", SMALL)
    images, masks = volume(10, 32, 56, 4)
    for part, indices in (("train", [0, 1, 2]), ("val", [5]), ("test", [8, 9])):
        folder = open_pairs(tmp_path / "data" / part)
        assert folder.stems == tuple(f"slice_{i:04d}" for i in indices)
        assert np.array_equal(folder.load()[0], images[indices])
        assert np.array_equal(folder.load()[1], masks[indices])
        assert folder.info.origin == "phantom"
        assert folder.info.classes.names == ("background", "cytoplasm", "nucleus")
        split = folder.info.split
        assert (split["first"], split["last"], split["gap"], split["seed"]) == (indices[0], indices[-1], 2, 4)


def test_bad_requests_write_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="full"):
        write_phantom(tmp_path / "full", SMALL)
    for change, word in (({"train": 0}, "at least 1"), ({"size": (56, 8)}, "at least 32"), ({"gap": -1}, "gap")):
        with pytest.raises(InputError, match=word):
            write_phantom(tmp_path / "new", PhantomSettings(**{**SMALL.__dict__, **change}))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note.txt"]


def test_the_verb_takes_its_defaults_from_the_settings(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    phantom_verb.add_arguments(parser)
    assert settings_from(parser.parse_args(["data"]), PhantomSettings) == PhantomSettings()
    out = str(tmp_path / "data")
    options = "--size 48x32 --train 1 --val 1 --test 1 --gap 0".split()
    phantom_verb.run(parser.parse_args([out, *options]))
    assert "48x32" in capsys.readouterr().out
    assert open_pairs(tmp_path / "data" / "test").image("slice_0002").shape == (32, 48)


def test_fields_have_unit_variance_and_the_stated_width():
    field = gaussian_field(np.random.default_rng(0), (40, 96, 96), (2.0, 2.0, 3.0))
    assert field.shape == (40, 96, 96)
    assert abs(field.mean()) < 0.1 and abs(field.std() - 1) < 0.1
    # a Gaussian filter of width s gives the correlation exp(-d^2 / 4 s^2) at distance d
    for axis, width in ((1, 2.0), (2, 3.0)):
        correlation = (field * np.roll(field, 3, axis)).mean()
        assert correlation == pytest.approx(np.exp(-9 / (4 * width**2)), abs=0.06)


@pytest.mark.parametrize("shape", [(24, 40), (64, 100), (33, 57)])
def test_resampling_keeps_a_smooth_field_exactly(shape):
    def wave(height, width):
        y, x = np.arange(height)[:, None] / height, np.arange(width)[None] / width
        return np.sin(2 * np.pi * (2 * y + 3 * x)) + np.cos(2 * np.pi * (5 * x - 4 * y)) + 0.5

    assert np.allclose(resample(wave(32, 48).astype(np.float32), *shape), wave(*shape), atol=1e-4)
