"""Crop, flip, cutout and mixup against their definitions written out in numpy."""

import numpy as np
import pytest
import torch

from gkd_core.data.augment import Augmentation, crop_and_flip, cut_out, mix


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_crop_is_a_slice_of_the_padded_image(padding: int, dtype: torch.dtype) -> None:
    shifts = [(dy, dx) for dy in range(2 * padding + 1) for dx in range(2 * padding + 1)] * 2
    flips = torch.arange(len(shifts)) % 2 == 0
    images = torch.randint(0, 256, (len(shifts), 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    result = crop_and_flip(images, torch.tensor(shifts), flips, padding)
    assert result.dtype == dtype
    for image, found, (dy, dx), flipped in zip(images.numpy(), result.numpy(), shifts, flips.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        window = padded[:, dy : dy + 5, dx : dx + 7]
        assert np.array_equal(found, window[:, :, ::-1] if flipped else window)


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_cutout_fills_a_square_and_nothing_else(side: int) -> None:
    centres = [(y, x) for y in range(6) for x in range(5)]
    images = torch.rand(len(centres), 2, 6, 5, generator=torch.Generator().manual_seed(1))
    result = cut_out(images, torch.tensor(centres), side, torch.tensor([0.25, 0.75]))
    for image, found, (y, x) in zip(images.numpy(), result.numpy(), centres, strict=True):
        expected = image.copy()
        top, left = y - side // 2, x - side // 2
        for row in range(max(0, top), min(6, top + side)):
            for column in range(max(0, left), min(5, left + side)):
                expected[:, row, column] = (0.25, 0.75)
        assert np.array_equal(found, expected)


def test_mixup_by_hand() -> None:
    images = torch.tensor([0.0, 1.0, 0.5]).reshape(3, 1, 1, 1)
    mixed, targets = mix(images, torch.tensor([0, 2, 2]), torch.tensor([1, 2, 0]), 0.75, 4)
    assert mixed.flatten().tolist() == [0.25, 0.875, 0.375]
    assert targets.tolist() == [[0.75, 0, 0.25, 0], [0, 0, 1, 0], [0.25, 0, 0.75, 0]]


def test_negative_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        Augmentation(crop_padding=-1)
