"""Joint warping of slices and masks against scipy, torch.rot90 and plain slicing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from natural2nanoscale.data.augment import (
    blur,
    change_contrast,
    change_gamma,
    covering_centers,
    draw_window,
    elastic_offsets,
    lower_resolution,
    warp,
)


def slices(count: int, height: int, width: int, classes: int = 5):
    """Images (B,1,H,W) of whole grey values and masks (B,H,W) of even ids, so that a blend is never an id."""
    generator = torch.Generator().manual_seed(height)
    images = torch.randint(0, 256, (count, 1, height, width), generator=generator).float()
    masks = 2 * torch.randint(0, classes, (count, height, width), generator=generator)
    return images, masks


def middle(shape: tuple[int, int], count: int = 1) -> torch.Tensor:
    """The slice's centre (x, y), `count` times."""
    return torch.tensor([[(shape[1] - 1) / 2, (shape[0] - 1) / 2]]).expand(count, 2)


@pytest.mark.parametrize("shape", [(37, 53), (954, 1280)])
def test_unrotated_window_is_a_part_of_the_slice(shape):
    images, masks = slices(1, *shape)
    top, left, h, w = 7, 5, shape[0] - 11, shape[1] - 5
    center = torch.tensor([[left + (w - 1) / 2, top + (h - 1) / 2]])
    image, mask = warp(images, masks, torch.zeros(1), center, (h, w))
    cut = np.s_[top : top + h, left : left + w]
    assert torch.equal(mask[0], masks[0][cut])
    assert torch.equal(image[0, 0].round(), images[0, 0][cut])
    assert (image[0, 0] - images[0, 0][cut]).abs().max() < 0.05  # of 255: grid_sample's rounded coordinates


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_equal_rot90(turns):
    images, masks = slices(2, 31, 31)
    image, mask = warp(images, masks, torch.full((2,), 90.0 * turns), middle((31, 31), 2), (31, 31))
    assert torch.equal(mask, torch.rot90(masks, turns, (-2, -1)))
    assert torch.allclose(image, torch.rot90(images, turns, (-2, -1)), atol=0.05)


@pytest.mark.parametrize("angle", [-16.0, 3.7, 44.0])
def test_any_angle_equals_scipy(angle):
    """scipy's own rotation, its "reflect" being half-sample symmetric as ours is."""
    images, masks = slices(1, 40, 40)
    images = torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, 2, 2)))
    image, mask = warp(images, masks, torch.tensor([angle]), middle((40, 40)), (40, 40))
    expected = ndimage.rotate(images[0, 0].numpy(), angle, reshape=False, order=1, mode="reflect")
    assert np.abs(image[0, 0].numpy() - expected).max() < 0.05
    ids = ndimage.rotate(masks[0].numpy(), angle, reshape=False, order=0, mode="reflect")
    assert (mask[0].numpy() != ids).mean() < 0.005  # ties at half a pixel may fall either way


def test_negative_scales_mirror():
    images, masks = slices(3, 12, 17)
    scales = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    image, mask = warp(images, masks, torch.zeros(3), middle((12, 17), 3), (12, 17), scales)
    for i, dims in enumerate(([-1], [-2], [-2, -1])):
        assert torch.equal(mask[i], masks[i].flip(dims))
        assert torch.allclose(image[i], images[i].flip(dims), atol=0.05)


def test_scale_rotation_and_flip_together_equal_scipy():
    """One matrix: offsets in the window are scaled, then rotated; scipy's matrix is in (y, x)."""
    images, masks = slices(1, 40, 40)
    images = torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, 2, 2)))
    scales, center = (1.4, -0.8), (18.0, 21.0)
    image, mask = warp(images, masks, torch.tensor([30.0]), torch.tensor([center]), (40, 40), torch.tensor([scales]))
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    matrix = np.array([[cos, sin], [-sin, cos]]) @ np.diag(scales[::-1])
    offset = np.array(center[::-1]) - matrix @ np.array([19.5, 19.5])
    expected = ndimage.affine_transform(images[0, 0].numpy(), matrix, offset, order=1, mode="reflect")
    assert np.abs(image[0, 0].numpy() - expected).max() < 0.05
    ids = ndimage.affine_transform(masks[0].numpy(), matrix, offset, order=0, mode="reflect")
    assert (mask[0].numpy() != ids).mean() < 0.005


def test_offsets_equal_scipys_interpolation_at_the_moved_places():
    images, masks = slices(2, 30, 41)
    images = torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, 2, 2)))
    offsets = elastic_offsets(torch.tensor([1, 2]), (30, 41), sigma=6.0, strength=1.5)
    image, mask = warp(images, masks, torch.zeros(2), middle((30, 41), 2), (30, 41), offsets=offsets)
    y, x = np.mgrid[:30, :41]
    for i in range(2):
        places = y + offsets[i, 1].numpy(), x + offsets[i, 0].numpy()
        expected = ndimage.map_coordinates(images[i, 0].numpy(), places, order=1, mode="reflect")
        assert np.abs(image[i, 0].numpy() - expected).max() < 0.05
        ids = ndimage.map_coordinates(masks[i].numpy(), places, order=0, mode="reflect")
        assert (mask[i].numpy() != ids).mean() < 0.005


