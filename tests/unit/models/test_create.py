"""Networks by name: what is given, what the data says, and what holds without data."""

import numpy as np
import pytest
import torch

from gkd_core.data.prepared import PreparedData, Split
from gkd_core.errors import GkdError
from gkd_core.models.create import create_model, list_models


def test_the_data_says_what_is_not_given(digits):
    data = PreparedData.open(digits)
    spec = create_model("resnet8", data=data).spec
    assert (spec.classes, spec.image_size, spec.in_channels) == (data.info.classes, 8, 1)
    assert (spec.mean, spec.std) == (data.info.mean, data.info.std)
    colour = create_model("resnet8", data=data, channels=3, image_size=16).spec
    assert (colour.in_channels, colour.image_size, colour.mean) == (3, 16, data.info.mean * 3)


def test_without_data_a_network_of_the_cifar_families_takes_32_pixels_and_torchvision_s_224():
    spec = create_model("resnet8", classes=["a", "b"]).spec
    assert (spec.image_size, spec.in_channels, spec.mean) == (32, 3, (0.485, 0.456, 0.406))
    assert create_model("squeezenet1_1", classes=["a", "b"]).spec.image_size == 224


def test_a_grey_view_of_colour_data_has_the_statistics_of_its_grey_images(digits):
    data = PreparedData.open(digits)
    labels = data.train.labels
    images = np.random.default_rng(0).integers(256, size=(1500, 8, 8, 3), dtype=np.uint8)
    data.info = data.info.model_copy(update={"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    data.train = Split(images, labels)
    spec = create_model("resnet8", data=data, channels=1).spec
    grey = images / 255 @ np.array([0.299, 0.587, 0.114])
    assert spec.mean == pytest.approx((grey.mean(),))
    assert spec.std == pytest.approx((grey.std(),))


def test_a_seed_fixes_the_weights_and_leaves_torch_s_random_state():
    state = torch.get_rng_state()
    first, second, other = (create_model("resnet8", classes=["a", "b"], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [network.classifier.conv1.weight for network in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_network_without_classes_is_refused():
    with pytest.raises(GkdError, match="classes"):
        create_model("resnet8")


def test_models_are_listed_by_part_or_pattern():
    assert list_models("resnet8") == ["resnet8", "resnet8x4"]
    assert list_models("wrn_*_1") == ["wrn_16_1", "wrn_40_1"]
    assert "vit_b_16" in list_models()
