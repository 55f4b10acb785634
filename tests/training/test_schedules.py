"""Learning-rate schedules."""

import numpy as np
import pytest

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.training.schedules import SCHEDULES, make_schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_to_the_peak_and_no_further(name):
    rates = make_schedule(name, 0.5, total=100, warmup=10)(np.arange(100))
    assert rates.dtype == np.float32
    assert np.all(np.diff(rates[:11]) > 0)
    assert rates[10] == rates.max() == np.float32(0.5)
    assert np.all(np.diff(rates[10:]) <= 0)
    assert rates.min() > 0 or name in ("linear", "wsd", "cosine", "triangular")


@pytest.mark.parametrize(("name", "rise"), [("one_cycle", 30), ("triangular", 50), ("cosine", 0)])
def test_some_rise_on_their_own(name, rise):
    rates = make_schedule(name, 0.5, total=100)(np.arange(100))
    assert rates.argmax() == rise
    assert rates.max() == np.float32(0.5)


@pytest.mark.parametrize(
    ("name", "end"), [("cosine", 0), ("linear", 0), ("wsd", 0), ("step", 0.005), ("triangular", 0)]
)
def test_the_end(name, end):
    assert make_schedule(name, 0.5, total=100)(np.array([100]))[0] == pytest.approx(end, abs=1e-6)


def test_half_a_cosine_is_half_the_peak():
    assert make_schedule("cosine", 1.0, total=100)(np.array([50]))[0] == pytest.approx(0.5)


def test_a_rate_depends_on_its_step_alone():
    schedule = make_schedule("cosine", 0.1, total=1000, warmup=50)
    whole = schedule(np.arange(1000))
    assert all(schedule(np.array([s]))[0] == whole[s] for s in (0, 49, 50, 51, 777, 999))


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        make_schedule("cosin", 1.0, 10)
