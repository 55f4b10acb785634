"""One backend a process (KERAS_BACKEND), no network, and no test that leaves traces behind."""

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from fmnist_keras3.runtime import prepare

BACKEND = prepare()  # XLA reads its flags once, so this must come before any test imports Keras
os.environ["FMNIST_OFFLINE"] = "1"

# Set by others: pytest for every test, TensorFlow and its libraries when they are imported.
NOT_OURS = (
    "PYTEST_",
    "TF2_BEHAVIOR",
    "TPU_",
    "KMP_",
    "HDF5_",
    "ENABLE_RUNTIME_",
    "GRPC_",
    "ABSL_",
    "TF_XLA_",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "MPL",
)


# What no backend computes (texts, files, tables, pictures), what starts processes on backends of
# its own, and what takes long and hardly differs: run once, beside JAX. `nox -s once` runs it on
# the other.
ANY_BACKEND = (
    *(
        "test_contributing",
        "test_docstrings",
        "test_files",
        "test_layout",
        "test_names",
        "test_screen",
        "test_settings",
    ),
    *("test_typing", "bench/", "data/test_idx", "data/test_mirrors", "data/test_plan"),
    *("data/test_sources", "data/test_synthetic", "evaluation/test_metrics"),
    *("evaluation/test_plots", "evaluation/test_report", "evaluation/test_words"),
    *("inference/test_preparation", "inference/test_export", "inference/test_page"),
    *("inference/test_server", "inference/test_by_tensorflow"),
    *(
        "evaluation/test_look",
        "evaluation/test_label_errors",
        "evaluation/test_temperature",
        "inference/test_pictures",
        "tuning/",
        "data/test_own",
        "data/test_hub",
        "data/test_hostile_sets",
        "data/test_survey",
    ),
    *("cli/test_own_images", "cli/test_runs", "training/test_across_backends", "examples/"),
    *("cli/test_launch", "cli/test_joining", "training/test_world"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if str(item.path.relative_to(here)).startswith(ANY_BACKEND):
            item.add_marker(pytest.mark.any_backend)


@pytest.fixture(scope="session")
def backend() -> str:
    """The name of the backend that this process tests."""
    return BACKEND


@pytest.fixture(scope="module")
def browser():
    """One browser for a file of tests, which are skipped where there is none."""
    from browser import Browser, program

    if program() is None:
        pytest.skip("no Chromium")
    with Browser() as one:
        yield one


@pytest.fixture(scope="session")
def fashion_dir() -> Path:
    """The folder with the four genuine files; the test is skipped where there is none."""
    folder = os.environ.get("FMNIST_DATA_DIR")
    if not folder:
        pytest.skip("no genuine Fashion-MNIST: set FMNIST_DATA_DIR to the folder with its files")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_data() -> tuple[np.ndarray, np.ndarray]:
    """200 images ``[28, 28, 1]`` uint8 and labels 0..9: a bright bar whose row tells the class."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(200, dtype=np.int32) % 10)
    x = rng.integers(0, 100, (200, 28, 28, 1), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[4 + 2 * label : 6 + 2 * label, 4:24] += 150
    x.setflags(write=False), y.setflags(write=False)
    return x, y


def pytest_collection_finish():
    """Leave what the imports made out of garbage collections: Keras asks for many, of all."""
    gc.collect()
    gc.freeze()


def foreign(thread: threading.Thread) -> bool:
    """Tell whether a thread is of a library, which may keep it; ours are never left.

    (OpenVINO keeps a pool: no daemons, with the names that Python gives; ours have their own.)
    """
    pool = thread.name.startswith("ThreadPoolExecutor-")
    return (thread.daemon or pool) and not thread.name.startswith("fmnist")


def _traces() -> dict[str, object]:
    return {
        "SIGINT handler": signal.getsignal(signal.SIGINT),
        "SIGTERM handler": signal.getsignal(signal.SIGTERM),
        "SIGUSR1 handler": signal.getsignal(getattr(signal, "SIGUSR1", signal.SIGTERM)),
        "exception hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "user": (os.geteuid(), os.getegid()),
        "working folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if not k.startswith(NOT_OURS)},
    }


@pytest.fixture(autouse=True)
def no_traces():
    """Fail a test that leaves a signal handler, a thread, an environment variable, a folder."""
    before, threads = _traces(), set(threading.enumerate())
    yield
    for name, value in _traces().items():
        if value != before[name]:
            if name == "environment":
                value = dict(set(value.items()) ^ set(before[name].items()))
            pytest.fail(f"The test leaves its {name} behind: {value}")
    left = [t for t in threading.enumerate() if t not in threads and not foreign(t)]
    for thread in left:
        thread.join(timeout=2)  # one that is just ending is no leak
    if left := [thread.name for thread in left if thread.is_alive()]:
        pytest.fail(f"The test leaves running threads behind: {left}")


@pytest.fixture(scope="module")
def compiled_once():
    """Take models from `kept` where they are built from settings, and their engines."""
    from kept import kept

    from fmnist_keras3 import experiment
    from fmnist_keras3.training import programs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "make_model", kept.build_model)
        patch.setattr(programs, "make_engine", kept.make_engine)
        yield


class Elsewhere:
    """A process on a backend, with its own ``environment``, that runs functions of test files."""

    def __init__(self, name: str, **environment: str) -> None:
        self.name, self._environment = name, environment
        self._process = None

    def __call__(self, function, *args):
        """Call ``function(*args)`` there; arguments and result are what JSON can carry."""
        if importlib.util.find_spec(self.name) is None:
            pytest.skip(f"{self.name} is not installed")
        process = self._process or self._start()
        call = [function.__code__.co_filename, function.__name__, args]
        process.stdin.write(json.dumps(call) + "\n")
        process.stdin.flush()
        if answer := process.stdout.readline():
            return json.loads(answer)
        process.wait()
        self._errors.seek(0)
        errors = self._errors.read()[-5000:]
        self.close()
        pytest.fail(f"{function.__name__} failed on {self.name}:\n{errors}")

    def _start(self):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            env={
                **os.environ,
                "KERAS_BACKEND": self.name,
                "PYTHONPATH": _PATH,
                **self._environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        return self._process

    def close(self) -> None:
        if self._process:
            self._process.communicate()  # the end of its input ends it
            self._process = None
            self._errors.close()


_ROOT = Path(__file__).parents[1]
_PATH = f"{_ROOT}:{_ROOT / 'tests'}"
_WORKER = """
import importlib.util, json, os, sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # nothing that is printed shall mix with the answers
for call in sys.stdin:
    file, name, args = json.loads(call)
    sys.path[:0] = [os.path.dirname(file)]  # where a test file's own helpers lie
    spec = importlib.util.spec_from_file_location("tests_elsewhere", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print(json.dumps(getattr(module, name)(*args)), file=answers, flush=True)
"""


@pytest.fixture(scope="session")
def other_backend():
    """Run a test file's function on the other backend: ``other_backend(function, *args)``."""
    other = Elsewhere({"jax": "tensorflow", "tensorflow": "jax"}[BACKEND])
    yield other
    other.close()


@pytest.fixture(scope="module")
def on_four_devices():
    """Run a test file's function on JAX with a CPU that is four devices."""
    if BACKEND != "jax":
        pytest.skip("several devices are for JAX")
    worker = Elsewhere("jax", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def on_tensorflow(other_backend):
    """`other_backend`, for what both sides would compare alike: JAX's process does it."""
    if BACKEND != "jax":
        pytest.skip("compared once, where JAX is tested")
    return other_backend
