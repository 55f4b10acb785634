"""Sessions: `nox -s tests`, `lint`, `slow`, `bench`. Each makes its own environment.

Arguments after ``--`` go to pytest: ``nox -s tests -- -k plan -x``.
"""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]

BACKENDS = ("jax", "tensorflow")


def run_pytest(session: nox.Session, backend: str, *arguments: str) -> None:
    # A process a backend: Keras cannot change it. PYTHONDONTWRITEBYTECODE would make each of the
    # many processes that the tests start compile everything again.
    env = {"KERAS_BACKEND": backend, "PYTHONDONTWRITEBYTECODE": ""}
    # Files share compiled models, so each goes to one process as a whole.
    spread = ("-n", "auto", "--dist", "loadfile")
    session.run("python", "-m", "pytest", *spread, *arguments, *session.posargs, env=env)


@nox.session
@nox.parametrize("backend", BACKENDS)
def tests(session: nox.Session, backend: str) -> None:
    """The default suite: generated data and tiny models; real data where FMNIST_DATA_DIR is.

    What no backend computes is tested beside JAX alone.
    """
    session.install(".[test]")
    once = () if backend == "jax" else ("-m", "not slow and not any_backend")
    run_pytest(session, backend, *once)


@nox.session
def once(session: nox.Session) -> None:
    """What the default suite runs beside JAX only, on TensorFlow."""
    session.install(".[test]")
    run_pytest(session, "tensorflow", "-m", "any_backend and not slow")


@nox.session
@nox.parametrize("backend", BACKENDS)
def slow(session: nox.Session, backend: str) -> None:
    """The tests that take minutes."""
    session.install(".[test]")
    run_pytest(session, backend, "-m", "slow")


@nox.session
@nox.parametrize("backend", BACKENDS)
def soak(session: nox.Session, backend: str) -> None:
    """Ninety signals at random moments, resumed to the same bits; `-- --kills 5` and so on."""
    session.install(".[test]")
    env = {"KERAS_BACKEND": backend, "PYTHONDONTWRITEBYTECODE": ""}
    output = f"tests/soak/results/{backend}.json"
    session.run("python", "tests/soak", "--output", output, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and types."""
    session.install(".[test,lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("pyright")
    session.run("pyright", "-p", "tests/typed")  # as a user's editor sees the package


@nox.session
def bench(session: nox.Session) -> None:
    """Our Trainer beside plain Keras; `-- --quick`, `-- --peers`, `-- study RECIPE`, and so on."""
    words = session.posargs
    peers = "--peers" in words or {*words[:1]} & {"tune", "data"}
    # Lightning imports torchvision where it is there, so only what reads images has it.
    session.install(".[peers]" if peers else ".", *["torchvision"] * (words[:1] == ["data"]))
    session.run("python", "-m", "bench", *words, env={"PYTHONDONTWRITEBYTECODE": ""})


@nox.session
@nox.parametrize("backend", BACKENDS)
def canary(session: nox.Session, backend: str) -> None:
    """The suite and a quick bench on the newest Keras, JAX and TensorFlow, pre-releases too."""
    session.install(".[test]")
    session.install("--upgrade", "--pre", "keras", "jax", "jaxlib", "tensorflow")
    run_pytest(session, backend)
    session.run("python", "-m", "bench", "--quick", env={"PYTHONDONTWRITEBYTECODE": ""})


@nox.session
@nox.parametrize("backend", BACKENDS)
def lowest(session: nox.Session, backend: str) -> None:
    """The suite on the lowest versions that pyproject.toml allows."""
    needed = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    session.install(".[test]", *(f"{package.replace('>=', '==')}.*" for package in needed))
    # Old packages use what the new ones that they stand on call deprecated.
    run_pytest(session, backend, "-W", "ignore::DeprecationWarning")


@nox.session
@nox.parametrize("backend", BACKENDS)
def integrations(session: nox.Session, backend: str) -> None:
    """What the default suite skips: MLflow, W&B, Trackio, LiteRT, OpenVINO, pandas, IPython."""
    extras = ".[test,lint,mlflow,wandb,trackio,litert,openvino]"
    session.install(extras, "pandas", "ipython", "cleanlab")
    files = ("test_loggers.py", "test_display.py", "test_lightning_examples.py")
    places = [f"tests/training/{name}" for name in files]
    places += ["tests/inference/test_export.py", "tests/evaluation/test_label_errors.py"]
    run_pytest(session, backend, *places, "tests/test_history.py", "tests/test_typing.py")
    session.run("pyright", "-p", "tests/typed")
