"""Masks that nobody drew: deformed ones, and those between two."""

import json

import numpy as np
import pytest
import torch
from backbones import disturbed
from conftest import blobs
from scipy import ndimage

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import DatasetInfo, open_pairs, write_pairs
from natural2nanoscale.diffusion import sampling
from natural2nanoscale.diffusion.backbone import load_backbone
from natural2nanoscale.diffusion.request import Request
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.diffusion.shapes import (
    Shapes,
    deform,
    interpolate,
    open_masks,
    signed_distances,
    squared_distances,
)
from natural2nanoscale.diffusion.synthesis import synthesize
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import save_png

NOISE = SamplingSettings()  # from pure noise


def disc(y: float, x: float, radius: float, size: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (np.hypot(rows - y, columns - x) < radius).astype(np.uint8)


def tissue(size: int = 240) -> np.ndarray:
    """Far from the borders: a disc with a hole in it, an arc three pixels thick and a small blob, on background."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    mask = np.zeros((size, size), np.uint8)
    mask[radius < 36] = 1
    mask[radius < 14] = 2
    mask[(np.abs(radius - 51) < 1.5) & (angle > -1.5) & (angle < 2)] = 3
    mask[np.hypot(y - 33, x + 51) < 5] = 3
    return mask


def components(mask: np.ndarray) -> dict[int, int]:
    """Of every class, how many islands of more than three pixels it has, mirror images in the corners left out."""
    counts, whole = {}, disc((len(mask) - 1) / 2, (len(mask) - 1) / 2, len(mask) / 2, len(mask)) > 0
    for class_id in range(4):
        labels, _ = ndimage.label((mask == class_id) & whole, np.ones((3, 3)))
        counts[class_id] = int((np.bincount(labels.ravel())[1:] > 3).sum())
    return counts


def test_classes_stay_connected_under_deformation():
    mask = tissue()
    before, seen = components(mask), set()
    assert before == {0: 1, 1: 1, 2: 1, 3: 2}
    for seed in range(60):
        deformed, _ = deform(mask, None, seed)
        assert deformed.dtype == np.uint8 and deformed.shape == mask.shape
        assert components(deformed) == before, seed
        seen.add(deformed.tobytes())
    assert len(seen) == 60


def test_a_slice_is_deformed_by_the_field_of_its_mask():
    mask = tissue()
    for seed in range(5):
        deformed, image = deform(mask, 60 * mask, seed)
        assert np.array_equal(deform(mask, None, seed)[0], deformed)
        flat = ndimage.maximum_filter(deformed, 5) == ndimage.minimum_filter(deformed, 5)
        assert np.abs(image[flat].astype(int) - 60 * deformed[flat]).max() <= 1 and flat.mean() > 0.5


def test_deformations_are_turned_mirrored_scaled_and_bent():
    y, x = np.mgrid[:96, :96]
    mask = ((x > 40) & (x < 56) & (y > 20) & (y < 76)).astype(np.uint8)  # upright
    mask[24:40, 32:44], mask[66:76] = 2, 3 * mask[66:76]  # a head that looks to the left, and feet
    areas, angles, sides = [], [], []
    for seed in range(80):
        deformed, _ = deform(mask, None, seed)
        areas.append((deformed > 0).sum() / (mask > 0).sum())
        body, head, feet = (np.array(np.nonzero(deformed == i)).mean(1) for i in (1, 2, 3))
        (up, right), (y, x) = body - feet, head - feet
        angles.append(np.degrees(np.arctan2(up, right)))
        sides.append(up * x > right * y)
    assert 0.5 < min(areas) < 0.75 and 1.3 < max(areas) < 1.9  # the square of 0.8 to 1.25
    assert np.histogram(angles, 4, (-180, 180))[0].min() > 8 and 25 < sum(sides) < 55


def test_distances_are_exact():
    rng = np.random.default_rng(0)
    for share in (0.3, 0.9, 0.99):
        for height, width in ((1, 9), (9, 1), (13, 30), (40, 7)):
            inside = rng.random((height, width)) < share
            inside[rng.integers(height), rng.integers(width)] = False
            outside = np.argwhere(~inside)
            points = np.argwhere(np.ones_like(inside))
            expected = ((points[:, None] - outside[None]) ** 2).sum(-1).min(1).reshape(height, width)
            assert np.array_equal(squared_distances(inside), expected)


def test_what_lies_between_two_masks():
    first, second = signed_distances(disc(32, 28, 10)), signed_distances(disc(32, 36, 16))
    assert np.array_equal(interpolate(first, second, 0.0), disc(32, 28, 10))
    assert np.array_equal(interpolate(first, second, 1.0), disc(32, 36, 16))
    middle = interpolate(first, second, 0.5)
    assert components(middle)[1] == 1
    assert np.abs(np.argwhere(middle).mean(0) - (32, 32)).max() < 2.1 and 11 < np.sqrt(middle.sum() / np.pi) < 14


def test_a_class_that_one_mask_lacks_shrinks_and_nothing_else_appears():
    nucleus, none = disc(32, 32, 12) * 2, np.zeros((64, 64), np.uint8)
    nucleus[:5] = 255
    with_it, without = signed_distances(nucleus), signed_distances(none)
    areas = [(interpolate(with_it, without, share) == 2).sum() for share in (0, 0.2, 0.4, 0.6, 1)]
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[1] > areas[2] > 0 == areas[-1]
    assert set(np.unique(interpolate(without, with_it, 0.5))) <= {0, 2, 255}
    other = signed_distances(none + 1)
    assert set(np.unique(interpolate(without, other, 0.4))) == {0} and interpolate(without, other, 0.6).all()


def test_masks_are_functions_of_seed_source_and_copy(data_folder):
    source = open_pairs(data_folder / "train")
    for kind in ("deformed", "between"):
        one, two, other = Shapes(source, kind, 0, NOISE), Shapes(source, kind, 0, NOISE), Shapes(source, kind, 1, NOISE)
        calls = [(stem, copy) for stem in source.stems for copy in range(3)]
        masks = {call: one.mask(*call) for call in calls}
        assert all(np.array_equal(two.mask(*call), masks[call]) for call in reversed(calls))
        assert len({mask.tobytes() for mask in masks.values()}) > (11 if kind == "deformed" else 5)
        assert any(not np.array_equal(other.mask(*call), masks[call]) for call in calls)
        assert one.facts(*calls[0])["masks"] == kind and one.facts(*calls[0]) != one.facts(*calls[1])


def test_only_neighbours_of_one_size_are_interpolated(tmp_path):
    info = DatasetInfo("blobs", "prepared", Classes.named("background", "cytoplasm", "nucleus"))
    small = [(f"s{stem}", image[:, :40], mask[:, :40]) for stem, image, mask in blobs(1, 32, 64, seed=1)]
    alone = write_pairs(tmp_path / "pairs", info, [*blobs(3, 32, 64), *small])
    with pytest.raises(InputError, match="'sslice_0000' of .* is the only one of its size"):
        Shapes(alone, "between", 0, NOISE)
    folder = write_pairs(tmp_path / "three", info, blobs(3, 32, 64))
    shapes = Shapes(folder, "between", 0, NOISE)
    found = {(stem, shapes.interpolation(stem, copy)[0]) for stem in folder.stems for copy in range(20)}
    first, middle, last = folder.stems
    assert found == {(first, middle), (middle, first), (middle, last), (last, middle)}
    for settings in (SamplingSettings(start=0.5), SamplingSettings(condition="mask+edges")):
        with pytest.raises(InputError, match="no slices of their own"):
            Shapes(folder, "between", 0, settings)


def test_masks_without_slices(tmp_path):
    info = DatasetInfo("mine", "prepared", Classes.named("background", "cytoplasm", "nucleus"))
    with pytest.raises(InputError, match="neither dataset.json nor PNG masks"):
        open_masks(tmp_path, info)
    for stem, _, mask in blobs(2, 32, 64):
        save_png(tmp_path / f"{stem}.png", mask)
    folder = open_masks(tmp_path, info)
    assert np.array_equal(Shapes(folder, "same", 0, NOISE).mask("slice_0001", 3), folder.mask("slice_0001"))
    with pytest.raises(InputError, match="no slices of their own to start at"):
        Shapes(folder, "deformed", 0, SamplingSettings(start=0.5))
    save_png(tmp_path / "slice_0000.png", np.full((32, 64), 7, np.uint8))
    with pytest.raises(InputError, match="slice_0000.png has mask values such as 7"):
        open_masks(tmp_path, info)


@pytest.fixture
def draw(data_folder, tiny_backbone):
    """Draw from the training masks into a folder, by a request's fields."""
    backbone = load_backbone(str(tiny_backbone), torch.device("cpu"))
    controlnet, source = disturbed(backbone), open_pairs(data_folder / "train")

    def run(out, batch_size: int = 4, start: float = 1.0, **fields) -> int:
        request = Request(["a", "b"], SamplingSettings(steps=2, start=start), **fields)
        return synthesize(out, backbone, controlnet, source, request, batch_size)

    return run


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind, start", [("deformed", 0.5), ("between", 1.0)])
def test_lines_shards_and_resume(draw, data_folder, tmp_path, kind, start):
    source = open_pairs(data_folder / "train")
    assert draw(tmp_path / "one", masks=kind, start=start, per_mask=2) == 8
    draw(tmp_path / "two", 1, masks=kind, start=start, per_mask=1)
    for shard in ((2, 2), (1, 2)):
        draw(tmp_path / "two", 3, masks=kind, start=start, per_mask=2, shard=shard)
    one, two = open_pairs(tmp_path / "one"), open_pairs(tmp_path / "two")
    assert one.stems == two.stems and one.info.split["masks"] == kind
    assert all(np.array_equal(one.mask(stem), two.mask(stem)) for stem in one.stems)
    assert all(np.abs(one.image(stem).astype(int) - two.image(stem)).max() <= 1 for stem in one.stems)
    assert len({one.mask(stem).tobytes() for stem in one.stems}) > 4
    for row in rows_of(tmp_path / "one"):
        mask = one.mask(row["file"].removesuffix(".png"))
        if kind == "deformed":
            again = deform(source.mask(row["source"]), None, row["deformation_seed"])[0]
        else:
            ends = (signed_distances(source.mask(row[end])) for end in ("source", "neighbour"))
            again = interpolate(*ends, row["share"])
            assert len(row["neighbour_digest"]) == 64
        assert np.array_equal(again, mask) and row["masks"] == kind

    # what is not the mask that was used is drawn anew, and no other kind goes on
    save_png(tmp_path / "one" / "masks" / f"{one.stems[0]}.png", source.mask(source.stems[0]))
    assert draw(tmp_path / "one", masks=kind, start=start, per_mask=2) == 1
    assert np.array_equal(open_pairs(tmp_path / "one").mask(one.stems[0]), two.mask(one.stems[0]))
    with pytest.raises(InputError, match=f"made with another masks \\({kind}, now same\\)"):
        draw(tmp_path / "one", start=start, per_mask=2)


def test_slices_that_sampling_starts_at_are_deformed_alike(draw, data_folder, tmp_path, monkeypatch):
    seen = []
    source = open_pairs(data_folder / "train")
    monkeypatch.setattr("natural2nanoscale.diffusion.synthesis.draw_slices", lambda *given: seen.append(given[2]) or
                        sampling.draw_slices(*given))  # fmt: skip
    draw(tmp_path / "out", 1, masks="deformed", start=0.5)
    for drawn, row in zip(seen, rows_of(tmp_path / "out"), strict=True):
        mask, image = deform(source.mask(row["source"]), source.image(row["source"]), row["deformation_seed"])
        assert np.array_equal(drawn.masks[0], mask) and np.array_equal(drawn.images[0], image)
    seen.clear()
    draw(tmp_path / "noise", masks="deformed")
    assert all(not drawn.images for drawn in seen)
