"""--augment: what each recipe does to a sample, and that neither batch nor visit changes it; enlarged sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from natural2nanoscale.data.augment import change_gamma
from natural2nanoscale.data.classes import Classes
from natural2nanoscale.draws import sample_seeds
from natural2nanoscale.errors import InputError
from natural2nanoscale.segmentation.augmentation import MAX_NOISE, augment, nnunet_intensities
from natural2nanoscale.segmentation.batches import DeviceSlices, enlarge, read_batch
from natural2nanoscale.segmentation.schedule import check, plan_steps, set_size
from natural2nanoscale.segmentation.settings import AUGMENTATIONS, Settings
from natural2nanoscale.segmentation.slices import Slices

SHAPE = (20, 30)
BLANK = Slices([np.zeros(SHAPE, np.uint8)] * 6, [np.zeros(SHAPE, np.uint8)] * 6, Classes.named("a", "b"), 4)


def sample(count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` times one slice (1,H,W) around 0 and a mask whose every pixel has an id of its own."""
    values = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(1)) - 0.5
    ids = torch.arange(SHAPE[0] * SHAPE[1]).view(SHAPE)
    return values.expand(count, -1, -1, -1), ids.expand(count, -1, -1)


def changed(recipe: str, count: int, size: tuple[int, int] = SHAPE, max_angle: float = 16.0):
    seeds = sample_seeds(torch.arange(count)[:, None], "test")
    return augment(*sample(count), recipe, seeds, size, max_angle)


def pool(count: int = 3, synthetic: int = 0, enlarge_to: int | None = None) -> DeviceSlices:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, SHAPE, np.uint8) for _ in range(count + synthetic)]
    masks = [(image > 128).astype(np.uint8) for image in images]
    return DeviceSlices(Slices(images, masks, BLANK.classes, count), torch.device("cpu"), enlarge_to)


@pytest.mark.parametrize("recipe", AUGMENTATIONS)
def test_a_sample_depends_on_its_name_alone(recipe):
    settings = Settings(augment=recipe, crop=(16, 12))
    keys = torch.tensor([(epoch, index) for epoch in range(4) for index in range(3)])
    images, masks = read_batch(pool(), keys, settings)
    assert images.shape == (12, 1, 12, 16) and masks.shape == (12, 12, 16) and masks.dtype == torch.int64
    assert set(masks.unique().tolist()) <= {0, 1} and images.isfinite().all()
    for i, key in enumerate(keys):
        image, mask = read_batch(pool(), key[None], settings)
        torch.testing.assert_close(image[0], images[i], rtol=0, atol=1e-5)
        assert torch.equal(mask[0], masks[i])
    other, _ = read_batch(pool(), keys, replace(settings, seed=1))
    assert not torch.equal(images, other)
    if recipe != "nnunet":
        assert images.abs().max() <= 1 + 1e-6


def test_flips_give_all_four_mirror_images_and_nothing_else():
    images, masks = changed("flips", 40)
    image, mask = sample()
    seen = set()
    for i in range(40):
        axes = next(a for a in ([], [-1], [-2], [-2, -1]) if torch.equal(masks[i], mask[0].flip(a)))
        torch.testing.assert_close(images[i], image[0].flip(axes), rtol=0, atol=1e-4)
        seen.add(tuple(axes))
    assert len(seen) == 4


def test_shifts_move_whole_pixels_by_a_tenth_at_most_and_mirror_what_lies_beyond():
    images, masks = changed("shifts", 60)
    image, mask = (part[0].numpy() for part in sample())
    padded = np.pad(mask, 3, mode="symmetric")
    seen = set()
    for i in range(60):
        y, x = divmod(int(masks[i, 8, 8]), SHAPE[1])
        y, x = y - 8, x - 8
        assert np.array_equal(masks[i], padded[3 + y :, 3 + x :][: SHAPE[0], : SHAPE[1]])
        assert np.allclose(images[i, 0], image[0].flat[masks[i].numpy()], atol=1e-4)
        seen.add((y, x))
    assert {y for y, _ in seen} == set(range(-2, 3)) and {x for _, x in seen} == set(range(-3, 4))


def test_noise_is_white_has_a_strength_of_its_own_and_leaves_the_mask():
    images, masks = changed("noise", 50)
    image, mask = sample()
    assert (masks == mask).all()
    noise = images - image
    strengths = noise.std((1, 2, 3))
    assert strengths.max() < 1.1 * MAX_NOISE and strengths.min() < 0.2 * MAX_NOISE
    assert 0.4 * MAX_NOISE < strengths.mean() < 0.6 * MAX_NOISE
    assert (noise / strengths.view(-1, 1, 1, 1)).mean((0, 1)).abs().max() < 0.7  # no pattern that samples share


def test_angle_is_a_setting_and_paper_all_turns_too():
    straight, _ = changed("rotation", 4, max_angle=0.0)
    torch.testing.assert_close(straight, sample(4)[0], rtol=0, atol=1e-4)
    keys, narrow = torch.tensor([[0, 0], [0, 1]]), Settings(augment="rotation", angle=4.0)
    wide = replace(narrow, angle=16.0)
    assert not torch.equal(read_batch(pool(), keys, narrow)[0], read_batch(pool(), keys, wide)[0])
    for recipe in ("rotation", "paper-all"):
        assert slopes(changed(recipe, 60)[1]).max() > np.tan(np.radians(10))


