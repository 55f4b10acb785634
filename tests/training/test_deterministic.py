"""What ``deterministic`` asks of each backend, and where it is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from everything import arrays, data, everything_model, shared, trainer

from fmnist_keras3 import Trainer, UserError, engines
from fmnist_keras3.cli import main
from fmnist_keras3.data.dataset import Split
from fmnist_keras3.engines.chunk import Device
from fmnist_keras3.training import programs
from fmnist_keras3.training.session import Session

ROOT = Path(__file__).parents[2]
TRAIN = """
import json, sys
from fmnist_keras3 import runtime
runtime.prepare()
sys.path.insert(0, sys.argv[1])
from everything import data, everything_model, shared, trainer
import pathlib
made = trainer(pathlib.Path(sys.argv[2]), max_epochs=1, deterministic=True)
made.programs.engine = None
result = made.fit(everything_model(), data())
told = {k: result.summary[k] for k in ("deterministic", "deterministic_because")}
if runtime.choose_backend() == "tensorflow":
    from tensorflow.python.framework.config import is_op_determinism_enabled
    told["op_determinism"] = is_op_determinism_enabled()
print(json.dumps(told))
"""


def train(folder, **environment):
    """Train in a process of its own: TensorFlow's switch is one for the whole process."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(Path(__file__).parent), str(folder / "run")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_program_is_made_deterministic(tmp_path, backend):
    (tmp_path / "dump").mkdir()
    dump = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_dump_to={tmp_path / 'dump'}"}
    told = train(tmp_path, **dump)
    assert told["deterministic"] is True
    # What XLA was asked for, as it says itself; the option has no effect on a CPU.
    names = r"train_chunk|infer_chunk|augment" if backend == "jax" else r"train_chunk"
    programs = [p for p in (tmp_path / "dump").glob("*.debug_options") if re.search(names, p.name)]
    assert programs
    for program in programs:
        assert "xla_gpu_deterministic_ops: true" in program.read_text(), program.name
    if backend == "tensorflow":
        assert told["op_determinism"] is True


@pytest.fixture
def on(monkeypatch, backend):
    """Pretend that the engines run on another platform; returns what was switched on there."""
    everything_model()
    switched = []
    if backend == "tensorflow":  # which knows no way back
        switch = "tensorflow.config.experimental.enable_op_determinism"
        monkeypatch.setattr(switch, lambda: switched.append(True))

    def pretend(platform):
        class Elsewhere(type(shared["engine"])):
            def find_device(self):
                return Device(platform, platform)

        monkeypatch.setattr(engines, "_engine_class", lambda: Elsewhere)
        monkeypatch.setattr(programs, "make_engine", engines.make_engine)  # a new one
        return switched

    return pretend


def promised(deterministic):
    made = Trainer(deterministic=deterministic)
    return made._engine_for(Session(everything_model(), "fit"), Split(*arrays()), 32).determinism()


def test_a_cpu_always_is():
    everything_model()
    assert shared["engine"].determinism()[0] is True


def test_a_gpu_is_where_it_was_asked_for(on, backend):
    switched = on("gpu")
    assert promised(None)[0] is False
    yes, why = promised(True)
    assert yes is True
    assert {"jax": "xla_gpu_deterministic_ops", "tensorflow": "enable_op"}[backend] in why
    assert promised("warn")[0] is True
    assert promised(False)[0] is False
    assert len(switched) == (2 if backend == "tensorflow" else 0)


def test_what_is_unknown_is_refused_or_warned_of(on):
    on("tpu")
    assert promised(None)[0] is False
    with pytest.raises(UserError, match=r"'tpu'.*give 'warn'"):
        promised(True)
    with pytest.warns(UserWarning, match="may end with other bits"):
        assert promised("warn")[0] is False


def test_the_summary_tells_what_is_promised(tmp_path):
    result = trainer(tmp_path / "run", max_epochs=1).fit(everything_model(), data())
    assert result.summary["deterministic"] is True
    assert "CPU" in result.summary["deterministic_because"]


def test_other_values_are_refused(capsys, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"deterministic is 'wran'.* Did you mean 'warn'"):
        Trainer(deterministic="wran")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--deterministic", "wran"]) == 2
    assert "Did you mean 'warn'" in capsys.readouterr().err
    values = {"": None, "deterministic: true": "true", "deterministic: warn": "warn"}
    for text, value in {**values, "deterministic: false": None}.items():
        (tmp_path / "c.yaml").write_text(text)
        assert main(["train", "--config", "c.yaml", "--print_config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["deterministic"] == value
    assert main(["train", "--deterministic", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["deterministic"] == "true"
