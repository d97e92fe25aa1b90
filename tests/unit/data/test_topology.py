import subprocess
import sys

import gudhi
import numpy as np
import pytest

from components import prepare
from gkd_core.config import parse_params
from gkd_core.data import topology
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import PreparedData
from gkd_core.data.topology import (
    BANDWIDTH,
    FEATURES,
    intensities,
    persistence_diagrams,
    topology_features,
    vectorise,
)
from gkd_core.errors import GkdError

RING = np.zeros((9, 9))
RING[2:7, 2:7] = 0.8
RING[3:6, 3:6] = 0.1


def prominent(diagram, least=0.5):
    return [tuple(point) for point in diagram if point[1] - point[0] > least]


def small_digits(**data):
    return parse_params({"data": {"image_size": 4, "train_images": 100, **data}})


class TestDiagrams:
    def test_one_bright_ring_is_one_cycle(self):
        _, _, components, cycles = persistence_diagrams(RING)
        # Bright things: born at 1 − 0.8. The disc inside closes at 1 − 0.1; the ring itself never dies.
        assert prominent(cycles) == [pytest.approx((0.2, 0.9))]
        assert prominent(components) == [pytest.approx((0.2, 1.0))]

    def test_pixels_touch_at_corners(self):
        diagonal = np.zeros((4, 4))
        diagonal[1, 1] = diagonal[2, 2] = 1.0
        assert len(prominent(persistence_diagrams(diagonal)[2])) == 1

    def test_a_constant_image_has_one_component_and_no_cycle(self):
        diagrams = persistence_diagrams(np.full((5, 5), 0.25))
        assert [diagram.tolist() for diagram in diagrams] == [[[0.25, 1.0]], [], [[0.75, 1.0]], []]

    def test_against_gudhis_general_algorithm(self):
        intensity = np.random.default_rng(0).integers(0, 256, (16, 12)) / 255
        diagrams = iter(persistence_diagrams(intensity))
        for values in (intensity, 1 - intensity):
            cubes = gudhi.CubicalComplex(top_dimensional_cells=values)
            cubes.compute_persistence()
            for dimension in (0, 1):
                expected = np.minimum(cubes.persistence_intervals_in_dimension(dimension), 1.0)
                found = next(diagrams)
                assert len(found) > 10
                assert np.array_equal(np.sort(found, axis=0), np.sort(expected, axis=0))


class TestVector:
    def test_value_by_hand(self):
        # One point, born at 2/7 and living 3/7, at weight 3/7; the Gaussian's peak is 1/(2π·0.1²).
        diagram = np.array([[2 / 7, 5 / 7]])
        image = vectorise([diagram, np.empty((0, 2))])
        assert image.dtype == np.float32
        first, second = image.reshape(2, 8, 8)
        peak = 3 / 7 / (2 * np.pi * BANDWIDTH**2)
        assert first[3, 2] == pytest.approx(peak, rel=1e-6)
        assert first[3, 3] == pytest.approx(peak * np.exp(-((1 / 7) ** 2) / (2 * BANDWIDTH**2)), rel=1e-6)
        assert first.argmax() == 3 * 8 + 2
        assert not second.any()

    def test_colours_by_their_luma(self):
        colours = np.array([[[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]], dtype=np.uint8)
        assert np.allclose(intensities(colours)[0], [[0.299, 0.587], [0.114, 1.0]], atol=0.5 / 255)
        grey = np.array([[[[51], [255]]]], dtype=np.uint8)
        assert intensities(grey).tolist() == [[[0.2, 1.0]]]

    def test_each_row_is_a_function_of_its_image_alone(self):
        images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
        features = topology_features(images)
        assert (features.shape, features.dtype) == ((5, FEATURES), np.float32)
        assert np.array_equal(features, topology_features(images))
        order = [3, 0, 4, 1, 2]
        assert np.array_equal(topology_features(images[order]), features[order])
        # Neither a mirror nor a turn changes what is connected or enclosed.
        assert np.allclose(topology_features(images[:, :, ::-1]), features)
        assert np.allclose(topology_features(np.rot90(images, axes=(1, 2))), features)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topology") / "data"
    prepare.run(out=folder, params=small_digits(topology=True))
    return folder


class TestPrepare:
    def test_rows_stand_beside_their_images(self, prepared):
        data = PreparedData.open(prepared)
        for split in (data.train, data.validation, data.test):
            assert isinstance(split.topology, np.memmap)
            assert split.topology.shape == (len(split), FEATURES)
            some = [0, len(split) // 2, len(split) - 1]
            assert np.array_equal(split.topology[some], topology_features(split.images[some]))

    def test_nothing_else_changes(self, prepared, tmp_path):
        prepare.run(out=tmp_path / "data", params=small_digits())
        plain = PreparedData.open(tmp_path / "data")
        assert plain.train.topology is None
        assert sorted(p.name for p in (tmp_path / "data" / "train").iterdir()) == ["images.npy", "labels.npy"]
        assert PreparedData.open(prepared).info.model_copy(update={"topology": None}) == plain.info
        assert PreparedData.open(prepared).digest() == plain.info.sha256

    def test_a_damaged_table_is_noticed(self, prepared, tmp_path):
        for split in ("train", "validation", "test"):
            (tmp_path / split).mkdir()
            for file in ("images.npy", "labels.npy"):
                (tmp_path / split / file).symlink_to(prepared / split / file)
        (tmp_path / "dataset.json").symlink_to(prepared / "dataset.json")
        np.save(tmp_path / "train" / "topology.npy", np.zeros((3, FEATURES), np.float32))
        with pytest.raises(GkdError, match=r"train/topology\.npy is damaged.*gkd prepare"):
            PreparedData.open(tmp_path)
        with pytest.raises(GkdError, match=r"train/topology\.npy is damaged.*gkd prepare"):
            _ = PreparedData.open(tmp_path, check=False).train

    def test_without_gudhi_it_says_what_to_install(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "gudhi.representations", None)
        with pytest.raises(GkdError, match=r"install gkd\[topology\]"):
            prepare.run(out=tmp_path / "data", params=small_digits(topology=True))
        assert not list(tmp_path.iterdir())
        prepare.run(out=tmp_path / "data", params=small_digits())

    def test_gudhi_is_imported_only_when_asked_for(self):
        code = "import sys, gkd_core.data.prepared; assert 'gudhi' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("resident", [True, False])
def test_the_loader_looks_rows_up_by_index_under_shuffling(prepared, resident):
    split = PreparedData.open(prepared).train
    loader = Loader(split, batch_size=100, device="cpu", seed=3, shuffle=True, num_classes=10, resident=resident)
    seen = []
    for batch in loader.epoch(1):
        assert np.array_equal(batch.topology.numpy(), split.topology[batch.indices.numpy()])
        seen += batch.indices.tolist()
    assert seen != sorted(seen)
    assert sorted(seen) == list(range(len(split)))
    # Against the pictures themselves, not against the table.
    batch = next(loader.epoch(2))
    pixels = (batch.images[:4].permute(0, 2, 3, 1) * 255).round().byte().numpy()
    assert np.array_equal(batch.topology[:4].numpy(), topology_features(pixels))


def test_batches_of_data_without_it_have_none(digits):
    data = PreparedData.open(digits).validation
    assert next(Loader(data, batch_size=8, device="cpu", shuffle=False, num_classes=10).epoch(0)).topology is None
    assert topology.FEATURES == 256