def test_elastic_offsets_are_white_noise_under_scipys_gaussian():
    """Deviation and correlation by distance, in windows whose sides are no multiples of the grid's spacing."""
    offsets = elastic_offsets(torch.arange(400), (50, 33), sigma=8.0, strength=2.0)
    assert offsets.shape == (400, 2, 50, 33) and abs(offsets.std().item() - 2.0) < 0.05
    assert offsets.std(0).min() > 1.7 and offsets.std(0).max() < 2.3  # the same everywhere, at the edges too
    impulse = np.zeros(161)
    impulse[80] = 1.0
    kernel = ndimage.gaussian_filter1d(impulse, 8.0)
    for lag in (4, 8, 16, 30):
        expected = (kernel[lag:] * kernel[: len(kernel) - lag]).sum() / (kernel**2).sum()
        for a, b in ((offsets[:, :, lag:], offsets[:, :, :-lag]), (offsets[..., lag:], offsets[..., :-lag])):
            assert abs((a * b).mean().item() / 4 - expected) < 0.06
    assert abs((offsets[:, 0] * offsets[:, 1]).mean()) < 0.2  # the two components know nothing of each other


def test_deformed_slices_keep_their_ids_do_not_fold_and_depend_on_their_seed_alone():

    def deform(images, masks, seeds):
        centers = torch.tensor([[23.5, 31.5]]).expand(len(images), 2)
        offsets = elastic_offsets(seeds, (64, 48), 4.8, 0.96)
        return warp(images, masks, torch.zeros(len(images)), centers, (64, 48), offsets=offsets)

    images, masks = slices(3, 64, 48)
    image, mask = deform(images, masks, torch.tensor([5, 6, 7]))
    assert image.shape == images.shape and mask.dtype == masks.dtype
    assert set(mask.unique().tolist()) <= set(masks.unique().tolist()) and not torch.equal(mask, masks)
    one, ids = deform(images[1:2], masks[1:2], torch.tensor([6]))
    torch.testing.assert_close(one[0], image[1], rtol=0, atol=1e-3)
    assert (ids[0] != mask[1]).float().mean() < 0.001
    x, y = elastic_offsets(torch.arange(200), (64, 48), 4.8, 0.96).unbind(1)
    across, down = 1 + x.diff(dim=2)[:, :-1], 1 + y.diff(dim=1)[:, :, :-1]
    area = across * down - x.diff(dim=1)[:, :, :-1] * y.diff(dim=2)[:, :-1]
    assert (area > 0).float().mean() > 0.9999


def test_blur_equals_scipy():
    images, _ = slices(3, 15, 20)
    sigmas = torch.tensor([[0.5, 1.0], [0.9, 0.6], [1.0, 1.0]])
    blurred = blur(images, sigmas)
    for i in range(3):
        expected = images[i, 0].numpy()
        for axis in (0, 1):
            expected = ndimage.gaussian_filter1d(expected, sigmas[i, axis].item(), axis, mode="nearest", radius=4)
        assert np.allclose(blurred[i, 0].numpy(), expected, atol=1e-3)


def test_lower_resolution_equals_interpolating_down_and_up():
    images, _ = slices(4, 30, 41)
    factors = torch.tensor([0.5, 0.73, 0.87, 1.0])  # none that leaves a pixel just between two
    coarse = lower_resolution(images, factors)
    for i, factor in enumerate(factors.tolist()):
        small = F.interpolate(images[i : i + 1], [round(30 * factor), round(41 * factor)], mode="nearest-exact")
        expected = F.interpolate(small, (30, 41), mode="bilinear")
        torch.testing.assert_close(coarse[i : i + 1], expected, rtol=0, atol=1e-3)
    assert torch.equal(coarse[3], images[3])


