"""Crop, flip, cutout and mixup against their definitions in numpy, cutmix and erasing also against torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from gkd_core.data.augment import Augmentation, Rectangle, crop_and_flip, cut_mix, cut_out, draw_cut, draw_erased, mix


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
    for wrong in ({"crop_padding": -1}, {"erasing": -0.1}, {"cutmix": -1.0}):
        with pytest.raises(ValueError, match="must not be negative"):
            Augmentation(**wrong)


def test_cutmix_by_hand() -> None:
    """Rows 0…1 and columns 2…3 of a 4 × 5 image are the partner's: 4 of 20 pixels, so λ = 0.8."""
    images = torch.stack([torch.zeros(1, 4, 5), torch.ones(1, 4, 5), torch.full((1, 4, 5), 0.5)])
    rectangle = Rectangle(0, 2, 2, 4)
    mixed, targets = cut_mix(images, torch.tensor([0, 2, 2]), torch.tensor([1, 2, 0]), rectangle, 4)
    expected = images.clone()
    for own, partner in enumerate([1.0, 0.5, 0.0]):
        expected[own, 0, :2, 2:4] = partner
    assert torch.equal(mixed, expected)
    assert targets.numpy() == pytest.approx(np.array([[0.8, 0, 0.2, 0], [0, 0, 1, 0], [0.2, 0, 0.8, 0]]))
    assert images[0].sum() == 0  # the batch itself stays


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_cutmix_s_rectangle_is_torchvision_s(share: float) -> None:
    """The same centre and λ in both."""

    class Told:
        """A generator with known answers: λ, then row and column."""

        def __init__(self, row: int, column: int) -> None:
            self.places = iter([row, column])

        def beta(self, a: float, b: float) -> float:
            return share

        def integers(self, limit: int) -> int:
            return next(self.places)

    theirs = v2.CutMix(num_classes=2)
    for row in range(6):
        for column in range(9):
            answers = iter([torch.tensor([column]), torch.tensor([row])])  # the order in which torchvision asks
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(theirs, "_dist", type("Known", (), {"sample": lambda self, _: torch.tensor(share)})())
                patch.setattr(torch, "randint", lambda *_, answers=answers, **__: next(answers))
                params = theirs.make_params([torch.zeros(2, 1, 6, 9)])
            found = draw_cut(Told(row, column), 1.0, (6, 9))  # type: ignore[arg-type]
            assert (found.left, found.top, found.right, found.bottom) == params["box"]
            _, targets = cut_mix(torch.rand(2, 1, 6, 9), torch.tensor([0, 1]), torch.tensor([1, 0]), found, 2)
            assert targets[0, 0] == pytest.approx(params["lam_adjusted"])


def test_erased_rectangles_keep_to_torchvision_s_limits() -> None:
    count, (height, width) = 4000, (40, 60)
    drawn = draw_erased(np.random.default_rng(0), count, 0.25, (height, width))
    found = [rectangle for rectangle in drawn if rectangle is not None]
    assert len(found) == pytest.approx(count / 4, abs=4 * (count * 0.25 * 0.75) ** 0.5)
    high = np.array([r.bottom - r.top for r in found])
    wide = np.array([r.right - r.left for r in found])
    assert min(r.top for r in found) == min(r.left for r in found) == 0
    assert max(r.bottom for r in found) == height
    assert max(r.right for r in found) == width
    assert (high < height).all()
    assert (wide < width).all()
    area = high * wide / (height * width)
    assert 0.01 < area.min() < 0.03
    assert 0.3 < area.max() < 0.35
    assert 0.25 < (high / wide).min() < 0.4
    assert 2.5 < (high / wide).max() < 4.0
    assert np.log(high / wide).mean() == pytest.approx(0, abs=0.08)
    assert not any(draw_erased(np.random.default_rng(0), 50, 0.0, (height, width)))
    assert all(draw_erased(np.random.default_rng(0), 50, 1.0, (height, width)))


def test_an_erased_rectangle_is_torchvision_s() -> None:
    image, fill = torch.rand(3, 8, 9), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    expected = functional.erase(image, 2, 3, 4, 5, fill)
    Rectangle(2, 3, 6, 8).fill(image, fill)
    assert torch.equal(image, expected)
