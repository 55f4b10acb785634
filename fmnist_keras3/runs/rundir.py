"""The run directory: the files a run leaves."""

from __future__ import annotations

import os
import time
import warnings
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from fmnist_keras3.ground import files
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.runs import checkpoints
from fmnist_keras3.runs.lock import locked

CONFIG, METRICS, SUMMARY, MODEL = "config.yaml", "metrics.jsonl", "summary.json", "model.keras"
RAW_MODEL = "model_raw.keras"  # the weights that were trained, where the model holds an average
CHECKPOINTS, PLOTS = "checkpoints", "plots"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.npz"  # labels and logits of the test
LABEL_ERRORS = "label_errors.csv"  # labels of the test that may be wrong
TEMPERATURE, ROBUSTNESS = "temperature.json", "robustness.json"
# What a test writes besides, and what is made of it.
OF_A_TEST = [EVALUATION, PREDICTIONS, LABEL_ERRORS, TEMPERATURE, ROBUSTNESS, "report.html"]
OF_A_TEST += [f"{PLOTS}/{name}.png" for name in ("confusion_matrix", "calibration", "mistakes")]


def new_run_path(root: Path, model: str, backend: str, synthetic: bool = False) -> Path:
    """Make a folder below ``root`` that nobody has, named by time, model and backend.

    Of processes that start in the same second each gets its own. Raises UserError where ``root``
    cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-{model}-{backend}" + ("-synthetic" if synthetic else "")
    for number in count(1):
        path = root / (f"{name}-{number}" if number > 1 else name)
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"The folder for runs {root} cannot be written ({error.strerror}). Give --run_dir."
            ) from error
    raise AssertionError("count() does not end")


def has_run(path: Path) -> bool:
    """Tell whether there is a run in ``path``, or what is left of one."""
    return any(os.path.exists(path / name) for name in (CONFIG, METRICS, SUMMARY, CHECKPOINTS))


def check_new(path: Path) -> None:
    """Raise UserError if ``path`` cannot become a run directory: a run is in it, or unwritable."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"The run directory {path} is a file. Give another --run_dir.")
    if has_run(path):
        raise UserError(
            f"{path} already holds a run, and runs are never overwritten. Type --resume last "
            f"--run_dir {path} to continue it, or give another --run_dir."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The run directory {path} cannot be written ({error.strerror}). "
            "Give another --run_dir."
        ) from error


class RunDirectory:
    """Writes one run's files; a context that holds the directory's lock.

    A new run needs a directory without one (see `check_new`), a resumed one must be there. Raises
    UserError where that is not so, where another process writes the run, or nothing can be written.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resumed: bool = False) -> None:
        self.path, self.config, self.resumed = path, config, resumed
        self.checkpoints, self.plots = path / CHECKPOINTS, path / PLOTS
        self.summary: dict[str, Any] = {}
        self._lock = ExitStack()

    def __enter__(self) -> RunDirectory:
        if not self.resumed:
            check_new(self.path)
        with ExitStack() as lock:
            lock.enter_context(locked(self.path))
            if not self.resumed:
                check_new(self.path)  # another process may have made its run meanwhile
            self._check_places()
            self._lock = lock.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def _check_places(self) -> None:
        """Raise UserError for a folder in the place of a file now, not after hours of training."""
        pointers = (f"{CHECKPOINTS}/{name}.json" for name in ("last", "best"))
        for name in (CONFIG, METRICS, SUMMARY, MODEL, *pointers):
            if os.path.isdir(self.path / name):
                raise UserError(
                    f"{self.path / name} is a folder; a file is to be written there. Move it away."
                )

    def begin(self) -> None:
        """Write ``config.yaml``, with which the run can be repeated; read a resumed summary."""
        import yaml

        for folder in (self.path, self.checkpoints, self.plots):
            files.remove_temporary(folder)
        if self.resumed:
            summary = files.read_json(self.path / SUMMARY)
            self.summary = without_test(summary) if isinstance(summary, dict) else {}
            for name, value in ((SUMMARY, summary), (CONFIG, self._old_config())):
                # Without a checkpoint they need not be there yet: the run begins again.
                if not isinstance(value, dict) and checkpoints.saved(self.checkpoints):
                    path = self.path / name
                    warnings.warn(f"{path} is damaged or missing; written anew.", stacklevel=3)
        files.write(self.path / CONFIG, yaml.safe_dump(self.config, sort_keys=False).encode())

    def _old_config(self) -> Any:
        import yaml

        try:
            return yaml.safe_load((self.path / CONFIG).read_text())
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return None

    def update(self, **values: Any) -> None:
        """Set keys of the summary and write it."""
        self.summary.update(values)
        files.write_json(self.path / SUMMARY, self.summary)

    def write_model(self, model: Any, name: str = MODEL) -> Path:
        """Write ``model.keras``, which plain `keras.saving.load_model` reads."""
        from fmnist_keras3.layers import keras_private

        path, compiled = self.path / name, model.compiled
        with files.atomic(path) as beside, keras_private.without_tensorflow():
            try:
                model.get_compile_config()
            except Exception as error:  # Keras hands on whatever a loss of one's own raises
                warnings.warn(
                    f"{path} holds the model without loss, optimizer and metrics, because one of "
                    f"them cannot be stored ({error}). Call compile() again after loading it.",
                    stacklevel=3,
                )
                model.compiled = False
            try:
                model.save(beside)
            finally:
                model.compiled = compiled
        if name == MODEL:
            forget_test(self.path)
        return path


def forget_test(run: Path) -> None:
    """Remove what a test wrote, of weights before."""
    for path in (run / name for name in OF_A_TEST):
        if path.is_file():  # what else is there is the user's
            files.remove(path)


def without_test(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a run's summary without the figures of a test, of weights or examples before."""
    return {name: value for name, value in summary.items() if not name.startswith("test_")}
