"""Grey to pseudo-RGB and back, class masks to colours and back."""

import numpy as np
import pytest
import torch

from natural2nanoscale.data.classes import IGNORE_ID, color_table, palette
from natural2nanoscale.data.encoders import decode_gray, encode_gray, encode_mask, tint


def test_every_grey_value_comes_back():
    gray = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    pixel_values = encode_gray(gray)
    assert pixel_values.shape == (1, 3, 16, 16)
    assert pixel_values.dtype == torch.float32
    assert (pixel_values.min(), pixel_values.max()) == (-1.0, 1.0)
    assert torch.equal(decode_gray(pixel_values), gray)
    assert torch.equal(decode_gray(pixel_values.half()), gray)  # a VAE may answer in half precision


def test_decoded_gray_is_the_mean_of_the_channels_and_bounded():
    pixel_values = torch.tensor([-0.5, 0.1, 0.7]).view(1, 3, 1, 1)
    assert decode_gray(pixel_values).item() == round((0.1 + 1) * 127.5)
    assert decode_gray(torch.full((1, 3, 1, 1), 3.0)).item() == 255
    assert decode_gray(torch.full((1, 3, 1, 1), -3.0)).item() == 0


def test_three_classes_are_pure_red_green_blue_and_ignore_is_black():
    mask = torch.tensor([[[0, 1, 2, IGNORE_ID]]])
    conditioning = encode_mask(mask, palette(3))
    assert conditioning.shape == (1, 3, 1, 4)
    assert conditioning[0, :, 0].T.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("count", [2, 3, 4, 7, 64])
def test_masks_come_back_from_conditioning(count):
    rng = np.random.default_rng(count)
    mask = rng.permutation(np.resize([*range(count), IGNORE_ID], 2 * 8 * 10)).reshape(2, 8, 10)
    conditioning = encode_mask(torch.from_numpy(mask), palette(count))
    pictures = (conditioning * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for picture, ids in zip(pictures, mask, strict=True):
        assert np.array_equal(picture, color_table(palette(count))[ids])  # and no two classes have one colour


def test_tint_is_the_spread_of_the_channels():
    grey = torch.linspace(-1, 1, 12).view(1, 1, 3, 4).expand(2, 3, 3, 4).clone()
    grey[1, 2] += 0.2  # bluish
    assert tint(grey).tolist() == pytest.approx([0, 0.2 * 127.5], abs=1e-4)
