"""Recipes: who wins over whom, what `auto` chooses, and what is refused before anything is trained."""

import json
from typing import Any

import pytest

from gkd_core.config import Params, TrainingConfig, params_of_sections, parse_params
from gkd_core.config.recipes import RECIPES, ResolvedTraining, Start, choose, planned, resolve
from gkd_core.errors import GkdError

NOISE, LEARNT, OWN = (Start(weights, 224, 1000) for weights in (False, True, None))


def resolved(start: Start = LEARNT, **given) -> ResolvedTraining:
    return resolve(TrainingConfig.model_validate(given), start)


def test_cifar_is_what_a_training_had_before_there_were_recipes():
    found = resolved(Start(False, 32, 45_000))
    assert found.recipe == "cifar"
    before = {
        "epochs": 20, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "nesterov": False,
        "weight_decay": 5e-4, "schedule": "cosine", "milestones": [], "decay_factor": 0.1, "warmup_epochs": 0.0,
        "label_smoothing": 0.0, "clip_norm": None, "ema_decay": None, "select": "last",
    }  # fmt: skip
    assert {name: getattr(found, name) for name in before} == before
    neutral = {"decay_norms": True, "freeze_epochs": 0, "backbone_lr_factor": 1.0, "layer_decay": 1.0}
    assert {name: getattr(found, name) for name in neutral} == neutral
    assert found.freeze_batch_norm is False
    written = found.augment.model_dump()
    augment = {name: value for name, value in written.items() if name not in ("rand_operations", "rand_magnitude")}
    nothing = dict.fromkeys(["color_jitter", "hue", "cutout", "erasing", "mixup", "cutmix"], 0)
    assert augment == {"crop_padding": None, "random_resized_crop": False, "flip": None, "auto": "none", **nothing}


@pytest.mark.parametrize(
    ("recipe", "photos"),
    [
        ("cifar", {"auto": "none", "color_jitter": 0.0, "erasing": 0.0}),
        ("fine-tune", {"auto": "none", "color_jitter": 0.4, "erasing": 0.0}),
        ("photos-from-scratch", {"auto": "trivial", "color_jitter": 0.0, "erasing": 0.1}),
    ],
)
def test_a_recipe_changes_photos_as_photos_and_leaves_small_images_alone(recipe, photos):
    def augment(size, **given):
        found = resolve(TrainingConfig.model_validate({"recipe": recipe, "augment": given}), Start(True, size, 1000))
        return found.augment.model_dump()

    assert {name: augment(65)[name] for name in photos} == photos
    assert {name: augment(64)[name] for name in photos} == {"auto": "none", "color_jitter": 0.0, "erasing": 0.0}
    for name, value in {"auto": "rand", "color_jitter": 0.7, "erasing": 0.3, "flip": False, "mixup": 0.2}.items():
        assert augment(224, **{name: value}) == augment(224) | {name: value}
    for name in photos:
        assert augment(224, **{name: None}) == augment(224)
    off = {"auto": "none", "color_jitter": 0.0, "erasing": 0.0}
    assert augment(224, **off) == augment(224) | off


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 7), ("batch_size", 24), ("optimizer", "adamw"), ("optimizer", "sgd"), ("learning_rate", 0.3),
        ("weight_decay", 0.0), ("decay_norms", True), ("decay_norms", False), ("warmup_epochs", 0.0),
        ("warmup_epochs", 0.25), ("label_smoothing", 0.2), ("label_smoothing", 0.0), ("freeze_epochs", 0),
        ("freeze_epochs", 1), ("backbone_lr_factor", 0.5), ("backbone_lr_factor", 1.0),
        ("freeze_batch_norm", True), ("freeze_batch_norm", False),
    ],
)  # fmt: skip
def test_what_is_given_wins_over_the_recipe_and_null_takes_it(recipe, field, value):
    given = resolved(recipe=recipe, **{field: value})
    assert getattr(given, field) == value
    left = resolved(recipe=recipe, **{field: None})
    assert left == resolved(recipe=recipe)
    assert getattr(left, field) == RECIPES[recipe]({}, LEARNT)[field]


def test_what_goes_with_the_optimizer_follows_the_optimizer_that_is_given():
    assert resolved(recipe="fine-tune").learning_rate == 1e-3
    found = resolved(recipe="fine-tune", optimizer="sgd")
    assert (found.learning_rate, found.weight_decay) == (0.01, 1e-4)
    assert resolved(recipe="fine-tune", optimizer="sgd", learning_rate=0.3).learning_rate == 0.3


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("epochs", [1, 2, 5, 300])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_a_recipe_goes_with_any_number_of_epochs_and_images(recipe, epochs, schedule):
    for images in (2, 700, 10**7):
        found = resolve(TrainingConfig(recipe=recipe, epochs=epochs, schedule=schedule), Start(True, 224, images))
        assert found.epochs == epochs
        assert found.freeze_epochs < epochs


