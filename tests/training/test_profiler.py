"""The profile: time by section, without what inner sections took."""

import json

import pytest
from everything import data, everything_model, trainer

from fmnist_keras3 import Callback, Trainer, UserError
from fmnist_keras3.training import profiler
from fmnist_keras3.training.profiler import ABOUT, Profiler


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told: ``clock(seconds)``."""
    now = [100.0]

    def move(seconds):
        now[0] += seconds

    monkeypatch.setattr(profiler.time, "perf_counter", lambda: now[0])
    return move


def test_a_section_counts_its_own_seconds_only(clock):
    measured = Profiler()
    for _ in range(2):
        with measured.section("callbacks"):
            clock(1)
            with measured.section("logging"):
                clock(2)
                with measured.section("step"):
                    clock(4)
            clock(1)
    clock(3)
    found = {row["section"]: (row["calls"], row["seconds"]) for row in measured.results()}
    assert found == {"callbacks": (2, 4), "logging": (2, 4), "step": (2, 8), "other": (1, 3)}
    assert measured.results()[0]["section"] == "step"
    assert sum(row["share"] for row in measured.results()) == pytest.approx(1)


def test_a_section_ends_with_an_exception(clock):
    measured = Profiler()

    def fail():
        with measured.section("outer"), measured.section("inner"):
            clock(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with measured.section("outer"):
        clock(1)
    assert measured.sections["inner"].seconds == measured.sections["outer"].seconds == 1


def fit(folder, *callbacks, **options):
    return trainer(folder, *callbacks, max_epochs=2, **options).fit(everything_model(), data())


def test_simple(tmp_path):
    class Own(Callback):
        pass

    result = fit(tmp_path / "run", Own(), profiler="simple")
    assert json.loads((tmp_path / "run" / "profile.json").read_text()) == result.profile
    rows = {row["section"]: row for row in result.profile}
    assert set(rows) == set(ABOUT)
    assert rows["compile"]["calls"] == 1
    assert rows["validation"]["calls"] == 2
    assert rows["step"]["calls"] >= 2
    assert all(row["seconds"] > 0 for row in result.profile)
    assert rows["compile"]["seconds"] == pytest.approx(result.summary["compile_seconds"], abs=1e-3)


def test_trace(tmp_path):
    result = fit(tmp_path / "run", profiler="trace")
    assert result.profile is None
    written = [p for p in (tmp_path / "run" / "profile").rglob("*.xplane.pb") if p.stat().st_size]
    assert len(written) == 1


def test_none_leaves_nothing(tmp_path):
    assert fit(tmp_path / "run").profile is None
    assert not list((tmp_path / "run").glob("profile*"))


def test_a_profiler_that_does_not_exist():
    with pytest.raises(UserError, match=r"profiler is 'advanced'.*simple, trace"):
        Trainer(profiler="advanced")
