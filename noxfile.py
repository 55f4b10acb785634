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
    """The default suite: generated data and tiny models; real data where FMNIST_DATA_DIR is."""
    session.install(".[test]")
    run_pytest(session, backend)


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
    """Our Trainer beside plain Keras; `-- --quick`, `-- --peers`, `-- study RECIPE`."""
    session.install(".[peers]" if "--peers" in session.posargs else ".")
    session.run("python", "-m", "bench", *session.posargs, env={"PYTHONDONTWRITEBYTECODE": ""})