@pytest.mark.parametrize(
    ("images", "epochs", "batch_size"),
    [(100, 20, 16), (1_000, 20, 32), (5_000, 13, 64), (1_000_000, 5, 128)],
)
def test_the_number_of_images_says_how_long_a_fine_tuning_is(images, epochs, batch_size):
    found = resolve(TrainingConfig(), Start(True, 224, images))
    assert (found.epochs, found.batch_size) == (epochs, batch_size)
    assert resolve(TrainingConfig(batch_size=10), Start(True, 224, 1_000)).epochs == 10  # as many steps


@pytest.mark.parametrize(
    ("start", "recipe", "why"),
    [
        (Start(True, 224, 500), "fine-tune", "learnt weights"),
        (Start(True, 8, 500), "fine-tune", "learnt weights"),
        (Start(False, 8, 500), "cifar", "8 pixels"),
        (Start(False, 64, 10**6), "cifar", "64 pixels"),
        (Start(False, 65, 500), "photos-from-scratch", "65 pixels"),
        (Start(None, 32, 500), "cifar", "32 pixels"),
        (Start(None, 224, 500), "photos-from-scratch", "224 pixels"),
    ],
)
def test_auto_chooses_and_says_why(start, recipe, why):
    chosen, reason = choose(TrainingConfig(), start)
    assert chosen == recipe == resolve(TrainingConfig(), start).recipe
    assert reason.startswith("auto: ")
    assert why in reason
    assert choose(TrainingConfig(recipe="cifar"), start) == ("cifar", "as given")


def test_what_is_resolved_stays_as_it_is():
    once = resolved(epochs=7)
    assert resolve(once, NOISE.__class__(True, 8, 9)) == once


@pytest.mark.parametrize(
    ("given", "start", "parts"),
    [
        ({"recipe": "fine-tune"}, NOISE, ["train.recipe is fine-tune", "noise", "weights"]),
        ({"freeze_epochs": 2}, NOISE, ["train.freeze_epochs is 2", "noise"]),
        ({"freeze_batch_norm": True}, NOISE, ["train.freeze_batch_norm is true", "noise"]),
        ({"freeze_epochs": 30}, LEARNT, ["train: freeze_epochs (30)", "epochs (20)", "recipe fine-tune"]),
        ({"warmup_epochs": 20.0}, LEARNT, ["warmup_epochs (20)", "epochs (20)"]),
        ({"nesterov": True}, LEARNT, ["nesterov needs optimizer sgd", "recipe fine-tune"]),
        ({"devices": 5}, LEARNT, ["batch_size (32)", "devices (5)"]),
    ],
)
def test_what_does_not_go_with_the_recipe_or_the_network_is_one_sentence(given, start, parts):
    with pytest.raises(GkdError) as refused:
        resolved(start, **given)
    for part in parts:
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_module_of_one_s_own_may_have_learnt_weights():
    assert resolved(OWN, recipe="fine-tune", freeze_epochs=1, freeze_batch_norm=True).freeze_epochs == 1


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"train": {"freeze_epochs": 5, "epochs": 5}}, ["train: freeze_epochs (5)", "epochs (5)"]),
        ({"train": {"layer_decay": 1.5}}, ["train.layer_decay is 1.5", "1"]),
        ({"train": {"backbone_lr_factor": 0.0}}, ["train.backbone_lr_factor is 0"]),
        ({"train": {"recipe": "finetune"}}, ["train.recipe is 'finetune'", "fine-tune", "photos-from-scratch"]),
        ({"train": {"recipe": "fine-tune"}}, ["train.recipe is fine-tune", "resnet8 starts from noise"]),
        (
            {"teacher": {"train": {"freeze_epochs": 1}}},
            ["teacher.train.freeze_epochs is 1", "resnet20 starts"],
        ),
        # what only the recipe makes wrong, which these parameters already tell
        ({"train": {"warmup_epochs": 20.0}}, ["train: warmup_epochs (20)", "epochs (20)"]),
        ({"train": {"schedule": "multistep", "milestones": [30]}}, ["train: milestones [30]", "epochs (20)"]),
        ({"train": {"devices": 3}}, ["train: batch_size (64)", "devices (3)"]),
        (
            {"train": {"nesterov": True}, "data": {"source": "folder", "root": "x", "image_size": 224}},
            ["nesterov", "recipe photos-from-scratch"],
        ),
        (
            {"train": {"momentum": 0.8}, "data": {"source": "folder", "root": "x", "image_size": 224}},
            ["train: momentum", "adamw"],
        ),
    ],
)
def test_the_configuration_is_refused_when_it_is_read(content, parts):
    with pytest.raises(GkdError) as refused:
        parse_params(content)
    (message,) = str(refused.value).splitlines()
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "content",
    [
        {"train": {"warmup_epochs": 25.0}, "data": {"source": "folder", "root": "x", "image_size": 224}},  # 100 epochs
        {"train": {"warmup_epochs": 25.0}, "data": {"source": "torchvision:STL10"}},  # whose size nobody knows yet
        {"train": {"momentum": 0.8}},
        {"train": {"recipe": "cifar", "epochs": 20}},
    ],
)
def test_what_may_go_well_is_not_refused_ahead(content):
    parse_params(content)


