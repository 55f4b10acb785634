"""What a signal or a clock decides in one of many processes holds for all, at one place."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest

from fmnist_keras3.engines.world import World
from fmnist_keras3.ground.errors import Interrupted, UserError
from fmnist_keras3.training.resume import check_processes
from fmnist_keras3.training.signals import StopSignals


class Two(World):
    """Two processes, of which the other one says the same numbers each time."""

    size = 2

    def __init__(self, *other):
        self.other = other

    def highest(self, *values):
        return tuple(map(max, values, self.other))


NOTHING, TERMINATED, ASKED = (0, 0), (3, 0), (1, 1)


def test_a_signal_counts_when_all_have_agreed():
    with StopSignals(Two(*NOTHING)) as signals:
        signals.agree()
        signal.raise_signal(signal.SIGTERM)
        assert signals.received is None  # the other process does not know of it yet
        signals.agree()
        assert signals.received == "SIGTERM"
        signals.agree()
        assert signals.received == "SIGTERM"


def test_a_signal_to_another_process_stops_this_one_too():
    with StopSignals(Two(*TERMINATED)) as signals:
        signals.agree()
        assert signals.received == "SIGTERM"
        assert not signals.checkpoint_asked


def test_another_process_may_ask_for_a_checkpoint(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with StopSignals(Two(0, 1)) as signals:
        signals.agree()
        assert signals.checkpoint_asked
        assert signals.received is None
    with StopSignals(Two(*ASKED)) as signals:  # in a SLURM job it is a stop, too
        signals.agree()
        assert (signals.received, signals.checkpoint_asked) == ("SIGUSR1", True)


def test_a_second_signal_ends_one_of_many_at_once_too():
    with StopSignals(Two(*NOTHING)) as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert signals.received is None


def test_one_process_alone_hears_at_once():
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGUSR1)
        assert signals.checkpoint_asked
        signal.raise_signal(signal.SIGINT)
        assert signals.received == "SIGINT"
        signals.agree()
        assert signals.received == "SIGINT"
    assert World().agree(3) == 3
    assert World().highest(1, 2) == (1, 2)


class Records(World):
    """The first of two processes, whose numbers are kept for the second; or that second one."""

    size = 2

    def __init__(self, other=()):
        self.said = other

    def highest(self, *values):
        highest = tuple(map(max, values, self.said or values))
        self.said = values
        return highest


def beginning(world, seed=0, sha256="a", step=0, weights=1.0):
    """What of a fit is compared."""
    state = [("kernel", np.full(3, weights, np.float32))]
    return SimpleNamespace(
        engine=SimpleNamespace(world=world, export_state=lambda: state),
        position=SimpleNamespace(place=(0, step, step)),
        data_identity=lambda: {"sha256": sha256, "batch_size": 8},
        seed=seed,
        max_epochs=2,
        max_steps=None,
    )


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({}, None),
        ({"seed": 1}, "differ in seed."),
        ({"sha256": "b", "step": 7}, "differ in sha256, position."),
        ({"weights": 1.5}, "differ in state of the model."),
    ],
)
def test_processes_that_begin_differently_are_refused_and_the_field_is_named(other, named):
    first = Records()
    check_processes(beginning(first))
    fit = beginning(Records(first.said), **other)
    if named is None:
        check_processes(fit)
    else:
        with pytest.raises(UserError, match=named):
            check_processes(fit)


def test_one_process_has_nothing_to_compare():
    check_processes(SimpleNamespace(engine=SimpleNamespace(world=World())))
