"""Changes of single images: torchvision's own transforms with the same parameters, and how parameters are drawn."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as kernel

from gkd_core.data.operations import BINS, Operation, apply, draw_auto, draw_jitter

TRANSFORMS = {
    "trivial": v2.TrivialAugmentWide(interpolation="bilinear"),
    "rand": v2.RandAugment(interpolation="bilinear"),
}


def photo(channels: int = 3, size: tuple[int, int] = (40, 36)) -> torch.Tensor:
    """Smooth colours with some noise, as kernels meet them."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(1, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0]
    return (smooth * 255 + 20 * torch.rand(channels, *size, generator=generator)).clamp(0, 255).to(torch.uint8)


def drawn(auto: str, count: int, **more) -> list[list[Operation]]:
    settings = {"size": (40, 36), "operations": 1, "magnitude": 9} | more
    return draw_auto(np.random.default_rng(0), count, auto, **settings)


@pytest.mark.parametrize("auto", ["trivial", "rand"])
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_are_torchvision_s_of_the_same_name_and_magnitude(auto, channels):
    """Every operation at every magnitude that torchvision's transform may come to, and no others."""
    theirs, image = TRANSFORMS[auto], photo(channels)
    seen: dict[str, set[float]] = {}
    for magnitude in range(0, BINS, 6) if auto == "rand" else (9,):
        count = 1000 if auto == "rand" else 20_000  # enough that nothing is missing
        for (operation,) in filter(None, drawn(auto, count, magnitude=magnitude)):
            seen.setdefault(operation.name, set()).add(operation.magnitude)
    space = theirs._AUGMENTATION_SPACE
    assert seen.keys() | {"Identity"} == space.keys()
    for name, found in seen.items():
        magnitudes, signed = space[name]
        bins = magnitudes(BINS, 40, 36)
        values = [0.0] if bins is None else bins.double().tolist()[:: 6 if auto == "rand" else 1]
        expected = {sign * value for value in values for sign in ((1, -1) if signed else (1,))}
        assert sorted(found) == pytest.approx(sorted(expected), abs=1e-5)
        for magnitude in sorted(found)[::7]:
            ours = apply(image, [Operation(name, magnitude)])
            options = {"interpolation": theirs.interpolation, "fill": theirs._fill}
            assert torch.equal(ours, theirs._apply_image_or_video_transform(image, name, magnitude, **options)), name
            assert (ours.dtype, ours.shape) == (image.dtype, image.shape)


def test_operations_and_signs_are_as_likely_as_each_other():
    count = 20_000
    changes = drawn("trivial", count)
    names, counts = np.unique([operation.name for (operation,) in filter(None, changes)], return_counts=True)
    counts = np.append(counts, count - counts.sum())  # of Identity
    assert len(names) == 13
    assert ((counts - count / 14) ** 2 / (count / 14)).sum() < 34.5  # 99.9 % of χ² with 13 degrees of freedom
    rotations = np.array([operation.magnitude for (operation,) in filter(None, changes) if operation.name == "Rotate"])
    signs = np.sign(rotations[rotations != 0])
    assert abs(signs.mean()) < 4 / len(signs) ** 0.5
    bins = np.bincount(np.rint(np.abs(rotations) / 4.5).astype(int), minlength=BINS)
    assert ((bins - len(rotations) / BINS) ** 2 / (len(rotations) / BINS)).sum() < 59.7  # 99.9 %, 30 degrees


def test_randaugment_has_its_number_of_operations_and_one_magnitude():
    for changes in drawn("rand", 200, operations=3, magnitude=10):
        assert len(changes) <= 3
        for operation in changes:
            if operation.name == "Rotate":
                assert abs(operation.magnitude) == pytest.approx(10.0)  # 30° · 10 / 30
            if operation.name == "TranslateX":
                assert abs(operation.magnitude) == pytest.approx(150 / 331 * 36 / 3)


def test_jitter_is_torchvision_s_with_the_same_factors_in_the_same_order():
    image = photo()
    steps = {
        "Brightness": lambda x, m: kernel.adjust_brightness(x, 1 + m),
        "Contrast": lambda x, m: kernel.adjust_contrast(x, 1 + m),
        "Color": lambda x, m: kernel.adjust_saturation(x, 1 + m),
        "Hue": lambda x, m: kernel.adjust_hue(x, m),
    }
    for changes in draw_jitter(np.random.default_rng(1), 20, 0.4, 0.1):
        assert {operation.name for operation in changes} == set(steps)
        expected = image
        for name, magnitude in changes:
            expected = steps[name](expected, magnitude)
        assert torch.equal(apply(image, changes), expected)


def test_jitter_s_factors_and_orders_are_uniform():
    count, strength, hue = 6000, 0.4, 0.1
    changes = draw_jitter(np.random.default_rng(2), count, strength, hue)
    for name, limit in {"Brightness": strength, "Contrast": strength, "Color": strength, "Hue": hue}.items():
        values = np.array([operation.magnitude for one in changes for operation in one if operation.name == name])
        assert len(values) == count
        assert abs(values).max() <= limit
        assert values.mean() == pytest.approx(0, abs=4 * limit / math.sqrt(3 * count))
        assert values.var() == pytest.approx(limit**2 / 3, rel=0.1)
    _, orders = np.unique([" ".join(operation.name for operation in one) for one in changes], return_counts=True)
    assert len(orders) == 24
    assert ((orders - count / 24) ** 2 / (count / 24)).sum() < 49.7  # 99.9 % of χ² with 23 degrees of freedom


def test_jitter_leaves_out_what_is_off():
    assert {op.name for one in draw_jitter(np.random.default_rng(0), 9, 0.0, 0.1) for op in one} == {"Hue"}
    assert {len(one) for one in draw_jitter(np.random.default_rng(0), 9, 0.4, 0.0)} == {3}


def test_no_operation_leaves_the_image_as_it_is():
    image = photo()
    assert torch.equal(apply(image, []), image)
