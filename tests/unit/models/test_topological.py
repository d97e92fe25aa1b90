import copy

import numpy as np
import pytest
import torch

from components import distill, prepare, teacher
from components.teacher import open_teachers
from gkd_core.config import parse_params
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import PreparedData
from gkd_core.data.topology import FEATURES
from gkd_core.errors import GkdError
from gkd_core.evaluation.cost import parameter_count
from gkd_core.evaluation.evaluate import predict
from gkd_core.losses.gradient import autograd_head_gradient, head_gradient
from gkd_core.models.ensemble import Ensemble
from gkd_core.models.macs import multiply_accumulates
from gkd_core.models.network import Network, NetworkSpec, load_network, save_network
from gkd_core.models.topological import TopologicalClassifier, images_only
from gkd_core.training.teacher import OnlineTeacher

CLASSES = ("a", "b", "c")


def make(name="topological:resnet8", seed=0, classes=None):
    torch.manual_seed(seed)
    return Network(NetworkSpec(name, "auto", CLASSES, 1, 8, (0.4,), (0.3,)), classes)


def batch(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), 20 * torch.rand(count, FEATURES, generator=generator)


class TestNetwork:
    def test_logits_are_one_layer_on_the_joined_vector(self):
        network = make().eval()
        images, rows = batch()
        network.classifier.norm.running_mean.copy_(rows.mean(0))
        network.classifier.norm.running_var.copy_(rows.var(0))
        out = network(images, rows)
        base = make("resnet8").eval()
        base.classifier.load_state_dict(network.classifier.base.state_dict())
        pooled = base(images).embedding
        standard = (rows - rows.mean(0)) / (rows.var(0) + 1e-5).sqrt()
        assert torch.allclose(out.embedding, torch.cat((pooled, standard), 1), atol=1e-5)
        layer = network.classifier
        joined = torch.cat((layer.base.fc.weight, layer.topology.weight), 1)
        assert torch.allclose(out.logits, out.embedding @ joined.T + layer.base.fc.bias, atol=1e-5)
        assert [s.shape for s in out.stages] == [s.shape for s in base(images).stages]

    def test_gradient_reaches_the_convolutions_and_the_joined_layer(self):
        network = make().train()
        images, rows = batch()
        network(images, rows).logits.square().sum().backward()
        classifier = network.classifier
        for weight in (classifier.base.conv1.weight, classifier.base.fc.weight, classifier.topology.weight):
            assert weight.grad.abs().sum() > 0
        assert not list(classifier.norm.parameters())

    def test_the_rows_matter_sample_by_sample(self):
        network = make().eval()
        images, rows = batch()
        other = rows.clone()
        other[2] += 5
        changed = (network(images, rows).logits != network(images, other).logits).any(1)
        assert changed.tolist() == [False, False, True, False, False, False]

    def test_the_closed_form_of_the_heads_gradient_holds(self):
        network = make(classes=("c", "a")).double().eval()
        images, rows = (t.double() for t in batch())
        output = network(images, rows)
        labels = torch.tensor([0, 1, 0, 0, 1, 1])

        def head(stage):
            own = network.classifier
            logits = own.classify(own.embed(stage)) + own.topology(own.norm(rows))
            return logits[:, network.columns]

        expected = autograd_head_gradient(head, output.stages[-1], labels, differentiable=False)
        found = head_gradient(network, output, labels, differentiable=False)
        assert torch.allclose(found, expected, atol=1e-12)

    def test_shapes_are_found_without_rows(self):
        network = make()
        assert network.stage_shapes() == make("resnet8").stage_shapes()
        assert network.embedding_size() == 64 + FEATURES
        assert network.training
        assert make("resnet8").topology_size == 0

    def test_saved_and_loaded(self, tmp_path):
        network = make().train()
        images, rows = batch()
        network(images, rows)  # moves the running statistics
        network.eval()
        save_network(network, tmp_path)
        again = load_network(tmp_path, ("b", "c")).eval()
        assert torch.equal(again(images, rows).logits, network(images, rows).logits[:, 1:])

    def test_an_ordinary_network_passes_the_rows_over(self):
        network = make("resnet8").eval()
        images, rows = batch()
        assert torch.equal(network(images, rows).logits, network(images).logits)

    def test_cost_is_counted_without_rows(self):
        network = make().eval()
        plain = make("resnet8")
        macs = multiply_accumulates(images_only(network), 1, 8)
        assert macs == multiply_accumulates(images_only(plain), 1, 8) + FEATURES * 3
        assert parameter_count(images_only(network)) == parameter_count(plain) + FEATURES * 3
        assert images_only(plain) is plain

    def test_refusals(self):
        with pytest.raises(GkdError, match=r"set data\.topology to true"):
            make()(batch()[0])
        with pytest.raises(GkdError, match="head needs persistence features"):
            make().head(torch.zeros(1, 64, 2, 2))
        with pytest.raises(GkdError, match=r"torchvision:vgg11 does not: take a resnet"):
            make("topological:torchvision:vgg11")