def test_an_override_that_contradicts_the_recipe_is_blamed():
    with pytest.raises(GkdError, match=r"^params with --set train.warmup_epochs=30.0: train: warmup_epochs \(30\)"):
        parse_params({}, ["train.warmup_epochs=30.0"])


def test_what_is_given_and_what_is_left_open_survives_json_as_a_pipeline_has_it():
    params = parse_params({"train": {"learning_rate": 0.05, "epochs": 20}, "student": {"name": "resnet18"}})
    travelled = params_of_sections(json.loads(json.dumps(params.model_dump(mode="json", include={"student", "train"}))))
    assert travelled.digest("student", "train") == params.digest("student", "train")
    for start in (NOISE, LEARNT):
        assert resolve(travelled.train, start) == resolve(params.train, start)
    assert resolve(travelled.train, LEARNT).learning_rate == 0.05  # given, though it is cifar's own
    assert params.digest("train") != Params().digest("train")


def test_weights_in_the_configuration_make_auto_fine_tune_before_anything_is_loaded():
    params = parse_params({"student": {"weights": "somewhere"}, "train": {"freeze_epochs": 1, "recipe": "fine-tune"}})
    assert [start.weights for plan in planned(params) for start in plan.starts] == [False] * 2 + [True] * 2
    with pytest.raises(GkdError, match="recipe is fine-tune, but resnet14 starts from noise"):
        parse_params(
            {
                "teacher": {
                    "members": [{"name": "resnet8", "weights": "somewhere"}, {"name": "resnet14"}],
                    "train": {"recipe": "fine-tune"},
                },
                "distill": {"method": "kd", "scheme": "ensemble"},
            }
        )


def test_every_training_of_the_steps_is_planned():
    params = parse_params({"teacher": {"members": [{"name": "resnet8"}, {"name": "resnet14"}]},
                           "distill": {"method": "kd", "scheme": "ensemble"}})  # fmt: skip
    assert [(plan.section, plan.network) for plan in planned(params)] == [
        ("teacher.train", "resnet8"), ("teacher.train", "resnet14"), ("train", "resnet8"),
    ]  # fmt: skip
    assert {start.image_size for plan in planned(params) for start in plan.starts} == {8}
    assert {start.images for plan in planned(params, images=77) for start in plan.starts} == {77}
    assert [plan.section for plan in planned(parse_params({"teacher": {"source": "models:/x@champion"}}))] == ["train"]


def test_a_recipe_that_an_override_gives_is_blamed_on_it():
    with pytest.raises(GkdError, match=r"^params with --set train.recipe=fine-tune: train.recipe is fine-tune"):
        parse_params({}, ["train.recipe=fine-tune"])


def test_whole_pictures_are_seen_in_windows_unless_squares_are_shifted() -> None:
    def window(start: Start, **augment: Any) -> Any:
        return resolved(start, augment=augment).augment.random_resized_crop

    whole = [Start(learnt, 224, 1000, whole=True) for learnt in (True, False)]
    assert [window(start) for start in whole] == [[0.35, 1.0], [0.25, 1.0]]
    for start in (*whole, Start(False, 48, 1000, whole=True)):
        assert window(start, random_resized_crop=[0.5, 0.9]) == [0.5, 0.9]
        assert window(start, random_resized_crop=False) is window(start, crop_padding=4) is False
    squares = (Start(True, 224, 1000), Start(False, 224, 1000), Start(False, 48, 1000, whole=True))
    assert [window(start) for start in squares] == [False] * 3


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        ({"source": "folder", "root": "photos", "image_size": 224}, True),
        ({"source": "folder", "root": "photos", "image_size": 64}, False),
        ({"source": "folder", "root": "photos", "image_size": 64, "store": "raw"}, True),
        ({"source": "folder", "root": "photos", "image_size": 64, "store_size": 70}, True),
        ({"source": "folder", "root": "photos", "image_size": 224, "store": "squares"}, False),
        ({"source": "cifar10", "image_size": 224}, False),
        ({"source": "torchvision:Flowers102", "image_size": 224}, False),
    ],
)
def test_the_parameters_tell_whether_pictures_are_whole(data: dict[str, Any], whole: bool) -> None:
    params = parse_params({"data": data})
    assert {start.whole for plan in planned(params) for start in plan.starts} == {whole}
    assert {start.whole for plan in planned(params, 224, 100, whole=not whole) for start in plan.starts} == {not whole}
