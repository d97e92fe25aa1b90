"""What sections say against each other, and against the data."""

import pytest

from gkd_core.config import AugmentConfig, parse_params, refuse_wide_augmentation
from gkd_core.errors import GkdError


def test_a_topological_teacher_needs_the_topology_of_the_data():
    with pytest.raises(GkdError, match=r"teacher\.topological .* data\.topology"):
        parse_params({"teacher": {"topological": True}})


def test_augmentation_as_wide_as_the_images_is_refused_with_their_size():
    with pytest.raises(GkdError) as caught:
        refuse_wide_augmentation(AugmentConfig(cutout=50, crop_padding=8), 8, section="teacher.train")
    crop, cutout = str(caught.value).split("\n")
    assert crop.startswith("teacher.train.augment.crop_padding is 8")
    assert cutout.startswith("teacher.train.augment.cutout is 50")
    assert " 8 pixels" in crop
    assert " 8 pixels" in cutout
    refuse_wide_augmentation(AugmentConfig(cutout=7, crop_padding=7), 8)


@pytest.mark.parametrize("method", ["rkd", "dist"])
def test_weights_are_refused_with_a_method_that_compares_samples_before_anything_is_trained(method):
    distill = {"method": method}
    with pytest.raises(GkdError, match=rf"train\.balance is weights, but method {method} .* train\.balance to sampler"):
        parse_params({"distill": distill, "train": {"balance": "weights"}})
    parse_params({"distill": distill, "train": {"balance": "sampler"}, "teacher": {"train": {"balance": "weights"}}})


def test_weights_in_a_chain_of_assistants_are_refused_where_they_were_written():
    teacher = {"assistants": ["resnet8"], "assistant_distill": {"method": "rkd"}, "train": {"balance": "weights"}}
    with pytest.raises(GkdError, match=r"teacher\.train\.balance is weights, but method rkd"):
        parse_params({"distill": {"method": "rkd", "scheme": "assistant"}, "teacher": teacher})