def params(**sections):
    moment = {"epochs": 2, "device": "cpu", "batch_size": 64}
    base = {
        "data": {"topology": True},
        "teacher": {"name": "resnet8", "topological": True, "train": {**moment, "learning_rate": 0.1}},
        "student": {"name": "resnet8"},
        "train": moment,
    }
    return parse_params(base | sections)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Digits with persistence features, and a topological teacher after two epochs."""
    folder = tmp_path_factory.mktemp("topological")
    prepare.run(out=folder / "data", params=params())
    teacher.run(data=folder / "data", out=folder / "teacher", work=folder / "work", params=params())
    return folder


class TestTraining:
    def test_the_teacher_learns_from_both_parts(self, folders):
        data = PreparedData.open(folders / "data")
        network = open_teachers(folders / "teacher", data.info.classes)[0]
        assert isinstance(network.classifier, TopologicalClassifier)
        assert network.spec.name == "topological:resnet8"
        assert network.classifier.norm.running_mean.abs().sum() > 0
        loader = Loader(data.validation, batch_size=64, device="cpu", shuffle=False, num_classes=10)
        logits = predict(network, loader, "the teacher")
        assert (logits.argmax(1) == data.validation.labels).mean() > 0.5
        # Rows of other images make it worse: it did learn from them.
        shuffled = copy.copy(data.validation)
        object.__setattr__(shuffled, "topology", np.roll(data.validation.topology, 7, 0))
        wrong = Loader(shuffled, batch_size=64, device="cpu", shuffle=False, num_classes=10)
        assert not np.allclose(predict(network, wrong, "the teacher"), logits)
        assert np.allclose(predict(Ensemble([network, network]), loader, "it").argmax(1), logits.argmax(1))

    def test_online_it_answers_for_shuffled_indices(self, folders):
        data = PreparedData.open(folders / "data")
        network = open_teachers(folders / "teacher", data.info.classes)[0]
        online = OnlineTeacher(network, device=torch.device("cpu"), autocast=False, topology=data.train.topology)
        loader = Loader(data.train, batch_size=32, device="cpu", seed=1, shuffle=True, num_classes=10)
        first = next(loader.epoch(0))
        rows = torch.from_numpy(data.train.topology[first.indices.numpy()])
        with torch.no_grad():
            assert torch.equal(online(first.images, first.indices).logits, network(first.images, rows).logits)
        assert not online(first.images, first.indices).logits.requires_grad

    @pytest.mark.parametrize("method", ["gompertz", "rkd"])
    def test_a_student_without_topology_learns_from_it(self, folders, tmp_path, method):
        chosen = params(distill={"method": method}, train={"epochs": 1, "device": "cpu"})
        facts = distill.run(
            data=folders / "data", teacher=folders / "teacher", out=tmp_path / "s", work=tmp_path, params=chosen
        )
        assert 0 < facts["validation_top1"] <= 1
        assert load_network(tmp_path / "s").topology_size == 0

    def test_data_without_features_is_refused(self, folders, digits, tmp_path):
        with pytest.raises(GkdError, match=r"needs persistence features and the data has none"):
            distill.run(data=digits, teacher=folders / "teacher", out=tmp_path / "s", work=tmp_path, params=params())
        assert not (tmp_path / "s").exists()


class TestConfiguration:
    def test_contradictions(self):
        with pytest.raises(GkdError, match=r"teacher\.topological is true but data\.topology is false: set both"):
            params(data={})
        with pytest.raises(GkdError, match="topological says how to build a teacher trained here, but source is set"):
            params(teacher={"topological": True, "source": "there"})
        with pytest.raises(GkdError, match=r"student\.name.*only a teacher can be topological"):
            params(student={"name": "topological:resnet8"})
