"""A study: its storage, sampler and pruner of Optuna, and the work of one process on it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import TrialState

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.ground.files import write_errors
from fmnist_keras3.tuning.plan import Plan, new_plan, stored_plan

STUDIES = Path("studies")
SPEC = "fmnist"  # the attribute of a study that holds its plan
BEAT, GRACE = 20.0, 120.0  # seconds between signs of life; without any, after which a trial is lost
LOST = 1.0  # seconds between looks at the trials of others, in the end
DATABASE, JOURNAL = "study.db", "journal.log"


def folder_of(study: str) -> Path:
    """Return the folder of a study by its name, or the path that was given."""
    return Path(study) if "/" in study else STUDIES / study


def open_storage(text: str | None, folder: Path) -> Any:
    """Return the Optuna storage of ``--storage``; raises UserError where it cannot be reached."""
    from optuna import storages
    from optuna.storages import journal

    if text is None:
        text = "journal" if (folder / JOURNAL).exists() else f"sqlite:///{folder / DATABASE}"
    try:
        if text == "journal" or text.startswith("journal:"):
            path = Path(text.partition(":")[2] or folder / JOURNAL)
            with write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                return storages.JournalStorage(journal.JournalFileBackend(str(path)))
        if text.startswith("grpc:"):
            return _proxy(text)
        if "://" in text:
            more = {"connect_args": {"timeout": 100}} if text.startswith("sqlite") else {}
            return storages.RDBStorage(text, engine_kwargs=more)
    except UserError:
        raise
    except Exception as error:  # of SQLAlchemy and of any database's driver
        first = str(error).strip().splitlines()[0]
        driver = isinstance(error, ImportError)
        cure = "Install the driver of the database" if driver else "Does the server run there?"
        if driver and "psycopg2" in first:
            cure = "Type: pip install psycopg2-binary"
        raise UserError(f"The storage {hidden(text)} cannot be opened: {first}. {cure}") from None
    raise UserError(
        f"The storage is {text!r}; it must be journal, journal:FILE, grpc://HOST:PORT or a "
        "database's URL. Type --storage postgresql://USER@HOST/DATABASE"
    )


def hidden(text: str) -> str:
    """Return the text of a storage without its password."""
    return re.sub(r"://([^:/@]*):[^@]*@", r"://\1:***@", text)


def _proxy(text: str) -> Any:
    from optuna.storages import GrpcStorageProxy

    match = re.fullmatch(r"grpc://([^:/]+):(\d+)/?", text)
    if match is None:
        raise UserError(f"The storage is {text!r}. Type --storage grpc://HOST:13000")
    with quiet():
        storage = GrpcStorageProxy(host=match[1], port=int(match[2]))
    try:
        storage.wait_server_ready(timeout=10)
    except ConnectionError:
        raise UserError(
            f"No storage answers at {text}. Start one there with "
            "optuna.storages.run_grpc_proxy_server(storage, host=..., port=...)."
        ) from None
    return storage


def open_study(
    study: str,
    storage: str | None,
    given: Mapping[str, Any],
    params: Any,
    chosen: Mapping[str, Any],
    typed: Mapping[str, Any],
    backend: str,
) -> tuple[optuna.Study, Plan, Path]:
    """Return the study of this name, a new one or one to go on with, its plan and its folder.

    What a new study would be is checked before anything is made. Raises UserError for a plan that
    cannot be, and for one that is not that of the study.
    """
    folder = folder_of(study)
    name = folder.resolve().name
    new = storage is None and not any((folder / f).exists() for f in (DATABASE, JOURNAL))
    plan = new_plan(given, params, chosen, typed, backend) if new or params else None
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        opened = open_storage(storage, folder)
    except UserError:
        with contextlib.suppress(OSError):  # there is a study in it
            folder.rmdir()
        raise
    with turn(folder):
        try:
            with quiet():
                found = optuna.load_study(study_name=name, storage=opened)
        except KeyError:
            plan = plan or new_plan(given, params, chosen, typed, backend)
            with quiet():
                made = optuna.create_study(
                    storage=opened, study_name=name, directions=plan.directions
                )
            made.set_user_attr(SPEC, plan.spec())
            return made, plan, folder
    spec = found.user_attrs.get(SPEC)
    if spec is None:
        raise UserError(
            f"The storage has a study {name!r} that `fmnist tune` did not make. Give another "
            "name as --study."
        )
    return found, stored_plan(spec, given, params, typed, backend, name), folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna say nothing but errors, and warn of nothing that it calls experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def turn(folder: Path) -> FileLock:
    """Return the lock under which trials begin, so that there are as many as there are to be."""
    return FileLock(folder / ".lock", thread_local=False, fallback_to_soft=False)


class Sampler(optuna.samplers.BaseSampler):
    """Optuna's sampler, with random numbers that follow from seed and trial alone.

    So processes draw different values, and a study that was stopped goes on with the same.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan, self._seed = plan, seed
        self._inner = self._made(seed)

    def _made(self, seed: int) -> Any:
        from optuna import samplers

        name, space = self._plan.sampler, self._plan.space
        if name == "tpe":
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        if name == "grid":
            grid = {name: list(param.choices) for name, param in space.items()}
            return samplers.GridSampler(grid, seed=self._seed)
        kinds = {"gp": "GPSampler", "cmaes": "CmaEsSampler", "random": "RandomSampler"}
        return getattr(samplers, kinds[name])(seed=seed)

    def before_trial(self, study, trial):
        import numpy as np

        state = np.random.SeedSequence((self._seed, trial.number)).generate_state(1)
        with quiet():
            self._inner = self._made(int(state[0]))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study, trial):
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study, trial, state, values):
        self._inner.after_trial(study, trial, state, values)