def test_contrast_keeps_mean_and_range_and_gamma_mean_and_deviation():
    images, _ = slices(3, 20, 30)
    images = images ** torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)
    mean = images.mean((1, 2, 3), True)
    contrast = change_contrast(images, torch.tensor([0.75, 1.0, 1.25]))
    torch.testing.assert_close(contrast[0] - mean[0], 0.75 * (images[0] - mean[0]))
    torch.testing.assert_close(contrast[1], images[1])
    assert contrast[2].max() == images[2].max() and contrast[2].std() > images[2].std()
    gamma = change_gamma(images, torch.tensor([0.7, 1.0, 1.5]))
    torch.testing.assert_close(gamma[1], images[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(gamma.std((1, 2, 3)), images.std((1, 2, 3)))
    torch.testing.assert_close(gamma.mean((1, 2, 3)), images.mean((1, 2, 3)))
    curve = ((images[2] - images[2].min()) / (images[2].max() - images[2].min())) ** 1.5
    assert np.corrcoef(gamma[2].flatten(), curve.flatten())[0, 1] > 0.99999
    assert change_gamma(torch.full((1, 1, 4, 4), 0.3), torch.tensor([1.5])).isfinite().all()


def test_no_warp_makes_new_mask_values():
    images, masks = slices(3, 30, 44)
    masks[0, :10] = 255
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        draws = [draw_window(generator, (30, 44), (24, 60), 180.0) for _ in range(3)]
        angles, centers = torch.tensor([d[0] for d in draws]), torch.tensor([d[1] for d in draws])
        image, mask = warp(images, masks, angles, centers, (24, 60))
        assert mask.dtype == masks.dtype
        assert image.shape == (3, 1, 24, 60)
        for before, after in zip(masks, mask, strict=True):
            assert set(after.unique().tolist()) <= set(before.unique().tolist())
        assert image.min() >= 0 and image.max() <= 255


def test_image_and_mask_turn_together():
    """An image that is its mask stays so, where the mask is locally constant, mirrored corners included."""
    y, x = np.mgrid[:60, :80]
    masks = torch.from_numpy((x // 20 + y // 15) % 3).unsqueeze(0)
    images = 100.0 * masks.unsqueeze(1).float()
    image, mask = warp(images, masks, torch.tensor([16.0]), torch.tensor([[20.0, 15.0]]), (60, 80))
    flat = ndimage.maximum_filter(mask[0].numpy(), 5) == ndimage.minimum_filter(mask[0].numpy(), 5)
    assert flat.mean() > 0.4
    assert np.allclose(image[0, 0].numpy()[flat], 100.0 * mask[0].numpy()[flat], atol=0.05)


def test_the_batch_changes_nothing():
    images, masks = slices(4, 33, 47)
    angles, centers = torch.tensor([0.0, -16.0, 5.0, 90.0]), middle((33, 47), 4) + torch.arange(4).view(4, 1)
    image, mask = warp(images, masks, angles, centers, (20, 28))
    for i in range(4):
        one, ids = warp(images[i : i + 1], masks[i : i + 1], angles[i : i + 1], centers[i : i + 1], (20, 28))
        assert torch.equal(one[0], image[i])
        assert torch.equal(ids[0], mask[i])


def visited(shape, size, windows) -> np.ndarray:
    """How often each pixel of the slice lies in one of the (angle, centre) windows."""
    places = torch.arange(shape[0] * shape[1]).view(1, *shape)
    counts = np.zeros(shape[0] * shape[1], int)
    for angle, center in windows:
        _, seen = warp(torch.zeros(1, 1, *shape), places, torch.tensor([angle]), torch.tensor([center]), size)
        counts[seen.unique().numpy()] += 1
    return counts.reshape(shape)


def test_drawn_windows_reach_every_pixel_and_stay_inside():
    generator = torch.Generator().manual_seed(0)
    windows = [draw_window(generator, (13, 18), (8, 11), 0.0) for _ in range(400)]
    counts = visited((13, 18), (8, 11), windows)
    assert counts.min() > 0
    assert counts.sum() == 400 * 8 * 11  # no window is filled up by a mirror image
    assert {window[1] for window in windows} == {(x + 5.0, y + 3.5) for x in range(8) for y in range(6)}


@pytest.mark.parametrize(
    ("shape", "size"), [((13, 18), (8, 11)), ((16, 16), (8, 8)), ((9, 30), (16, 16)), ((8, 8), (8, 8))]
)
def test_covering_windows_hold_every_pixel(shape, size):
    centers = covering_centers(shape, size)
    assert visited(shape, size, [(0.0, center) for center in centers]).min() > 0
    assert len(centers) == -(-shape[0] // size[0]) * -(-shape[1] // size[1])


def test_angles_are_drawn_from_the_whole_range():
    generator = torch.Generator().manual_seed(3)
    angles = np.array([draw_window(generator, (9, 9), (9, 9), 16.0)[0] for _ in range(500)])
    assert -16 <= angles.min() < -15 and 15 < angles.max() <= 16
    assert abs(angles.mean()) < 1.5


def test_a_window_larger_than_the_slice_keeps_whole_pixels():
    """Odd differences too: at half a pixel the nearest id would repeat some columns and lose others."""
    images, masks = slices(1, 5, 8)
    angle, center = draw_window(torch.Generator().manual_seed(0), (5, 8), (10, 13), 0.0)
    image, mask = warp(images, masks, torch.tensor([angle]), torch.tensor([center]), (10, 13))
    padded = np.pad(masks[0].numpy(), ((3, 2), (3, 2)), mode="symmetric")
    assert np.array_equal(mask[0].numpy(), padded)
    assert np.allclose(image[0, 0].numpy(), np.pad(images[0, 0].numpy(), ((3, 2), (3, 2)), mode="symmetric"), atol=0.05)
