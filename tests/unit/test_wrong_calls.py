"""A wrong call of a public function is one sentence in that call's words, before anything is trained."""

import pytest
from torchvision.models import resnet18

import gkd_core as gkd
from gkd_core.models.network import Network


@pytest.fixture(scope="module")
def data():
    return gkd.load_data("digits", train_images=100)


def network(data, seed: int = 0) -> Network:
    return gkd.create_model("resnet8", data=data, seed=seed)


def sentence(call, *arguments, **keywords) -> str:
    with pytest.raises(gkd.GkdError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("given", ["resnet8", resnet18(num_classes=10)], ids=["a name", "a module"])
def test_what_is_no_network_is_named_with_the_ways_to_get_one(data, given):
    student = network(data)
    calls = [
        ("network", gkd.train, (given, data)),
        ("student", gkd.distill, (given, student, data)),
        ("teacher", gkd.distill, (student, given, data)),
        ("network", gkd.evaluate, (given, data)),
        ("network", gkd.export_onnx, (given,)),
        ("teacher", gkd.compare, ("resnet8", given, data)),
    ]
    for name, call, arguments in calls:
        said = sentence(call, *arguments)
        assert said.startswith(f"{name} is ")
        assert all(way in said for way in ("create_model", "load_model", "wrap"))
    assert sentence(gkd.evaluate, student, data, teacher=given).startswith("teacher is ")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"classes": 3}, "classes is 3: give a list"),
        ({"classes": "cat"}, "classes is 'cat': give a list"),
        ({"classes": ["cat", 1]}, "classes is ['cat', 1]: give a list"),
        ({"image_size": "64"}, "image_size is '64'"),
        ({"image_size": 0}, "image_size is 0"),
        ({"channels": 0}, "in_channels is 0"),
        ({"mean": 0.5}, "mean is 0.5: give a list of numbers"),
        ({"std": "abc"}, "std is 'abc': give a list of numbers"),
    ],
)
def test_what_describes_a_network_is_of_the_right_type(given, named):
    state = gkd.create_model("resnet8", classes=["a", "b"]).classifier.state_dict()
    for call, network in ((gkd.create_model, "resnet8"), (gkd.wrap, resnet18(num_classes=2)), (gkd.load_model, state)):
        more = {"name": "resnet8"} if call is gkd.load_model else {}
        assert named in sentence(call, network, **more, **({"classes": ["a", "b"]} | given))


def test_a_wrapped_module_is_a_module_and_its_stages_are_a_list():
    assert "stages is 'layer1': give a list of names" in sentence(gkd.wrap, resnet18(), "layer1", classes=["a"])
    assert "create_model" in sentence(gkd.wrap, "resnet18", classes=["a", "b"])
    assert "list_models" in sentence(gkd.create_model, 18, classes=["a", "b"])
    assert "pretrained" in sentence(gkd.create_model, "resnet8", classes=["a", "b"], weights=True)


def test_data_is_what_load_data_returns(data):
    for call, arguments in ((gkd.train, ()), (gkd.distill, (network(data, 1),)), (gkd.evaluate, ())):
        assert "load_data" in sentence(call, network(data), *arguments, [1, 2])


def test_a_teacher_is_asked_for_and_is_another_network_than_the_student(data):
    student = network(data)
    said = sentence(gkd.distill, student, None, data, method="kd")
    assert "teacher" in said
    assert "--" not in said
    assert "the same network" in sentence(gkd.distill, student, student, data, method="kd")
    assert "seed → network" in sentence(gkd.compare, student, network(data, 1), data)


def test_a_teacher_knows_the_data_s_classes_in_their_order(data):
    """Of as many classes in another order it would teach the wrong ones, and nobody would see."""
    backwards = gkd.create_model("resnet8", classes=data.classes[::-1], image_size=8, channels=1)
    assert "in another order" in sentence(gkd.distill, network(data), backwards, data, method="kd")
    others = gkd.create_model("resnet8", classes=["cat", "dog"], image_size=8, channels=1)
    said = sentence(gkd.distill, network(data), others, data, method="kd")
    assert all(part in said for part in ("cat, dog", "0, 1, 2, … (10)", "load_model"))


@pytest.mark.parametrize("name", ["options", "scheme_options", "curve"])
def test_options_are_a_mapping(data, name):
    said = sentence(gkd.distill, network(data), network(data, 1), data, method="kd", **{name: "wasserstein"})
    assert f"distill.{name}" in said
    assert "wasserstein" in said


@pytest.mark.parametrize("given", [{"methods": "kd"}, {"seeds": 3}])
def test_a_comparison_takes_lists(data, given):
    assert "give a list" in sentence(gkd.compare, "resnet8", network(data), data, **given)


def test_contenders_are_names_with_sections(data):
    def said(contenders, student="resnet8", **given):
        return sentence(gkd.compare, student, network(data), data, contenders=contenders, **given)

    assert "give a dict of dicts" in said(["kd"])
    assert "give a dict of dicts" in said({"kd": "kd"})
    assert "contenders: 'a': parameter 'train.epoch' is unknown; did you mean 'train.epochs'?" in said(
        {"a": {"train": {"epoch": 1}}}
    )
    assert "contenders and methods are both given" in said({"a": {}}, methods=["kd"])
    assert "student has no name" in said({"a": {"student": {"weights": "pretrained"}}}, student=lambda seed: None)
    assert "give seeds" in said({"a": {}}, seed=1)


def test_an_option_of_the_method_is_sent_to_options(data):
    said = sentence(gkd.distill, network(data), network(data, 1), data, method="kd", temperature=2)
    assert "options={'temperature': 2}" in said
    said = sentence(gkd.distill, network(data), network(data, 1), data, scheme="born_again", method="kd", generations=2)
    assert "scheme_options={'generations': 2}" in said


def test_what_is_given_and_nothing_reads_is_refused(data):
    networks = network(data), network(data, 1)
    assert "curve.b is 1" in sentence(gkd.distill, *networks, data, method="kd", curve={"b": 1.0})
    assert "momentum" in sentence(gkd.train, networks[0], data, optimizer="adamw", momentum=0.5)
    assert "momentum" in sentence(gkd.train, networks[0], data, recipe="photos-from-scratch", momentum=0.9)
    assert "momentum" in sentence(gkd.distill, *networks, data, recipe="photos-from-scratch", momentum=0.9)
    said = sentence(gkd.distill, *networks, data, method="gompertz", options={"solver": "sliced", "epsilon": 0.1})
    assert "epsilon is 0.1 but solver sliced" in said


def test_folders_that_cannot_be_are_named_by_their_argument_before_the_training(data, tmp_path):
    file = tmp_path / "g.pt"
    file.touch()
    assert sentence(gkd.train, network(data), data, work=file, epochs=1).startswith("work ")
    assert sentence(gkd.train, network(data), data, work=file / "below", epochs=1).startswith("work ")
    assert sentence(gkd.train, network(data), data, out=file, epochs=10**6).startswith("out ")
    assert sentence(gkd.export_onnx, network(data), file).startswith("folder ")
    assert sentence(gkd.load_data, "digits", cache=tmp_path / "g.pt" / "below").startswith("cache ")


def test_confidence_is_a_probability(data):
    assert "between 0 and 1" in sentence(gkd.evaluate, network(data), data, confidence=2.0)