def make_sampler(plan: Plan) -> Sampler:
    """Return the sampler of a plan."""
    with quiet():
        return Sampler(plan, plan.settings["seed"])


def make_pruner(plan: Plan) -> Any:
    """Return Optuna's pruner of a plan."""
    from optuna import pruners

    steps = plan.epochs * plan.seeds
    with quiet():
        return {
            "none": pruners.NopPruner,
            "median": lambda: pruners.MedianPruner(n_warmup_steps=max(1, plan.epochs // 4)),
            "hyperband": lambda: pruners.HyperbandPruner(max_resource=steps),
            "halving": pruners.SuccessiveHalvingPruner,
            "wilcoxon": pruners.WilcoxonPruner,
        }[plan.pruner]()


def counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of a study without those that another one went on with."""
    trials = study.get_trials(deepcopy=False)
    again = {n for trial in trials for n in trial.system_attrs.get("retry_history", ())}
    return [trial for trial in trials if trial.number not in again]


def enqueue_again(study: optuna.Study, number: int) -> None:
    """Put a trial back into the queue: with its values, and the run directory it goes on in."""
    if all(trial.number != number for trial in counted(study)):
        return
    again = optuna.storages.RetryHeartbeatStaleTrialCallback  # Optuna's, which we call ourselves
    with quiet():
        again(inherit_intermediate_values=True)(study, study.get_trials(deepcopy=True)[number])


class Worker:
    """The work of one process on a study: trial after trial, until there are enough.

    ``run(trial, folder)`` gives the objectives of a trial. What a process that died leaves is
    taken up: on this machine a lock says that it died, elsewhere that it gave no sign of life.
    """

    def __init__(
        self,
        study: optuna.Study,
        plan: Plan,
        folder: Path,
        run: Callable[[optuna.Trial, Path], list[float]],
    ) -> None:
        self.study, self.plan, self.folder, self._run = study, plan, folder, run
        self._turn, self._host = turn(folder), socket.gethostname()
        self._seen: dict[int, tuple[Any, float]] = {}  # of others: sign of life, and since when
        self._own: FileLock | None = None

    def work(self, *callbacks: Callable[[Any, Any], None], errors: Any = ()) -> None:
        """Run trials; the ``callbacks`` are Optuna's. In the end, wait for those of others."""
        study, ends = self.study, time.monotonic() + (self.plan.timeout or float("inf"))
        while time.monotonic() < ends:
            with self._turn:
                self._take_up()
                trials = counted(study)
                waiting = any(trial.state == TrialState.WAITING for trial in trials)
                todo = waiting or len(trials) < self.plan.most
                if todo:
                    try:
                        study.optimize(
                            self._objective, n_trials=1, catch=errors, callbacks=callbacks
                        )
                    finally:
                        self._let_go()
            if not todo:
                if all(trial.state.is_finished() for trial in trials):
                    break
                time.sleep(LOST)

    def _objective(self, trial: optuna.Trial) -> list[float]:
        for param in self.plan.space.values():
            param.suggest(trial)
        place = trial.user_attrs.get("run_dir") or f"trials/trial-{trial.number:04}"
        folder = self.folder / place
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._own = _lock_of(folder)
        self._own.acquire(timeout=10)
        trial.set_user_attr("run_dir", place)
        trial.set_user_attr("host", self._host)
        self._turn.release()
        with _SignsOfLife(trial):
            try:
                return self._run(trial, folder)
            except KeyboardInterrupt:
                enqueue_again(self.study, trial.number)
                raise

    def _let_go(self) -> None:
        if self._own is not None:
            self._own.release()
            self._own = None

    def _take_up(self) -> None:
        """Put trials of processes that died back into the queue."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._lost(trial):
                enqueue_again(self.study, trial.number)  # first: who dies here loses no trial
                with contextlib.suppress(ValueError):  # another process was faster
                    self.study.tell(trial.number, state=TrialState.FAIL)

    def _lost(self, trial: optuna.trial.FrozenTrial) -> bool:
        host, place = (trial.user_attrs.get(name, "") for name in ("host", "run_dir"))
        if host == self._host:
            lock = _lock_of(self.folder / place)
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                return False
            lock.release()
            return True
        sign = trial.user_attrs.get("alive")
        if self._seen.get(trial.number, (None, 0.0))[0] != sign or trial.number not in self._seen:
            self._seen[trial.number] = (sign, time.monotonic())
        return time.monotonic() - self._seen[trial.number][1] > GRACE


def _lock_of(folder: Path) -> FileLock:
    return FileLock(folder / ".worker", thread_local=False, fallback_to_soft=False)


class _SignsOfLife:
    """A context in which a trial's attribute ``alive`` tells the time, every `BEAT` seconds."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial, self._done = trial, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fmnist-signs-of-life")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # a storage that is away for a while
                self._trial.set_user_attr("alive", time.time())
            if self._done.wait(BEAT):
                return
