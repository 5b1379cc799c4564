"""Slices that stand in two parts, saved twice or shifted, are told; the neighbours of a stack are not."""

import numpy as np
import pytest

from natural2nanoscale.data.check import report
from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import DatasetInfo, write_pairs
from natural2nanoscale.phantom.volume import volume


def root_of(path, parts):
    """A data root of `parts`: {part: {stem: image}}."""
    info = DatasetInfo("slices", "prepared", Classes.named("background", "cell"))
    for part, images in parts.items():
        items = ((stem, image, (image > image.mean()).astype(np.uint8)) for stem, image in images.items())
        write_pairs(path / part, info, items)
    return path


def alike(path):
    return [warning for warning in report(path) if "alike" in warning or "identical images" in warning]


@pytest.fixture(scope="module")
def stack():
    images, _ = volume(40, 64, 96, seed=1)
    return {f"slice_{i:04d}": image for i, image in enumerate(images)}


def blocks(stack, extra=None):
    parts = {"train": slice(0, 22), "val": slice(24, 28), "test": slice(30, 40)}
    parts = {part: dict(list(stack.items())[cut]) for part, cut in parts.items()}
    parts["test"] |= extra or {}
    return parts


def test_neighbours_of_a_stack_are_no_duplicates(stack, tmp_path):
    assert not alike(root_of(tmp_path / "blocks", blocks(stack)))
    names = np.random.default_rng(0).permutation(list(stack))
    dealt = {"train": names[:25], "val": names[25:30], "test": names[30:]}
    assert not alike(root_of(tmp_path / "random", {p: {s: stack[s] for s in some} for p, some in dealt.items()}))


def test_slices_that_have_nothing_in_common_are_no_duplicates(tmp_path):
    rng, images = np.random.default_rng(0), {}
    for i in range(24):  # bright rings on grey, as of axons in a cross-section
        y, x = np.mgrid[:64, :96]
        image = np.full((64, 96), 140.0)
        for cy, cx, r in zip(rng.uniform(0, 64, 12), rng.uniform(0, 96, 12), rng.uniform(5, 12, 12), strict=True):
            distance = np.hypot(y - cy, x - cx)
            image[distance < r], image[distance < 0.6 * r] = 60, 200
        images[f"axons_{i:02d}"] = np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
    names = list(images)
    parts = {"train": names[:14], "val": names[14:18], "test": names[18:]}
    assert not alike(root_of(tmp_path, {part: {s: images[s] for s in some} for part, some in parts.items()}))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: np.roll(image, 1, axis=1),
        lambda image: np.pad(image[2:, :-1], ((0, 2), (1, 0)), mode="edge"),
        lambda image: (0.8 * image + 20).astype(np.uint8),
    ],
    ids=["saved twice", "shifted by a pixel", "shifted and filled up", "other contrast"],
)
def test_a_slice_that_is_in_two_parts_is_named(stack, tmp_path, change):
    (warning,) = alike(root_of(tmp_path, blocks(stack, {"another_name": change(stack["slice_0007"])})))
    assert "slice_0007" in warning and "another_name" in warning


def test_no_more_than_ten_are_named(stack, tmp_path):
    shifted = {f"copy_{i}": np.roll(stack[f"slice_{i:04d}"], 1, axis=0) for i in range(8)}
    (warning,) = alike(root_of(tmp_path, blocks(stack, shifted)))
    assert warning.startswith("8 pairs") and warning.count("'") == 2 * 10
