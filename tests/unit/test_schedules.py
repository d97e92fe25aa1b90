import math
import warnings

import numpy as np
import pytest
import torch

from gkd_core import methods
from gkd_core.errors import GkdError
from gkd_core.schedules import Gompertz, create_schedule


@pytest.mark.parametrize("epochs", [10, 240])
@pytest.mark.parametrize(
    ("fraction", "beta"), [(0, 0.101), (0.1, 0.123), (0.25, 0.349), (0.5, 0.820), (0.75, 0.966), (1, 0.994)]
)
def test_default_gompertz_values(epochs, fraction, beta):
    assert create_schedule("gompertz", epochs=epochs)(fraction * epochs) == pytest.approx(beta, abs=5e-4)


def test_gompertz_at_its_inflection_by_hand():
    curve = Gompertz(0.1, 1.0, b=2.0, c=0.7)
    assert curve(2 / 0.7) == pytest.approx(0.1 + 0.9 / math.e, abs=1e-15)
    step = 1e-3
    second = [(curve(t + step) - 2 * curve(t) + curve(t - step)) / step**2 for t in (2 / 0.7 - 0.1, 2 / 0.7 + 0.1)]
    assert second[0] > 0 > second[1]


@pytest.mark.parametrize(("p", "q"), [(0.2, 0.6), (0.05, 1.0), (0.5, 0.51)])
def test_inverse_constructor_meets_both_points(p, q):
    curve = create_schedule("gompertz", epochs=30, beta_min=0.2, beta_max=0.7, inflection=p, saturation=q)
    assert curve(30 * p) == pytest.approx(0.2 + 0.5 / math.e, rel=1e-12)
    assert curve(30 * q) == pytest.approx(0.2 + 0.5 * 0.99, rel=1e-12)


def test_inverse_constructor_starts_above_beta_min():
    curve = create_schedule("gompertz", epochs=30, inflection=0.05, saturation=1.0)
    # b = 4.6001·.05/.95 = .2421, so exp(−exp(b)) = .2797 of the rise is there at the start.
    assert curve(0.0) == pytest.approx(0.1 + 0.9 * 0.2797, abs=1e-4)


def test_reversed_is_the_curve_run_backwards():
    forward = create_schedule("gompertz", epochs=12, b=1.5, c=0.9)
    backward = create_schedule("reversed-gompertz", epochs=12, b=1.5, c=0.9)
    for time in (0.0, 3.3, 12.0):
        assert backward(time) == forward(12 - time)
    assert backward(0.0) > backward(12.0)


def test_linear_and_cosine_by_hand():
    linear, cosine = create_schedule("linear", epochs=8), create_schedule("cosine", epochs=8)
    assert [linear(t) for t in (0, 2, 4, 8)] == pytest.approx([0.1, 0.325, 0.55, 1.0])
    quarter = 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2
    assert [cosine(t) for t in (0, 2, 4, 8)] == pytest.approx([0.1, quarter, 0.55, 1.0])
    assert [linear(-1.0), linear(9.0), cosine(-1.0), cosine(9.0)] == pytest.approx([0.1, 1.0, 0.1, 1.0])


def test_constant_is_beta_max_and_one_by_default():
    assert create_schedule("constant", epochs=8)(3.7) == 1.0
    assert create_schedule("constant", epochs=8, beta_max=0.4)(0.0) == 0.4


@pytest.mark.parametrize("name", methods.SCHEDULES)
def test_numbers_arrays_and_tensors_agree(name):
    schedule = create_schedule(name, epochs=6)
    times = np.linspace(0, 6, 13)
    values = [schedule(float(t)) for t in times]
    assert all(type(value) is float for value in values)
    array = schedule(times)
    assert isinstance(array, np.ndarray)
    assert array.shape == times.shape
    assert array == pytest.approx(values, rel=1e-14)
    tensor = schedule(torch.from_numpy(times))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == pytest.approx(values, rel=1e-14)
    assert schedule(torch.tensor(3.0)).item() == pytest.approx(schedule(3.0), rel=1e-6)
    assert schedule(3) == schedule(3.0)


@pytest.mark.parametrize("name", ["gompertz", "linear", "cosine"])
def test_rises_between_its_limits(name):
    values = create_schedule(name, epochs=6, beta_min=0.3, beta_max=0.8)(np.linspace(0, 6, 100))
    assert (np.diff(values) > 0).all()
    assert values.min() >= 0.3
    assert values.max() <= 0.8


def test_far_before_the_rise_nothing_overflows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Gompertz(0.1, 1.0, b=1e6, c=1.0)(0.0) == 0.1
        assert Gompertz(0.1, 1.0, b=1e6, c=1.0)(np.zeros(2)).tolist() == [0.1, 0.1]


def test_every_name_of_the_configuration_is_built_here():
    with pytest.raises(GkdError) as error:
        create_schedule("gompert", epochs=3)
    assert "did you mean 'gompertz'" in str(error.value)
    assert str(error.value).endswith("Known: " + ", ".join(methods.SCHEDULES))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"c": 0.0}, "c above 0"),
        ({"inflection": 0.5}, "give both or neither"),
        ({"saturation": 0.5}, "give both or neither"),
        ({"inflection": 0.5, "saturation": 0.5}, "must lie before"),
        ({"inflection": 0.2, "saturation": 0.5, "b": 1.0}, "give one pair"),
    ],
)
def test_contradictions_are_one_sentence(arguments, words):
    with pytest.raises(GkdError, match=words):
        create_schedule("gompertz", epochs=3, **arguments)
