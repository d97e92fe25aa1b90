"""Methods, networks and augmentations of other packages."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch

import gkd_core as gkd
from gkd_core import plugins
from gkd_core.config import Params, load_plugins, params_of_sections, parse_params
from gkd_core.config.contenders import line_up
from gkd_core.config.space import parse_space, read_space
from gkd_core.data import own
from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.methods import METHODS
from gkd_core.models.registry import OWN
from tests.unit.plugin import SOURCE, add_to_path, write_plugin

pytestmark = pytest.mark.usefixtures("forget_plugins")

USED = ("student", "train", "distill")


@pytest.fixture
def module(tmp_path) -> str:
    add_to_path(tmp_path)
    return write_plugin(tmp_path, "mine")


def using(module: str, **more) -> dict:
    return {
        "plugins": [module],
        "student": {"name": "tiny"},
        "distill": {"method": "gap", "options": {"gap": {"weight": 2}}},
        "train": {"epochs": 1, "device": "cpu", "augment": {"own": {"noise": {"strength": 0.5}}}},
        **more,
    }


def refused(content: dict) -> str:
    with pytest.raises(GkdError) as error:
        parse_params(content)
    return str(error.value)


# --- what a configuration says


def test_all_three_are_used_by_their_names(module, few_digits, tmp_path):
    params = parse_params(using(module))
    data = PreparedData.open(few_digits)
    teacher = gkd.create_model("resnet8", data=data)
    student = gkd.create_model("tiny", data=data)
    result = gkd.distill(
        student,
        teacher,
        data,
        method="gap",
        options=params.distill.hyperparameters(),
        out=tmp_path / "student",
        **params.train.model_dump(exclude_unset=True),
    )
    assert result.facts["hyperparameters"] == {"weight": 2}
    assert result.facts["training"]["augment"]["own"] == {"noise": {"strength": 0.5}}
    assert "train_gap" in result.history[0]
    files = {"__init__.py": b"", "things.py": SOURCE.encode()}
    listed = {place: hashlib.sha256(content).hexdigest() for place, content in files.items()}
    digest = plugins.json_digest(listed)
    assert result.facts["plugins"] == f"mine@sha256:{digest}"
    record = json.loads((tmp_path / "student" / "training.json").read_text())
    assert record["plugins"] == result.facts["plugins"]

    again = gkd.load_model(tmp_path / "student", data=data)
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(again(images).logits, student(images).logits, atol=1e-6)
    sibling = student.sibling(seed=1)
    assert [p.shape for p in sibling.parameters()] == [p.shape for p in student.parameters()]
    assert not torch.equal(sibling(images).logits, student.eval()(images).logits)


def test_compare_and_search_know_them(module):
    params = parse_params(using(module))
    names = [contender.name for contender in line_up(params.model_copy(update={"distill": Params().distill}))]
    assert "gap" in names
    assert "kd" in names
    space = "distill.method: {choices: [gap, kd]}\ndistill.options.gap.weight: {low: 0.1, high: 3.0}\n"
    read_space(parse_space(space, "space.yaml"), parse_params({"plugins": [module]})).studies(None, None)


def test_options_have_types_and_limits(module):
    said = refused(
        using(module, distill={"method": "gap", "options": {"gap": {"weight": -1, "wait": 3}}}, train={}, student={})
    )
    assert "distill.options.gap.weight is -1" in said
    assert "'distill.options.gap.wait' is unknown" in said
    for given, part in (
        ({"noise": {"strength": 3}}, "train.augment.own.noise.strength is 3"),
        ({"nois": {}}, "'noise'"),
    ):
        assert part in refused({"plugins": [module], "train": {"augment": {"own": given}}})


def test_an_option_without_a_default_is_asked_for_before_anything_is_trained(tmp_path, forget_plugins):
    add_to_path(tmp_path)
    module = write_plugin(tmp_path, "asking", SOURCE.replace("Field(gt=0)] = 1.0", "Field(gt=0)]"))
    distill = {"method": "gap", "options": {}}
    for options in ({}, {"gap": {}}, {"gap": {"weight": None}}):
        said = refused({"plugins": [module], "distill": distill | {"options": options}})
        assert said.endswith("distill.options.gap.weight is missing")
    assert parse_params({"plugins": [module], "distill": distill | {"options": {"gap": {"weight": 2.0}}}})
    assert parse_params({"plugins": [module]}).distill.method == "kd"
    plugins.release(module)
    warm = SOURCE.replace("Field(gt=0)] = 1.0", "Field(gt=0)]").replace("weight", "temperature")
    named = write_plugin(tmp_path, "warm", warm)
    assert parse_params({"plugins": [named], "distill": distill | {"temperature": 2}}).distill.temperature == 2


def test_a_module_that_is_listed_twice_counts_once(module):
    params = parse_params({"plugins": [module, module], "distill": {"method": "gap"}})
    assert params.plugins == [module]
    once = parse_params({"plugins": [module], "distill": {"method": "gap"}})
    assert params.digest("distill") == once.digest("distill")


@pytest.mark.parametrize(
    "content",
    [
        {"distill": {"method": "gapp"}},
        {"distill": {"options": {"gapp": {}}}},
        {"student": {"name": "tinyy"}},
        {"train": {"augment": {"own": {"nois": {}}}}},
    ],
)
def test_an_unknown_name_says_how_names_of_ones_own_are_known(content, tmp_path, forget_plugins):
    assert "one of your own is known where `plugins` names its module" in refused(content)
    add_to_path(tmp_path)
    module = write_plugin(tmp_path, "mine")
    assert f"none of the plugins that are loaded ({module}) brings it" in refused(content | {"plugins": [module]})


@pytest.mark.parametrize("distill", [{"scheme": "mutul"}, {"schedule": "linea"}])
def test_what_no_plugin_can_bring_says_nothing_of_them(distill, forget_plugins):
    assert "plugin" not in refused({"distill": distill})


def test_an_unknown_name_is_told_with_those_of_plugins(module):
    assert "did you mean 'gap'" in refused({"plugins": [module], "distill": {"method": "gapp"}})
    assert "did you mean 'tiny'" in refused({"plugins": [module], "student": {"name": "tinyy"}})


def test_a_step_that_is_handed_sections_loads_what_they_name(module):
    assert params_of_sections({"plugins": [module], "student": {"name": "tiny"}}).student.name == "tiny"


def test_a_file_of_parameters_has_its_plugins_loaded_whatever_else_it_holds(module, tmp_path):
    (tmp_path / "params.yaml").write_text(f"plugins: [{module}]\ndistill: {{method: unheard-of}}\n")
    load_plugins(tmp_path / "params.yaml")
    assert "gap" in gkd.list_methods()
    assert "tiny" in gkd.list_models("tiny")


def test_a_file_that_is_not_there_is_named_once(tmp_path):
    with pytest.raises(GkdError) as error:
        load_plugins(tmp_path / "nowhere.yaml")
    assert str(error.value).count("nowhere.yaml") == 1


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "solo_losses.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    assert parse_params(using("solo_losses")).distill.method == "gap"
    assert list(plugins.sources("solo_losses")) == ["solo_losses.py"]


# --- digests


def test_who_uses_none_has_the_digests_and_records_of_before(module):
    before = parse_params({"distill": {"method": "kd"}})
    assert "own" not in before.model_dump()["train"]["augment"]
    assert "plugins" not in before.model_dump()
    named = parse_params({"plugins": [module], "distill": {"method": "kd"}})
    assert named.digest(*USED, "teacher") == before.digest(*USED, "teacher")
    assert params_of_sections(json.loads(json.dumps(named.model_dump(mode="json")))) == named


def test_another_source_is_another_configuration_wherever_it_lies(module, tmp_path):
    first = parse_params(using(module))
    digest, teacher = first.digest(*USED), first.digest("teacher")
    for source, same in ((SOURCE, True), (SOURCE + "# changed\n", False)):
        plugins.release(module)
        for name in ("mine", module):
            del sys.modules[name]
        folder = tmp_path / f"elsewhere-{same}"
        write_plugin(folder, "mine", source)
        add_to_path(folder)
        moved = parse_params(using(module))
        assert (moved.digest(*USED) == digest) is same
        assert moved.digest("teacher") == teacher, "which has no part of it"


@pytest.mark.parametrize("section", USED)
def test_each_section_counts_by_what_it_names(module, section):
    content = using(module)
    params = parse_params({"plugins": [module], section: content[section]})
    used = plugins.lineage(params.names(section))
    assert used.startswith("mine@sha256:")
    assert plugins.lineage(params.names(*(name for name in ("teacher", *USED) if name != section))) == ""


# --- what is wrong with a plugin


CONSTRUCTOR = "@gkd.register_method('x')\nclass Bad(Gap):\n    def __init__"


def test_one_that_is_not_there_is_named():
    said = refused({"plugins": ["no_such.thing"]})
    assert said.count("\n") == 0
    assert "no_such.thing" in said
    assert "install" in said
    assert "'a b'" in refused({"plugins": ["a b"]})
    assert "plugins" in refused({"plugins": "mine"})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_library", "no_such_library"),
        ("raise SystemExit(3)", "SystemExit"),
        ("gkd.register_method('kd')(Gap)", "method 'kd'"),
        ("gkd.register_model('resnet18')(tiny)", "network 'resnet18'"),
        ("gkd.register_method('x')(dict)", "subclass"),
        ("gkd.register_method('x', schedule='gomperz')(Gap)", "'gompertz'"),
        ("gkd.register_model('x')(lambda classes: None)", "num_classes"),
        ("gkd.register_model('a:b')(tiny)", "'a:b'"),
        ("@gkd.register_augmentation('x')\ndef bad(image, *, size: 'Nothing'): ...", "Nothing"),
        (f"{CONSTRUCTOR}(self, student, teacher, size=1): ...", "'x' of broken.things takes student, teacher, size by"),
        (f"{CONSTRUCTOR}(self, *, size=1): ...", "'x' of broken.things takes nothing by position"),
        ("gkd.register_augmentation('x')(lambda image, size: image)", "'x' of broken.things takes image and size by"),
        ("gkd.register_augmentation('x')(lambda: 3)", "'x' of broken.things takes nothing by position"),
        ("@gkd.register_augmentation('x')\nclass Bad:\n    def __init__(self, size): ...", "takes size by position"),
    ],
)
def test_one_that_fails_ends_in_a_sentence_and_leaves_nothing(line, said, tmp_path):
    add_to_path(tmp_path)
    module = write_plugin(tmp_path, "broken", f"{SOURCE}\n{line}\n")
    sentence = refused({"plugins": [module]})
    assert said in sentence
    assert "plugin broken.things" in sentence
    assert "\n" not in sentence
    assert "gap" not in METHODS
    assert "tiny" not in OWN
    assert "noise" not in own.AUGMENTATIONS
    (tmp_path / "broken" / "things.py").write_text(SOURCE + "#" * 99)  # of another size: Python goes by that, too
    assert parse_params(using(module)).distill.method == "gap"


def test_two_plugins_cannot_have_one_name(module, tmp_path):
    other = write_plugin(tmp_path, "other")
    said = refused({"plugins": [module, other]})
    assert "mine.things" in said
    assert "other.things" in said
    assert "'gap'" in said


def test_a_notebook_runs_a_cell_again(module):
    parse_params(using(module))
    namespace = {"__name__": "cell"}
    exec(SOURCE.replace('"gap"', '"gap2"').replace('"tiny"', '"tiny2"').replace('"noise"', '"noise2"'), namespace)
    exec(SOURCE.replace('"gap"', '"gap2"').replace('"tiny"', '"tiny2"').replace('"noise"', '"noise2"'), namespace)
    assert METHODS["gap2"].load() is namespace["Gap"]


# --- entry points


def test_an_installed_one_is_imported_when_its_name_is_asked_for(tmp_path):
    add_to_path(tmp_path)
    module = write_plugin(tmp_path, "installed", installed=True)
    parse_params({"distill": {"method": "kd"}, "student": {"name": "resnet18"}})
    assert module not in sys.modules
    assert parse_params({"distill": {"method": "gap"}}).distill.method == "gap"
    assert plugins.owner("method", "gap") == module


@pytest.mark.parametrize("content", [{"student": {"name": "tiny"}}, {"train": {"augment": {"own": {"noise": {}}}}}])
def test_so_it_is_for_networks_and_augmentations(content, tmp_path):
    add_to_path(tmp_path)
    write_plugin(tmp_path, "installed", installed=True)
    parse_params(content)


def test_an_installed_one_that_fails_hurts_only_who_may_mean_it(tmp_path):
    add_to_path(tmp_path)
    write_plugin(tmp_path, "installed", "1 / 0", installed=True)
    parse_params({"distill": {"method": "kd"}})
    said = refused({"distill": {"method": "gomperz"}})
    assert "installed.things" in said
    assert "package installed" in said
    assert "ZeroDivisionError" in said


def test_an_entry_point_that_names_no_module_is_named(tmp_path):
    add_to_path(tmp_path)
    write_plugin(tmp_path, "installed", installed=True)
    (tmp_path / "installed-1.0.dist-info" / "entry_points.txt").write_text("[gkd.plugins]\nthings = in-stalled\n")
    said = refused({"distill": {"method": "gap"}})
    assert "in-stalled" in said
    assert "package installed" in said


# --- what a folder says


def test_reading_somebodys_network_imports_nothing(tmp_path, few_digits):
    add_to_path(tmp_path)
    module = write_plugin(tmp_path, "installed", installed=True)
    data = PreparedData.open(few_digits)
    folder = tmp_path / "student"
    gkd.train(gkd.create_model("tiny", data=data), data, epochs=1, device="cpu", out=folder)
    plugins.release(module)
    del sys.modules[module]
    plugins._installed = None
    (folder / "params.yaml").write_text(f"plugins: [{module}]\n")
    with pytest.raises(GkdError, match=r"'tiny' is unknown.*plugins"):
        gkd.load_model(folder)
    assert module not in sys.modules
    params_of_sections({"plugins": [module]})
    assert gkd.load_model(folder).name == "tiny"


# --- methods

STEP, BUILT = "gap = (student.logits - teacher.logits).abs().mean()", "self.weight = weight"
RESULT = '{"ce": self.cross_entropy(student.logits, labels), "gap": self.weight * gap}'
WANTED = 'not a dict of scalar tensors with "ce"'


def distill_with(tmp_path, few_digits, old: str, new: str, **more) -> None:
    """By the method `gap` with one piece of its source replaced."""
    assert old in SOURCE
    add_to_path(tmp_path)
    plugins.load([write_plugin(tmp_path, "mine", SOURCE.replace(old, new))])
    data = PreparedData.open(few_digits)
    student, teacher = (gkd.create_model("resnet8", data=data) for _ in range(2))
    out = tmp_path / "student"
    gkd.distill(student, teacher, data, method="gap", out=out, **{"epochs": 1, "device": "cpu"} | more)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (RESULT, "gap", f"gives a Tensor, {WANTED}"),
        (RESULT, "None", f"gives None, {WANTED}"),
        (RESULT, '{"gap": gap}', f'gives a dict without "ce", {WANTED}'),
        (RESULT, '{"ce": gap, "gap": 0.5}', f'gives a dict whose "gap" is a float, {WANTED}'),
        (RESULT, '{"ce": gap.expand(3)}', f'gives a dict whose "ce" is a Tensor [3] on cpu, {WANTED}'),
        (RESULT, '{"ce": gap.detach()}', "gives terms without a gradient, so that nothing is learned"),
        (STEP, "gap = student.no", "fails (AttributeError: 'Output' object has no attribute 'no')"),
        (STEP, r"raise ValueError('a\nb')", "fails (ValueError: a)"),
        (", indices=None", "", "fails (TypeError: Gap.forward() got an unexpected keyword argument 'indices')"),
        (BUILT, "self.weight = 1 / 0", "fails (ZeroDivisionError: division by zero)"),
        ("super().__init__()", "pass", "fails (AttributeError: 'Gap' object has no attribute '_modules')"),
    ],
)
def test_a_method_that_is_wrong_is_named_and_leaves_nothing(old, new, said, tmp_path, few_digits):
    with pytest.raises(GkdError) as error:
        distill_with(tmp_path, few_digits, old, new)
    assert str(error.value) == f"method gap of mine.things {said}: correct it"
    assert not (tmp_path / "student").exists()


def test_so_it_is_under_a_scheme_and_in_a_later_epoch(tmp_path, few_digits):
    late = f"if epoch >= 1: raise OSError('too late')\n        {STEP}"
    with pytest.raises(GkdError, match=r"^method gap of mine\.things fails \(OSError: too late\): correct it$"):
        distill_with(tmp_path, few_digits, STEP, late, scheme="born_again", epochs=2)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("raise torch.OutOfMemoryError", torch.OutOfMemoryError),
        ("torch.empty(10**15)", RuntimeError),
        ("raise gkd.GkdError('theirs')", GkdError),
        ("torch.distributed.barrier()", ValueError),  # as it would if another process had gone
        ("raise KeyboardInterrupt", KeyboardInterrupt),
    ],
)
def test_what_is_not_the_methods_fault_passes(line, kind, tmp_path, few_digits):
    with pytest.raises(kind) as error:
        distill_with(tmp_path, few_digits, STEP, line)
    assert "mine.things" not in str(error.value)


def test_a_fault_in_gkds_own_losses_stays_what_it_is(few_digits, monkeypatch):
    monkeypatch.setattr(METHODS["kd"].load(), "forward", lambda *_, **__: 1 / 0)
    data = PreparedData.open(few_digits)
    student, teacher = (gkd.create_model("resnet8", data=data) for _ in range(2))
    with pytest.raises(ZeroDivisionError):
        gkd.distill(student, teacher, data, method="kd", epochs=1, device="cpu")


# --- networks


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("@gkd.register_model('x')\ndef x(num_classes): raise OSError('no such disk')", "no such disk"),
        ("@gkd.register_model('x', head='4')\ndef x(num_classes): return tiny(7, 1)", "7 logits"),
        ("gkd.register_model('x', head='nothing')(tiny)", "nothing"),
        ("gkd.register_model('x', head='4')(lambda num_classes: tiny(num_classes, 3))", "does not take images"),
    ],
)
def test_a_network_that_cannot_be_built_is_named(line, said, tmp_path):
    add_to_path(tmp_path)
    plugins.load([write_plugin(tmp_path, "mine", f"{SOURCE}\n{line}\n")])
    with pytest.raises(GkdError, match=rf"network x of mine\.things.*{said}"):
        gkd.create_model("x", classes=["a", "b"], image_size=8, channels=1)


def test_a_network_of_a_plugin_has_its_own_stem_and_nobody_publishes_weights(module):
    plugins.load([module])
    with pytest.raises(GkdError, match="stem"):
        gkd.create_model("tiny", classes=["a", "b"], image_size=8, stem="cifar")
    with pytest.raises(GkdError, match="nobody publishes"):
        gkd.create_model("tiny", classes=["a", "b"], image_size=8, weights="pretrained")


# --- augmentations


def loader(data: PreparedData, **more) -> Loader:
    augmentation = Augmentation(flip=True, own={"noise": {"strength": 0.5}})
    return Loader(
        data.train, batch_size=16, seed=3, device="cpu", augmentation=augmentation, shuffle=True, num_classes=10, **more
    )


def test_an_augmentation_is_called_with_a_seed_for_each_image(module):
    plugins.load([module])
    images = torch.rand(3, 1, 4, 4)
    state = torch.random.get_rng_state()
    changed = own.apply(images, own.create({"noise": {"strength": 0.5}}), np.array([5, 6, 5]))
    assert torch.equal(torch.random.get_rng_state(), state)
    for image, was, seed in zip(changed, images, (5, 6, 5), strict=True):
        drawn = torch.rand(1, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(image, was + 0.5 * drawn)


@pytest.mark.parametrize("views", [None, 2])
def test_what_becomes_of_an_image_depends_on_no_process_and_no_beginning(module, few_digits, views):
    plugins.load([module])
    data = PreparedData.open(few_digits)
    whole = list(loader(data, views=views).epoch(1))
    plain = Augmentation(flip=True)
    assert any((batch.images > 1).any() for batch in whole), "the noise is there"
    assert (whole[0].images.amin((1, 2, 3)) > 0).all()
    halves = [list(loader(data, views=views, processes=2, rank=rank).epoch(1)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
    for batch, later in zip(whole[2:], loader(data, views=views).epoch(1, start=2), strict=True):
        assert torch.equal(batch.images, later.images)
    assert loader(data).view_count is None
    assert plain.views == 2


def test_a_class_is_built_with_its_options_and_torchvisions_are_classes(tmp_path):
    from torchvision.transforms import v2

    gkd.register_augmentation("mirror")(v2.RandomHorizontalFlip)
    (mirrored,) = own.apply(torch.arange(4.0).view(1, 1, 1, 4), own.create({"mirror": {}}), np.array([0]))
    coin = torch.rand(1, generator=torch.Generator().manual_seed(0)).item() < 0.5
    assert mirrored.flatten().tolist() == ([3, 2, 1, 0] if coin else [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("change", "said"), [(lambda image: image[:, 1:], r"\[1, 3, 4\]"), (lambda image: 1 / 0, "ZeroDivisionError")]
)
def test_an_augmentation_that_fails_is_named(change, said):
    gkd.register_augmentation("bad")(change)
    with pytest.raises(GkdError, match=rf"augmentation bad of .*test_plugins.*{said}"):
        own.apply(torch.zeros(1, 1, 4, 4), own.create({"bad": {}}), np.array([0]))
