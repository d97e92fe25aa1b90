"""What sections say against each other, and against the data."""

import pytest

from gkd_core.config import AugmentConfig, parse_params, refuse_unfit_augmentation
from gkd_core.errors import GkdError
from gkd_core.files import json_digest


def test_a_topological_teacher_needs_the_topology_of_the_data():
    with pytest.raises(GkdError, match=r"teacher\.topological .* data\.topology"):
        parse_params({"teacher": {"topological": True}})


def test_augmentation_as_wide_as_the_images_is_refused_with_their_size():
    with pytest.raises(GkdError) as caught:
        refuse_unfit_augmentation(AugmentConfig(cutout=50, crop_padding=8), 8, 1, section="teacher.train")
    crop, cutout = str(caught.value).split("\n")
    assert crop.startswith("teacher.train.augment.crop_padding is 8")
    assert cutout.startswith("teacher.train.augment.cutout is 50")
    assert " 8 pixels" in crop
    assert " 8 pixels" in cutout
    refuse_unfit_augmentation(AugmentConfig(cutout=7, crop_padding=7), 8, 1)


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


def test_augmentation_that_finds_nothing_to_change_is_refused():
    with pytest.raises(GkdError, match=r"^train\.augment\.hue is 0\.1, but the images are grey"):
        refuse_unfit_augmentation(AugmentConfig(hue=0.1, color_jitter=0.4), 64, 1)
    refuse_unfit_augmentation(AugmentConfig(hue=0.1), 64, 3)
    with pytest.raises(GkdError, match=r"^train\.augment\.auto is trivial, .* 32 pixels, .* 31 pixels wide: .* rand"):
        refuse_unfit_augmentation(AugmentConfig(auto="trivial"), 31, 3)
    refuse_unfit_augmentation(AugmentConfig(auto="trivial"), 32, 3)
    refuse_unfit_augmentation(AugmentConfig(auto="rand"), 8, 3)


@pytest.mark.parametrize(
    ("augment", "parts"),
    [
        ({"color_jitter": 1.5}, ["train.augment.color_jitter is 1.5", "1"]),
        ({"hue": 0.6}, ["train.augment.hue is 0.6", "0.5"]),
        ({"erasing": -0.1}, ["train.augment.erasing is -0.1"]),
        ({"cutmix": -1.0}, ["train.augment.cutmix is -1"]),
        ({"auto": "trivialaugment"}, ["train.augment.auto is 'trivialaugment'", "trivial", "rand"]),
        ({"auto": "rand", "rand_magnitude": 31}, ["train.augment.rand_magnitude is 31", "30"]),
        ({"rand_magnitude": 5}, ["train.augment: rand_magnitude is given but auto is null", "auto to rand"]),
        ({"auto": "trivial", "rand_operations": 3}, ["rand_operations is given but auto is trivial"]),
        ({"colour_jitter": 0.4}, ["'train.augment.colour_jitter'", "'train.augment.color_jitter'"]),
    ],
)
def test_augmentation_s_limits_are_one_sentence(augment, parts):
    with pytest.raises(GkdError) as refused:
        parse_params({"train": {"augment": augment}})
    (message,) = str(refused.value).splitlines()
    for part in parts:
        assert part in message


@pytest.mark.parametrize("method", ["dkd", "crd"])
def test_unlabelled_images_are_refused_with_a_method_that_needs_every_label(method):
    given = {"data": {"unlabelled": "more/"}, "distill": {"method": method}}
    with pytest.raises(GkdError, match=rf"method {method} needs the label of every image.* train\.unlabelled_fraction"):
        parse_params(given)
    parse_params(given | {"train": {"unlabelled_fraction": 0.0}})
    chain = {"assistants": ["resnet8"], "assistant_distill": {"method": method}}
    distill = {"method": method, "scheme": "assistant"}
    with pytest.raises(GkdError, match=r"teacher\.train\.unlabelled_fraction to 0"):
        parse_params(given | {"teacher": chain, "distill": distill, "train": {"unlabelled_fraction": 0.0}})


def test_a_fraction_is_of_images_that_are_there_and_for_networks_that_have_a_teacher():
    with pytest.raises(GkdError, match=r"train\.unlabelled_fraction is 0\.5, but the data has no unlabelled images"):
        parse_params({"train": {"unlabelled_fraction": 0.5}})
    data = {"unlabelled": "more/"}
    with pytest.raises(GkdError, match=r"teacher.*train\.unlabelled_fraction is 0\.5 but assistants is empty"):
        parse_params({"data": data, "teacher": {"train": {"unlabelled_fraction": 0.5}}})
    with pytest.raises(GkdError, match=r"topology is true"):
        parse_params({"data": data | {"topology": True}})
    assert parse_params({"data": data}).digest("data") == parse_params({}).digest("data"), "a place is in no digest"


@pytest.mark.parametrize(
    ("soft_labels", "given", "words"),
    [
        ("decoupled", {"data": {"unlabelled": "more/"}}, r"needs the label of every image.* another soft_labels"),
        (
            "decoupled",
            {"train": {"augment": {"mixup": 0.2}}},
            r"needs plain labels, and train\.augment\.mixup mixes them",
        ),
        ("dist", {"train": {"balance": "weights"}}, r"has terms that are no mean over samples.* another soft_labels"),
    ],
)
def test_an_option_that_cannot_be_taught_like_this_is_named_with_its_method(soft_labels, given, words):
    distill = {"method": "gompertz", "options": {"gompertz": {"soft_labels": soft_labels}}}
    with pytest.raises(GkdError, match=rf"method gompertz with soft_labels {soft_labels} {words}"):
        parse_params(given | {"distill": distill})
    parse_params(given)
    parse_params(given | {"distill": distill | {"method": "kd"}})  # whose options are another method's


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("method", ["dkd", "crd"])
def test_a_method_of_plain_labels_refuses_mixed_images_before_anything_is_trained(method, name):
    mixed = {"augment": {name: 0.2}}
    with pytest.raises(GkdError, match=rf"method {method} needs plain labels, and train\.augment\.{name} mixes them"):
        parse_params({"distill": {"method": method}, "train": mixed})
    parse_params({"distill": {"method": method}, "teacher": {"train": mixed}})
    chain = {"assistants": ["resnet8"], "assistant_distill": {"method": method}, "train": mixed}
    with pytest.raises(GkdError, match=rf"teacher\.train\.augment\.{name} mixes them"):
        parse_params({"distill": {"method": method, "scheme": "assistant"}, "teacher": chain})


def test_the_file_for_pictures_of_any_size_is_in_the_digest_only_where_it_is_wanted():
    plain = parse_params({})
    sections = plain.model_dump(mode="json", include={"export"})
    assert sections["export"].pop("pixels") is False
    assert plain.digest("export") == json_digest(sections), "as it was before there was such a file"
    assert parse_params({"export": {"pixels": True}}).digest("export") != plain.digest("export")