def slopes(masks: torch.Tensor) -> np.ndarray:
    """Of every mask of `sample`: rows per column between the slice's pixels at both ends of its middle row."""
    ends = masks[:, masks.shape[1] // 2, [1, -2]].numpy()
    rows, columns = np.abs(np.diff(ends // SHAPE[1])), np.abs(np.diff(ends % SHAPE[1]))
    return (rows / np.maximum(columns, 1)).ravel()


def test_nnunet_turns_and_zooms_a_fifth_of_the_samples_each_and_turns_long_windows_less():
    square, long = changed("nnunet", 2000, (10, 10))[1], changed("nnunet", 400, (6, 16))[1]
    upright = {tuple(mask.flatten().tolist()) for mask in changed("flips", 2000, (10, 10))[1]}
    unmoved = np.mean([tuple(mask.flatten().tolist()) in upright for mask in square])
    less = 0.16 * 0.22 / 0.7 + 0.16 * 9 / 180  # zoomed by 11 % or turned by 4.5 degrees at most: half a pixel's way
    assert abs(unmoved - 0.8 * 0.8 - less) < 0.04
    assert slopes(square).max() > 1 and slopes(long).max() < np.tan(np.radians(15)) + 0.15


def test_elastic_bends_the_slice_and_its_mask_alike_beside_the_rotation():
    """Without rotation the middle row of the mask is no straight line, and the grey values follow the mask's pixels."""
    images, masks = changed("elastic", 60, max_angle=0.0)
    rows = (masks[:, SHAPE[0] // 2] // SHAPE[1]).double()  # which row of the slice each pixel of the middle row shows
    assert rows.std() > 0.2 and rows.std(1).max() > 0
    smooth = torch.linspace(-1, 1, SHAPE[0] * SHAPE[1]).view(1, 1, *SHAPE)
    seeds = sample_seeds(torch.arange(60)[:, None], "test")
    values, ids = augment(smooth.expand(60, -1, -1, -1), sample(60)[1], "elastic", seeds, SHAPE, 0.0)
    expected = smooth.flatten()[ids]
    assert torch.equal(ids, masks)
    assert (values[:, 0] - expected).abs().median() < (smooth[0, 0, 1, 0] - smooth[0, 0, 0, 0])  # within a row
    turned = slopes(changed("elastic", 60)[1])
    assert turned.max() > np.tan(np.radians(10))


def test_nnunet_changes_intensities_where_the_draws_say_so():
    values = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    seeds, draws = torch.tensor([1, 2, 3]), torch.full((3, 15), 0.9)
    assert torch.equal(nnunet_intensities(values, draws, seeds), values)
    for who in range(7):
        chosen = draws.clone()
        chosen[1, who] = 0.0
        result = nnunet_intensities(values, chosen, seeds)
        assert [torch.equal(a, b) for a, b in zip(result, values, strict=True)] == [True, False, True]
    chosen[1, 12] = 0.25  # half way from 0.7 to 1
    expected = change_gamma(values[1:2], torch.tensor([0.85]))
    torch.testing.assert_close(nnunet_intensities(values, chosen, seeds)[1:2], expected)


# -------------------------------------------------------------------------------------- enlarged sets


def test_enlarged_set_has_the_slices_first_and_equally_many_copies_of_each():
    entries = enlarge(BLANK, 10)
    assert entries == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (2, 2), (4, 0), (5, 0)]
    assert enlarge(BLANK, 232)[:-2] == enlarge(BLANK, 300)[:232]
    settings = Settings(enlarge_to=10, batch_size=5, epochs=2, augment="rotation")
    assert set_size(BLANK, settings) == 12 and plan_steps(12, settings) == (3, 6)


@pytest.mark.parametrize("crop", [None, (30, 20)], ids=["whole", "window"])
def test_entry_is_the_same_at_every_visit_and_its_copy_is_what_that_epoch_draws(crop):
    settings = Settings(augment="paper-all", crop=crop)
    enlarged, plain = pool(2, 1, enlarge_to=6), pool(2, 1)
    assert enlarged.fixed.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2], [2, 0]]
    for entry, (index, copy) in enumerate(enlarged.fixed.tolist()):
        image, mask = read_batch(enlarged, torch.tensor([[7, entry]]), settings)
        assert torch.equal(image, read_batch(enlarged, torch.tensor([[8, entry]]), settings)[0])
        online = settings if copy else replace(settings, augment="none")
        expected = read_batch(plain, torch.tensor([[copy, index]]), online)
        assert torch.equal(image, expected[0]) and torch.equal(mask, expected[1])


def test_window_of_an_entry_is_drawn_anew_and_keeps_its_flip():
    enlarged = pool(1, enlarge_to=9)
    enlarged.tensors[0][0] = torch.arange(20, dtype=torch.uint8).view(1, 20, 1).expand(1, *SHAPE).contiguous()
    settings = Settings(augment="flips", crop=(8, 8))
    downward = set()
    for entry in range(1, 9):
        windows = [read_batch(enlarged, torch.tensor([[epoch, entry]]), settings)[0][0, 0, :, 0] for epoch in range(6)]
        assert len({window[0].item() for window in windows}) > 1
        assert len({(window[1] > window[0]).item() for window in windows}) == 1
        downward.add((windows[0][1] > windows[0][0]).item())
    assert downward == {True, False}


def test_enlarging_to_too_few_or_without_augmentation_is_refused():
    settings = Settings(augment="rotation", enlarge_to=8)
    check(BLANK, BLANK, settings)
    with pytest.raises(InputError, match="--augment rotation"):
        check(BLANK, BLANK, replace(settings, augment="none"))
    with pytest.raises(InputError, match="--enlarge-to 3 of 4 real"):
        check(BLANK, BLANK, replace(settings, enlarge_to=3))
    with pytest.raises(InputError, match="0 real"):
        check(replace(BLANK, real=0), BLANK, settings)
