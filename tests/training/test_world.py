"""What a signal or a clock decides in one of many processes holds for all, at one place."""

import signal

import pytest

from fmnist_keras3.engines.world import World
from fmnist_keras3.ground.errors import Interrupted
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
