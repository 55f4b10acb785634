"""What is set before a backend starts, and that it works: in processes of their own."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fmnist_keras3 import runtime

ROOT = Path(__file__).parents[1]
NO_TENSORFLOW = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""
TRAIN = """
import sys
from fmnist_keras3.cli import main
words = "train --data synthetic --epochs 1 --model lenet --limit_train_batches 2 --run_dir r"
code = main(words.split())
print("TENSORFLOW", any(m.split(".")[0] == "tensorflow" for m in sys.modules), "CODE", code)
"""


def python(code, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def probe(code, tmp_path, **environment):
    setup = "import os, json\nfrom fmnist_keras3 import runtime\n"
    return json.loads(python(setup + f"print(json.dumps({code}))", tmp_path, **environment))


def test_importing_the_package_imports_and_sets_nothing(tmp_path):
    code = (
        "import os, sys\nbefore = dict(os.environ)\nimport fmnist_keras3\n"
        "print(sorted({'keras', 'jax', 'tensorflow', 'numpy'} & set(sys.modules)), "
        "os.environ == before)"
    )
    assert python(code, tmp_path).split() == ["[]", "True"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "synthetic"],
        ["evaluate", "run"],
        ["predict", "run", "a.png"],
        ["export", "run"],
        ["serve", "run", "--port", "0"],
        ["models"],
        ["tune", "--data", "synthetic"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_chooses_the_backend_before_it_imports_keras(tmp_path, words, backend):
    """Keras would take another one, and XLA would miss its flags."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{}")
    code = f"""
        import sys
        from fmnist_keras3 import runtime
        from fmnist_keras3.cli import main

        def stop():
            early = {{"keras", "jax", "tensorflow"}} & sys.modules.keys()
            print(sorted(early), flush=True)
            raise SystemExit

        runtime.prepare = stop
        main({words})
    """
    assert python(textwrap.dedent(code), tmp_path).splitlines()[-1:] == ["[]"]


def test_the_users_flags_are_kept(tmp_path, backend):
    flags = probe(
        "[runtime.prepare(), os.environ['XLA_FLAGS']][1]",
        tmp_path,
        KERAS_BACKEND=backend,
        XLA_FLAGS="--xla_cpu_enable_fast_math=false",
    )
    assert flags.startswith("--xla_cpu_enable_fast_math=false")


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
@pytest.mark.parametrize("jaxlib", ["0.10.2", "0.11.0", None])
@pytest.mark.parametrize("tensorflow", ["2.21.0", "2.22.0rc0", None])
def test_the_flag_against_wrong_sums_goes_by_the_backends_own_package(
    monkeypatch, backend, jaxlib, tensorflow
):
    versions = {"jaxlib": jaxlib, "tensorflow": tensorflow}
    monkeypatch.setattr(runtime, "version", versions.get)
    monkeypatch.setattr(runtime, "choose_backend", lambda: backend)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr(runtime, "_import_tensorflow", lambda: None)
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    known = (jaxlib == "0.10.2") if backend == "jax" else (tensorflow == "2.21.0")
    # The second has it from a process of the other backend, the third has set it differently.
    for before in ("", f"--a=1 {flag}", f"{flag}1"):
        monkeypatch.setenv("XLA_FLAGS", before)
        runtime.prepare()
        flags = os.environ["XLA_FLAGS"].split()
        assert (flag in flags) == (known and before != f"{flag}1")
        assert [f for f in flags if f != flag] == [f for f in before.split() if f != flag]


def test_the_backend_is_the_variable_then_keras_own_file_then_jax(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "tensorflow"}')
    home = str(tmp_path)
    assert probe("runtime.choose_backend()", tmp_path, KERAS_BACKEND="jax") == "jax"
    assert probe("runtime.choose_backend()", tmp_path, KERAS_BACKEND="", KERAS_HOME=home) == (
        "tensorflow"
    )
    empty = str(tmp_path / "none")
    assert probe("runtime.choose_backend()", tmp_path, KERAS_BACKEND="", KERAS_HOME=empty) == "jax"


def test_a_resident_jax_run_never_imports_tensorflow(tmp_path, backend):
    if backend != "jax":
        pytest.skip("it is about the JAX backend")
    assert "TENSORFLOW False CODE 0" in python(TRAIN, tmp_path)


def test_seeding_on_jax_never_imports_tensorflow(tmp_path, backend):
    if backend != "jax":
        pytest.skip("it is about the JAX backend")
    code = (
        "import sys, fmnist_keras3\nfmnist_keras3.seed_everything(3)\n"
        "print('tensorflow' in sys.modules)"
    )
    assert python(code, tmp_path) == "False\n"


def test_jax_trains_where_tensorflow_is_not_installed(tmp_path, backend):
    if backend != "jax":
        pytest.skip("it is about the JAX backend")
    assert "TENSORFLOW False CODE 0" in python(NO_TENSORFLOW + TRAIN, tmp_path)


def test_compiled_sums_are_right(backend):
    # jax-ml/jax#39103: without its flag, jaxlib 0.10.2 gets this wrong.
    from fmnist_keras3 import build_model
    from fmnist_keras3.commands.doctor import compiled_equals_eager
    from fmnist_keras3.engines import make_engine

    assert compiled_equals_eager(make_engine(build_model("lenet")))


@pytest.mark.slow
def test_doctor_reports_every_backend(tmp_path):
    code = "from fmnist_keras3.cli import main; print('CODE', main(['doctor']))"
    text = python(code, tmp_path)
    assert "CODE 0" in text
    assert text.count("images/s") >= 1


def test_keras_is_imported_without_what_it_only_tries(tmp_path, backend):
    code = (
        "import sys\nfrom fmnist_keras3 import runtime\nruntime.prepare()\n"
        "runtime.import_keras_alone()\n"
        "early = {'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "import keras, sklearn.base, matplotlib.pyplot\n"
        "runtime.import_keras_alone()\n"
        "print(early, keras.ops.ones((3,)).shape, 'sklearn' in sys.modules)"
    )
    if backend != "jax":
        pytest.skip("it is about the JAX backend")
    assert python(code, tmp_path, KERAS_BACKEND=backend).split() == ["set()", "(3,)", "True"]


def test_the_machine_is_described_in_cores_and_gib():
    machine = runtime.hardware()
    assert list(machine) == ["processor", "cores", "memory_gib"]
    assert machine["processor"]
    assert 1 <= machine["cores"] <= os.cpu_count()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine["memory_gib"] == pytest.approx(pages / 2**30, abs=0.2)


def test_a_program_starts_after_the_shell_that_became_it():
    code = (
        "import psutil, time\nfrom fmnist_keras3 import runtime\n"
        "print(time.time() - psutil.Process().create_time(), runtime.process_seconds())"
    )
    shell = f"sleep 2; exec {sys.executable} -c '{code}'"
    said = subprocess.check_output(["sh", "-c", shell], env={**os.environ, "PYTHONPATH": str(ROOT)})
    since_shell, seconds = map(float, said.split())
    assert 0 < seconds < since_shell - 0.5  # the start that is known is rounded


def test_what_was_worked_before_the_import_counts(tmp_path):
    code = (
        "import time\nwhile time.thread_time() < 0.5: pass\n"
        "from fmnist_keras3 import runtime\nprint(runtime.process_seconds())"
    )
    assert float(python(code, tmp_path)) >= 0.5


def test_the_peak_of_memory_is_not_that_of_who_started_the_process(tmp_path):
    held = bytearray(400_000_000)
    held[::4096] = b"1" * len(held[::4096])
    assert runtime.peak_memory_mb() > 400
    code = "from fmnist_keras3 import runtime; print(runtime.peak_memory_mb())"
    assert 5 < float(python(code, tmp_path)) < 200
